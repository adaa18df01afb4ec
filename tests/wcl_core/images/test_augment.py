"""Random views against torchvision's operations on one image at a time.

Each operation is compared at equal parameters, number by number; the whole by the statistics of its output, since
torchvision draws its random numbers otherwise.  Tolerance of the statistics: each mean and each deviation over 3,000
images within 3 % of torchvision's, or within .006 of the range [0, 1].
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import permutations
from typing import Any

import pytest
import torch
from torch import Tensor
from torchvision.transforms import v2
from torchvision.transforms.v2 import functional

from wcl_core.config import AugmentConfig
from wcl_core.distributed import Ranks
from wcl_core.images import augment, view_parameters
from wcl_core.images.augment import MEAN, STD, normalised, random_view
from wcl_core.images.view_parameters import Draws, ViewParameters

torch.set_num_threads(1)

SIDE = 16
NUM_IMAGES = 3000


def config(**changes: float) -> AugmentConfig:
    """Return an augmentation that is off, except for `changes`."""
    nothing = dict.fromkeys(
        ("flip_probability", "brightness", "contrast", "saturation", "hue", "grayscale_probability"), 0.0
    )
    return AugmentConfig(**{"scale_min": 1.0, "jitter_probability": 1.0, "blur_probability": 0.0} | nothing | changes)


def images(count: int, side: int = SIDE, seed: int = 0) -> Tensor:
    """Return smooth noise in warm colours, (count, 3, side, side) uint8; a change of the hue is visible."""
    generator = torch.Generator().manual_seed(seed)
    noise = torch.rand(count, 3, side, side, generator=generator)
    coarse = torch.nn.functional.interpolate(noise[:, :, ::4, ::4], size=side, mode="bilinear")
    tint = torch.rand(count, 3, 1, 1, generator=generator) * torch.tensor([1.0, 0.6, 0.2]).view(3, 1, 1)
    return ((0.5 * coarse + 0.15 * noise + 0.35 * tint) * 255).round().to(torch.uint8)


def view(batch: Tensor, chosen: AugmentConfig, size: int | None = None, step: int = 0) -> Tensor:
    """Return a view in [0, 1], without the normalisation."""
    out = random_view(batch, chosen, size or batch.shape[-1], seed=0, epoch=0, step=step, view=0)
    return out * torch.tensor(STD).view(3, 1, 1) + torch.tensor(MEAN).view(3, 1, 1)


# --- operations at equal parameters --------------------------------------------------------------------------------

Operation = Callable[[Tensor, Tensor], Tensor]


def linear(which: int) -> Operation:
    """Return an operation that changes brightness (0), contrast (1) or saturation (2) of each image by its factor."""

    def apply(batch: Tensor, factors: Tensor) -> Tensor:
        order = torch.tensor([which, 3, *({0, 1, 2} - {which})]).expand(len(batch), -1)
        own = torch.ones(3, len(batch))
        own[which] = factors
        adjusted = batch.clone()
        for turn in view_parameters._turns(own, order):
            augment._turn_(adjusted, *turn)
        return adjusted

    return apply


@pytest.mark.parametrize(
    ("ours", "theirs", "low", "high"),
    [
        (linear(0), functional.adjust_brightness, 0.0, 2.0),
        (linear(1), functional.adjust_contrast, 0.0, 2.0),
        (linear(2), functional.adjust_saturation, 0.0, 2.0),
        (augment._hue, functional.adjust_hue, -0.5, 0.5),
    ],
    ids=["brightness", "contrast", "saturation", "hue"],
)
def test_a_jitter_operation_is_torchvisions(ours: Operation, theirs: Any, low: float, high: float) -> None:
    batch = images(64).float() / 255
    batch[0] = 0.5  # grey: no hue
    batch[1] = 0.0
    batch[2, :, :, :8] = torch.tensor([1.0, 0.0, 0.0]).view(3, 1, 1)  # saturated
    factors = torch.linspace(low, high, 64)
    expected = torch.stack([theirs(image, float(factor)) for image, factor in zip(batch, factors, strict=True)])
    torch.testing.assert_close(ours(batch, factors), expected, rtol=0, atol=2e-5)


def test_grayscale_is_torchvisions() -> None:
    batch = images(8).float() / 255
    expected = functional.rgb_to_grayscale(batch, num_output_channels=3)
    torch.testing.assert_close(augment._grey(batch).expand_as(expected), expected, rtol=0, atol=1e-6)


@pytest.mark.parametrize("side", [16, 32])
def test_blur_is_a_gaussian_of_the_drawn_deviation(side: int) -> None:
    """Equal to torchvision's blur with the same kernel, which is wide enough for the largest deviation."""
    batch = images(20, side).float() / 255
    sigma = torch.linspace(0.1, 2.0, 20)
    blurred = augment._gaussian(batch, sigma, augment._BLUR_RADIUS)
    size = 2 * augment._BLUR_RADIUS + 1
    expected = torch.stack(
        [functional.gaussian_blur(x, [size, size], [float(s)] * 2) for x, s in zip(batch, sigma, strict=True)]
    )
    torch.testing.assert_close(blurred, expected, rtol=0, atol=1e-5)
    point = torch.zeros(1, 3, 33, 33)
    point[..., 16, 16] = 1
    spread = augment._gaussian(point, torch.tensor([2.0]), augment._BLUR_RADIUS)[0, 0].sum(0)
    deviation = (spread * (torch.arange(33) - 16).square()).sum().sqrt()
    assert float(deviation) == pytest.approx(2.0, rel=0.02)


def test_a_tiny_image_can_be_blurred() -> None:
    blurred = view(images(4, 8), config(blur_probability=1))
    assert blurred.isfinite().all()
    assert blurred.shape == (4, 3, 8, 8)


class _Recorder(Draws):
    """Draws that keep the drawn numbers."""

    def __init__(self, size: int) -> None:
        super().__init__(size, torch.Generator().manual_seed(5))
        self.drawn: list[Tensor] = []

    def uniform(self, low: float, high: float) -> Tensor:
        self.drawn.append(super().uniform(low, high))
        return self.drawn[-1]

    def chance(self, probability: float) -> Tensor:
        self.drawn.append(super().chance(probability))
        return self.drawn[-1]

    def orders(self, length: int) -> Tensor:
        self.drawn.append(super().orders(length))
        return self.drawn[-1]


@pytest.mark.parametrize("without", [None, "hue", "contrast"])
def test_each_sample_is_jittered_by_its_own_factors_in_its_own_order(without: str | None) -> None:
    batch = images(80).float() / 255
    strengths = {"brightness": 0.8, "contrast": 0.8, "saturation": 0.8, "hue": 0.2}
    chosen = config(jitter_probability=0.8, **strengths | ({without: 0.0} if without else {}))
    draws = _Recorder(len(batch))
    jittered = batch.clone()
    parameters = ViewParameters.drawn(chosen, SIDE, SIDE, draws)
    augment._jitter_(jittered, parameters, parameters.rows(jittered.device)[:4])
    *factors, orders, is_jittered = draws.drawn[3:9]  # after the crop's place and the flip
    operations: list[Any] = [
        functional.adjust_brightness,
        functional.adjust_contrast,
        functional.adjust_saturation,
        functional.adjust_hue,
    ]
    for index, image in enumerate(batch):
        for name in orders[index].tolist() if is_jittered[index] else []:
            image = operations[name](image, float(factors[name][index]))
        torch.testing.assert_close(jittered[index], image, rtol=0, atol=5e-5)
    assert 50 < int(is_jittered.sum()) < 75
    assert len({tuple(order) for order in orders.tolist()}) > 15


def test_every_order_of_the_jitter_is_as_likely() -> None:
    orders = Draws(24_000, torch.Generator().manual_seed(0)).orders(4)
    counts = [int((orders == torch.tensor(order)).all(dim=1).sum()) for order in permutations(range(4))]
    assert sum(counts) == 24_000
    assert max(abs(count - 1000) for count in counts) < 150


# --- statistics of the whole ---------------------------------------------------------------------------------------


def statistics(x: Tensor) -> Tensor:
    """Return mean and deviation over images of level, contrast, detail and colour."""
    grey = augment._grey(x)[:, 0]
    by_image = torch.stack(
        (
            x.mean(dim=(1, 2, 3)),
            x.std(dim=(1, 2, 3)),
            grey.std(dim=(1, 2)),
            (grey[:, :, 1:] - grey[:, :, :-1]).abs().mean(dim=(1, 2)),
            (grey[:, 1:] - grey[:, :-1]).abs().mean(dim=(1, 2)),
            (x.amax(dim=1) - x.amin(dim=1)).mean(dim=(1, 2)),
            *(x.mean(dim=(2, 3)) - x.mean(dim=(1, 2, 3))[:, None]).unbind(1),
        )
    )
    return torch.cat([by_image.mean(dim=1), by_image.std(dim=1)])


_JITTER_NAMES = ("brightness", "contrast", "saturation", "hue")
_STRONG = {"brightness": 0.8, "contrast": 0.8, "saturation": 0.8, "hue": 0.2}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("changes", "theirs"),
    [
        *[({name: _STRONG[name]}, v2.ColorJitter(**{name: _STRONG[name]})) for name in _JITTER_NAMES],
        (
            {**_STRONG, "jitter_probability": 0.8},
            v2.RandomApply([v2.ColorJitter(*_STRONG.values())], p=0.8),
        ),
        ({"grayscale_probability": 0.2}, v2.RandomGrayscale(0.2)),
        ({"blur_probability": 0.5}, v2.RandomApply([v2.GaussianBlur(13, (0.1, 2.0))], p=0.5)),
        ({"flip_probability": 0.5}, v2.RandomHorizontalFlip(0.5)),
    ],
    ids=[*_JITTER_NAMES, "jitter", "grayscale", "blur", "flip"],
)
def test_statistics_are_torchvisions(changes: dict[str, float], theirs: v2.Transform) -> None:
    batch = images(NUM_IMAGES)
    torch.manual_seed(0)
    expected = torch.stack([theirs(image) for image in batch.float() / 255])
    ours = view(batch, config(**changes))
    torch.testing.assert_close(statistics(ours), statistics(expected), rtol=0.03, atol=0.006)
    if not changes.keys() <= {"flip_probability"}:
        # The comparison is sensitive: without the operation the difference exceeds the tolerance.
        untouched = statistics(batch.float() / 255)
        assert ((statistics(expected) - untouched).abs() > 0.03 * statistics(expected).abs() + 0.006).any()


def boxes(x: Tensor) -> Tensor:
    """Return left, top, width and height of the crops, in shares of the image, read from a coordinate ramp."""
    horizontal, vertical = x[:, 0], x[:, 1]
    left, right = horizontal.amin(dim=(1, 2)), horizontal.amax(dim=(1, 2))
    top, bottom = vertical.amin(dim=(1, 2)), vertical.amax(dim=(1, 2))
    return torch.stack((left, top, right - left, bottom - top))


@pytest.mark.slow
@pytest.mark.parametrize("scale_min", [0.08, 0.2])
def test_crops_are_distributed_as_torchvisions(scale_min: float) -> None:
    """Edges, sides and aspect; torchvision rounds to whole pixels, of which there are 64."""
    side = 64
    ramp = torch.arange(side).mul(4)
    one = torch.stack((ramp.expand(side, side), ramp[:, None].expand(side, side), torch.zeros(side, side)))
    batch = one.to(torch.uint8).expand(NUM_IMAGES, -1, -1, -1).contiguous()
    ours = boxes(view(batch, config(scale_min=scale_min)))
    torch.manual_seed(0)
    crop = v2.RandomResizedCrop(side, scale=(scale_min, 1.0), antialias=True)
    expected = boxes(torch.stack([crop(image.float() / 255) for image in batch[:1].expand(NUM_IMAGES, -1, -1, -1)]))
    torch.testing.assert_close(ours.mean(dim=1), expected.mean(dim=1), rtol=0.03, atol=0.012)
    torch.testing.assert_close(ours.std(dim=1), expected.std(dim=1), rtol=0.05, atol=0.012)
    aspects = [(box[2] / box[3].clamp_min(1e-3)).log() for box in (ours, expected)]
    assert float(aspects[0].std()) == pytest.approx(float(aspects[1].std()), rel=0.06)


def test_a_crop_is_torchvisions_resize_of_the_same_box() -> None:
    """A fixed box with whole edges: enlarged bilinearly, edges replicated, as torchvision does inside the crop."""
    batch = images(1, 32).float() / 255

    class Fixed(Draws):
        places = iter([0.5, 0.25])  # of the top and of the left edge

        def tries(self, count: int, low: float, high: float) -> Tensor:
            return torch.full((count, 1), 0.25 if high == 1 else 0.0)  # area, log aspect

        def uniform(self, low: float, high: float) -> Tensor:
            return torch.tensor([next(self.places)])

    crop = view_parameters._crops(config(scale_min=0.1), 32, 32, Fixed(1, torch.Generator()), 1.0)
    ours = augment._resized_crop(batch, crop, 32)
    theirs = functional.resized_crop(batch, 8, 4, 16, 16, [32, 32], antialias=True)
    torch.testing.assert_close(ours[..., 1:-1, 1:-1], theirs[..., 1:-1, 1:-1], rtol=0, atol=1e-5)


def test_a_crop_that_shrinks_much_is_filtered_first() -> None:
    """Fine stripes shrunk by four become grey as with torchvision's antialiasing; without it they would be black."""
    stripes = torch.tensor([255, 0, 0, 255], dtype=torch.uint8).repeat(16).expand(4, 3, 64, 64).contiguous()
    shrunk = view(stripes, config(), size=16)
    expected = functional.resize(stripes.float() / 255, [16, 16], antialias=True)
    torch.testing.assert_close(shrunk, expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize(("height", "width", "size"), [(64, 64, 16), (40, 56, 32), (20, 48, 32)])
def test_a_whole_image_is_resized_and_mirrored_as_by_torchvision(height: int, width: int, size: int) -> None:
    """Each axis shrinks or grows on its own."""
    batch = torch.rand(2, 3, height, width, generator=torch.Generator().manual_seed(0))
    whole = torch.tensor([[0.0, 0.0, height, width, direction] for direction in (1, -1)]).T
    ours = augment._resized_crop(batch, whole, size)
    theirs = functional.resize(batch, [size, size], antialias=True)
    torch.testing.assert_close(ours, torch.stack((theirs[0], theirs[1].flip(2))), rtol=0, atol=1e-5)


def test_a_flip_mirrors() -> None:
    batch = images(6)
    torch.testing.assert_close(view(batch, config(flip_probability=1)), batch.flip(3) / 255, rtol=0, atol=1e-5)


def test_an_augmentation_that_is_off_changes_nothing() -> None:
    batch = images(6)
    torch.testing.assert_close(view(batch, config()), batch / 255, rtol=0, atol=1e-5)
    torch.testing.assert_close(normalised(batch), v2.functional.normalize(batch / 255, MEAN, STD), rtol=0, atol=1e-6)


# --- randomness ----------------------------------------------------------------------------------------------------


def test_a_view_is_a_function_of_seed_epoch_step_and_view_alone() -> None:
    batch, chosen = images(8), AugmentConfig()
    place = {"seed": 1, "epoch": 2, "step": 3, "view": 0}
    first = random_view(batch, chosen, SIDE, **place)
    before = batch.clone()
    torch.manual_seed(123)
    state = torch.get_rng_state()
    assert torch.equal(random_view(batch, chosen, SIDE, **place), first)
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(batch, before)
    for name in place:
        assert not torch.equal(random_view(batch, chosen, SIDE, **place | {name: 7}), first)


def test_views_do_not_depend_on_the_chunks_they_are_computed_in(monkeypatch: pytest.MonkeyPatch) -> None:
    batch = images(20)
    whole = random_view(batch, AugmentConfig(), SIDE, seed=1, epoch=0, step=0, view=0)
    monkeypatch.setattr(augment, "_CPU_CHUNK_VALUES", 7 * 3 * SIDE**2)
    chunked = random_view(batch, AugmentConfig(), SIDE, seed=1, epoch=0, step=0, view=0)
    torch.testing.assert_close(chunked, whole, rtol=0, atol=1e-5)


def test_samples_of_a_batch_have_parameters_of_their_own() -> None:
    same = images(1).expand(16, -1, -1, -1).contiguous()
    out = view(same, AugmentConfig())
    assert len({sample.numpy().tobytes() for sample in out}) == 16


@pytest.mark.parametrize("size", [2, 4])
def test_a_view_depends_on_the_image_and_not_on_the_rank_that_holds_it(size: int) -> None:
    """The parts of all ranks together are the views of the whole batch; every operation is on for a share of them."""
    batch = images(16)
    place = {"seed": 3, "epoch": 1, "step": 5, "view": 1}
    whole = random_view(batch, AugmentConfig(), SIDE, **place)

    parts = [
        random_view(batch[ranks.own(16)], AugmentConfig(), SIDE, **place, ranks=ranks)
        for ranks in (Ranks(rank, size) for rank in range(size))
    ]

    torch.testing.assert_close(torch.cat(parts), whole, rtol=0, atol=1e-5)


def test_small_crops_stay_below_their_largest_scale() -> None:
    """Scales are areas; a crop that never fits would be the whole image, and here every crop fits."""
    draws = Draws(4000, torch.Generator().manual_seed(0))
    height, width = view_parameters._crop_sides(0.05, 64, 64, draws, 0.2)
    share = height * width / 64**2
    assert 0.05 <= share.min() < 0.051
    assert 0.199 < share.max() <= 0.2 + 1e-6
    assert share.mean().item() == pytest.approx(0.125, abs=0.003)
