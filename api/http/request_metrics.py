"""The metrics of this process for Prometheus: its requests, its memory, its processor time."""

from __future__ import annotations

from prometheus_client import (
    CollectorRegistry,
    GCCollector,
    Histogram,
    PlatformCollector,
    ProcessCollector,
    disable_created_metrics,
)
from starlette.types import Scope

_METHODS = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"})
_SECONDS = (0.005, 0.02, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 10.0)


disable_created_metrics()  # type: ignore[no-untyped-call]  # a second series for each one, which nothing here reads


class RequestMetrics:
    """The metrics of one application.

    Attributes:
        registry: where further collectors may be added.
    """

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        for collector in (ProcessCollector, PlatformCollector, GCCollector):
            collector(registry=self.registry)
        self._requests = Histogram(
            "wcl_request_seconds",
            "Time from a request to the beginning of its response.",
            ("method", "route", "status"),
            buckets=_SECONDS,
            registry=self.registry,
        )

    def observe(self, scope: Scope, status: int, seconds: float) -> None:
        """Note a response; addresses without a route share one name, so that clients cannot add series."""
        route = getattr(scope.get("route"), "path", "other")
        method = scope["method"] if scope["method"] in _METHODS else "other"
        self._requests.labels(method, route, status).observe(seconds)
