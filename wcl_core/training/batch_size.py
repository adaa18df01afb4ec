"""The search for the batch that a device holds: `batch_size: auto` and `micro_batch_size: auto`.

    2, 4, 8, ... until a batch does not fit ── bisection between the last two ── the largest that fits

On a GPU a batch fits if a training step with it leaves a margin of the memory.  On a CPU nothing can be tried, because
the kernel kills a process that takes too much; there the tensors that a small step keeps are counted.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

from wcl_core import checkpoint, limits
from wcl_core.config import PretrainSpec
from wcl_core.config.memory import CPU_OVERHEAD_BYTES, SHARE
from wcl_core.distributed import SINGLE, Ranks
from wcl_core.methods import build_method
from wcl_core.methods.base import Batch
from wcl_core.methods.views import Views
from wcl_core.networks.batch_norm import sync_batch_norm
from wcl_core.networks.model import Model
from wcl_core.stop import check
from wcl_core.training.learner import Learner
from wcl_core.training.optim import build_optimizer

MOST_IMAGES = 4096
LEAST_STEPS = 16  # of an epoch


def sizes(
    config: PretrainSpec, num_images: int, device: torch.device, ranks: Ranks, resume: Path | None
) -> dict[str, int | None]:
    """Return the fields of the spec that are `auto`, with the sizes of `resume`, or those that the device holds.

    Args:
        config: the spec.
        num_images: of an epoch.
        device: the device of this process; that of the first rank decides for all.
        ranks: this process's place among the ranks.
        resume: the checkpoint to continue from.
    """
    names = [name for name in ("batch_size", "micro_batch_size") if getattr(config, name) == "auto"]
    if resume is not None:
        saved = checkpoint.read(resume).spec
        return {name: getattr(saved, name) for name in names}
    size = _first_ranks(config, num_images, device, ranks) if ranks.is_first else 0
    size = ranks.agreed(size)
    return dict.fromkeys(names, size if size else None)


def _first_ranks(config: PretrainSpec, num_images: int, device: torch.device, ranks: Ranks) -> int:
    """Return the batch size, or the micro-batch size, 0 if none is needed."""
    fits = _fits_gpu(config, device) if device.type == "cuda" else _fits_cpu(config, num_images, ranks)
    if config.batch_size == "auto":
        most = min(MOST_IMAGES, max(num_images // LEAST_STEPS, 2 * ranks.size, _least(config)))
        size = largest(lambda part: fits(part, None), most // ranks.size) * ranks.size
        return max(size, -(-_least(config) // ranks.size) * ranks.size)
    part = config.images_per_step // ranks.size
    if fits(part, None):
        return 0
    return max((size for size in divisors(part) if fits(part, size)), default=2)


def _least(config: PretrainSpec) -> int:
    """Return the smallest batch that the method can use: more images than the neighbours of one."""
    return config.multi_crop.neighbours + 1 if config.multi_crop.crops else 2


def divisors(part: int) -> list[int]:
    """Return the divisors of a part of a batch from 2 on, but the part itself: at most twelve, the largest ones."""
    return [size for size in range(2, part // 2 + 1) if part % size == 0][-12:]


def largest(fits: Callable[[int], bool], most: int) -> int:
    """Return the largest part of a batch that fits, by doubling and then by bisection to an eighth.

    Args:
        fits: whether a part of so many images fits.
        most: upper bound of the result.

    Returns:
        At least 2, since a smaller batch cannot train.
    """
    low = min(2, most)
    while low < most and fits(min(2 * low, most)):
        low = min(2 * low, most)
    high = min(2 * low, most)  # does not fit, unless it is `low`
    step = max(1, low // 8)
    while high - low > step:
        middle = low + max(1, (high - low) // (2 * step)) * step
        low, high = (middle, high) if fits(middle) else (low, middle)
    return max(low, 2)


# --- GPU -------------------------------------------------------------------------------------------------------------


def _fits_gpu(config: PretrainSpec, device: torch.device) -> Callable[[int, int | None], bool]:
    available = SHARE * torch.cuda.mem_get_info(device)[0]

    def fits(part: int, chunk: int | None) -> bool:
        check()
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_reserved(device)
        try:
            _step(config, part, chunk, device)
            return torch.cuda.max_memory_reserved(device) - before <= available
        except torch.OutOfMemoryError:
            return False
        finally:
            torch.cuda.empty_cache()

    return fits


def _step(config: PretrainSpec, part: int, chunk: int | None, device: torch.device) -> None:
    """Train one step of a new network on random views, as one process alone."""
    config = config.model_copy(update={"batch_size": part, "micro_batch_size": chunk, "processes": 1, "nodes": 1})
    learner = _learner(config, device)
    optimizer = build_optimizer(config, learner.model)
    learner.gradients(_views(config, part, device), Batch(torch.arange(part, device=device), 0, 2))
    optimizer.step()
    learner.follow()
    torch.cuda.synchronize(device)


def _learner(config: PretrainSpec, device: torch.device) -> Learner:
    method = build_method(config)
    layout = torch.channels_last if device.type == "cuda" else torch.contiguous_format
    is_bfloat16 = config.precision == "bfloat16" or (config.precision == "auto" and device.type == "cuda")

    def build() -> Model:
        return sync_batch_norm(Model(config, method), SINGLE, device).to(device).to(memory_format=layout)

    return Learner(config, method, build, is_bfloat16=is_bfloat16)


def _views(config: PretrainSpec, part: int, device: torch.device) -> Views:
    def images(side: int) -> Tensor:
        drawn = torch.rand(part, 3, side, side, device=device)
        return drawn.contiguous(memory_format=torch.channels_last) if device.type == "cuda" else drawn

    side, crops = config.data.image_size, config.multi_crop
    if not crops.crops:
        return Views(images(side), images(side))
    small = torch.stack([images(crops.side(side)) for _ in range(crops.crops)], dim=1)
    return Views(images(side), images(side), small)


# --- CPU -------------------------------------------------------------------------------------------------------------


def _fits_cpu(config: PretrainSpec, num_images: int, ranks: Ranks) -> Callable[[int, int | None], bool]:
    available = SHARE * limits.memory_bytes() * config.nodes / ranks.size
    static, kept, views = _counted(config)
    static += CPU_OVERHEAD_BYTES + 3 * config.data.image_size**2 * num_images
    return lambda part, chunk: static + kept * (chunk or part) + views * part <= available


def _counted(config: PretrainSpec) -> tuple[float, float, float]:
    """Return the bytes that do not depend on the batch, those that an image keeps, and those of its views."""
    count = max(4, _least(config))
    config = config.model_copy(update={"batch_size": count, "micro_batch_size": None, "processes": 1, "nodes": 1})
    learner = _learner(config, torch.device("cpu"))
    weights = sum(each.untyped_storage().nbytes() for each in learner.model.parameters())
    own = {each.untyped_storage().data_ptr() for each in (*learner.model.parameters(), *learner.model.buffers())}
    kept: dict[int, Tensor] = {}

    def keep(tensor: Tensor) -> Tensor:
        if (place := tensor.untyped_storage().data_ptr()) not in own:
            kept[place] = tensor
        return tensor

    views = _views(config, count, torch.device("cpu"))
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        learner.gradients(views, Batch(torch.arange(count), 0, 2))
    bytes_kept = sum(each.untyped_storage().nbytes() for each in kept.values())
    # Weights, gradients, two slots of the optimiser, a momentum encoder, copies in another precision.
    return 6.0 * weights, bytes_kept / count, config.view_bytes / count
