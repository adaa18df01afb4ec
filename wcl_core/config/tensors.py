"""Names, types and shapes of a backbone's tensors, from its part of a spec; a test compares them with PyTorch's."""

from __future__ import annotations

from collections.abc import Iterator

from wcl_core.config.network import BASIC, BOTTLENECK, VISION, BackboneConfig

Shape = tuple[int, ...]


def backbone_tensors(config: BackboneConfig, image_size: int) -> dict[str, tuple[str, Shape]]:
    """Return the type, as safetensors calls it, and the shape of each tensor by its name.

    Args:
        config: of a backbone of this project, not of a plugin.
        image_size: side of the images in pixels; only transformers depend on it.
    """
    shapes = dict(_transformer(config, image_size) if config.name in VISION else _residual(config))
    return {name: ("I64" if name.endswith("num_batches_tracked") else "F32", shape) for name, shape in shapes.items()}


def _residual(config: BackboneConfig) -> Iterator[tuple[str, Shape]]:
    is_bottleneck = config.name in BOTTLENECK
    depths, widening = BOTTLENECK[config.name] if is_bottleneck else (BASIC[config.name], 1)
    kernel, inputs = 7 if config.stem == "imagenet" else 3, config.width
    yield "conv1.weight", (inputs, 3, kernel, kernel)
    yield from _batch_norm("bn1", inputs)
    for stage, depth in enumerate(depths):
        planes = config.width * 2**stage
        outputs = planes * 4 if is_bottleneck else planes
        for block in range(depth):
            prefix = f"layer{stage + 1}.{block}."
            if is_bottleneck:
                inner = planes * widening
                convolutions = [(inputs, inner, 1), (inner, inner, 3), (inner, outputs, 1)]
            else:
                convolutions = [(inputs, outputs, 3), (outputs, outputs, 3)]
            for number, (before, after, side) in enumerate(convolutions, start=1):
                yield f"{prefix}conv{number}.weight", (after, before, side, side)
                yield from _batch_norm(f"{prefix}bn{number}", after)
            if block == 0 and (stage > 0 or inputs != outputs):
                yield f"{prefix}downsample.0.weight", (outputs, inputs, 1, 1)
                yield from _batch_norm(f"{prefix}downsample.1", outputs)
            inputs = outputs


def _batch_norm(name: str, channels: int) -> Iterator[tuple[str, Shape]]:
    for part in ("weight", "bias", "running_mean", "running_var"):
        yield f"{name}.{part}", (channels,)
    yield f"{name}.num_batches_tracked", ()


def _transformer(config: BackboneConfig, image_size: int) -> Iterator[tuple[str, Shape]]:
    layers, _, c = VISION[config.name]
    yield "class_token", (1, 1, c)
    yield "encoder.pos_embedding", (1, (image_size // config.patch_size) ** 2 + 1, c)
    yield from _linear("conv_proj", (c, 3, config.patch_size, config.patch_size))
    for layer in range(layers):
        prefix = f"encoder.layers.encoder_layer_{layer}."
        yield from _linear(f"{prefix}ln_1", (c,))
        yield f"{prefix}self_attention.in_proj_weight", (3 * c, c)
        yield f"{prefix}self_attention.in_proj_bias", (3 * c,)
        yield from _linear(f"{prefix}self_attention.out_proj", (c, c))
        yield from _linear(f"{prefix}ln_2", (c,))
        yield from _linear(f"{prefix}mlp.0", (4 * c, c))
        yield from _linear(f"{prefix}mlp.3", (c, 4 * c))
    yield from _linear("encoder.ln", (c,))


def _linear(name: str, shape: Shape) -> Iterator[tuple[str, Shape]]:
    yield f"{name}.weight", shape
    yield f"{name}.bias", shape[:1]
