"""Memory and arithmetic of a training, from its spec alone: for estimates before a run, and after a failure.

    weights, momentum encoder, optimiser, their bfloat16 copies ─┐
    views of a step (float32), images of the dataset ────────────┼─► bytes at the end of a step's forward pass
    tensors that the backward pass needs, layer by layer ────────┘

A convolution keeps its input, which is the last ReLU's output, and batch norm keeps its own input; so each pair of them
keeps two maps.  The bytes are those of PyTorch's autograd, as a test counts them.  Plugins are not counted.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

from wcl_core.config.network import BASIC, BOTTLENECK, RESIDUAL, TRANSFORMERS, VISION
from wcl_core.config.pretrain import PretrainSpec

GPU_OVERHEAD_BYTES: Final = 7 << 27  # 0.9 GiB: CUDA's context, libraries, and blocks that the allocator cannot use
CPU_OVERHEAD_BYTES: Final = 5 << 27  # of the process itself
SHARE: Final = 0.92  # of a device's memory that a run may plan with
_SLOTS = {"sgd": 1, "lars": 1, "adamw": 2}


def process_bytes(spec: PretrainSpec, batch_size: int, *, is_gpu: bool, images: int = 0) -> int | None:
    """Return the bytes that a training process needs at its peak; None for a backbone or method from a plugin.

    Args:
        spec: of the run; its sizes of batches count only where they are numbers.
        batch_size: images a step, over all processes.
        is_gpu: whether it trains on a GPU.
        images: training images that lie in the device's memory.
    """
    if spec.backbone.name not in RESIDUAL + TRANSFORMERS or spec.method not in ("wcl", "simclr"):
        return None
    part = max(1, batch_size // spec.num_ranks)
    micro = spec.chunk_size
    item = 2 if spec.precision == "bfloat16" or (spec.precision == "auto" and is_gpu) else 4
    side, crops = spec.data.image_size, spec.multi_crop
    kept = 2 * _kept_bytes(spec, side, item)
    if crops.crops:
        kept += crops.crops * _kept_bytes(spec, crops.side(side), item)
    weights = 4 * num_weights(spec)
    static = weights * (1 + (spec.momentum_decay is not None) + _SLOTS[spec.optimizer.name])
    static += 3 * side**2 * images + (GPU_OVERHEAD_BYTES if is_gpu else CPU_OVERHEAD_BYTES)
    views = 12 * (2 * side**2 + crops.crops * crops.side(side) ** 2) * part
    copies = weights // 2 if item == 2 else 0
    forward = views + copies + kept * min(part, micro or part) + (weights if micro else 0)
    return static + max(forward, 3 * weights)


def image_cost(spec: PretrainSpec) -> float | None:
    """Return the multiplications for an image of a step, forward and backward; None for a backbone from a plugin.

    Those of the heads and the loss are left out: they are few beside those of the backbone.
    """
    if spec.backbone.name not in RESIDUAL + TRANSFORMERS:
        return None
    side, crops = spec.data.image_size, spec.multi_crop
    forward = 2 * _multiplications(spec, side)
    trained = forward + (crops.crops * _multiplications(spec, crops.side(side)) if crops.crops else 0)
    return 3.0 * trained + (forward if spec.momentum_decay is not None else 0)


def _multiplications(spec: PretrainSpec, side: int) -> int:
    """Return the multiplications of a forward pass of the backbone for a view of a side."""
    if spec.backbone.name in VISION:
        layers, _, c = VISION[spec.backbone.name]
        patch = spec.backbone.patch_size
        tokens = (side // patch) ** 2 + 1
        return tokens * (3 * patch**2 * c + layers * (12 * c**2 + 2 * tokens * c))
    return sum(each.multiplications for each in _convolutions(spec, side))


def largest_batch(spec: PretrainSpec, available: int, *, is_gpu: bool, images: int = 0, most: int = 65_536) -> int:
    """Return the largest `batch_size` that fits into so many bytes for each process, a multiple of the processes.

    Returns:
        At most `most`; 0 if not even the smallest batch fits, or nothing is known of the backbone.
    """
    low, high = 0, most // spec.num_ranks
    while low < high:
        middle = (low + high + 1) // 2
        needed = process_bytes(spec, middle * spec.num_ranks, is_gpu=is_gpu, images=images)
        if needed is None:
            return 0
        low, high = (middle, high) if needed <= available else (low, middle - 1)
    return low * spec.num_ranks if low * spec.num_ranks >= 2 else 0


def advice(spec: PretrainSpec, available: int, *, is_gpu: bool, images: int = 0) -> str | None:
    """Return a sentence with the needed and the available bytes, and the largest batch that fits; None if unknown.

    Args:
        spec: of the run, with a number as its batch size.
        available: bytes of the device, for each process.
        is_gpu, images: as for `process_bytes`.
    """
    needed = process_bytes(spec, spec.images_per_step, is_gpu=is_gpu, images=images)
    if needed is None:
        return None
    sizes = f"a process needs about {needed / 2**30:.1f} GiB, and the device has {available / 2**30:.1f} GiB"
    planned = int(SHARE * available)
    largest = largest_batch(spec, planned, is_gpu=is_gpu, images=images, most=spec.images_per_step - 1)
    if largest:
        return f"{sizes}; use a batch_size of at most {largest}"
    return f"{sizes}; use a micro_batch_size, a smaller backbone or a smaller data.image_size"


def num_weights(spec: PretrainSpec) -> int:
    """Return the number of weights of backbone and heads."""
    name, side = spec.backbone.name, spec.data.image_size
    if name in VISION:
        layers, _, c = VISION[name]
        patch = spec.backbone.patch_size
        features, count = c, layers * (12 * c**2 + 13 * c) + (3 * patch**2 + 1) * c + (side // patch) ** 2 * c + 4 * c
    else:
        convolutions = list(_convolutions(spec, side))
        features = convolutions[-1].channels
        count = sum(each.weights + 2 * each.channels for each in convolutions)
    hidden, out = spec.heads.hidden_dim, spec.heads.output_dim
    head = features * hidden + hidden**2 + hidden * out + 6 * hidden + out
    return count + _num_heads(spec) * head


def _num_heads(spec: PretrainSpec) -> int:
    return 2 if spec.method == "wcl" else 1


def _kept_bytes(spec: PretrainSpec, side: int, item: int) -> int:
    """Return the bytes of an image that the backward pass keeps, of one view of this side; `item` bytes a value."""
    hidden, out = spec.heads.hidden_dim, spec.heads.output_dim
    head = item * 4 * hidden + 4 * (hidden + 3 * out)
    if spec.backbone.name in VISION:
        layers, heads, c = VISION[spec.backbone.name]
        tokens = (side // spec.backbone.patch_size) ** 2 + 1
        own = 3 * side**2 * item + tokens * c * layers * _VIT_BYTES[item] + tokens * heads * layers * 4
    else:
        own = item * 3 * side**2 + sum(item * each.kept + each.indices for each in _convolutions(spec, side))
    return own + _num_heads(spec) * head


# Bytes that a layer of a transformer keeps for each token and channel: residual stream and layer norms in float32.
_VIT_BYTES = {2: 35, 4: 64}


class _Convolution:
    """A convolution with its batch norm: what it keeps for an image.

    Attributes:
        channels: of its output.
        weights: of its kernel.
        kept: values that the backward pass keeps: its output, and the ReLU's if there is one.
        indices: bytes of the places of the maxima, behind the stem.
        multiplications: of a forward pass.
    """

    def __init__(self, inputs: int, channels: int, kernel: int, side: int, *, relu: bool, pooled: int = 0) -> None:
        self.channels, self.weights = channels, inputs * channels * kernel**2
        self.kept = channels * (side**2 * (2 if relu else 1) + pooled**2)
        self.indices = 8 * channels * pooled**2
        self.multiplications = self.weights * side**2


def _convolutions(spec: PretrainSpec, side: int) -> Iterator[_Convolution]:
    """Yield the convolutions of a residual network for images of a side, in order; shortcuts before the last one."""
    name, stem = spec.backbone.name, spec.backbone.stem
    width = spec.backbone.width
    kernel = 7 if stem == "imagenet" else 3
    side = side if stem == "small" else -(-side // 2)
    pooled = -(-side // 2) if stem == "imagenet" else 0
    yield _Convolution(3, width, kernel, side, relu=True, pooled=pooled)
    side = pooled or side
    depths, widening = BOTTLENECK.get(name, (BASIC.get(name, ()), 1))
    inputs = width
    for stage, depth in enumerate(depths):
        planes = width * 2**stage
        for block in range(depth):
            before, side = side, -(-side // 2) if stage and block == 0 else side
            outputs = planes * 4 if name in BOTTLENECK else planes
            if inputs != outputs or before != side:
                yield _Convolution(inputs, outputs, 1, side, relu=False)
            if name in BOTTLENECK:
                inner = planes * widening
                yield _Convolution(inputs, inner, 1, before, relu=True)
                yield _Convolution(inner, inner, 3, side, relu=True)
                yield _Convolution(inner, outputs, 1, side, relu=True)
            else:
                yield _Convolution(inputs, outputs, 3, side, relu=True)
                yield _Convolution(outputs, outputs, 3, side, relu=True)
            inputs = outputs
