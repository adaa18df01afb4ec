"""The training loop, top to bottom: evaluate, save, step, log.

Data order and augmentation are functions of (seed, epoch, step), and the loop never draws from torch's global
generator.  So the state of a run is the learner's state (model, momentum encoder, queue), the optimiser's state, the
metrics' state and the step.  On an equal device, build and thread count, an interrupted run therefore ends with the
same bytes and metrics as an uninterrupted one.
"""

from __future__ import annotations

import platform
import time
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from wcl_core.checkpoint import CheckpointError
from wcl_core.config import PretrainSpec, largest_k
from wcl_core.data import DataError, ImageData, Split, epoch_batches, with_held_out
from wcl_core.data.rows import Rows
from wcl_core.distributed import SINGLE, Ranks, device_of
from wcl_core.evaluation.features import network_features
from wcl_core.evaluation.knn import knn_correct
from wcl_core.evaluation.view_accuracy import recognised, recognised_by_pixels
from wcl_core.methods import build_method
from wcl_core.methods.base import Loss
from wcl_core.networks.batch_norm import sync_batch_norm
from wcl_core.networks.model import Model
from wcl_core.networks.weights import load_start, start_weights
from wcl_core.protocol import (
    GAINED,
    IMAGES_PER_SECOND,
    KNN_TOP1,
    LEARNING_RATE,
    LOST,
    OUTCOME_OF,
    TRAIN_LOSS,
    TRAIN_PREFIX,
    VIEW_TOP1,
    VIEW_TOP1_CHANCE,
    VIEW_TOP1_PIXELS,
    Outcome,
    Request,
)
from wcl_core.reporter import NullReporter, Reporter
from wcl_core.schedule import base_learning_rate, restarted_rate
from wcl_core.stop import Interrupted, interruptible
from wcl_core.training.batch_size import sizes
from wcl_core.training.collapse import CollapseError, non_finite_error
from wcl_core.training.execution import Execution
from wcl_core.training.learner import Learner
from wcl_core.training.monitor_batch import MonitorBatch
from wcl_core.training.optim import build_optimizer, warning_of
from wcl_core.training.run_metrics import Clock, Hardware, MetricState, weak_label_metrics
from wcl_core.training.saving import Saver, environment
from wcl_core.training.view_maker import Inputs, Parameters, ViewMaker
from wcl_core.transfer import send

_REQUESTS: tuple[Request | None, ...] = (None, "cancel", "drain", "pause")
_KNN_K = 20
_KNN_TEMPERATURE = 0.07
_MEASURE_SECONDS = 1.0  # a measurement that takes no longer is never ended


def pretrain(
    config: PretrainSpec,
    reporter: Reporter,
    *,
    dataset: ImageData,
    output_dir: Path,
    resume: Path | None = None,
    weights: Path | None = None,
    ranks: Ranks = SINGLE,
) -> Outcome:
    """Train a backbone without labels.

    Args:
        config: the spec of the run, which is already validated.
        reporter: receives the records, and returns the request to stop, if there is one, after every step.  Only the
            first rank's reporter is used.
        dataset: its splits at `config.data.image_size`; only monitors read the labels, if it has any.
        output_dir: checkpoints go to `output_dir/checkpoints/step-<n>.safetensors`.
        resume: a checkpoint of a run with the same spec, or of one that ends at a restart of this spec.
        weights: the file that `config.weights` names; only a run that does not resume reads it.
        ranks: this process's place among the ranks; all ranks call this function with equal arguments.

    Returns:
        `succeeded`, or the outcome of a request, after writing a checkpoint of the last step unless no step was taken.
        A cancel writes none: the work since the last checkpoint is lost.
        A request ends a long kNN measurement after an epoch; the run that resumes there measures first.  A request
        during the last step comes too late, and the run has succeeded, unless it ends the last measurement.

    Raises:
        DataError: when the train split has fewer images than one batch.
        checkpoint.CheckpointError: when `resume` is missing, damaged or of another spec.
        NonFiniteLossError: when the loss or the weights are not finite.
        CollapseError: when the representation collapses and `on_collapse` is not `warn`.
        PeerLostError: when another rank is lost.
        DeviceError, TooFewGpusError: when the run has to use a GPU and cannot.
    """
    reporter = reporter if ranks.is_first else NullReporter()
    return _Run(config, reporter, dataset, output_dir, resume, ranks, weights).run()


class _Run:
    def __init__(
        self,
        config: PretrainSpec,
        reporter: Reporter,
        dataset: ImageData,
        output_dir: Path,
        resume: Path | None,
        ranks: Ranks,
        weights: Path | None = None,
    ) -> None:
        self.start = _start(config, weights) if resume is None else None
        self.loaded: list[str] = []
        dataset = with_held_out(dataset, config.data.held_out_share)
        split = dataset.pretraining
        self.sizes: dict[str, int | None] = {}
        if "auto" in (config.batch_size, config.micro_batch_size):
            self.sizes = sizes(config, len(split), device_of(ranks, config.device), ranks, resume)
            config = PretrainSpec.model_validate(dict(config) | self.sizes)
        if config.images_per_step > len(split):
            raise DataError(
                f"batch_size is {config.images_per_step}, but the train split of {dataset.name} has {len(split)} "
                f"images. Use at most {len(split)}."
            )
        if config.threads is not None:
            torch.set_num_threads(config.threads)
        self.config, self.reporter, self.dataset = config, reporter, dataset
        self.output_dir, self.ranks, self.device = output_dir, ranks, device_of(ranks, config.device)
        torch.backends.cudnn.deterministic = True  # for exact resume: convolution gradients may use atomics otherwise
        self.steps_per_epoch = len(split) // config.images_per_step
        self.total_steps = self.steps_per_epoch * config.epochs
        self.end_steps = [epoch * self.steps_per_epoch for epoch in config.ends]
        self.method = build_method(config)
        self.learner = Learner(config, self.method, self._network, is_bfloat16=self._is_bfloat16, gather=ranks.gather)
        self.model = self.learner.model
        self.base_rate = base_learning_rate(config.optimizer, config.images_per_step)
        self.optimizer = build_optimizer(config, self.model)
        self.facts = environment(self.device, ranks)
        self.metrics = MetricState()
        self.saver = Saver(
            config,
            self.learner,
            self.optimizer,
            self.metrics,
            dataset,
            reporter,
            output_dir,
            self.facts,
            is_first=ranks.is_first,
        )
        self.start = None  # loaded
        self.step = 0 if resume is None else self.saver.load(resume, self._memory_format)
        self.images = Rows(split, self.device, ranks)
        self.view_maker = ViewMaker(
            config, ranks, self.device, self.images.sides, self.steps_per_epoch, self._memory_format
        )
        self.execution = Execution(
            config,
            self.method,
            self.learner,
            self.optimizer,
            self.view_maker,
            ranks,
            self.device,
            self.total_steps,
            self.end_steps[0],
        )
        self.labels = split.labels.to(self.device)
        self.monitor_batch = MonitorBatch(config, dataset.shown, self.device)
        self.clock, self.hardware = Clock(self.step, config.images_per_step), Hardware(self.device)

    def _network(self) -> Model:
        model = Model(self.config, self.method)
        if self.start is not None:
            self.loaded = load_start(model, self.start)
        model = sync_batch_norm(model, self.ranks, self.device)
        return model.to(self.device).to(memory_format=self._memory_format)

    @property
    def _smallest_class(self) -> int:
        if not self.dataset.has_labels:
            return 0
        return int(self.dataset.train.labels.bincount(minlength=len(self.dataset.classes)).min())

    @property
    def _memory_format(self) -> torch.memory_format:
        return torch.channels_last if self.device.type == "cuda" else torch.contiguous_format

    def run(self) -> Outcome:
        try:
            outcome = self._run()
        except Exception:
            # The checkpoint that is being written is of an earlier step, so it is good and is registered; if writing it
            # failed, its own error comes first.
            self.saver.register()
            raise
        finally:
            self.saver.close()
        return outcome

    def _run(self) -> Outcome:
        try:
            self.prepare()
        except Interrupted as interrupted:
            return OUTCOME_OF[interrupted.request]
        self.saver.compare_environments()
        self.reporter.started(
            **self.facts,
            **({} if self.execution.reason is None else {"execution_reason": self.execution.reason}),
            **self.sizes,
            python=platform.python_version(),
            total_steps=self.total_steps,
            total_epochs=self.config.epochs,
            start_step=self.step,
        )
        if self.loaded:
            self.reporter.log(f"the training starts from weights {self.config.weights}: {', '.join(self.loaded)}")
        if (warning := warning_of(self.config)) is not None:
            self.reporter.warning("unusual_optimizer", warning)
        if self.config.knn_every_epochs and self.dataset.has_labels and not self._smallest_class:
            self.reporter.warning("no_knn", "a class has no train image, so the kNN accuracy is not measured")
        self._progress("train")
        if request := self._request():
            return OUTCOME_OF[request]
        self._keep_monitor_batch()
        if not self._measured_before_start() and (request := self._request()):
            return OUTCOME_OF[request]
        parameters = self.view_maker.ahead(range(self.step, self.total_steps))
        for epoch in range(self.step // self.steps_per_epoch, self.config.epochs):
            for index, drawn in zip(self._batches(epoch), parameters, strict=False):
                self._train_step(index, drawn)
                is_epoch_end = self.step % self.steps_per_epoch == 0
                # Before a request is handled, because a run that resumes here starts with the next epoch.
                is_measured = self._measured_untrained() and self.step < self.total_steps
                if is_epoch_end and (self.metrics.has_untrained or not self._is_accuracy_due(epoch + 1)):
                    is_measured = self._measured(epoch + 1) and self.metrics.has_untrained
                request = self._request()
                owes_save = request is not None and request != "cancel"
                if owes_save or (is_epoch_end and self.saver.is_due(epoch + 1)):
                    self._save()
                else:
                    self.saver.register_if_written()
                if request and (self.step < self.total_steps or not is_measured):
                    self.saver.register()
                    return OUTCOME_OF[request]
                self.reporter.owes_save = self.step != self.saver.registered_step
        self._save()  # also if the run resumed from its last step, so that its result is in this folder
        self.saver.register()
        self._progress("train")
        return "succeeded"

    def prepare(self) -> None:
        """Compile the step, if the run is to execute it so, with the shapes of every step; record its form."""
        if self.execution.form != "eager":
            self._progress("compile")
            # A rank that leaves in the middle of a step would let the others wait; the run owes no save, so that it can
            # be ended.
            ends = interruptible(self.reporter.request) if self.ranks.size == 1 else nullcontext()
            with self.clock.stopped(), ends:
                index = torch.arange(self.config.images_per_step)
                seconds = self.execution.prepare(self._inputs(index, self.view_maker.parameters(self.step)))
            self.reporter.log(f"the preparation of {self.execution.form} steps took {seconds:.0f} s")
        self.facts["execution"] = self.execution.form
        if (reason := self.execution.reason) is not None:
            self.reporter.log(f"steps are {self.execution.form}: {reason}")

    def _measured_before_start(self) -> bool:
        """Measure what no later step can, or what was ended before this attempt; return False if a request ends it.

        Weights that the run starts from are measured before they change: a later attempt does not have their file.
        """
        if self.step == 0:
            return self.config.weights is None or self._measured_untrained()
        if not self._measured_untrained():
            return False
        epoch, steps = divmod(self.step, self.steps_per_epoch)
        if steps or not self._is_accuracy_due(epoch) or self._accuracy in self.metrics.latest:
            return True
        if not self._measured(epoch):
            return False
        if self.saver.is_due(epoch):
            self._save()
        return True

    def _measured_untrained(self) -> bool:
        """Measure the network as it was before its first step, once; return False if a request ends it.

        Random weights are measured after the first step: a run begins at once, and what is wrong with a step is said
        first.
        """
        self.metrics.has_untrained = self.metrics.has_untrained or self._evaluate(epoch=0)
        return self.metrics.has_untrained

    def _measured(self, epoch: int) -> bool:
        """Measure after an epoch; return False if a request has ended the measurement."""
        if not self._evaluate(epoch):
            return False
        self._monitor(epoch)
        return True

    def _request(self) -> Request | None:
        return _REQUESTS[self.ranks.agreed(_REQUESTS.index(self.reporter.request()))]

    def _batches(self, epoch: int) -> Iterator[Tensor]:
        start = self.step - epoch * self.steps_per_epoch
        batches = epoch_batches(len(self.images), self.config.images_per_step, self.config.seed, epoch, start)
        return self.images.ahead(batches)

    def _inputs(self, index: Tensor, parameters: Parameters) -> Inputs:
        return Inputs(self.images[index], parameters, send(index, self.device))

    def _train_step(self, index: Tensor, parameters: Parameters) -> None:
        config = self.config
        inputs = self._inputs(index, parameters)
        rate = restarted_rate(config, self.step, self.steps_per_epoch, self.base_rate)
        loss = self.execution.step(inputs, self.step, rate)
        self.step += 1
        self.reporter.owes_save = True
        self.metrics.latest.pop(self._accuracy, None)  # it was measured at an earlier step
        self.metrics.window.add(torch.stack((loss.total.detach(), *loss.terms.values())))
        # At each end of a cosine, as if the run had ended there: a run that continues it has the same state.
        if self.step % config.log_every_steps == 0 or self.step in self.end_steps:
            self._log(rate, loss, self.labels[inputs.index])
        self.clock.tick(self.step)
        if self.clock.is_due():
            self._progress("train")

    @property
    def _is_bfloat16(self) -> bool:
        precision = self.config.precision
        return precision == "bfloat16" or (precision == "auto" and self.device.type == "cuda")

    def _log(self, rate: float, loss: Loss, classes: Tensor) -> None:
        """Report the means of the window, read from the device once; they are equal on all ranks."""
        total, *terms = self.metrics.window.means()
        values = {f"{TRAIN_PREFIX}{name}": mean for name, mean in zip(loss.terms, terms, strict=True)}
        values |= {TRAIN_LOSS: total, LEARNING_RATE: rate}
        if loss.labels is not None:
            has_classes = self.dataset.has_labels and self.dataset.unlabelled is None
            values |= weak_label_metrics(*loss.labels, classes if has_classes else None)
        if speed := self.clock.window_images_per_second(self.step):
            values[IMAGES_PER_SECOND] = speed
        values |= self.hardware.due()
        self.metrics.latest |= {TRAIN_LOSS: total}
        self.reporter.metrics(self.step, values)
        if total - total != 0:  # NaN or infinite
            raise non_finite_error(self.config, f"the loss is {total} after step {self.step}")

    @property
    def _accuracy(self) -> str:
        """The metric that says whether the network learns: without labels, whether it recognises views."""
        return KNN_TOP1 if self.dataset.has_labels else VIEW_TOP1

    def _is_accuracy_due(self, epoch: int) -> bool:
        every = self.config.knn_every_epochs
        if not every or not (epoch % every == 0 or epoch in self.config.ends):
            return False
        return self._accuracy == VIEW_TOP1 or self._knn_k >= 1

    @property
    def _knn_k(self) -> int:
        return min(_KNN_K, largest_k(self._smallest_class))

    def _evaluate(self, epoch: int) -> bool:
        """Report the kNN accuracy on the test split, every `knn_every_epochs`, at the end, and of epoch 0.

        Without labels it is the view accuracy.

        Returns:
            False on every rank if a request has ended the measurement.
        """
        if not self._is_accuracy_due(epoch):
            return True
        return not self.ranks.agreed(self.ranks.is_first and not self._report_accuracy(is_untrained=epoch == 0))

    def _report_accuracy(self, *, is_untrained: bool) -> bool:
        self._progress("evaluate")
        try:
            with self.clock.stopped(), interruptible(_after(_MEASURE_SECONDS, self.reporter.request)):
                model = self._untrained() if is_untrained else self.model
                correct = self._measured_images(model.backbone)
                if is_untrained:
                    baselines = self._baselines(model)
        except Interrupted:
            return False
        values = {self._accuracy: float(correct.double().mean())}
        if self._accuracy == VIEW_TOP1:
            values[VIEW_TOP1_CHANCE] = 1 / len(correct)
        if is_untrained:
            values |= baselines
            self.metrics.untrained_correct = correct.to(torch.uint8)
        else:
            self.metrics.latest[self._accuracy] = values[self._accuracy]
            if (before := self.metrics.untrained_correct) is not None and len(before) == len(correct):
                gained, lost = correct & ~before.bool(), before.bool() & ~correct
                values |= {self._accuracy + GAINED: float(gained.double().mean())}
                values |= {self._accuracy + LOST: float(lost.double().mean())}
        self.reporter.metrics(0 if is_untrained else self.step, values)
        return True

    def _measured_images(self, backbone: nn.Module) -> Tensor:
        """Return which of the measured images are right, (M,) bool."""
        if self._accuracy == KNN_TOP1:
            features = network_features(backbone, self.dataset, self.device)
            return knn_correct(features, self._knn_k, _KNN_TEMPERATURE)
        return recognised(backbone, self.config, self._recognised_split, self.device)

    @property
    def _recognised_split(self) -> Split:
        """The images that the view accuracy is measured on: those that are held out of the training, else its own."""
        return self.dataset.test if self.config.data.held_out_share else self.dataset.pretraining

    def _baselines(self, untrained: Model) -> dict[str, float]:
        """Return the view accuracy of raw pixels, without labels, and the monitors of an untrained network."""
        values = {}
        if self._accuracy == VIEW_TOP1:
            correct = recognised_by_pixels(self.config, self._recognised_split, self.device)
            values[VIEW_TOP1_PIXELS] = float(correct.double().mean())
        if self.config.monitor_every_epochs:
            measured = self.monitor_batch.measure(untrained).values  # its weak labels are none of the training
            values |= {name: value for name, value in measured.items() if not name.startswith("weak/")}
        return values

    def _untrained(self) -> Model:
        """Return the network before the first step; no global random generator is changed."""
        if self.step == 0:
            return self.model
        with torch.random.fork_rng([self.device] if self.device.type == "cuda" else []):
            return self._network()

    def _keep_monitor_batch(self) -> None:
        """Keep the images of the monitor batch; at every start, because an earlier attempt may have lost them."""
        if self.ranks.is_first and self.config.monitor_every_epochs and self.model.labels_head is not None:
            with self.clock.stopped():
                self.monitor_batch.keep(self.reporter, self.output_dir, self.dataset.classes)

    def _monitor(self, epoch: int) -> None:
        """Measure the monitor batch every `monitor_every_epochs`; end or pause the run if it has collapsed."""
        every = self.config.monitor_every_epochs
        if every == 0 or (epoch % every and epoch not in self.config.ends):
            return
        collapse = self._check_collapse(epoch) if self.ranks.is_first else None
        if not self.ranks.agreed(collapse is not None) or self.config.on_collapse == "warn":
            return
        if self.config.on_collapse == "pause":
            self.metrics.collapse.signs_in_a_row = 0  # a user who resumes gets as many checks again
            self._save()
            self.saver.register()
            raise CollapseError(collapse or "", "paused")
        raise CollapseError(collapse or "")

    def _check_collapse(self, epoch: int) -> str | None:
        with self.clock.stopped():
            measured = self.monitor_batch.measure(self.model)
        if measured.labels is not None:  # before the metrics, so that a reader of the metrics finds the weak labels
            self.reporter.weak_labels(epoch=epoch, step=self.step, labels=measured.labels.tolist())
        self.reporter.metrics(self.step, measured.values)
        if (collapse := self.metrics.collapse.check(measured.values)) and self.metrics.collapse.is_new:
            self.reporter.warning("collapse", collapse)
        return collapse

    def _save(self) -> None:
        if self.step == self.saver.saved_step:
            return
        self._progress("save")
        with self.clock.stopped():
            self.saver.save(self.step, self.step // self.steps_per_epoch)

    def _progress(self, phase: Any) -> None:
        speed = self.clock.images_per_second(self.step)
        images_left = (self.total_steps - self.step) * self.config.images_per_step
        eta = 0.0 if not images_left else images_left / speed if speed else None
        self.reporter.progress(
            step=self.step,
            total_steps=self.total_steps,
            epoch=self.step / self.steps_per_epoch,
            total_epochs=self.config.epochs,
            phase=phase,
            images_per_second=speed,
            eta_seconds=eta,
        )


def _start(config: PretrainSpec, file: Path | None) -> dict[str, Tensor] | None:
    """Return the weights that a spec starts from; None for random ones.

    Raises:
        CheckpointError: the spec names weights, and there is no file of them, or it is unusable.
    """
    if config.weights is None:
        return None
    if file is None:
        raise CheckpointError(f"the spec starts from weights {config.weights}, but no file is given; use --weights")
    return start_weights(file)


def _after(seconds: float, request: Callable[[], Request | None]) -> Callable[[], Request | None]:
    """Return a function that returns no request until so many seconds have passed."""
    begins_at = time.monotonic() + seconds
    return lambda: request() if time.monotonic() >= begins_at else None
