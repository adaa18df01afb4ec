"""Requests that are generated from the published OpenAPI document, valid and invalid ones.

Hypothesis generates cases in batches; the seed of a case is that of its batch, so `--count BATCH` repeats it.
"""

from __future__ import annotations

import contextlib
import itertools
import random
from typing import Any

import schemathesis
import schemathesis.openapi
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import seed as seeded
from hypothesis.errors import Unsatisfiable
from schemathesis.core.failures import Failure, FailureGroup
from schemathesis.generation import GenerationMode
from schemathesis.specs.openapi import checks

from tests.fuzz.service import Service, service
from tests.fuzz.tally import Tally

COUNT = 30_000
SLICE = 150
BATCH = 25
_ENDLESS = "/stream"
_CHECKS: list[Any] = [
    checks.status_code_conformance,
    checks.content_type_conformance,
    checks.response_headers_conformance,
    checks.response_schema_conformance,
]
_SETTINGS = settings(
    max_examples=BATCH,
    database=None,
    deadline=None,
    phases=[Phase.generate],
    suppress_health_check=list(HealthCheck),
)


def run(count: int, seed: int, tally: Tally) -> None:
    """Send `count` requests."""
    with service(tally) as served:
        schema = schemathesis.openapi.from_dict(served.client.get("/openapi.json").json())
        documented = [result.ok() for result in schema.get_all_operations()]
        operations = [operation for operation in documented if not operation.path.endswith(_ENDLESS)]
        cases = served.cases(count, seed)
        for first in itertools.count(seed, BATCH):
            generator = random.Random(first)
            modes = [GenerationMode.POSITIVE, GenerationMode.NEGATIVE]
            operation, mode = generator.choice(operations), generator.choice(modes)
            batch = _Batch(served, tally, generator, first, list(itertools.islice(cases, BATCH)))
            if not batch.left:
                return
            batch.send(operation.as_strategy(generation_mode=mode))
            cases = itertools.chain(batch.left, cases)


class _Batch:
    """Some cases of one operation."""

    def __init__(self, served: Service, tally: Tally, generator: random.Random, seed: int, left: list[int]) -> None:
        self._served, self._tally, self._generator, self._seed, self.left = served, tally, generator, seed, left

    def send(self, strategy: Any) -> None:
        """Send the cases that hypothesis finds; `left` are those that it does not find."""

        @seeded(self._seed)
        @_SETTINGS
        @given(case=strategy)
        def each(case: Any) -> None:
            if self.left:
                self.left.pop()
                self._send(case)

        with contextlib.suppress(Unsatisfiable):  # an operation without parameters has no invalid cases
            each()

    def _send(self, case: Any) -> None:
        for name, values in self._served.values.items():
            if name in (case.path_parameters or {}) and self._generator.random() < 0.7:
                case.path_parameters[name] = self._generator.choice(values)
        request = case.as_transport_kwargs(base_url=self._served.url)
        for header in ("Authorization", "User-Agent", "Connection", "Accept-Encoding", "X-Schemathesis-TestCaseId"):
            request["headers"].pop(header, None)  # the client sends its own
        request.pop("cookies")
        if isinstance(data := request.pop("data", None), bytes | str):
            request["content"] = data
        method, url = request.pop("method"), request.pop("url")
        kind = case.operation.label
        response = self._served.send(self._seed, kind, method, url, **request)
        if response is None:
            return
        try:
            case.validate_response(response, checks=_CHECKS)
        except FailureGroup as group:
            for failure in group.exceptions:
                assert isinstance(failure, Failure)
                self._tally.fail(
                    f"{kind}: {response.status_code}, {failure.title}", self._seed, f"{method} {url} {request}"
                )
