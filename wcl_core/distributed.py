"""Several processes, the ranks, that train one model on one global batch.

    images of rank r ── model ── z, u of rank r ── gather ── z, u of the global batch ── loss
                          ▲                                                               │
                          └── sum of all ranks' gradients ◄── rows of rank r ◄────────────┘

Every rank computes the loss of the whole global batch from the gathered embeddings [D].  Its gradient by the rank's own
rows is then a slice of what the rank already has, so the gather communicates nothing backward, every loss option works
unchanged, and the parameters' gradient is the plain sum over ranks: the single-process gradient at any number of ranks.
(The mean over ranks of losses over own anchors, with a gather that sums backward, is the same number.)  What it costs,
the loss computed once on each rank, is small beside the backbone.

Each rank holds an equal, consecutive part of the global batch; `sync_batch_norm` holds the normalisation by all parts.
Nothing here reads a value back from an accelerator.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

# While rank 0 evaluates or saves the others wait. Whoever started the ranks ends them all when one is lost.
_TIMEOUT = timedelta(hours=6)


class PeerLostError(RuntimeError):
    """A rank lost another one in the middle of a step: the consequence of a failure, never its cause."""


@dataclass(frozen=True)
class Ranks:
    """One process's place among those of a run.

    Attributes:
        rank: from 0; rank 0 alone reports and writes files.
        size: number of ranks.
        control: a group on the CPU for what the hosts tell each other; None where the default group is on the CPU.
    """

    rank: int = 0
    size: int = 1
    control: dist.ProcessGroup | None = None

    @property
    def is_first(self) -> bool:
        return self.rank == 0

    def own(self, count: int) -> slice:
        """This rank's part of `count` rows; the parts are equal and consecutive."""
        assert count % self.size == 0, "the spec makes the global batch divisible"
        part = count // self.size
        return slice(self.rank * part, (self.rank + 1) * part)

    def agreed(self, code: int) -> int:
        """Rank 0's code, on every rank: hosts wait for each other, no accelerator is waited for.

        Ranks are asked at different moments, and one that left the loop a step before the others would leave them
        waiting in a collective; so rank 0 decides for all.
        """
        if self.size == 1:
            return code
        told = torch.tensor([code])
        with peers():
            dist.broadcast(told, src=0, group=self.control)
        return int(told)

    def gather(self, *parts: Tensor) -> list[Tensor]:
        """The global batch's rows of each tensor, in rank order; gradients flow to this rank's own rows.

        Args:
            parts: (B / size, D) each, of one dtype; D may differ.

        Returns:
            (B, D) for each; with a single rank the tensors themselves.
        """
        if self.size == 1:
            return list(parts)
        gathered: Tensor = _Gather.apply(torch.cat(parts, dim=1), self)
        return list(gathered.split([part.shape[1] for part in parts], dim=1))

    def sum_gradients(self, parameters: Iterable[torch.nn.Parameter]) -> None:
        """Replace every gradient by its sum over ranks, in one flattened all-reduce; all ranks get equal bits."""
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
    """All ranks' rows; backward each rank takes its own, since every rank computes the whole loss."""

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


def device_of(ranks: Ranks) -> torch.device:
    """One GPU for each rank where there are enough, else the CPU for all."""
    if torch.cuda.device_count() < ranks.size:
        return torch.device("cpu")
    return torch.device("cuda", ranks.rank) if ranks.size > 1 else torch.device("cuda")


@contextmanager
def joined(environment: Mapping[str, str] = os.environ, rendezvous: Path | None = None) -> Iterator[Ranks]:
    """Join the ranks that `RANK` and `WORLD_SIZE` name; without them this process is alone.

    Args:
        environment: where the two are, as torchrun and our worker set them.
        rendezvous: a file that does not exist yet, known to all ranks, through which they meet. It opens no port to
            the network; without it they meet as `MASTER_ADDR` and `MASTER_PORT` say.

    Raises:
        PeerLostError: when the others do not come.
    """
    size = int(environment.get("WORLD_SIZE", "1"))
    if size == 1:
        yield SINGLE
        return
    rank = int(environment["RANK"])
    device = device_of(Ranks(rank, size))
    if device.type == "cuda":
        torch.cuda.set_device(device)
    backend = "nccl" if device.type == "cuda" else "gloo"
    method = f"file://{rendezvous}" if rendezvous else "env://"
    with peers():
        dist.init_process_group(backend, init_method=method, rank=rank, world_size=size, timeout=_TIMEOUT)
        control = dist.new_group(backend="gloo", timeout=_TIMEOUT) if backend == "nccl" else None
    assert not isinstance(control, int), "every rank is a member"
    yield Ranks(rank, size, control)
    dist.destroy_process_group()  # not after an error: it may wait for ranks that are gone


@contextmanager
def peers() -> Iterator[None]:
    """Whatever goes wrong in a collective is a lost peer, but for memory that ran out here."""
    try:
        yield
    except torch.OutOfMemoryError:
        raise
    except RuntimeError as error:
        raise PeerLostError(f"the other ranks are gone: {error}") from error


def global_sum(values: Tensor) -> Tensor:
    """The sum over ranks of a tensor that carries no gradient; the argument is overwritten."""
    with peers():
        dist.all_reduce(values)
    return values
