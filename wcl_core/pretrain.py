"""The training loop: evaluate, save, step, log; top to bottom.

Data order and augmentation are functions of (seed, epoch, step), and nothing draws from torch's global generator, so
the whole state of a run is the learner's (the model and, if on, its momentum encoder and queue), the optimiser's
momentum and the step.  On equal device, build and thread count
an interrupted run therefore ends with the same bytes as an uninterrupted one.
"""

from __future__ import annotations

import platform
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from wcl_core import checkpoint
from wcl_core.augment import random_view
from wcl_core.batch_norm import sync_batch_norm
from wcl_core.collapse import CollapseError, CollapseWatch, NonFiniteLossError
from wcl_core.config import AugmentConfig, PretrainSpec, resolve_spec
from wcl_core.data import DataError, ImageData, epoch_batches
from wcl_core.data.rows import Rows
from wcl_core.distributed import SINGLE, Ranks, device_of
from wcl_core.evaluate.features import network_features
from wcl_core.evaluate.knn import knn_top1
from wcl_core.learner import Learner
from wcl_core.model import Model, Views
from wcl_core.objective import Objective
from wcl_core.optimizer import build_optimizer, load_state, state_of, warning_of
from wcl_core.probe import Probe
from wcl_core.reporter import OUTCOME_OF, NullReporter, Outcome, Reporter, Request
from wcl_core.schedule import base_learning_rate, learning_rate
from wcl_core.weak_labels import pair_precision, pair_precision_chance, view_agreement

_PROGRESS_SECONDS = 1.0
_REQUESTS: tuple[Request | None, ...] = (None, "cancel", "drain", "pause")
_KNN_K = 20
_KNN_TEMPERATURE = 0.07
_KNN_METRIC = "eval/knn_top1"
# A run may go on with others: the number of ranks is part of its environment, and these reach no weight.
_FREE_FIELDS = frozenset({"processes", "monitor_every_epochs", "on_collapse", "on_non_finite"})


def pretrain(
    config: PretrainSpec,
    reporter: Reporter,
    *,
    dataset: ImageData,
    output_dir: Path,
    resume: Path | None = None,
    ranks: Ranks = SINGLE,
) -> Outcome:
    """Train a backbone without labels.

    Args:
        config: the run; trusted, since it was validated when it was made.
        reporter: told what happens; asked after every step whether to stop. Of several ranks only the first one's is.
        dataset: both splits at `config.data.image_size`; labels are read by monitors only.
        output_dir: checkpoints go to `output_dir/checkpoints/step-<n>.safetensors`.
        resume: a checkpoint of a run with the same spec.
        ranks: this process's place among those that train together; all call this with equal arguments.

    Returns:
        `succeeded`, or what was asked for; then a checkpoint of the last step was written first, unless no step was
        taken.  What is asked for during the last step comes too late: the run has succeeded.

    Raises:
        DataError: when the train split holds less than one batch.
        checkpoint.CheckpointError: when `resume` is missing, damaged or of another spec.
        NonFiniteLossError: when the loss or the weights stop being finite.
        CollapseError: when the representation collapses and `on_collapse` is not `warn`.
        PeerLostError: when another rank is gone.
    """
    return _Run(config, reporter if ranks.is_first else NullReporter(), dataset, output_dir, resume, ranks).run()


class _Run:
    def __init__(
        self,
        config: PretrainSpec,
        reporter: Reporter,
        dataset: ImageData,
        output_dir: Path,
        resume: Path | None,
        ranks: Ranks,
    ) -> None:
        split = dataset.pretraining
        if config.batch_size > len(split):
            raise DataError(
                f"batch_size = {config.batch_size}, but the train split of {dataset.name} holds {len(split)}"
            )
        if config.threads is not None:
            torch.set_num_threads(config.threads)
        self.config, self.reporter, self.dataset, self.output_dir = config, reporter, dataset, output_dir
        self.ranks, self.device = ranks, device_of(ranks)
        torch.backends.cudnn.deterministic = True  # exact resume; convolution gradients may use atomics otherwise
        self.steps_per_epoch = len(split) // config.batch_size
        self.total_steps = self.steps_per_epoch * config.epochs
        self.learner = Learner(config, self._network, is_bfloat16=self._is_bfloat16, gather=ranks.gather)
        self.model = self.learner.model
        self.base_rate = base_learning_rate(config.optimizer, config.batch_size)
        self.optimizer = build_optimizer(config, self.model)
        self.step = 0
        self.saved_step = -1
        self.writer = checkpoint.BackgroundWriter()
        self.unregistered: dict[str, Any] = {}
        if resume is not None:
            self._load(resume)
        self.start_step = self.step
        self.images = Rows(split, self.device, ranks)
        self.labels = split.labels.to(self.device)
        self.latest: dict[str, float] = {}
        self.window = _Window()
        self.probe, self.collapse = Probe(config, dataset.train, self.device), CollapseWatch()
        self.clock = _Clock(self.step, config.batch_size)

    def _network(self) -> Model:
        model = sync_batch_norm(Model(self.config), self.ranks, self.device)
        return model.to(self.device).to(memory_format=self._memory_format)

    @property
    def _memory_format(self) -> torch.memory_format:
        return torch.channels_last if self.device.type == "cuda" else torch.contiguous_format

    def run(self) -> Outcome:
        try:
            outcome = self._run()
        except Exception:
            # What is being written is of an earlier step: it is good and is registered, or its own failure came first.
            self._register()
            raise
        finally:
            self.writer.close()
        return outcome

    def _run(self) -> Outcome:
        self.reporter.started(
            **self._environment(),
            python=platform.python_version(),
            total_steps=self.total_steps,
            total_epochs=self.config.epochs,
            start_step=self.step,
        )
        if (warning := warning_of(self.config)) is not None:
            self.reporter.warning("unusual_optimizer", warning)
        self._progress("train")
        if request := self._request():
            return OUTCOME_OF[request]
        if self.step == 0:
            self._evaluate(epoch=0)
        for epoch in range(self.step // self.steps_per_epoch, self.config.epochs):
            for index in self._batches(epoch):
                self._train_step(index, epoch)
                is_epoch_end = self.step % self.steps_per_epoch == 0
                if is_epoch_end:
                    # Before a request is met: a run that resumes here begins with the next epoch's first step.
                    self._evaluate(epoch + 1)
                    self._monitor(epoch + 1)
                request = self._request()
                if request or (is_epoch_end and self._should_save(epoch + 1)):
                    self._save()
                elif self.writer.is_done():
                    self._register()
                if request and self.step < self.total_steps:
                    self._register()
                    return OUTCOME_OF[request]
        self._save()  # a run that resumed from its last step leaves its result in this folder too
        self._register()
        self._progress("train")
        return "succeeded"

    def _request(self) -> Request | None:
        return _REQUESTS[self.ranks.agreed(_REQUESTS.index(self.reporter.request()))]

    def _batches(self, epoch: int) -> Iterator[Tensor]:
        start = self.step - epoch * self.steps_per_epoch
        batches = epoch_batches(len(self.images), self.config.batch_size, self.config.seed, epoch, start)
        return self.images.ahead(batches)

    def _train_step(self, index: Tensor, epoch: int) -> None:
        config = self.config
        views = self._views(self.images[index], epoch)
        index = index.to(self.device)
        rate = learning_rate(self.step, self.total_steps, config.warmup_epochs * self.steps_per_epoch, self.base_rate)
        self.optimizer.zero_grad(set_to_none=True)
        found = self.learner.gradients(views, index, self.step, self.total_steps)
        self.ranks.sum_gradients(self.model.parameters())
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        self.optimizer.step()
        self.learner.follow(index, self.step)
        self.step += 1
        self.latest.pop(_KNN_METRIC, None)  # it belongs to the step where it was measured
        self.window.add(torch.stack((found.total.detach(), found.instance, found.weak, found.multi_crop)))
        if self.step % config.log_every_steps == 0 or self.step == self.total_steps:
            self._log(rate, found, self.labels[index])
        if self.clock.is_due():
            self._progress("train")

    def _views(self, images: Tensor, epoch: int) -> Views:
        """Two views and the small crops, which are augmented like them [D]; numbers 0, 1 and from 2 on."""
        config, crops = self.config, self.config.multi_crop
        augmentation = config.weak_augmentation if epoch < config.weak_augmentation_epochs else config.augmentation
        first, second = (self._view(images, augmentation, config.data.image_size, epoch, view) for view in (0, 1))
        if crops.crops == 0:
            return Views(first, second)
        small, side = augmentation.model_copy(update={"scale_min": crops.scale_min}), crops.side(config.data.image_size)
        views = [self._view(images, small, side, epoch, 2 + v, crops.scale_max) for v in range(crops.crops)]
        return Views(first, second, torch.stack(views, dim=1))

    def _view(
        self, images: Tensor, augmentation: AugmentConfig, side: int, epoch: int, view: int, scale_max: float = 1.0
    ) -> Tensor:
        place = {"seed": self.config.seed, "epoch": epoch, "step": self.step, "view": view}
        x = random_view(images, augmentation, side, ranks=self.ranks, scale_max=scale_max, **place)
        return x.contiguous(memory_format=self._memory_format)

    @property
    def _is_bfloat16(self) -> bool:
        precision = self.config.precision
        return precision == "bfloat16" or (precision == "auto" and self.device.type == "cuda")

    def _log(self, rate: float, found: Objective, classes: Tensor) -> None:
        """Read the window's means from the device, once; all ranks have the same, since each has the whole batch."""
        total, instance, weak, multi_crop = self.window.means()
        values = {"train/loss": total, "train/loss_instance": instance, "train/lr": rate}
        if found.labels is not None:
            known = None if self.dataset.unlabelled is not None else classes
            values |= {"train/loss_weak": weak, **_weak_monitors(*found.labels, known)}
        if self.config.multi_crop.crops:
            values["train/loss_multi_crop"] = multi_crop
        if speed := self.clock.window_images_per_second(self.step):
            values["train/images_per_second"] = speed
        self.latest |= {"train/loss": total}
        self.reporter.metrics(self.step, values)
        if total - total != 0:  # NaN or infinite
            raise self._non_finite(f"the loss is {total} after step {self.step}")

    def _non_finite(self, message: str) -> NonFiniteLossError:
        return NonFiniteLossError(message, "paused" if self.config.on_non_finite == "pause" else "failed")

    def _evaluate(self, epoch: int) -> None:
        """kNN accuracy on the test split every `knn_every_epochs`, at the start and at the end."""
        every = self.config.knn_every_epochs
        if every == 0 or (epoch % every and epoch != self.config.epochs) or not self.ranks.is_first:
            return
        k = min(_KNN_K, int(self.dataset.train.labels.bincount(minlength=len(self.dataset.classes)).min()) // 2)
        if k < 1:
            return
        self._progress("evaluate")
        with self.clock.stopped():
            features = network_features(self.model.backbone, self.dataset, self.device)
            self.latest[_KNN_METRIC] = knn_top1(features, k, _KNN_TEMPERATURE)
        self.reporter.metrics(self.step, {_KNN_METRIC: self.latest[_KNN_METRIC]})

    def _monitor(self, epoch: int) -> None:
        """Monitors of the probe every `monitor_every_epochs`, and what follows from a collapse."""
        every = self.config.monitor_every_epochs
        if every == 0 or (epoch % every and epoch != self.config.epochs):
            return
        found = self._look_for_collapse() if self.ranks.is_first else None
        if not self.ranks.agreed(found is not None) or self.config.on_collapse == "warn":
            return
        if self.config.on_collapse == "pause":
            self._save()
            self._register()
            raise CollapseError(found or "", "paused")
        raise CollapseError(found or "")

    def _look_for_collapse(self) -> str | None:
        with self.clock.stopped():
            values = self.probe.measure(self.model)
        self.reporter.metrics(self.step, values)
        if (found := self.collapse.check(values)) and self.collapse.is_new:
            self.reporter.warning("collapse", found)
        return found

    def _should_save(self, epoch: int) -> bool:
        keep = self.config.checkpoints
        return epoch % keep.every_epochs == 0 or epoch == self.config.epochs or (keep.first_epoch and epoch == 1)

    def _save(self) -> None:
        """Copy the state and have it written while the training goes on."""
        if self.step == self.saved_step:
            return
        self._progress("save")
        epoch = self.step // self.steps_per_epoch
        name = f"checkpoints/step-{self.step:08d}.safetensors"
        with self.clock.stopped():
            self._register()
            if self.ranks.is_first:
                self.writer.start(self.output_dir / name, self._state(), self._metadata(epoch))
        self.saved_step = self.step
        self.unregistered = {"step": self.step, "epoch": epoch, "path": name, "metrics": dict(self.latest)}

    def _register(self) -> None:
        """Wait for the checkpoint that is being written, if any, and report it: it lies whole on the disk."""
        try:
            written = self.writer.finish()
        except checkpoint.NonFiniteStateError as error:
            step = self.unregistered["step"]
            raise self._non_finite(f"weights are not finite after step {step}; no checkpoint was written") from error
        if written is not None:
            self.reporter.checkpoint(**self.unregistered, sha256=written.sha256, size=written.size)

    def _state(self) -> dict[str, Tensor]:
        tensors = self.learner.state()
        slots = state_of(self.optimizer, self.model)
        return tensors | {f"optimizer/{name}": slot for name, slot in slots.items()}

    def _metadata(self, epoch: int) -> dict[str, Any]:
        return {
            "spec": resolve_spec(self.config),
            "dataset_digest": self.dataset.digest,
            "step": self.step,
            "epoch": epoch,
            "environment": self._environment(),
        }

    def _environment(self) -> dict[str, Any]:
        """What exact resume depends on."""
        is_gpu = self.device.type == "cuda"
        return {
            "device": torch.cuda.get_device_name() if is_gpu else f"cpu {torch.backends.cpu.get_cpu_capability()}",
            "torch": torch.__version__,
            "threads": torch.get_num_threads(),
            "world_size": self.ranks.size,
            "channels_last": is_gpu,
        }

    def _load(self, path: Path) -> None:
        saved = checkpoint.read(path)
        _check_same_run(path, saved, self.config, self.dataset)
        self.learner.load(saved.part)
        load_state(self.optimizer, self.model, saved.part("optimizer/"), self._memory_format)
        self.step = int(saved.metadata["step"])
        then, now = saved.metadata["environment"], self._environment()
        if changed := [f"{key}: {then.get(key)} -> {now[key]}" for key in now if then.get(key) != now[key]]:
            self.reporter.warning(
                "resume_environment_changed", "not the same bytes as uninterrupted: " + ", ".join(changed)
            )

    def _progress(self, phase: Any) -> None:
        speed = self.clock.images_per_second(self.step)
        eta = (self.total_steps - self.step) * self.config.batch_size / speed if speed else None
        self.reporter.progress(
            step=self.step,
            total_steps=self.total_steps,
            epoch=self.step / self.steps_per_epoch,
            total_epochs=self.config.epochs,
            phase=phase,
            images_per_second=speed,
            eta_seconds=eta,
        )


class _Window:
    """Sums of the losses since the last log, on the device: adding never waits for it."""

    def __init__(self) -> None:
        self._sum: Tensor | None = None
        self._count = 0

    def add(self, values: Tensor) -> None:
        self._sum = values.double() if self._sum is None else self._sum + values
        self._count += 1

    def means(self) -> list[float]:
        """The means, read from the device; the window starts afresh."""
        assert self._sum is not None
        means: list[float] = (self._sum / self._count).tolist()
        self._sum, self._count = None, 0
        return means


class _Clock:
    """Images per second of training alone: what happens while the clock is stopped is left out."""

    def __init__(self, step: int, batch_size: int) -> None:
        self._batch_size = batch_size
        self._last_report = 0.0
        self._window = self._overall = (time.monotonic(), step)

    def is_due(self) -> bool:
        """Whether a second has passed since this last said so."""
        now = time.monotonic()
        if now - self._last_report < _PROGRESS_SECONDS:
            return False
        self._last_report = now
        return True

    @contextmanager
    def stopped(self) -> Iterator[None]:
        """Leave the time of the block out of all rates."""
        stopped_at = time.monotonic()
        yield
        lost = time.monotonic() - stopped_at
        self._window = (self._window[0] + lost, self._window[1])
        self._overall = (self._overall[0] + lost, self._overall[1])

    def window_images_per_second(self, step: int) -> float | None:
        """Rate since the last call."""
        since, self._window = self._window, (time.monotonic(), step)
        return self._rate(since, step)

    def images_per_second(self, step: int) -> float | None:
        """Rate since the run's start."""
        return self._rate(self._overall, step)

    def _rate(self, since: tuple[float, int], step: int) -> float | None:
        elapsed = time.monotonic() - since[0]
        return (step - since[1]) * self._batch_size / elapsed if step > since[1] and elapsed > 0 else None


def _weak_monitors(y1: Tensor, y2: Tensor, classes: Tensor | None) -> dict[str, float]:
    """Cheap signs of how good the weak labels of this batch are, read from the device at once."""
    values = {
        "weak/components": torch.tensor(float(len(y1.unique())), dtype=torch.float64, device=y1.device),
        "weak/view_agreement": view_agreement(y1, y2),
    }
    if classes is not None:
        values["weak/pair_precision"] = (pair_precision(y1, classes) + pair_precision(y2, classes)) / 2
        values["weak/pair_precision_chance"] = pair_precision_chance(classes)
    return dict(zip(values, torch.stack(tuple(values.values())).tolist(), strict=True))


def _check_same_run(path: Path, saved: checkpoint.Checkpoint, config: PretrainSpec, dataset: ImageData) -> None:
    then, now = resolve_spec(saved.spec), resolve_spec(config)
    if changed := [field for field in now if then[field] != now[field] and field not in _FREE_FIELDS]:
        raise checkpoint.CheckpointError(f"checkpoint {path.name} is of another spec: {', '.join(changed)} differ")
    if saved.metadata["dataset_digest"] != dataset.digest:
        raise checkpoint.CheckpointError(f"checkpoint {path.name} was trained on other data under the same name")
