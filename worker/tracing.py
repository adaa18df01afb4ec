"""The way of an attempt to its first step as an OpenTelemetry trace, where `OTEL_EXPORTER_OTLP_ENDPOINT` is set.

    start of a job
    ├─ wait        from the submission, or the end of the attempt before, to the claim
    ├─ run file    checks and copies what the run starts from
    ├─ process     until the run reports for the first time
    └─ …           a span for each phase that the run reports, until its first step

A trace has the id of its job, so all attempts of a job are in one trace.  The times of submission and claim are those
of the database; what follows is measured from the claim.  The SDK reads its other settings from the environment, such
as `OTEL_EXPORTER_OTLP_HEADERS`.
"""

from __future__ import annotations

import importlib.util
import logging
import os
import threading
import time
from collections.abc import Callable
from functools import cache, partial
from typing import TYPE_CHECKING, Final
from uuid import UUID

from sqlalchemy import func, select

from jobs.database import Database
from jobs.models import Attempt, Job
from jobs.transitions import Claim
from wcl_core.protocol import EndRecord, EvaluationRecord, MetricsRecord, ProgressRecord, Record
from wcl_core.version import VERSION
from worker.background import BackgroundWork

if TYPE_CHECKING:
    from opentelemetry.sdk.trace import TracerProvider

log = logging.getLogger(__name__)

_ENDPOINTS: Final = ("OTEL_EXPORTER_OTLP_ENDPOINT", "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT")
_PACKAGE: Final = "opentelemetry.exporter.otlp.proto.http"
_of_thread = threading.local()  # trace_id: of the trace that the thread makes


def is_enabled() -> bool:
    """Return whether traces are exported; warn where an endpoint is set and the packages are missing."""
    if not any(os.environ.get(name) for name in _ENDPOINTS) or os.environ.get("OTEL_SDK_DISABLED") == "true":
        return False
    try:
        is_installed = importlib.util.find_spec(_PACKAGE) is not None
    except ModuleNotFoundError:
        is_installed = False
    if not is_installed:
        log.warning("no traces: OTEL_EXPORTER_OTLP_ENDPOINT is set, and the extra `tracing` is not installed")
    return is_installed


class StartTrace:
    """The phases of one attempt up to its first step.

    Args:
        database: has the times before the claim.
        claim: the attempt, claimed just now.
        clock: monotonic seconds.
    """

    def __init__(self, database: Database, claim: Claim, clock: Callable[[], float] = time.monotonic) -> None:
        self._database, self._claim, self._clock = database, claim, clock
        self._claimed = clock()
        self._marks = [("run file", 0.0)]  # phases, and their starts in seconds after the claim
        self._export: BackgroundWork[None] | None = None

    def enter(self, phase: str) -> None:
        """Begin a phase, which ends the one before."""
        if self._export is None and self._marks[-1][0] != phase:
            self._marks.append((phase, self._clock() - self._claimed))

    def see(self, record: Record) -> None:
        """Follow the run by its records; the first one that shows a step, a result or the end completes the trace."""
        if isinstance(record, MetricsRecord | EvaluationRecord):
            self.end()
        elif isinstance(record, EndRecord):
            self.end(None if record.outcome == "succeeded" else record.outcome)
        elif isinstance(record, ProgressRecord):
            self.enter(record.phase)

    def end(self, error: str | None = None) -> None:
        """Export the trace in the background.

        Args:
            error: why there was no first step.
        """
        if self._export is None:
            seconds = self._clock() - self._claimed
            self._export = BackgroundWork(partial(self._try_to_send, seconds, error))

    def _try_to_send(self, seconds: float, error: str | None) -> None:
        """Export the trace; a fault costs no more than a line in the log."""
        try:
            self._send(seconds, error)
        except Exception as fault:
            log.warning("%s has no trace: %s", self._claim.attempt, fault)

    def _send(self, seconds: float, error: str | None) -> None:
        from opentelemetry import trace

        claim = self._claim
        others = (Attempt.job_id == claim.job_id, Attempt.number < claim.number)
        before = select(func.max(Attempt.ended_at)).where(*others).scalar_subquery()
        times = select(func.coalesce(before, Job.created_at), Attempt.started_at, Job.name)
        is_ours = (Job.id == claim.job_id, Attempt.job_id == Job.id, Attempt.number == claim.number)
        with self._database.read() as session:
            due_ms, claimed_ms, name = session.execute(times.where(*is_ours)).one()

        def at(after_claim: float) -> int:
            return int(claimed_ms) * 1_000_000 + int(after_claim * 1e9)

        facts = {"wcl.job.id": claim.job_id, "wcl.job.name": name, "wcl.job.kind": claim.kind}
        facts |= {"wcl.attempt": claim.number, "wcl.request_id": claim.request_id}
        _of_thread.trace_id = UUID(claim.job_id).int
        provider = _provider()
        tracer = provider.get_tracer("wcl", VERSION)
        root = tracer.start_span(
            "start of a job",
            context=trace.set_span_in_context(trace.INVALID_SPAN),
            start_time=due_ms * 1_000_000,
            attributes={key: value for key, value in facts.items() if value is not None},
        )
        context = trace.set_span_in_context(root)
        tracer.start_span("wait", context, start_time=due_ms * 1_000_000).end(at(0))
        ends = [start for _, start in self._marks[1:]] + [seconds]
        for (phase, start), end in zip(self._marks, ends, strict=True):
            tracer.start_span(phase, context, start_time=at(start)).end(at(end))
        if error is not None:
            root.set_status(trace.StatusCode.ERROR, error)
        root.end(at(seconds))
        provider.force_flush()


@cache
def _provider() -> TracerProvider:
    from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
    from opentelemetry.sdk.resources import Resource
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.sdk.trace.export import BatchSpanProcessor
    from opentelemetry.sdk.trace.id_generator import RandomIdGenerator

    class JobIds(RandomIdGenerator):
        def generate_trace_id(self) -> int:
            return int(_of_thread.trace_id)

    name = os.environ.get("OTEL_SERVICE_NAME", "wcl-worker")
    resource = Resource.create({"service.name": name, "service.version": VERSION})
    provider = TracerProvider(resource=resource, id_generator=JobIds())
    provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter()))
    return provider
