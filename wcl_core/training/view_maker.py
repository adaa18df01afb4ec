"""The views of a batch: two random views and, if the spec has them, small crops.

    host thread, one step ahead:  parameters of each view ──┐
                                  images of the batch ──────┴── Inputs ── views     in the step

Every view is a function of (seed, epoch, step, number), so a checkpoint keeps no state of views.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass

import torch
from torch import Tensor

from wcl_core.config import AugmentConfig, PretrainSpec
from wcl_core.distributed import Ranks
from wcl_core.images.augment import fixed_view_of, view_of
from wcl_core.images.view_parameters import Operations, ViewParameters, draw_parameters
from wcl_core.methods.views import Views
from wcl_core.transfer import send

Parameters = tuple[ViewParameters, ...]  # of each view and each small crop


@dataclass(frozen=True)
class Inputs:
    """The tensors that a step reads; their shapes are those of every step of the run.

    Attributes:
        images: (B / ranks, 3, H, W) uint8 on the device, this rank's part of the batch.
        parameters: of this rank's views, on the CPU; for a captured step, on the device.
        index: (B,) int64 on the device, the place of each image of the global batch in the train split.
    """

    images: Tensor
    parameters: Parameters
    index: Tensor

    def tensors(self) -> list[Tensor]:
        """Return all tensors, in the order of the attributes."""
        drawn = [tensor for each in self.parameters for tensor in (each.values, each.masks)]
        return [self.images, *drawn, self.index]

    def on_device(self) -> Inputs:
        """Return copies of all tensors on the device."""
        device = self.images.device
        placed = tuple(each.map(lambda tensor: tensor.to(device, copy=True)) for each in self.parameters)
        return Inputs(self.images.clone(), placed, self.index.clone())


MakeViews = Callable[[Inputs], Views]


class ViewMaker:
    """The maker of this rank's views of a step.

    Args:
        config: the spec, with sizes, augmentations and the seed.
        ranks: this rank's part of the global batch.
        device: of the training.
        sides: height and width of the images.
        steps_per_epoch: number of steps of an epoch; the first epochs use the weak augmentation.
        memory_format: memory format of the network.
    """

    def __init__(
        self,
        config: PretrainSpec,
        ranks: Ranks,
        device: torch.device,
        sides: tuple[int, int],
        steps_per_epoch: int,
        memory_format: torch.memory_format,
    ) -> None:
        self._config, self._ranks, self._sides, self._memory_format = config, ranks, sides, memory_format
        self._is_cuda, self._steps_per_epoch = device.type == "cuda", steps_per_epoch
        self._operations = Operations.of(self._augmentation(0), self._augmentation(config.epochs - 1))

    def ahead(self, steps: range) -> Iterator[Parameters]:
        """Yield the parameters of each step, while a thread draws those of the next one."""
        with ThreadPoolExecutor(1, thread_name_prefix="views") as pool:
            waiting: Future[Parameters] | None = None
            for step in steps:
                following = pool.submit(self.parameters, step)
                if waiting is not None:
                    yield waiting.result()
                waiting = following
            if waiting is not None:
                yield waiting.result()

    def parameters(self, step: int) -> Parameters:
        """Draw the parameters of two views, numbers 0 and 1, and of the small crops, numbers from 2 on [D].

        For a GPU they are in pinned memory, so that no copy waits.

        Args:
            step: number of updates before this one.
        """
        crops, epoch = self._config.multi_crop, step // self._steps_per_epoch
        augmentation = self._augmentation(epoch)
        drawn = [self._drawn(augmentation, (epoch, step, number)) for number in (0, 1)]
        if crops.crops:
            small = augmentation.model_copy(update={"scale_min": crops.scale_min})
            numbers = range(2, 2 + crops.crops)
            drawn += [self._drawn(small, (epoch, step, number), crops.scale_max) for number in numbers]
        return tuple(each.map(Tensor.pin_memory) for each in drawn) if self._is_cuda else tuple(drawn)

    def views(self, inputs: Inputs) -> Views:
        """Return two views and the small crops of a step whose parameters are on the CPU."""
        return self._views(inputs, view_of)

    def fixed_views(self, compiled: Callable[[Callable[..., Tensor]], Callable[..., Tensor]]) -> MakeViews:
        """Return a function like `views`, with shapes that depend on no value.

        Args:
            compiled: returns the compiled form of a function; called once.
        """
        operations, memory_format = self._operations, self._memory_format

        @compiled
        def view(images: Tensor, values: Tensor, masks: Tensor, side: int) -> Tensor:
            x = fixed_view_of(images, ViewParameters(values, masks, operations), side)
            return x.contiguous(memory_format=memory_format)

        def on_device(images: Tensor, each: ViewParameters, side: int) -> Tensor:
            return view(images, send(each.values, images.device), send(each.masks, images.device), side)

        return lambda inputs: self._views(inputs, on_device)

    def _views(self, inputs: Inputs, view: Callable[[Tensor, ViewParameters, int], Tensor]) -> Views:
        side = self._config.data.image_size
        sides = (side, side, *[self._config.multi_crop.side(side)] * self._config.multi_crop.crops)
        first, second, *crops = (
            view(inputs.images, each, side).contiguous(memory_format=self._memory_format)
            for each, side in zip(inputs.parameters, sides, strict=True)
        )
        return Views(first, second, torch.stack(crops, dim=1) if crops else None)

    def _augmentation(self, epoch: int) -> AugmentConfig:
        config = self._config
        return config.weak_augmentation if epoch < config.weak_augmentation_epochs else config.augmentation

    def _drawn(self, config: AugmentConfig, place: tuple[int, int, int], scale_max: float = 1.0) -> ViewParameters:
        epoch, step, number = place
        part = self._config.images_per_step // self._ranks.size
        where = {"seed": self._config.seed, "epoch": epoch, "step": step, "view": number}
        return draw_parameters((part, *self._sides), config, ranks=self._ranks, scale_max=scale_max, **where)
