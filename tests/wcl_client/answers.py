"""Answers of a server that does not exist, for tests of all that the command line prints."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any
from uuid import UUID

import httpx

ID = str(UUID(int=7))
TIME = "2026-11-27T10:00:00.000000Z"


def answer(path: str, text: Callable[[], str]) -> Any:
    """Return the JSON of a path; `text` gives each text that a user, a worker or a file can choose."""
    if path.endswith("/logs"):
        return {"items": [{"line": text()} for _ in range(3)]}
    if path.endswith("/checkpoints"):
        return {"items": [checkpoint()]}
    if path.startswith("/v1/webhooks"):
        return webhook(text) | delivery(text) | {"items": [webhook(text) | delivery(text)]}
    if path == "/v1/weights":
        return {"items": [weights(text)]}
    if path.startswith("/v1/weights/"):
        return weights(text) | {"flaw": text()}
    if path.endswith("/twin"):
        return {"method": text(), "title": text(), "job_id": ID, "name": text(), "status": text()}
    if path.endswith("/artifacts"):
        return {"items": [{"name": text()}]}
    if path.endswith("/evaluations"):
        return {"items": [evaluation(text)]}
    if path.endswith("/groups"):
        return weak_groups(text)
    if path.startswith("/v1/groups/"):
        seeds = {"seeds": [0, 1], "mean": 0.5, "deviation": 0.1, "interval": None, "epoch": None, "selection": text()}
        result = {"protocol": text(), "metric": text(), "params": {text(): text()}} | seeds
        return {"group_id": ID, "items": [job(text)], "results": [result]}
    if path == "/v1/compare":
        return comparison(text)
    if path == "/v1/workers":
        return {"items": [worker(text)]}
    if path == "/v1/workers/invitations":
        invitation = {"id": text(), "by": text(), "created_at": TIME, "expires_at": TIME}
        return {"items": [invitation], "id": text(), "token": text()}
    if path.endswith("/drain"):
        return worker(text)
    if path == "/v1/datasets":
        return {"items": [dataset(text)]}
    if path == "/v1/audit":
        finding = {"job_id": text(), "rule": text(), "message": text()}
        return {"jobs": 1, "attempts": 1, "events": 1, "deletions": 1, "findings": [finding]}
    if path == "/v1/jobs/delete":
        names = ("evaluation_jobs", "waiting", "checkpoints", "pinned", "results", "seed_groups")
        related = [{"id": ID, "name": text()}]
        extent = {"jobs": related, "continued_by": related, "sweeps": related, "size": 10, "restorable_days": 7.0}
        refused = [{"job_id": ID, "name": text(), "reason": text()}]
        return extent | {"refused": refused} | {f"num_{name}": 1 for name in names}
    if path == "/v1/deletions":
        by = {"deleted_by_name": text(), "deleted_at": TIME, "restored_at": None, "purged_at": None}
        return {"items": [{"job_id": ID, "job_name": text(), "size": 10, "purge_began_at": None} | by]}
    if path.startswith("/v1/keys") or path == "/v1/whoami":
        times = {"created_at": TIME, "last_used_at": TIME, "revoked_at": None, "expires_at": TIME, "rotated_at": TIME}
        key = {"id": ID, "name": text(), "scopes": [text()], "is_active": True, "key": text()} | times
        own = {"role": text(), "project": text(), "limits": {"max_devices": 2}, "version": text()}
        return key | own | {"items": [key], "notice": text(), "warning": text()}
    if path == "/v1/activity":
        entry = {"id": ID, "at": TIME, "actor": text(), "actor_id": ID, "action": text(), "object_id": text()}
        return {"items": [entry | {"object_name": text(), "details": {text(): text()}}], "next_cursor": None}
    if path == "/v1/sweeps":
        return {"items": [sweep(text)], "next_cursor": None}
    if path.startswith("/v1/sweeps/"):
        return sweep(text)
    if path == "/v1/jobs":
        return {"items": [job(text)], "next_cursor": None}
    if path == "/readyz":
        return {"problems": [text()]}
    return job(text)


def webhook(text: Callable[[], str]) -> dict[str, Any]:
    rule = {"metric": text(), "direction": "above", "value": 1.0}
    row = {"id": ID, "name": text(), "url": text(), "format": text(), "events": [text()], "rules": [rule]}
    filters = {
        "stalled_minutes": 10,
        "tag": text(),
        "job_name": text(),
        "kind": None,
        "owner_id": None,
        "own_jobs": False,
    }
    state = {"enabled": False, "disabled_reason": text(), "created_by": None, "created_at": TIME}
    return row | filters | state | {"secret": text()}


def delivery(text: Callable[[], str]) -> dict[str, Any]:
    row = {"id": ID, "type": text(), "job_id": ID, "state": "failed", "attempts": 2, "last_status": 500}
    return row | {"last_error": text(), "due_at": TIME, "created_at": TIME, "ended_at": TIME}


def weights(text: Callable[[], str]) -> dict[str, Any]:
    report = {"prefix": text(), "matched": 120, "filled": 2, "unused": 9, "unused_names": [text()]}
    backbone = {"name": text(), "stem": "small", "width": 64, "patch_size": 16}
    row = {"sha256": "a" * 64, "name": text(), "size": 5, "backbone": backbone, "image_size": 224}
    return row | {"report": report, "created_by": None, "created_at": TIME}


def comparison(text: Callable[[], str]) -> dict[str, Any]:
    over_seeds = {"seeds": [0, 1], "values": [0.4, 0.6], "mean": 0.5, "interval": [0.4, 0.6]}
    difference = {"value": 0.1, "low": -0.1, "high": 0.3, "method": text(), "is_shown": False}
    result = {"title": text(), "params": {text(): text()}, "rule": text(), "results": [over_seeds, None]}
    return {
        "verdict": {"title": text(), "sentence": text()},
        "warnings": [text()],
        "configurations": [{"name": text()}, {"name": text()}],
        "results": [result | {"difference": difference}],
        "differing": [{"field": text(), "values": [text(), 1]}],
    }


def job(text: Callable[[], str]) -> dict[str, Any]:
    return {
        "id": ID,
        "group_id": ID,
        "name": text(),
        "kind": text(),
        "status": "failed",
        "status_reason": text(),
        "status_message": text(),
        "owner": text(),
        "status_by": text(),
        "waiting": {"message": text(), "cause": text(), "position": 3, "until": text()},
        "verdict": {"sentence": text(), "measures": [measure(text)]},
        "warnings": [text()],
        "dataset": {"name": text()},
        "preset": text(),
        "deviations": [{"pointer": text(), "preset": text(), "job": text()}],
        "tags": [text(), text()],
        "latest_metrics": {text(): 0.5, text(): None},
        "created_at": TIME,
        "links": {"page": text()},
    }


def measure(text: Callable[[], str]) -> dict[str, Any]:
    numbers = {"accuracy": 0.5, "untrained": 0.4, "difference": 0.1, "low": 0.05, "high": 0.15}
    return numbers | {"title": text(), "metric": text(), "finding": text(), "evaluation_id": None}


def evaluation(text: Callable[[], str]) -> dict[str, Any]:
    facts = {"protocol": text(), "params": {text(): text()}, "metric": text(), "value": None, "stderr": 0.1}
    return facts | {"label": text(), "untrained": 0.25, "pixels": None, "epoch": 3}


def checkpoint() -> dict[str, Any]:
    return {"id": ID, "step": 1, "epoch": 1, "size": 5, "sha256": "0" * 64}


def weak_groups(text: Callable[[], str]) -> dict[str, Any]:
    groups = [{"places": [1, 2], "pair_precision": 0.5, "classes": {text(): 2}}]
    counts = {"num_groups": 1, "num_images": 2, "pair_precision": 0.5, "pair_precision_chance": None}
    return {"epoch": 1, "epochs": [1], "groups": groups} | counts


def device(text: Callable[[], str]) -> dict[str, Any]:
    facts = {"uuid": text(), "index": 3, "name": text(), "problem": text(), "job_id": None}
    return facts | {"memory_bytes": 80 << 30, "memory_used": 1 << 30, "load": 0.35, "temperature": 51}


def worker(text: Callable[[], str]) -> dict[str, Any]:
    return {
        "id": ID,
        "name": text(),
        "pool": text(),
        "gpus": 0,
        "state": text(),
        "is_live": True,
        "job_id": None,
        "devices": [device(text)],
        "datasets": {text(): text()},
        "pending_datasets": [text()],
        "refused_datasets": {text(): text()},
        "drain_requested_at": None,
        "unable": text(),
        "unable_message": text(),
        "seen_at": TIME,
    }


def dataset(text: Callable[[], str]) -> dict[str, Any]:
    remark = {"count": 3, "text": text(), "examples": [text()]}
    sizes = {name: [8, 8] for name in ("smallest", "median", "largest")}
    report = {"formats": {text(): 3}, "modes": {text(): 3}, "layout": text(), "left_out": [remark], "odd": [remark]}
    return {"name": text(), "counts": {text(): 3}, "classes": [text()], "report": report | sizes}


def sweep(text: Callable[[], str]) -> dict[str, Any]:
    rung = {"rung": 0, "epochs": 2, "trials": 1, "state": "measured", "value": 0.5}
    return {
        "id": ID,
        "name": text(),
        "search": text(),
        "dataset": {"name": text()},
        "status": "failed",
        "status_message": text(),
        "trials": 1,
        "metric": {"protocol": text(), "name": text()},
        "direction": "maximize",
        "held_out_share": 0.2,
        "best_value": 0.5,
        "best": {"trial": 1, "value": 0.5, "settings": {text(): text()}},
        "rungs": [rung],
        "table": [{"number": 1, "settings": {"a": text()}, "rungs": [rung], "state": text()}],
        "created_at": TIME,
        "links": {"page": text()},
    }


def response(method: str, path: str, value: Any, status: int = 200) -> httpx.Response:
    """Return the answer to a request; its JSON may hold half surrogates."""
    content = json.dumps(value).encode()
    return httpx.Response(status, content=content, request=httpx.Request(method, f"http://127.0.0.1{path}"))
