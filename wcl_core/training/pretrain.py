"""The training loop: evaluate, save, step, log; top to bottom.

Data order and augmentation are functions of (seed, epoch, step), and nothing draws from torch's global generator, so
the whole state of a run is the learner's (the model and, if on, its momentum encoder and queue), the optimiser's
momentum and the step.  On equal device, build and thread count
an interrupted run therefore ends with the same bytes as an uninterrupted one.
"""

from __future__ import annotations

import platform
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from wcl_core.config import PretrainSpec
from wcl_core.data import DataError, ImageData, epoch_batches, with_held_out
from wcl_core.data.rows import Rows
from wcl_core.distributed import SINGLE, Ranks, device_of
from wcl_core.evaluation.features import network_features
from wcl_core.evaluation.knn import knn_top1
from wcl_core.methods import build_method
from wcl_core.methods.base import Batch, Loss
from wcl_core.networks.batch_norm import sync_batch_norm
from wcl_core.networks.model import Model
from wcl_core.protocol import (
    IMAGES_PER_SECOND,
    KNN_TOP1,
    LEARNING_RATE,
    OUTCOME_OF,
    TRAIN_LOSS,
    TRAIN_PREFIX,
    Outcome,
    Request,
)
from wcl_core.reporter import NullReporter, Reporter
from wcl_core.schedule import base_learning_rate, learning_rate
from wcl_core.training.collapse import CollapseError, CollapseWatch, non_finite_error
from wcl_core.training.learner import Learner
from wcl_core.training.monitor_batch import MonitorBatch
from wcl_core.training.optim import build_optimizer, warning_of
from wcl_core.training.run_metrics import Clock, Hardware, Window, weak_label_metrics
from wcl_core.training.saving import Saver, environment
from wcl_core.training.view_maker import ViewMaker

_REQUESTS: tuple[Request | None, ...] = (None, "cancel", "drain", "pause")
_KNN_K = 20
_KNN_TEMPERATURE = 0.07


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
        dataset = with_held_out(dataset, config.data.held_out_share)
        split = dataset.pretraining
        if config.batch_size > len(split):
            raise DataError(
                f"batch_size = {config.batch_size}, but the train split of {dataset.name} holds {len(split)}"
            )
        if config.threads is not None:
            torch.set_num_threads(config.threads)
        self.config, self.reporter, self.dataset = config, reporter, dataset
        self.output_dir, self.ranks, self.device = output_dir, ranks, device_of(ranks)
        torch.backends.cudnn.deterministic = True  # exact resume; convolution gradients may use atomics otherwise
        self.steps_per_epoch = len(split) // config.batch_size
        self.total_steps = self.steps_per_epoch * config.epochs
        self.method = build_method(config)
        self.learner = Learner(config, self.method, self._network, is_bfloat16=self._is_bfloat16, gather=ranks.gather)
        self.model = self.learner.model
        self.base_rate = base_learning_rate(config.optimizer, config.batch_size)
        self.optimizer = build_optimizer(config, self.model)
        self.facts = environment(self.device, ranks)
        self.saver = Saver(
            config,
            self.learner,
            self.optimizer,
            dataset,
            reporter,
            output_dir,
            self.facts,
            is_first=ranks.is_first,
        )
        self.step = 0 if resume is None else self.saver.load(resume, self._memory_format)
        self.images = Rows(split, self.device, ranks)
        self.view_maker = ViewMaker(config, ranks, self._memory_format)
        self.labels = split.labels.to(self.device)
        self.latest: dict[str, float] = {}
        self.window = Window()
        self.monitor_batch, self.collapse = MonitorBatch(config, dataset.train, self.device), CollapseWatch()
        self.clock, self.hardware = Clock(self.step, config.batch_size), Hardware(self.device)

    def _network(self) -> Model:
        model = sync_batch_norm(Model(self.config, self.method), self.ranks, self.device)
        return model.to(self.device).to(memory_format=self._memory_format)

    @property
    def _memory_format(self) -> torch.memory_format:
        return torch.channels_last if self.device.type == "cuda" else torch.contiguous_format

    def run(self) -> Outcome:
        try:
            outcome = self._run()
        except Exception:
            # What is being written is of an earlier step: it is good and is registered, or its own failure came first.
            self.saver.register()
            raise
        finally:
            self.saver.close()
        return outcome

    def _run(self) -> Outcome:
        self.reporter.started(
            **self.facts,
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
        self._keep_monitor_batch()
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
                if request or (is_epoch_end and self.saver.is_due(epoch + 1)):
                    self._save()
                else:
                    self.saver.register_if_written()
                if request and self.step < self.total_steps:
                    self.saver.register()
                    return OUTCOME_OF[request]
        self._save()  # a run that resumed from its last step leaves its result in this folder too
        self.saver.register()
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
        views = self.view_maker.views(self.images[index], epoch, self.step)
        index = index.to(self.device)
        rate = learning_rate(self.step, self.total_steps, config.warmup_epochs * self.steps_per_epoch, self.base_rate)
        self.optimizer.zero_grad(set_to_none=True)
        found = self.learner.gradients(views, Batch(index, self.step, self.total_steps))
        self.ranks.sum_gradients(self.model.parameters())
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        self.optimizer.step()
        self.learner.follow()
        self.step += 1
        self.latest.pop(KNN_TOP1, None)  # it belongs to the step where it was measured
        self.window.add(torch.stack((found.total.detach(), *found.terms.values())))
        if self.step % config.log_every_steps == 0 or self.step == self.total_steps:
            self._log(rate, found, self.labels[index])
        if self.clock.is_due():
            self._progress("train")

    @property
    def _is_bfloat16(self) -> bool:
        precision = self.config.precision
        return precision == "bfloat16" or (precision == "auto" and self.device.type == "cuda")

    def _log(self, rate: float, found: Loss, classes: Tensor) -> None:
        """Read the window's means from the device, once; all ranks have the same, since each has the whole batch."""
        total, *terms = self.window.means()
        values = {f"{TRAIN_PREFIX}{name}": mean for name, mean in zip(found.terms, terms, strict=True)}
        values |= {TRAIN_LOSS: total, LEARNING_RATE: rate}
        if found.labels is not None:
            known = None if self.dataset.unlabelled is not None else classes
            values |= weak_label_metrics(*found.labels, known)
        if speed := self.clock.window_images_per_second(self.step):
            values[IMAGES_PER_SECOND] = speed
        values |= self.hardware.due()
        self.latest |= {TRAIN_LOSS: total}
        self.reporter.metrics(self.step, values)
        if total - total != 0:  # NaN or infinite
            raise non_finite_error(self.config, f"the loss is {total} after step {self.step}")

    def _evaluate(self, epoch: int) -> None:
        """KNN accuracy on the test split every `knn_every_epochs`, at the start and at the end."""
        every = self.config.knn_every_epochs
        if every == 0 or (epoch % every and epoch != self.config.epochs) or not self.ranks.is_first:
            return
        k = min(_KNN_K, int(self.dataset.train.labels.bincount(minlength=len(self.dataset.classes)).min()) // 2)
        if k < 1:
            return
        self._progress("evaluate")
        with self.clock.stopped():
            features = network_features(self.model.backbone, self.dataset, self.device)
            self.latest[KNN_TOP1] = knn_top1(features, k, _KNN_TEMPERATURE)
        self.reporter.metrics(self.step, {KNN_TOP1: self.latest[KNN_TOP1]})

    def _keep_monitor_batch(self) -> None:
        """Keep the images whose weak labels are reported; at every start, since an earlier attempt may be lost."""
        if self.ranks.is_first and self.config.monitor_every_epochs and self.model.labels_head is not None:
            with self.clock.stopped():
                self.monitor_batch.keep(self.reporter, self.output_dir, self.dataset.classes)

    def _monitor(self, epoch: int) -> None:
        """Measure the monitor batch every `monitor_every_epochs` epochs, and react to a collapse."""
        every = self.config.monitor_every_epochs
        if every == 0 or (epoch % every and epoch != self.config.epochs):
            return
        found = self._look_for_collapse(epoch) if self.ranks.is_first else None
        if not self.ranks.agreed(found is not None) or self.config.on_collapse == "warn":
            return
        if self.config.on_collapse == "pause":
            self._save()
            self.saver.register()
            raise CollapseError(found or "", "paused")
        raise CollapseError(found or "")

    def _look_for_collapse(self, epoch: int) -> str | None:
        with self.clock.stopped():
            measured = self.monitor_batch.measure(self.model)
        if measured.labels is not None:  # first: who sees the metrics finds the groups
            self.reporter.weak_labels(epoch=epoch, step=self.step, labels=measured.labels.tolist())
        self.reporter.metrics(self.step, measured.values)
        if (found := self.collapse.check(measured.values)) and self.collapse.is_new:
            self.reporter.warning("collapse", found)
        return found

    def _save(self) -> None:
        if self.step == self.saver.saved_step:
            return
        self._progress("save")
        with self.clock.stopped():
            self.saver.save(self.step, self.step // self.steps_per_epoch, self.latest)

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
