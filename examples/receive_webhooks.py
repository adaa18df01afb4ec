"""Receive the webhooks of the service, check each signature, and handle each message once.

WEBHOOK_SECRET=whsec_… python examples/receive_webhooks.py 9000
"""

from __future__ import annotations

import base64
import hmac
import json
import os
import sys
import time
from http.server import BaseHTTPRequestHandler, HTTPServer

SECRET = base64.b64decode(os.environ["WEBHOOK_SECRET"].removeprefix("whsec_"))
SECONDS = 300  # a message whose time differs by more may be a recorded copy that is sent again
LARGEST = 1_000_000  # bytes
handled: set[str] = set()  # a program that restarts keeps these ids, for example in its database


class Handler(BaseHTTPRequestHandler):
    """Responds 204 to a message of the service; any other status lets the service send it again later."""

    timeout = 10

    def do_POST(self) -> None:
        """Check the signature, and handle a new message."""
        length = int(self.headers.get("content-length") or 0)
        body = self.rfile.read(length) if 0 <= length <= LARGEST else b""
        is_right, message_id = self.is_right(body), self.headers.get("webhook-id", "")
        if is_right and message_id not in handled:
            handle(json.loads(body))
            handled.add(message_id)
        self.send_response(204 if is_right else 401)  # after all else: a message with this response is not sent again
        self.end_headers()

    def is_right(self, body: bytes) -> bool:
        """Return whether the service has signed this body within the last minutes."""
        timestamp = self.headers.get("webhook-timestamp", "")
        if not timestamp.isdecimal() or abs(time.time() - int(timestamp)) > SECONDS:
            return False
        signed = f"{self.headers.get('webhook-id', '')}.{timestamp}.".encode() + body
        expected = "v1," + base64.b64encode(hmac.digest(SECRET, signed, "sha256")).decode()
        signatures = self.headers.get("webhook-signature", "").split()
        return any(hmac.compare_digest(each.encode(), expected.encode()) for each in signatures)


def handle(message: dict[str, dict[str, dict[str, str]]]) -> None:
    """Print what happened."""
    job = message["data"].get("job", {})
    print(message["type"], job.get("name", ""), job.get("reason") or "", flush=True)


if __name__ == "__main__":
    HTTPServer(("127.0.0.1", int(sys.argv[1])), Handler).serve_forever()
