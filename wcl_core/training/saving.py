"""The checkpoints of a run: written in the background, reported when complete, and loaded to resume.

    save ── the state is copied, training continues ── the file is complete and is reported ── register

`wcl_core.checkpoint` defines the file format.
"""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from wcl_core import checkpoint
from wcl_core.config import PretrainSpec, resolve_spec, stored_spec
from wcl_core.data import ImageData
from wcl_core.distributed import Ranks
from wcl_core.protocol import CHECKPOINTS_FOLDER
from wcl_core.reporter import Reporter
from wcl_core.training.collapse import non_finite_error
from wcl_core.training.learner import Learner
from wcl_core.training.optim import load_state, state_of
from wcl_core.training.run_metrics import MetricState

# A resumed run may change these fields: they change no weight, or are part of the environment.
_FREE_FIELDS = frozenset({"processes", "nodes", "execution", "monitor_every_epochs", "on_collapse", "on_non_finite"})
# Facts that older checkpoints lack.
_USUAL_FACTS = {"execution": "eager"}


def environment(device: torch.device, ranks: Ranks) -> dict[str, Any]:
    """Return the facts that exact resume depends on."""
    is_gpu = device.type == "cuda"
    return {
        "device": torch.cuda.get_device_name() if is_gpu else f"cpu {torch.backends.cpu.get_cpu_capability()}",
        "torch": torch.__version__,
        "threads": torch.get_num_threads(),
        "world_size": ranks.size,
        "channels_last": is_gpu,
        **_USUAL_FACTS,
    }


class Saver:
    """The writer, reporter and reader of the checkpoints of one run.

    Args:
        learner, optimizer, metrics: their states are saved and loaded.
        dataset: its digest is saved, so that no run resumes with other images.
        reporter: receives every checkpoint whose file is complete.
        output_dir: files go to its folder `checkpoints`.
        facts: the `environment`; the run may complete it until it calls `compare_environments`.
        is_first: whether this is the first rank, the only one that writes.

    Attributes:
        saved_step: step of the last saved state; -1 before the first one.
        registered_step: step of the last checkpoint that is known to be reported.
    """

    def __init__(
        self,
        config: PretrainSpec,
        learner: Learner,
        optimizer: Optimizer,
        metrics: MetricState,
        dataset: ImageData,
        reporter: Reporter,
        output_dir: Path,
        facts: dict[str, Any],
        *,
        is_first: bool,
    ) -> None:
        self._config, self._dataset = config, dataset
        self._learner, self._optimizer, self._metrics = learner, optimizer, metrics
        self._reporter, self._output_dir, self._facts, self._is_first = reporter, output_dir, facts, is_first
        self._writer = checkpoint.BackgroundWriter()
        self._facts_then: dict[str, Any] | None = None
        self.saved_step = self.registered_step = -1

    def is_due(self, epoch: int) -> bool:
        """Return whether the spec requires a checkpoint after `epoch` epochs."""
        keep = self._config.checkpoints
        return epoch % keep.every_epochs == 0 or epoch in self._config.ends or (keep.first_epoch and epoch == 1)

    def save(self, step: int, epoch: int) -> None:
        """Copy the state, and write and report it in the background: the next step may take long."""
        self.register()
        name = f"{CHECKPOINTS_FOLDER}/step-{step:08d}.safetensors"
        if self._is_first:
            facts = {"step": step, "epoch": epoch, "file": name, "metrics": dict(self._metrics.latest)}
            report = partial(self._report, facts)
            self._writer.start(self._output_dir / name, self._state(), self._metadata(step, epoch), report)
        self.saved_step = step

    def _report(self, facts: dict[str, Any], written: checkpoint.Written) -> None:
        self._reporter.checkpoint(**facts, sha256=written.sha256, size=written.size)

    def register(self) -> None:
        """Wait until the checkpoint that is being written, if any, is complete and reported.

        Raises:
            NonFiniteLossError: when its weights or losses are not finite; then no file is written.
        """
        try:
            self._writer.finish()
        except checkpoint.NonFiniteStateError as error:
            message = f"weights or losses are not finite after step {self.saved_step}; no checkpoint was written"
            raise non_finite_error(self._config, message) from error
        self.registered_step = self.saved_step

    def register_if_written(self) -> None:
        """Register the checkpoint if that needs no waiting."""
        if self._writer.is_done():
            self.register()

    def close(self) -> None:
        """End the thread after it has written its file."""
        self._writer.close()

    def load(self, path: Path, memory_format: torch.memory_format) -> int:
        """Restore the state from a checkpoint.

        Returns:
            The step of the checkpoint.

        Raises:
            CheckpointError: when the file is missing or damaged, or has another spec or other data.
        """
        saved = checkpoint.read(path)
        _check_same_run(path, saved, self._config, self._dataset)
        self._learner.load(saved.part)
        load_state(self._optimizer, self._learner.model, saved.part("optimizer/"), memory_format)
        self._metrics.load(saved.part, saved.metadata.get("metrics", {}))
        self._facts_then = _USUAL_FACTS | saved.metadata["environment"]
        return int(saved.metadata["step"])

    def compare_environments(self) -> None:
        """Warn if the loaded checkpoint was written in another environment."""
        then, now = self._facts_then, self._facts
        if then is None:
            return
        if changed := [f"{key}: {then.get(key)} -> {now[key]}" for key in now if then.get(key) != now[key]]:
            self._reporter.warning(
                "resume_environment_changed",
                "the result may differ from that of an uninterrupted run, because the environment changed: "
                + ", ".join(changed),
            )

    def _state(self) -> dict[str, Tensor]:
        tensors = self._learner.state() | self._metrics.tensors()
        slots = state_of(self._optimizer, self._learner.model)
        return tensors | {f"optimizer/{name}": slot for name, slot in slots.items()}

    def _metadata(self, step: int, epoch: int) -> dict[str, Any]:
        # Where the ranks run is no part of the state: equal states have equal bytes on one machine and on several.
        placed = {"nodes": 1, "processes": 1}
        return {
            "spec": stored_spec(resolve_spec(self._config) | placed),
            "dataset_digest": self._dataset.digest,
            "step": step,
            "epoch": epoch,
            "environment": self._facts,
            "metrics": self._metrics.facts(),
        }


def _check_same_run(path: Path, saved: checkpoint.Checkpoint, config: PretrainSpec, dataset: ImageData) -> None:
    then, now = resolve_spec(saved.spec), resolve_spec(config)
    free = _FREE_FIELDS
    if config.ends[: len(saved.spec.ends)] == saved.spec.ends:  # the run goes on where the other one has ended
        free |= {"epochs", "restarts"}
    if changed := [field for field in now if then[field] != now[field] and field not in free]:
        raise checkpoint.CheckpointError(
            f"checkpoint {path.name} has another spec; these fields differ: {', '.join(changed)}"
        )
    if saved.metadata["dataset_digest"] != dataset.digest:
        raise checkpoint.CheckpointError(
            f"checkpoint {path.name} was trained on other images: the digest of dataset {dataset.name} differs"
        )
