"""Sweeps over one connection: begun, planned, looked at, cancelled."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from client.answers import Json
from client.connection import Connection


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

    def sweeps(self, *, limit: int = 50) -> list[Json]:
        """The newest ones, at most `limit`."""
        found: list[Json] = []
        params: dict[str, Any] = {"limit": min(limit, 100)}
        while True:
            page = self._json("GET", "/v1/sweeps", params=params)
            found += page["items"]
            params["cursor"] = page["next_cursor"]
            if not params["cursor"] or len(found) >= limit:
                return found[:limit]

    def cancel_sweep(self, sweep_id: str) -> Json:
        """End it: waiting jobs at once, running ones after they have saved."""
        sweep: Json = self._json("POST", f"/v1/sweeps/{sweep_id}/cancel")
        return sweep
