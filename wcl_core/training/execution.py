"""The execution of a step: eager, compiled, or compiled and captured.

    eager      the host issues every operation of the step
    compiled   torch.compile, with static shapes, for the views, the backbone and the hidden layers of the heads
    captured   the whole compiled step is one CUDA graph: a step copies its inputs to static tensors and replays it

Compiled networks are copies of the modules with the same parameters and buffers.  Monitors and evaluations use the
modules themselves, so a change to eval mode or another batch size compiles nothing anew.

`Execution.prepare` compiles before the first step of a process and changes no state.  A form that fails, or whose loss
differs from the eager one, is given up for the eager form, and `reason` says why.
"""

from __future__ import annotations

import copy
import math
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Final, Literal

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from wcl_core.config import PretrainSpec
from wcl_core.data.cache import HeldFile, hold_compiled
from wcl_core.device import cuda_reason, first_line, is_out_of_memory
from wcl_core.distributed import Ranks
from wcl_core.methods.base import Batch, Loss, Method
from wcl_core.methods.heads import ProjectionHead
from wcl_core.networks.model import Model
from wcl_core.stop import Interrupted, check
from wcl_core.training.learner import Learner
from wcl_core.training.optim import make_capturable, state_of
from wcl_core.training.view_maker import Inputs, MakeViews, ViewMaker

Form = Literal["eager", "compiled", "captured"]

LEAST_STEPS: Final = 1000  # of a run that `auto` compiles: a first compilation takes as long as some hundred steps
# Loss and gradient of a compiled step may differ by so much: bfloat16 rounds elsewhere, and a neighbour may change.
TOLERANCES: Final = {"loss": 0.02, "gradient norm": 0.1}
_WARM_UP_STEPS = 3
# Without the choices that Inductor makes by measuring, which could differ from process to process.
_COMPILER: dict[str, Any] = {"options": {"deterministic": True}}


class FormError(Exception):
    """A compiled step is not what the eager step is."""


class Step:
    """One update: views, gradients, their sum over ranks, the optimiser, then momentum encoder and method's state.

    Attributes:
        views: makes the views of a step.
    """

    def __init__(self, learner: Learner, optimizer: Optimizer, ranks: Ranks, ramp_steps: int, views: MakeViews) -> None:
        self._learner, self._optimizer, self._ranks, self._ramp_steps = learner, optimizer, ranks, ramp_steps
        self.views = views

    def __call__(self, inputs: Inputs, step: int | Tensor, rate: float | Tensor) -> Loss:
        """Update the network.

        Args:
            inputs: the images of the step, and the parameters of their views.
            step: number of updates before this one.
            rate: learning rate.
        """
        self._optimizer.zero_grad(set_to_none=True)
        loss = self.gradients(inputs, step)
        for group in self._optimizer.param_groups:
            group["lr"] = rate
        self._optimizer.step()
        self._learner.follow()
        return loss

    def gradients(self, inputs: Inputs, step: int | Tensor) -> Loss:
        """Add the gradients over all ranks to the parameters' gradients, and return the loss."""
        loss = self._learner.gradients(self.views(inputs), Batch(inputs.index, step, self._ramp_steps))
        self._ranks.sum_gradients(self._learner.model.parameters())
        return loss


class CapturedStep:
    """A step that reads static inputs, as one CUDA graph.  Each call overwrites the loss that the last one returned.

    Args:
        step: the step to capture; its views have fixed shapes.
        inputs: have the shapes of every later call.
    """

    def __init__(self, step: Step, inputs: Inputs) -> None:
        device = inputs.images.device
        self._inputs = inputs.on_device()
        self._step = torch.zeros((), dtype=torch.int64, device=device)
        self._rate = torch.zeros((), device=device)
        self._replay, self._loss = capture(lambda: step(self._inputs, self._step, self._rate), device)

    def __call__(self, inputs: Inputs, step: int | Tensor, rate: float | Tensor) -> Loss:
        """Copy the inputs and replay the step; the host waits for nothing."""
        for static, given in zip(self._inputs.tensors(), inputs.tensors(), strict=True):
            static.copy_(given, non_blocking=True)
        self._step.fill_(step)
        self._rate.fill_(rate)
        self._replay()
        return self._loss


def capture(step: Callable[[], Loss], device: torch.device) -> tuple[Callable[[], None], Loss]:
    """Capture a step, which runs a few times first, so that gradients and slots of the optimiser exist.

    Returns:
        A function that replays the step, and the loss that each replay writes.
    """
    current, side = torch.cuda.current_stream(device), torch.cuda.Stream(device)
    side.wait_stream(current)
    with torch.cuda.stream(side):
        for _ in range(_WARM_UP_STEPS):
            step()
            check()
    current.wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        loss = step()
    return graph.replay, loss


class Execution:
    """The steps of a run in the form that its spec asks for, or the eager one where that cannot be had.

    Args:
        config: the spec.
        method: its method.
        learner, optimizer: the state that a step changes, after a checkpoint is loaded.
        view_maker: makes the views of a step.
        ranks: this process's place among the ranks.
        device: of the training.
        total_steps: of the run.
        ramp_steps: number of steps that the shares of ramps are of: those up to the first restart, or all.

    Attributes:
        form: of the steps; before `prepare`, the one that it will try.
        reason: why the form is not the one that the spec asks for: on a GPU captured, on a CPU compiled; else None.
        step: runs a step.
    """

    def __init__(
        self,
        config: PretrainSpec,
        method: Method,
        learner: Learner,
        optimizer: Optimizer,
        view_maker: ViewMaker,
        ranks: Ranks,
        device: torch.device,
        total_steps: int,
        ramp_steps: int,
    ) -> None:
        self._wish, self._learner, self._optimizer, self._ranks = config.execution, learner, optimizer, ranks
        self._held: HeldFile | None = None  # until the end of the run
        self._view_maker = view_maker
        self._eager = Step(learner, optimizer, ranks, ramp_steps, view_maker.views)
        self.step: Step | CapturedStep = self._eager
        self.form: Form = form_of(config, method, device)
        self.reason: str | None = None
        if self.form != "eager" and (obstacle := _obstacle(config, ranks, total_steps)) is not None:
            self.form, self.reason = "eager", obstacle
        elif self.form == "captured" and ranks.size > 1:
            self.form, self.reason = "compiled", "the sums over several processes are not captured"
        elif self.form == "compiled" and device.type == "cuda":
            self.reason = f"method {config.method} does not declare that its loss can be captured"

    def prepare(self, inputs: Inputs) -> float:
        """Compile and capture the step; the state of learner and optimiser is the same afterwards.

        Args:
            inputs: have the shapes of every step.

        Returns:
            The seconds that it took.

        Raises:
            Interrupted: by a request, in an `interruptible` block.
            torch.OutOfMemoryError: the spec asks for compiled steps, and the memory does not suffice.
            Exception: the GPU is broken; or the step of one of several ranks cannot be compiled, because the others
                would wait for this one in the middle of theirs.
        """
        start = time.monotonic()
        self._held = hold_compiled()
        if (reason := self._failure(inputs)) is not None:
            self._fall_back(reason)
        return time.monotonic() - start

    def _failure(self, inputs: Inputs) -> str | None:
        """Compile and capture the step; return why that is impossible, or None."""
        try:
            self._compile(inputs)
            if self.form == "captured":
                self._capture(inputs)
        except Interrupted:
            raise
        except FormError as error:  # on all ranks, since their losses and gradients are equal
            return str(error)
        except Exception as error:  # compilers have many errors
            if (full := _out_of_memory(error)) is not None:
                if self._wish == "compiled":
                    raise full from error
                return "the compiled step needs more memory than there is"
            if cuda_reason(error) == "device_failed" or self._ranks.size > 1:
                raise
            return f"{type(error).__name__}: {first_line(error)}"[:300]
        return None

    def _compile(self, inputs: Inputs) -> None:
        """Compile networks and views, and compare their loss with the eager one."""
        eager = self._measured(inputs)
        self._learner.embed_by(compiled)
        self._eager.views = self._view_maker.fixed_views(compiled_function)
        measured = self._measured(inputs)
        for name, value in eager.items():
            if math.isfinite(value) and not abs(measured[name] - value) <= TOLERANCES[name] * value:
                raise FormError(f"its {name} is {measured[name]:.6g}, and that of the eager step {value:.6g}")
        model, encoder = self._learner.model, self._learner.encoder
        if any(one is not other for one, other in zip(model.buffers(), encoder.buffers(), strict=True)):
            raise FormError("the network replaces its buffers, but a compiled copy must share them")

    def _measured(self, inputs: Inputs) -> dict[str, float]:
        """Return loss and gradient norm of a forward and a backward pass, whose effects are undone."""
        parameters = self._learner.model.parameters()
        with _kept(self._learner, self._optimizer):
            loss = self._eager.gradients(inputs, 0).total.detach()
        norms = torch._foreach_norm([parameter.grad for parameter in parameters if parameter.grad is not None])
        values = {"loss": float(loss), "gradient norm": float(torch.stack(norms).norm())}
        self._optimizer.zero_grad(set_to_none=True)
        check()
        return values

    def _capture(self, inputs: Inputs) -> None:
        make_capturable(self._optimizer)
        with _kept(self._learner, self._optimizer):
            self.step = CapturedStep(self._eager, inputs)

    def _fall_back(self, reason: str) -> None:
        self.form, self.reason, self.step = "eager", reason, self._eager
        self._learner.embed_by(lambda model: model)
        self._eager.views = self._view_maker.views
        self._optimizer.zero_grad(set_to_none=True)
        torch.cuda.empty_cache()


def form_of(config: PretrainSpec, method: Method, device: torch.device) -> Form:
    """Return the form that a spec asks for on a device."""
    is_gpu = device.type == "cuda"
    if config.execution == "eager" or (config.execution == "auto" and not is_gpu):
        return "eager"
    return "captured" if is_gpu and method.is_capturable else "compiled"


def _obstacle(config: PretrainSpec, ranks: Ranks, total_steps: int) -> str | None:
    """Return why a run cannot be compiled or, under `auto`, should not be; None if there is no reason."""
    if config.execution == "auto" and ranks.size > 1:
        return "steps of several processes are compiled only if execution is compiled"
    if config.execution == "auto" and total_steps < LEAST_STEPS:
        return f"a run of {total_steps} steps is over before a compilation pays; {LEAST_STEPS} or more are compiled"
    return None


def _out_of_memory(error: BaseException | None) -> Exception | None:
    """Return the error of full memory behind an error; the end of a capture that failed raises one of its own."""
    while error is not None:
        if isinstance(error, Exception) and is_out_of_memory(error):
            return error
        error = error.__context__
    return None


def compiled(model: Model) -> Model:
    """Return a copy of a model's modules with the same parameters and buffers, whose calls are compiled.

    The last layer of a projection head stays eager: it needs the full float32 that `full_float32` sets at run time.
    Heads of other methods stay eager too.
    """
    tensors = [*model.parameters(), *model.buffers()]
    twin = copy.deepcopy(model, {id(tensor): tensor for tensor in tensors})
    for module in _compilable(twin):
        module.compile(dynamic=False, **_COMPILER)
    return twin


def compiled_function(function: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """Return the compiled form of a function of tensors, whose shapes are static."""
    form: Callable[..., Tensor] = torch.compile(function, dynamic=False, fullgraph=True, **_COMPILER)
    return form


def _compilable(model: Model) -> Iterator[nn.Module]:
    yield model.backbone
    for name in model.head_names:
        if isinstance(head := model.get_submodule(name), ProjectionHead):
            yield head.hidden


@contextmanager
def _kept(learner: Learner, optimizer: Optimizer) -> Iterator[None]:
    """Restore the state of learner and optimiser in place at the end.

    Slots that the optimiser did not have before become zeros, which is the state that all of them start from.  After an
    error it loses them, and gets its options back.
    """
    tensors = {name: tensor.clone() for name, tensor in learner.state().items()}
    slots = {name: slot.clone() for name, slot in state_of(optimizer, learner.model).items()}
    options = [{name: value for name, value in group.items() if name != "params"} for group in optimizer.param_groups]

    @torch.no_grad()
    def restore() -> None:
        learner.load(lambda prefix: {name[len(prefix) :]: t for name, t in tensors.items() if name.startswith(prefix)})
        for name, slot in state_of(optimizer, learner.model).items():
            slot.copy_(slots[name]) if name in slots else slot.zero_()

    try:
        yield
    except BaseException:
        restore()
        if not slots:
            optimizer.state.clear()
        for group, before in zip(optimizer.param_groups, options, strict=True):
            group.update(before)
        raise
    restore()
