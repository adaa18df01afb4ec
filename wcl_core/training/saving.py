"""The state of a run: when it is written, in the background, and how another run goes on from it.

    save ── the state is copied; training goes on ── register: the file lies whole, and is reported

How a file looks is `checkpoint`'s business.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from wcl_core import checkpoint
from wcl_core.config import PretrainSpec, resolve_spec
from wcl_core.data import ImageData
from wcl_core.distributed import Ranks
from wcl_core.protocol import CHECKPOINTS_FOLDER
from wcl_core.reporter import Reporter
from wcl_core.training.collapse import non_finite_error
from wcl_core.training.learner import Learner
from wcl_core.training.optim import load_state, state_of

# A run may go on with others: the number of ranks is part of its environment, and these reach no weight.
_FREE_FIELDS = frozenset({"processes", "monitor_every_epochs", "on_collapse", "on_non_finite"})


def environment(device: torch.device, ranks: Ranks) -> dict[str, Any]:
    """What exact resume depends on."""
    is_gpu = device.type == "cuda"
    return {
        "device": torch.cuda.get_device_name() if is_gpu else f"cpu {torch.backends.cpu.get_cpu_capability()}",
        "torch": torch.__version__,
        "threads": torch.get_num_threads(),
        "world_size": ranks.size,
        "channels_last": is_gpu,
    }


class Saver:
    """Writes, reports and reads the checkpoints of one run.

    Args:
        config: of the run.
        learner: what learns; read and loaded.
        optimizer: its slots are part of the state.
        dataset: whose digest is kept, so that no run goes on with other images.
        reporter: told of every checkpoint that lies whole on the disk.
        output_dir: files go to its folder `checkpoints`.
        facts: the environment.
        is_first: of several ranks only the first one writes.

    Attributes:
        saved_step: of the last state that was saved; -1 before.
    """

    def __init__(
        self,
        config: PretrainSpec,
        learner: Learner,
        optimizer: Optimizer,
        dataset: ImageData,
        reporter: Reporter,
        output_dir: Path,
        facts: dict[str, Any],
        *,
        is_first: bool,
    ) -> None:
        self._config, self._learner, self._optimizer, self._dataset = config, learner, optimizer, dataset
        self._reporter, self._output_dir, self._facts, self._is_first = reporter, output_dir, facts, is_first
        self._writer = checkpoint.BackgroundWriter()
        self._unregistered: dict[str, Any] = {}
        self.saved_step = -1

    def is_due(self, epoch: int) -> bool:
        """Whether the state after `epoch` epochs is to be kept."""
        keep = self._config.checkpoints
        return epoch % keep.every_epochs == 0 or epoch == self._config.epochs or (keep.first_epoch and epoch == 1)

    def save(self, step: int, epoch: int, metrics: dict[str, float]) -> None:
        """Copy the state and have it written while the training goes on."""
        self.register()
        name = f"{CHECKPOINTS_FOLDER}/step-{step:08d}.safetensors"
        if self._is_first:
            self._writer.start(self._output_dir / name, self._state(), self._metadata(step, epoch))
        self.saved_step = step
        self._unregistered = {"step": step, "epoch": epoch, "file": name, "metrics": dict(metrics)}

    def register(self) -> None:
        """Wait for the checkpoint that is being written, if any, and report it: it lies whole on the disk.

        Raises:
            NonFiniteLossError: its weights are not finite, and there is no file.
        """
        try:
            written = self._writer.finish()
        except checkpoint.NonFiniteStateError as error:
            step = self._unregistered["step"]
            message = f"weights are not finite after step {step}; no checkpoint was written"
            raise non_finite_error(self._config, message) from error
        if written is not None:
            self._reporter.checkpoint(**self._unregistered, sha256=written.sha256, size=written.size)

    def register_if_written(self) -> None:
        """As `register`, when it would not have to wait."""
        if self._writer.is_done():
            self.register()

    def close(self) -> None:
        """End the thread, after what it is writing."""
        self._writer.close()

    def load(self, path: Path, memory_format: torch.memory_format) -> int:
        """Go on from a checkpoint; another environment is a warning.

        Returns:
            Its step.

        Raises:
            CheckpointError: missing, damaged, of another spec or of other data.
        """
        saved = checkpoint.read(path)
        _check_same_run(path, saved, self._config, self._dataset)
        self._learner.load(saved.part)
        load_state(self._optimizer, self._learner.model, saved.part("optimizer/"), memory_format)
        then, now = saved.metadata["environment"], self._facts
        if changed := [f"{key}: {then.get(key)} -> {now[key]}" for key in now if then.get(key) != now[key]]:
            self._reporter.warning(
                "resume_environment_changed", "not the same bytes as uninterrupted: " + ", ".join(changed)
            )
        return int(saved.metadata["step"])

    def _state(self) -> dict[str, Tensor]:
        tensors = self._learner.state()
        slots = state_of(self._optimizer, self._learner.model)
        return tensors | {f"optimizer/{name}": slot for name, slot in slots.items()}

    def _metadata(self, step: int, epoch: int) -> dict[str, Any]:
        return {
            "spec": resolve_spec(self._config),
            "dataset_digest": self._dataset.digest,
            "step": step,
            "epoch": epoch,
            "environment": self._facts,
        }


def _check_same_run(path: Path, saved: checkpoint.Checkpoint, config: PretrainSpec, dataset: ImageData) -> None:
    then, now = resolve_spec(saved.spec), resolve_spec(config)
    if changed := [field for field in now if then[field] != now[field] and field not in _FREE_FIELDS]:
        raise checkpoint.CheckpointError(f"checkpoint {path.name} is of another spec: {', '.join(changed)} differ")
    if saved.metadata["dataset_digest"] != dataset.digest:
        raise checkpoint.CheckpointError(f"checkpoint {path.name} was trained on other data under the same name")
