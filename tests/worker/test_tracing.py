"""Traces of the way to the first step: a real worker sends them to a receiver of the OTLP protocol."""

from __future__ import annotations

import gzip
from itertools import pairwise

import pytest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.trace.v1.trace_pb2 import Span, Status

from jobs.database import Database
from tests.receiver import Receiver, receiving
from tests.waiting import eventually
from tests.worker.conftest import StartWorker
from tests.worker.running import SHORT, Jobs

pytestmark = [pytest.mark.process, pytest.mark.timeout(240)]


def spans(receiver: Receiver) -> list[Span]:
    """Return all spans that have arrived."""
    arrived: list[Span] = []
    for request in receiver.requests:
        assert request.path == "/v1/traces"
        is_compressed = request.headers.get("content-encoding") == "gzip"
        message = ExportTraceServiceRequest()
        message.ParseFromString(gzip.decompress(request.body) if is_compressed else request.body)
        for resource in message.resource_spans:
            names = {each.key: each.value.string_value for each in resource.resource.attributes}
            assert names["service.name"] == "wcl-worker"
            arrived += [span for scope in resource.scope_spans for span in scope.spans]
    return arrived


def of_job(receiver: Receiver, job_id: str) -> dict[str, Span]:
    trace_id = bytes.fromhex(job_id.replace("-", ""))
    return {span.name: span for span in spans(receiver) if span.trace_id == trace_id}


def test_the_way_to_the_first_step_is_a_trace_with_the_id_of_the_job(
    sqlite_database: Database, jobs: Jobs, start_worker: StartWorker
) -> None:
    with receiving() as receiver:
        worker = start_worker(sqlite_database, OTEL_EXPORTER_OTLP_ENDPOINT=receiver.url.rstrip("/"))
        job_id = jobs.submit(SHORT)
        jobs.wait_for(job_id, "succeeded")
        eventually(lambda: of_job(receiver, job_id), "the trace")

        trace = of_job(receiver, job_id)
        root = trace.pop("start of a job")
        assert {"wait", "run file", "process"} < trace.keys(), worker.log()
        facts = {each.key: each.value for each in root.attributes}
        assert (facts["wcl.job.id"].string_value, facts["wcl.attempt"].int_value) == (job_id, 1)
        assert not root.parent_span_id
        assert {span.parent_span_id for span in trace.values()} == {root.span_id}
        ordered = sorted(trace.values(), key=lambda span: span.start_time_unix_nano)
        assert ordered[0].name == "wait"
        assert ordered[0].start_time_unix_nano == root.start_time_unix_nano
        assert ordered[-1].end_time_unix_nano == root.end_time_unix_nano
        assert all(one.end_time_unix_nano == two.start_time_unix_nano for one, two in pairwise(ordered))
        created = jobs.get(job_id).created_at * 1_000_000
        assert root.start_time_unix_nano == created
        assert root.status.code != Status.STATUS_CODE_ERROR


def test_a_receiver_that_is_away_changes_nothing(
    sqlite_database: Database, jobs: Jobs, start_worker: StartWorker
) -> None:
    start_worker(sqlite_database, OTEL_EXPORTER_OTLP_ENDPOINT="http://127.0.0.1:9")
    job_id = jobs.submit(SHORT)
    assert jobs.wait_for(job_id, "succeeded").attempt == 1
