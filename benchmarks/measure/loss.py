"""The weak-label loss, forward and backward, against the plain form with a B x B mask: time and extra memory."""

from __future__ import annotations

import resource
from multiprocessing import get_context
from pathlib import Path

import torch
import torch.nn.functional as F
from measure.rounds import Row, faster, interleaved, seconds
from torch import Tensor

from wcl_core.methods.losses import weak_label_loss
from wcl_core.methods.weak_labels import weak_labels

TEMPERATURE = 0.1
DIM = 128
TIME_GOAL, MEMORY_GOAL = 3.0, 20.0


def dense_loss(u: Tensor, labels: Tensor, temperature: float) -> Tensor:
    """Return the loss by its formula, with keys without gradient, in float32."""
    logits = u @ u.detach().T / temperature
    own = torch.eye(len(u), dtype=torch.bool, device=u.device)
    positives = (labels[:, None] == labels) & ~own
    logarithms = logits - logits.masked_fill(own, -torch.inf).logsumexp(1, keepdim=True)
    return -(torch.where(positives, logarithms, 0.0).sum(1) / positives.sum(1)).mean()


FORMS = {"ours": weak_label_loss, "dense": dense_loss}


def batch(count: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    u = F.normalize(torch.randn(count, DIM, generator=generator), dim=1)
    return u.requires_grad_(), weak_labels(u)


def gradient(form: str, u: Tensor, labels: Tensor) -> Tensor:
    return torch.autograd.grad(FORMS[form](u, labels, TEMPERATURE), u)[0]


def rows(rounds: int) -> list[Row]:
    table_rows = []
    for count in (4096, 16384):
        u, labels = batch(count)
        torch.testing.assert_close(gradient("ours", u, labels), gradient("dense", u, labels), rtol=1e-3, atol=1e-7)

        def time_of(form: str, u: Tensor = u, labels: Tensor = labels) -> float:
            return seconds(lambda: gradient(form, u, labels))

        times = interleaved(
            lambda time_of=time_of: time_of("ours"), lambda time_of=time_of: time_of("dense"), rounds, warm_up=False
        )
        table_rows.append(faster(f"weak-label loss and gradient, B = {count:,}", "dense mask", *times, TIME_GOAL))
    memory = {form: [_extra_memory(form, 16384)] for form in FORMS}
    row = faster("its extra memory, B = 16,384", "dense mask", memory["ours"], memory["dense"], MEMORY_GOAL, "s")
    return [*table_rows, Row(**{**row.__dict__, "unit": "MiB"})]


def _extra_memory(form: str, count: int) -> float:
    """Return the peak of resident memory above the level before, in MiB, measured in a new process."""
    context = get_context("spawn")
    receiver, sender = context.Pipe(duplex=False)
    process = context.Process(target=_measure_memory, args=(sender, form, count))
    process.start()
    mebibytes: float = receiver.recv()
    process.join()
    return mebibytes


def _measure_memory(sender: object, form: str, count: int) -> None:
    u, labels = batch(count)
    gradient(form, *batch(256))  # so that libraries and thread stacks are allocated before the measurement
    before = _resident()
    _forget_peak()
    gradient(form, u, labels)
    assert hasattr(sender, "send")
    sender.send(max(_peak() - before, 1.0))


def _forget_peak() -> None:
    Path("/proc/self/clear_refs").write_text("5")


def _resident() -> float:
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize() / 2**20


def _peak() -> float:
    """Return the peak from /proc; a process inherits ru_maxrss from its parent."""
    line = next(x for x in Path("/proc/self/status").read_text().splitlines() if x.startswith("VmHWM"))
    return int(line.split()[1]) / 1024
