"""Compiled and captured steps: equal to eager ones, compiled once, exact to resume, given up for a stated reason."""

from __future__ import annotations

import copy
import hashlib
from collections.abc import Callable
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any

import pytest
import torch
from torch._dynamo.utils import counters

from tests.wcl_core import small
from tests.wcl_core.small import STEPS_PER_EPOCH
from wcl_core import attempt
from wcl_core.config import PretrainSpec
from wcl_core.distributed import SINGLE, Ranks
from wcl_core.methods.base import Loss
from wcl_core.protocol import Outcome, Request
from wcl_core.reporter import MemoryReporter, NullReporter
from wcl_core.training import execution
from wcl_core.training.execution import LEAST_STEPS, Execution
from wcl_core.training.pretrain import _Run, pretrain

# torch's compilers warn about torch itself.
pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore::UserWarning", "ignore::DeprecationWarning")]

EVERYTHING: dict[str, Any] = {
    "queue_size": 192,
    "momentum_decay": 0.9,
    "multi_crop": {"crops": 2, "neighbours": 3, "ramp_fraction": 0.5, "image_size": 8},
    "loss": {"exclude_mates": True, "weak_ramp_fraction": 0.5},
}
VARIANTS: dict[str, dict[str, Any]] = {
    "simclr, lars": {"method": "simclr", "optimizer": {"name": "lars", "learning_rate": 0.3, "scaling": "none"}},
    "adamw, micro-batches": {
        "micro_batch_size": 32,
        "optimizer": {"name": "adamw", "learning_rate": 1e-3, "scaling": "none"},
    },
    "queue, momentum encoder, small crops, ramps": EVERYTHING,
}


COMPILED_FUNCTION = execution.compiled_function


@pytest.fixture(autouse=True)
def eager_views(monkeypatch: pytest.MonkeyPatch) -> None:
    """Views are compiled only by the tests that use `quick_compiler`."""
    monkeypatch.setattr(execution, "compiled_function", lambda function: function)


@pytest.fixture
def quick_compiler(monkeypatch: pytest.MonkeyPatch, eager_views: None) -> None:
    """Trace as for Inductor, and run the traced operations as they are: most of a test's time is Inductor's."""
    torch._dynamo.reset()
    monkeypatch.setattr(execution, "_COMPILER", {"backend": "eager"})
    monkeypatch.setattr(execution, "compiled_function", COMPILED_FUNCTION)


@pytest.fixture
def capture_on_a_cpu(monkeypatch: pytest.MonkeyPatch, quick_compiler: None) -> None:
    """Replace the CUDA graph by a call of the step on its static inputs."""

    def capture(step: Callable[[], Loss], device: torch.device) -> tuple[Callable[[], None], Loss]:
        for _ in range(3):
            step()
        loss = step()

        def replay() -> None:
            new = step()
            pairs = [(loss.total, new.total), *zip(loss.terms.values(), new.terms.values(), strict=True)]
            pairs += zip(loss.labels or (), new.labels or (), strict=True)
            with torch.no_grad():
                for static, value in pairs:
                    static.copy_(value)

        return replay, Loss(loss.total.detach(), loss.terms, loss.labels)

    def form_of(config: PretrainSpec, *_: object) -> str:
        return "eager" if config.execution == "eager" else "captured"

    monkeypatch.setattr(execution, "capture", capture)
    monkeypatch.setattr(execution, "form_of", form_of)


def run(
    folder: Path, *, stop: tuple[int, Request] | None = None, resume: Path | None = None, **fields: Any
) -> tuple[Outcome, MemoryReporter]:
    def request(records: list[dict[str, Any]]) -> Request | None:
        last = max((record["step"] for record in records if record["type"] == "metrics"), default=-1)
        return stop[1] if stop and last >= stop[0] else None

    reporter = MemoryReporter(request)
    spec = small.spec(**fields)
    return pretrain(spec, reporter, dataset=small.few_digits(), output_dir=folder, resume=resume), reporter


def files(folder: Path) -> dict[str, str]:
    paths = sorted((folder / "checkpoints").glob("*"))
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in paths}


def losses(reporter: MemoryReporter) -> list[float]:
    return [record["values"]["train/loss"] for record in reporter.of("metrics") if "train/loss" in record["values"]]


def phases(reporter: MemoryReporter) -> list[str]:
    return [record["phase"] for record in reporter.of("progress")]


@pytest.mark.usefixtures("quick_compiler")
def test_nothing_is_compiled_after_the_first_step(tmp_path: Path) -> None:
    """Monitors and kNN run in eval mode and with other batch sizes after each epoch."""
    counters.clear()
    graphs: list[int] = []

    class Counting(MemoryReporter):
        def emit(self, record: Any) -> None:
            super().emit(record)
            graphs.append(counters["stats"]["unique_graphs"])

    reporter = Counting()
    spec = small.spec(execution="compiled")
    assert pretrain(spec, reporter, dataset=small.few_digits(), output_dir=tmp_path) == "succeeded"
    (started,) = reporter.of("started")
    assert (started["execution"], "execution_reason" in started) == ("compiled", False)
    assert phases(reporter)[0] == "compile"
    first = next(number for number, record in enumerate(reporter.records) if record["type"] == "started")
    assert graphs[first] > 0
    assert set(graphs[first:]) == {graphs[first]}


@pytest.mark.process
@pytest.mark.timeout(900)
def test_inductors_steps_are_the_eager_ones(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of one head only: Inductor starts a C++ compiler for each of its kernels."""
    torch._dynamo.reset()
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path / "cache"))
    monkeypatch.setattr("torch._inductor.config.cpp.vec_isa_ok", True)  # ask the compiler for no instruction sets
    monkeypatch.setattr("torch._inductor.config.compile_threads", 1)  # start no processes that import torch
    monkeypatch.setattr(execution, "_compilable", lambda model: [model.instance_head.hidden])
    fields: dict[str, Any] = {"method": "simclr", "knn_every_epochs": 0}
    _, compiled = run(tmp_path / "compiled", execution="compiled", **fields)
    _, eager = run(tmp_path / "eager", execution="eager", **fields)
    assert compiled.of("started")[0]["execution"] == "compiled", compiled.of("log")
    assert losses(compiled) == pytest.approx(losses(eager), rel=1e-4)


@pytest.mark.usefixtures("capture_on_a_cpu")
@pytest.mark.parametrize("variant", VARIANTS)
def test_a_captured_step_is_the_eager_one_and_resumes_exactly(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, variant: str
) -> None:
    """The captured step reads step and rate from tensors, and its preparation leaves no trace.

    The variant with the most networks is also differentiated ahead of time, as for Inductor.  No optimiser is compiled.
    """
    if VARIANTS[variant] is EVERYTHING:
        monkeypatch.setattr(execution, "_COMPILER", {"backend": "aot_eager"})
    fields = {"execution": "compiled", "knn_every_epochs": 0, "warmup_epochs": 1.5, **VARIANTS[variant]}
    _, whole = run(tmp_path / "whole", **fields)
    started = whole.of("started")[0]
    assert (started["execution"], started.get("execution_reason")) == ("captured", None)
    _, eager = run(tmp_path / "eager", **fields | {"execution": "eager"})
    assert eager.of("started")[0]["execution"] == "eager"
    assert losses(whole) == pytest.approx(losses(eager), rel=1e-4)
    run(tmp_path / "a", stop=(STEPS_PER_EPOCH + 1, "drain"), **fields)
    (*_, last) = sorted((tmp_path / "a" / "checkpoints").glob("*"))
    _, after = run(tmp_path / "b", resume=last, **fields)
    digests = files(tmp_path / "a") | files(tmp_path / "b")
    assert {name: digests[name] for name in files(tmp_path / "whole")} == files(tmp_path / "whole")
    assert after.of("warning") == []


@pytest.mark.usefixtures("quick_compiler")
def test_a_checkpoint_of_another_form_is_an_event(tmp_path: Path) -> None:
    run(tmp_path / "a", stop=(2, "drain"), execution="eager")
    (*_, last) = sorted((tmp_path / "a" / "checkpoints").glob("*"))
    outcome, after = run(tmp_path / "b", resume=last, execution="compiled")
    assert outcome == "succeeded"
    assert after.of("started")[0].get("execution_reason") is None
    (warning,) = after.of("warning")
    assert warning["reason"] == "resume_environment_changed"
    assert warning["message"].endswith("execution: eager -> compiled")


@pytest.mark.parametrize("request_kind", ["cancel", "drain", "pause"])
def test_a_request_is_heard_while_the_step_is_compiled(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, request_kind: Request
) -> None:
    """The run owes no save then, so its worker's request ends it also within the compiler."""
    requests: list[Request] = []

    def compiled(model: Any) -> Any:
        requests.append(request_kind)
        return model

    monkeypatch.setattr(execution, "compiled", compiled)
    reporter = MemoryReporter(lambda _: requests[0] if requests else None)
    spec = small.spec(execution="compiled")
    outcome = pretrain(spec, reporter, dataset=small.few_digits(), output_dir=tmp_path)
    assert outcome == {"cancel": "cancelled", "drain": "drained", "pause": "paused"}[request_kind]
    assert (phases(reporter), reporter.of("started"), reporter.owes_save) == (["compile"], [], False)


def failing(error: Exception) -> Callable[[Any], Any]:
    def compiled(_: Any) -> Any:
        raise error

    return compiled


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (RuntimeError("no C++ compiler\nand more"), "RuntimeError: no C++ compiler"),
        (execution.FormError("it differs"), "it differs"),
    ],
)
def test_a_form_that_fails_is_given_up_for_the_eager_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: Exception, reason: str
) -> None:
    monkeypatch.setattr(execution, "compiled", failing(error))
    outcome, reporter = run(tmp_path / "compiled", execution="compiled")
    assert outcome == "succeeded"
    (started,) = reporter.of("started")
    assert (started["execution"], started["execution_reason"]) == ("eager", reason)
    assert f"steps are eager: {reason}" in [record["message"] for record in reporter.of("log")]
    _, eager = run(tmp_path / "eager", execution="eager")
    assert small.curves(reporter.records) == small.curves(eager.records)


def test_a_wrong_compiled_step_is_given_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def compiled(model: Any) -> Any:
        twin = copy.deepcopy(model, {id(tensor): tensor for tensor in (*model.parameters(), *model.buffers())})
        twin.instance_head.register_forward_hook(lambda _, __, rows: rows / 2)
        return twin

    monkeypatch.setattr(execution, "compiled", compiled)
    _, reporter = run(tmp_path, execution="compiled")
    (started,) = reporter.of("started")
    assert started["execution"] == "eager"
    assert started["execution_reason"].startswith("its loss is ")


def test_a_network_that_replaces_its_buffers_stays_eager(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def compiled(model: Any) -> Any:
        return copy.deepcopy(model, {id(p): p for p in model.parameters()})  # its buffers are copies

    monkeypatch.setattr(execution, "compiled", compiled)
    _, reporter = run(tmp_path, execution="compiled")
    assert "replaces its buffers" in reporter.of("started")[0]["execution_reason"]


@pytest.mark.parametrize("is_masked", [False, True])
def test_too_little_memory_for_the_capture_is_out_of_memory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, is_masked: bool
) -> None:
    """CUDA's end of a capture that has failed raises an error of its own."""

    def capture(step: Callable[[], Loss], device: torch.device) -> Any:
        try:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB")
        finally:
            if is_masked:
                raise RuntimeError("CUDA error: operation failed due to a previous error during capture")

    monkeypatch.setattr(execution, "compiled", lambda model: model)
    monkeypatch.setattr(execution, "capture", capture)
    monkeypatch.setattr(execution, "form_of", lambda *_: "captured")
    with pytest.raises(torch.OutOfMemoryError) as caught:
        run(tmp_path / "compiled", execution="compiled")
    assert attempt.classify(caught.value) == "out_of_memory"
    monkeypatch.setattr(execution, "LEAST_STEPS", 1)
    _, reporter = run(tmp_path / "auto", execution="auto")
    assert reporter.of("started")[0]["execution_reason"] == "the compiled step needs more memory than there is"


def test_too_little_memory_ends_a_compiled_run_and_makes_an_automatic_one_eager(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(execution, "compiled", failing(torch.OutOfMemoryError("full")))
    with pytest.raises(torch.OutOfMemoryError):
        run(tmp_path / "compiled", execution="compiled")
    monkeypatch.setattr(execution, "form_of", lambda *_: "compiled")
    monkeypatch.setattr(execution, "LEAST_STEPS", 1)
    outcome, reporter = run(tmp_path / "auto", execution="auto")
    assert outcome == "succeeded"
    assert reporter.of("started")[0]["execution_reason"] == "the compiled step needs more memory than there is"


def test_the_form_follows_from_spec_device_and_method() -> None:
    """By default, several processes and short runs are eager; a method that does not declare it is not captured."""
    cases = [
        ("eager", "cuda", SINGLE, LEAST_STEPS, True, "eager", None),
        ("auto", "cpu", SINGLE, LEAST_STEPS, True, "eager", None),
        ("auto", "cuda", SINGLE, LEAST_STEPS, True, "captured", None),
        ("auto", "cuda", SINGLE, LEAST_STEPS - 1, True, "eager", "steps is over before"),
        ("compiled", "cuda", SINGLE, 1, True, "captured", None),
        ("compiled", "cpu", SINGLE, 1, True, "compiled", None),
        ("auto", "cuda", Ranks(0, 2), LEAST_STEPS, True, "eager", "only if execution is compiled"),
        ("compiled", "cuda", Ranks(0, 2), 1, True, "compiled", "are not captured"),
        ("compiled", "cuda", Ranks(0, 2), 1, False, "compiled", "does not declare"),
        ("compiled", "cpu", Ranks(0, 2), 1, True, "compiled", None),
        ("eager", "cuda", Ranks(0, 2), LEAST_STEPS, True, "eager", None),
        ("compiled", "cuda", SINGLE, 1, False, "compiled", "does not declare"),
    ]
    for wish, device, ranks, steps, is_capturable, form, reason in cases:
        run = _Run(small.spec(), NullReporter(), small.few_digits(), Path("unused"), None, SINGLE)
        run.saver.close()
        run.method.is_capturable = is_capturable
        config = small.spec(execution=wish)
        place = (run.view_maker, ranks, torch.device(device), steps, steps)
        chosen = Execution(config, run.method, run.learner, run.optimizer, *place)
        assert chosen.form == form, (wish, device)
        assert (chosen.reason is None) == (reason is None), (wish, device)
        assert (reason or "") in (chosen.reason or "")


@pytest.mark.usefixtures("quick_compiler")
@pytest.mark.parametrize("backbone", [{"name": "vit_small", "patch_size": 8}, {"name": "timm", "variant": "resnet10t"}])
def test_other_backbones_are_compiled(tmp_path: Path, backbone: dict[str, Any]) -> None:
    if backbone["name"] == "timm" and not entry_points(group="wcl.backbones", name="timm"):
        pytest.skip("this project is not installed, so timm is no plugin")
    fields: dict[str, Any] = {"backbone": backbone, "batch_size": 8, "data": {"name": "digits", "image_size": 32}}
    run = _Run(small.spec(execution="compiled", **fields), NullReporter(), small.few_digits(), tmp_path, None, SINGLE)
    run.saver.close()
    run.prepare()
    assert (run.execution.form, run.execution.reason) == ("compiled", None)


def test_a_step_of_two_ranks_that_cannot_be_compiled_ends_the_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No rank goes on by itself, because the others may wait for it within the compiled step."""
    run = _Run(small.spec(execution="compiled"), NullReporter(), small.few_digits(), tmp_path, None, SINGLE)
    run.saver.close()
    run.execution._ranks = Ranks(0, 2)
    monkeypatch.setattr(execution, "compiled", failing(RuntimeError("no C++ compiler")))
    with pytest.raises(RuntimeError, match=r"no C\+\+"):
        run.prepare()
