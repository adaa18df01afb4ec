"""Sweeps over one connection: begun, planned, looked at, cancelled."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from typing import Any

from wcl_client.connection import Connection
from wcl_client.errors import Unreachable
from wcl_client.responses import TERMINAL, Json


class SweepClient(Connection):
    """The routes of sweeps; part of `WclClient`."""

    def submit_sweep(self, body: Mapping[str, Any], *, idempotency_key: str | None = None) -> Json:
        """Begin a sweep; safe to repeat with the same `idempotency_key`, of which one is made up when absent.

        Args:
            body: `name`, `search`, `parameters`, `metric` and more, as the document of the REST interface says.
        """
        sweep: Json = self._made("/v1/sweeps", dict(body), idempotency_key)
        return sweep

    def plan_sweep(self, body: Mapping[str, Any]) -> Json:
        """Which trials, rungs and jobs there would be, without making them."""
        plan: Json = self._json("POST", "/v1/sweeps", json=dict(body), params={"dry_run": "true"})
        return plan

    def sweep(self, sweep_id: str) -> Json:
        """One sweep; `table` has its trials with their jobs and values."""
        sweep: Json = self._json("GET", f"/v1/sweeps/{sweep_id}")
        return sweep

    def sweeps(self, *, status: str | None = None, limit: int = 50) -> list[Json]:
        """The newest ones, at most `limit`; `status` may name several states, with commas between them."""
        found: list[Json] = []
        params: dict[str, Any] = {"status": status, "limit": min(limit, 100)}
        while True:
            page = self._json("GET", "/v1/sweeps", params={k: v for k, v in params.items() if v is not None})
            found += page["items"]
            params["cursor"] = page["next_cursor"]
            if not params["cursor"] or len(found) >= limit:
                return found[:limit]

    def follow_sweep(
        self, sweep_id: str, *, poll_seconds: float = 1.0, patience_seconds: float = 60.0
    ) -> Iterator[Json]:
        """The sweep now, and again whenever it has changed, until it has ended.

        Args:
            patience_seconds: how long the server may stay away before `Unreachable`.
        """
        seen: Json = {}
        answered_at = time.monotonic()
        while seen.get("status") not in TERMINAL:
            try:
                found = self.sweep(sweep_id)
            except Unreachable:
                if time.monotonic() - answered_at > patience_seconds:
                    raise
            else:
                answered_at = time.monotonic()
                if found != seen:
                    seen = found
                    yield found
            if seen.get("status") not in TERMINAL:
                time.sleep(poll_seconds)

    def cancel_sweep(self, sweep_id: str) -> Json:
        """End it: waiting jobs at once, running ones after they have saved."""
        sweep: Json = self._json("POST", f"/v1/sweeps/{sweep_id}/cancel")
        return sweep
