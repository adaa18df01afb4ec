"""Random views of 32 pixels: ours batched on all cores, against torchvision's PIL pipeline with a process a core."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from functools import cache
from multiprocessing import get_context

import torch
from measure.rounds import Row, faster, interleaved, seconds
from PIL import Image
from torchvision import transforms

from wcl_core.config import AugmentConfig
from wcl_core.images.augment import MEAN, STD, random_view

SIDE, OURS, THEIRS_EACH = 32, 2048, 256
GOAL = 10.0


@cache
def pipeline() -> transforms.Compose:
    """Return the strong augmentation of the released code, with PIL for all operations on images."""
    return transforms.Compose(
        [
            transforms.RandomResizedCrop(SIDE, scale=(0.08, 1.0)),
            transforms.RandomApply([transforms.ColorJitter(0.8, 0.8, 0.8, 0.2)], p=0.8),
            transforms.RandomGrayscale(0.2),
            transforms.RandomApply([transforms.GaussianBlur(13, (0.1, 2.0))], p=0.5),
            transforms.RandomHorizontalFlip(),
            transforms.ToTensor(),
            transforms.Normalize(MEAN, STD),
        ]
    )


@cache
def pictures() -> list[Image.Image]:
    pixels = torch.randint(0, 256, (THEIRS_EACH, SIDE, SIDE, 3), dtype=torch.uint8)
    return [Image.fromarray(image.numpy()) for image in pixels]


def cpu_seconds(work: Callable[[], object]) -> float:
    start = time.process_time()
    work()
    return time.process_time() - start


def one_by_one(_: int) -> float:
    torch.set_num_threads(1)  # in a process of the pool
    return float(torch.stack([pipeline()(picture) for picture in pictures()]).mean())


def rows(rounds: int, skipped: list[str]) -> list[Row]:
    """Return the rows: CPU time on one core, valid on a busy machine too, and time on all cores if they are free."""
    cores = os.cpu_count() or 1
    images = torch.randint(0, 256, (OURS, 3, SIDE, SIDE), dtype=torch.uint8)
    config = AugmentConfig()

    def batched() -> None:
        random_view(images, config, SIDE, seed=0, epoch=0, step=0, view=0)

    table_rows = []
    if os.getloadavg()[0] > cores:
        # The threads of an operation wait for the slowest one, so the result would measure the other load.
        skipped.append("views on all cores: other processes use them")
    else:
        with ProcessPoolExecutor(cores, mp_context=get_context("spawn")) as pool:

            def pooled() -> float:
                return seconds(lambda: list(pool.map(one_by_one, range(cores)))) / (cores * THEIRS_EACH)

            times = interleaved(lambda: seconds(batched) / OURS, pooled, rounds)
        table_rows.append(faster("one 32 px view, all cores", "torchvision on PIL", *times, GOAL, "us"))
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    cpu_times = interleaved(
        lambda: cpu_seconds(batched) / OURS, lambda: cpu_seconds(lambda: one_by_one(0)) / THEIRS_EACH, rounds
    )
    torch.set_num_threads(threads)
    return [*table_rows, faster("one 32 px view, CPU time", "torchvision on PIL", *cpu_times, GOAL, "us")]
