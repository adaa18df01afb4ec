"""The body and the headers of a message, in the receiver's format.

The Standard Webhooks form is three headers and one HMAC, written out here: of the library `standardwebhooks`, only the
six lines of `signature` would be used.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
import secrets
from typing import Any
from urllib.parse import urlsplit

from jobs.webhooks import outbox

FORMATS = ("standard", "slack", "discord", "ntfy")
_PREFIX = "whsec_"
_DISCORD_CHARACTERS = 2_000


def new_secret() -> str:
    """Return a secret of 256 random bits."""
    return _PREFIX + base64.b64encode(secrets.token_bytes(32)).decode()


def signature(secret: str, message_id: str, timestamp: int, body: bytes) -> str:
    """Return the `webhook-signature` of a body."""
    key = base64.b64decode(secret.removeprefix(_PREFIX))
    signed = f"{message_id}.{timestamp}.".encode() + body
    return "v1," + base64.b64encode(hmac.digest(key, signed, hashlib.sha256)).decode()


def request(
    url: str, form: str, secret: str, message_id: str, payload: dict[str, Any], timestamp: int
) -> tuple[str, dict[str, str], bytes]:
    """Return URL, headers and body of a message.

    Args:
        url: of the webhook.
        form: one of `FORMATS`.
        secret: of the webhook.
        message_id: of the delivery; every repeat has the same one.
        payload: the message; every repeat has the same one.
        timestamp: of this attempt, in seconds since 1970.
    """
    target, content = _content(url, form, payload)
    body = json.dumps(content, ensure_ascii=False, separators=(",", ":"), allow_nan=False).encode()
    headers = {
        "Content-Type": "application/json",
        "User-Agent": "wcl-service",
        "webhook-id": message_id,
        "webhook-timestamp": str(timestamp),
        "webhook-signature": signature(secret, message_id, timestamp, body),
    }
    return target, headers, body


def _content(url: str, form: str, payload: dict[str, Any]) -> tuple[str, dict[str, Any]]:
    title, lines, link = title_of(payload), lines_of(payload), payload["data"].get("url")
    if form == "slack":
        parts = [_slack(f"*{title}*"), *map(_slack, lines), *([f"<{link}|Open the job>"] if link else [])]
        return url, {"text": "\n".join(parts)}
    if form == "discord":
        text = "\n".join([f"**{title}**", *lines, *([link] if link else [])])
        return url, {"content": text[:_DISCORD_CHARACTERS], "allowed_mentions": {"parse": []}}
    if form == "ntfy":
        # JSON goes to the server's root; headers would take ASCII only.
        address = urlsplit(url)
        root, _, topic = address.path.rstrip("/").rpartition("/")
        target = address._replace(path=f"{root}/").geturl()
        content = {"topic": topic, "title": title, "message": "\n".join(lines) or title}
        return target, content | ({"click": link} if link else {})
    return url, payload


def title_of(payload: dict[str, Any]) -> str:
    """Return what happened, in one line."""
    data, kind = payload["data"], payload["type"]
    if kind == outbox.WORKER_LOST:
        return f"Worker {data['worker']['name']} is lost"
    if "job" not in data:
        return "Test message"
    name = data["job"]["name"]
    if kind == outbox.METRIC:
        metric = data["metric"]
        return f"{name}: {metric['name']} is {metric['direction']} {metric['line']:g}"
    ends = {
        outbox.LOST: "lost its worker",
        outbox.COLLAPSED: "has collapsed",
        outbox.STALLED: f"has reported nothing for {data.get('stalled_minutes')} minutes",
    }
    return f"{name} {ends.get(kind, data['job']['status'])}"


def lines_of(payload: dict[str, Any]) -> list[str]:
    """Return status, reason, metric and verdict, a line each."""
    data = payload["data"]
    lines = [data["message"]] if data.get("message") else []
    if job := data.get("job"):
        reason = f" ({job['reason']})" if job["reason"] else ""
        lines.append(f"Status: {job['status']}{reason}")
        lines += [job["message"]] if job["message"] else []
    if metric := data.get("metric"):
        lines.append(f"{metric['name']} = {metric['value']:g} at step {metric['step']}")
    return [*lines, *([data["verdict"]] if data.get("verdict") else [])]


def _slack(text: str) -> str:
    return text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
