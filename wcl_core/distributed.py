"""Ranks: several processes that train one model on one global batch.

    images of rank r ── model ── z, u of rank r ── gather ── z, u of the global batch ── loss
                          ▲                                                               │
                          └── sum of all ranks' gradients ◄── rows of rank r ◄────────────┘

Every rank computes the loss of the whole global batch from the gathered embeddings. [D]  The gradient by the rank's own
rows is then a slice of a tensor that the rank already has.  So the gather has no communication in the backward pass,
every option of the loss works unchanged, and the sum over ranks of the parameters' gradients is the single-process
gradient at any number of ranks.  (The mean over ranks of losses over own anchors, with a gather that sums in the
backward pass, is the same number.)  The cost, one loss on each rank, is small beside the backbone.

Each rank has an equal, consecutive part of the global batch; `networks.batch_norm` normalises over all parts.  This
module reads no value back from an accelerator.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed import ProcessGroupGloo

from wcl_core import device as devices
from wcl_core.device import Choice, DeviceError
from wcl_core.protocol import Rendezvous
from wcl_core.rendezvous import Server, Store

# Other ranks wait while rank 0 evaluates or saves. The worker or torchrun ends all ranks when one is lost.
_TIMEOUT = timedelta(hours=6)


class PeerLostError(RuntimeError):
    """A collective failed because another rank is gone: a consequence of that rank's failure, never the cause."""


class TooFewGpusError(ValueError):
    """A run has more processes than the GPUs that it sees."""


@dataclass(frozen=True)
class Ranks:
    """One process's place among the ranks of a run.

    Attributes:
        rank: from 0; only rank 0 reports and writes files.
        size: number of ranks.
        control: a process group on the CPU for messages between hosts; None if the default group is on the CPU.
        device: of this process; None for the one that the spec chooses.
    """

    rank: int = 0
    size: int = 1
    control: dist.ProcessGroup | None = None
    device: torch.device | None = field(default=None, compare=False)

    @property
    def is_first(self) -> bool:
        return self.rank == 0

    def own(self, count: int) -> slice:
        """Return this rank's part of `count` rows; the parts are equal and consecutive."""
        assert count % self.size == 0, "the spec's validation makes the global batch divisible"
        part = count // self.size
        return slice(self.rank * part, (self.rank + 1) * part)

    def agreed(self, code: int) -> int:
        """Return rank 0's code on every rank; hosts wait for each other, but not for an accelerator.

        Ranks see a request at different moments.  If one left the loop a step before the others, they would wait for it
        in a collective; so rank 0 decides for all.
        """
        if self.size == 1:
            return code
        agreed = torch.tensor([code])
        with peers():
            dist.broadcast(agreed, src=0, group=self.control)
        return int(agreed)

    def gather(self, *parts: Tensor) -> list[Tensor]:
        """Return the rows of the global batch of each tensor, in rank order; gradients flow to this rank's rows.

        Args:
            parts: (B / size, D) each, of one dtype; D may differ.

        Returns:
            (B, D) for each; with one rank the tensors themselves.
        """
        if self.size == 1:
            return list(parts)
        gathered: Tensor = _Gather.apply(torch.cat(parts, dim=1), self)
        return list(gathered.split([part.shape[1] for part in parts], dim=1))

    def sum_gradients(self, parameters: Iterable[torch.nn.Parameter]) -> None:
        """Replace every gradient by its sum over ranks, in one flat all-reduce; all ranks get equal bits."""
        if self.size == 1:
            return
        gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
        flat = torch.cat([gradient.flatten() for gradient in gradients])
        with peers():
            dist.all_reduce(flat)
        sums = flat.split([gradient.numel() for gradient in gradients])
        torch._foreach_copy_(gradients, [part.view_as(g) for part, g in zip(sums, gradients, strict=True)])


SINGLE = Ranks()


class _Gather(torch.autograd.Function):
    """Gather the rows of all ranks; backward, each rank takes its own rows, as every rank computes the whole loss."""

    @staticmethod
    def forward(ctx: Any, part: Tensor, ranks: Ranks) -> Tensor:
        whole = part.new_empty(ranks.size * len(part), *part.shape[1:])
        with peers():
            dist.all_gather_into_tensor(whole, part.contiguous())
        ctx.own = ranks.own(len(whole))
        return whole

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        return gradients[0][ctx.own], None


def device_of(ranks: Ranks, choice: Choice = "auto", held: int | None = None) -> torch.device:
    """Return a GPU of its own for each rank, or the CPU where the run computes there.

    Args:
        ranks: this process's place on its machine.
        choice: `device` of the spec.
        held: number of GPUs that the run's worker has given to it; None for a run that no worker has started.

    Raises:
        DeviceError: the run has to use a GPU and cannot.
        TooFewGpusError: there are GPUs, but fewer than ranks.
    """
    if ranks.device is not None:
        return ranks.device
    count = devices.usable_gpus(choice, held)
    if count == 0:
        return torch.device("cpu")
    if held and count < min(held, ranks.size):
        message = f"the run holds {held} GPUs, but PyTorch sees {count} of them"
        raise DeviceError(f"{message}; nvidia-smi may show the problem", is_whole_machine=False, index=count)
    if count < ranks.size:
        message = f"{ranks.size} processes need a GPU each, but the run sees {count}; use at most {count} processes"
        raise TooFewGpusError(f"{message}, or train with device: cpu")
    return torch.device("cuda", ranks.rank) if ranks.size > 1 else torch.device("cuda")


@contextmanager
def joined(
    environment: Mapping[str, str] = os.environ,
    rendezvous: Path | Rendezvous | None = None,
    choice: Choice = "auto",
    held: int | None = None,
) -> Iterator[Ranks]:
    """Join the ranks of `RANK` and `WORLD_SIZE`, each on a device that works; without them this is the only rank.

    Args:
        environment: the environment variables that torchrun or the worker sets.
        rendezvous: path of a file that does not exist yet, the same for all ranks, through which they meet without a
            network port; or where the ranks of several machines meet.  By default they meet at `MASTER_ADDR` and
            `MASTER_PORT`.
        choice, held: as for `device_of`.

    Raises:
        DeviceError, TooFewGpusError: the device cannot be used.
        PeerLostError: when the other ranks do not join.
    """
    rank, size = int(environment.get("RANK", "0")), int(environment.get("WORLD_SIZE", "1"))
    here = Ranks(int(environment.get("LOCAL_RANK", rank)), int(environment.get("LOCAL_WORLD_SIZE", size)))
    device = device_of(here, choice, held)
    if device.type == "cuda" and here.size > 1:  # a lone one has no index
        torch.cuda.set_device(device)
    devices.check(device)
    if size == 1:
        yield Ranks(device=device)
        return
    on_cpu, server = "gloo", None
    if isinstance(rendezvous, Rendezvous):
        on_cpu = _register_gloo_on(rendezvous.own_address)
        server = Server(rendezvous) if rank == 0 else None
    with peers():
        means: dict[str, Any] = {"init_method": f"file://{rendezvous}" if rendezvous else "env://"}
        if isinstance(rendezvous, Rendezvous):
            means = {"store": Store(rendezvous, _TIMEOUT)}
        backend = "nccl" if device.type == "cuda" else on_cpu
        dist.init_process_group(backend, rank=rank, world_size=size, timeout=_TIMEOUT, **means)
        control = dist.new_group(backend=on_cpu, timeout=_TIMEOUT) if backend == "nccl" else None
    assert not isinstance(control, int), "every rank is a member of the group"
    yield Ranks(rank, size, control, device)
    if server is not None:
        server.close()
    dist.destroy_process_group()  # not after an error, because it may wait for ranks that are gone


def _register_gloo_on(address: str) -> str:
    """Make gloo listen on one address of this machine, and return the name of that backend.

    By itself gloo takes the first address of an interface.
    """

    def create(given: Any, _: object) -> ProcessGroupGloo:
        options = ProcessGroupGloo._Options()  # type: ignore[attr-defined]
        options._devices = [ProcessGroupGloo.create_device(hostname=address)]
        options._timeout = given.timeout
        return ProcessGroupGloo(given.store, given.group_rank, given.group_size, options)

    name, kind = "gloo_on_address", dist.ProcessGroup.BackendType.GLOO
    dist.Backend.register_backend(name, create, extended_api=True, devices=["cpu"], _backend_type=kind)
    return name


@contextmanager
def peers() -> Iterator[None]:
    """Turn every error of a collective into `PeerLostError`, except for those of this rank's own device."""
    try:
        yield
    except (torch.OutOfMemoryError, torch.AcceleratorError):
        raise
    except RuntimeError as error:
        raise PeerLostError(f"the other ranks are gone: {error}") from error


def global_sum(values: Tensor) -> Tensor:
    """Return the sum over ranks of a tensor without gradient; the argument is overwritten."""
    with peers():
        dist.all_reduce(values)
    return values
