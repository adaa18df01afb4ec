"""The routes of sweeps."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from typing import Any

from wcl_client.connection import Connection, part
from wcl_client.errors import Unreachable
from wcl_client.responses import TERMINAL, Json


class SweepClient(Connection):
    def submit_sweep(self, body: Mapping[str, Any], *, idempotency_key: str | None = None) -> Json:
        """Submit a sweep and return it; a repeated call with the same `idempotency_key` returns the first sweep.

        Args:
            body: `name`, `search`, `parameters`, `metric` and the other fields of `POST /v1/sweeps`.
            idempotency_key: by default a new random key.
        """
        return self._create(Json, "/v1/sweeps", dict(body), idempotency_key)

    def plan_sweep(self, body: Mapping[str, Any]) -> Json:
        """Return the trials, rungs and jobs of a sweep without submitting it (dry run)."""
        return self._json(Json, "POST", "/v1/sweeps", json=dict(body), params={"dry_run": "true"})

    def sweep(self, sweep_id: str) -> Json:
        """Return a sweep; `table` holds its trials with their jobs and values."""
        return self._json(Json, "GET", f"/v1/sweeps/{part(sweep_id)}")

    def sweeps(self, *, status: str | None = None, limit: int = 50) -> list[Json]:
        """Return the newest sweeps, at most `limit`; `status` may hold several states, separated by commas."""
        return self._newest("/v1/sweeps", limit, status=status)

    def follow_sweep(
        self, sweep_id: str, *, poll_seconds: float = 1.0, patience_seconds: float = 60.0
    ) -> Iterator[Json]:
        """Yield the sweep now and after each change, until it ends.

        Args:
            poll_seconds: pause between two requests.
            patience_seconds: how long the server may be unreachable before `Unreachable` is raised.
        """
        latest: Json = {"status": None}
        responded_at = time.monotonic()
        while latest["status"] not in TERMINAL:
            try:
                sweep = self.sweep(sweep_id)
            except Unreachable:
                if time.monotonic() - responded_at > patience_seconds:
                    raise
            else:
                responded_at = time.monotonic()
                if sweep != latest:
                    latest = sweep
                    yield sweep
            if latest["status"] not in TERMINAL:
                time.sleep(poll_seconds)

    def cancel_sweep(self, sweep_id: str) -> Json:
        """Cancel a sweep: its waiting jobs at once, its running jobs within 2 s; checkpoints are kept."""
        return self._json(Json, "POST", f"/v1/sweeps/{part(sweep_id)}/cancel")
