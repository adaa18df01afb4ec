"""Imported weights over REST: checked while they arrive, whole or absent, removed only when no job needs them."""

from __future__ import annotations

import hashlib
import re
import socket
import struct
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
from sqlalchemy import update

from api.http import uploads
from api.rest import weights as routes
from jobs import weights
from jobs.models import Job
from tests.api.served import Served, assert_problem
from tests.disks import mounted
from tests.waiting import eventually
from tests.weight_files import TINY, weight_file
from wcl_core.config import BackboneConfig

CONTENT, DIGEST = weight_file()
BINARY = {"Content-Type": "application/octet-stream"}


def put(
    client: httpx.Client, content: bytes | Iterator[bytes] = CONTENT, sha256: str = DIGEST, name: str = "mine"
) -> httpx.Response:
    return client.put(f"/v1/weights/{sha256}", params={"name": name}, content=content, headers=BINARY)


def stored(served: Served) -> list[str]:
    """Return the stored files, and the files that an upload has left beside them."""
    left = [str(path) for path in served.settings.exports_dir.glob("*")]
    return sorted(served.app.state.storage.keys(weights.FOLDER)) + left


def test_weights_are_added_shown_verified_and_removed(served: Served) -> None:
    client = served.client()
    added = put(client)

    assert added.status_code == 201
    shown = client.get(f"/v1/weights/{DIGEST}").json()
    assert added.json() == shown == client.get("/v1/weights").json()["items"][0]
    assert (shown["name"], shown["size"], shown["image_size"]) == ("mine", len(CONTENT), 32)
    assert BackboneConfig(**shown["backbone"]) == BackboneConfig(**TINY)
    assert (shown["report"]["prefix"], shown["report"]["unused_names"]) == ("module.", ["fc.weight"])
    again = put(client, iter([CONTENT[:1000], CONTENT[1000:]]), name="other")  # chunked, without a length
    assert (again.status_code, again.json()) == (200, shown)
    assert client.post(f"/v1/weights/{DIGEST}/verify").json()["flaw"] is None
    served.app.state.storage.path(weights.storage_key(DIGEST)).write_bytes(CONTENT[:-1])
    assert "damaged" in client.post(f"/v1/weights/{DIGEST}/verify").json()["flaw"]
    assert put(client).status_code == 200
    assert client.post(f"/v1/weights/{DIGEST}/verify").json()["flaw"] is None

    spec = {"data": {"name": "digits", "image_size": 8}, "backbone": TINY, "weights": DIGEST}
    job = client.post("/v1/jobs", json={"kind": "pretrain", "spec": spec})
    assert job.status_code == 201
    refusal = assert_problem(client.delete(f"/v1/weights/{DIGEST}"), 409)
    assert job.json()["id"] in refusal["detail"]
    served.database.write(lambda session: session.execute(update(Job).values(status="cancelled")))
    assert client.delete(f"/v1/weights/{DIGEST}").status_code == 204
    assert_problem(client.delete(f"/v1/weights/{DIGEST}"), 404)
    assert stored(served) == []


def test_scopes_are_those_of_submission(small: Served) -> None:
    reader, submitter = small.client("read"), small.client("read", "submit")

    assert_problem(put(reader), 403)
    assert put(submitter).status_code == 201
    assert reader.get(f"/v1/weights/{DIGEST}").json()["created_by"] is not None
    for response in (reader.delete(f"/v1/weights/{DIGEST}"), reader.post(f"/v1/weights/{DIGEST}/verify")):
        assert_problem(response, 403)
    assert small.bare().put(f"/v1/weights/{DIGEST}?name=x", content=CONTENT, headers=BINARY).status_code == 401
    assert submitter.delete(f"/v1/weights/{DIGEST}").status_code == 204


def test_another_file_of_a_name_is_refused(small: Served) -> None:
    client = small.client()
    put(client)
    content, sha256 = weight_file(1)

    assert "other weights are called mine" in assert_problem(put(client, content, sha256), 409)["detail"]
    assert stored(small) == [weights.storage_key(DIGEST)]


def test_bad_files_are_refused_and_leave_nothing(small: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    client = small.client()
    other = hashlib.sha256(b"a pickle").hexdigest()

    detail = assert_problem(put(client, CONTENT[:-1]), 422, "sha256")["errors"][0]["detail"]
    assert "send the file again" in detail
    assert "not a safetensors file" in assert_problem(put(client, b"a pickle", other), 422)["detail"]
    spoilt = CONTENT.replace(b'"conv1.weight"', b'"conv2.weight"', 1)
    detail = assert_problem(put(client, spoilt, hashlib.sha256(spoilt).hexdigest()), 422)["detail"]
    assert "tensor 'conv1.weight' of tiny is absent, expected F32 4x3x3x3" in detail
    long = struct.pack("<Q", 1 << 40) + b"{}"
    assert_problem(put(client, long, hashlib.sha256(long).hexdigest()), 422)
    assert_problem(put(client, sha256="no-digest"), 422)
    for name in ("", "Upper", "../up", "last", "a" * 64, "a" * 65, "é"):
        assert_problem(put(client, name=name), 422)
    assert_problem(client.put(f"/v1/weights/{DIGEST}", content=CONTENT, headers=BINARY), 422)  # no name
    assert_problem(client.put(f"/v1/weights/{DIGEST}?name=x", json={}), 415)
    monkeypatch.setattr(routes, "MAX_BYTES", len(CONTENT) - 1)
    assert_problem(put(client), 413)
    assert_problem(put(client, iter([CONTENT])), 413)

    assert client.get("/v1/weights").json() == {"items": []}
    assert stored(small) == []
    monkeypatch.undo()
    assert put(client).status_code == 201


def test_a_body_larger_than_that_of_other_routes_is_taken(small: Served) -> None:
    content, sha256 = weight_file(name="tiny", width=64)
    assert len(content) > small.settings.max_body_bytes

    assert put(small.client(), content, sha256).status_code == 201


def half_request(served: Served) -> socket.socket:
    """Send the head and half of the body on a connection of its own."""
    host, port = re.fullmatch(r"http://(.+):(\d+)", served.url).groups()  # type: ignore[union-attr]
    head = f"PUT /v1/weights/{DIGEST}?name=half HTTP/1.1\r\nHost: {host}:{port}\r\nContent-Length: {len(CONTENT)}\r\n"
    head += f"Content-Type: application/octet-stream\r\nAuthorization: Bearer {served.key()}\r\n\r\n"
    connection = socket.create_connection((host, int(port)))
    connection.sendall(head.encode() + CONTENT[: len(CONTENT) // 2])
    return connection


def test_half_an_upload_leaves_nothing_and_gives_its_slot_back(small: Served) -> None:
    for _ in range(6):  # more than there are slots
        half_request(small).close()

    assert put(small.client(), name="whole").status_code == 201
    eventually(lambda: small.app.state.upload_slots._value == uploads._AT_ONCE, "all slots are free")
    assert stored(small) == [weights.storage_key(DIGEST)]
    assert [row["name"] for row in small.client().get("/v1/weights").json()["items"]] == ["whole"]


def test_a_body_that_stops_arriving_ends(small: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(uploads, "_PAUSE_SECONDS", 0.2)

    with half_request(small) as connection:
        assert b" 408 " in connection.recv(1000)

    assert stored(small) == []


def test_a_body_that_arrives_too_slowly_ends(small: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(uploads, "_GRACE_SECONDS", -1e9)

    assert "bytes a second" in assert_problem(put(small.client()), 408)["detail"]


@pytest.mark.process
def test_a_full_or_read_only_disk_is_a_clear_error(small: Served, tmp_path: Path) -> None:
    client, storage = small.client(), small.app.state.storage
    with mounted(tmp_path / "small", "1m") as disk:
        storage.root = disk.folder
        filler = disk.fill()
        full = assert_problem(put(client), 503)
        filler.unlink()
        disk.make_read_only()
        read_only = assert_problem(put(client), 503)
        disk.make_read_only(False)
        left = stored(small)

        assert put(client).status_code == 201
    assert "No space left on device; free space in its data folder" in full["detail"]
    assert "Read-only file system; check its data folder" in read_only["detail"]
    assert left == []


def test_a_submission_names_the_imported_weights_that_there_are(small: Served) -> None:
    client = small.client()
    put(client)
    spec = {"data": {"name": "digits", "image_size": 8}, "weights": "f" * 64}

    problem = assert_problem(client.post("/v1/jobs", json={"kind": "pretrain", "spec": spec}), 422, "/spec/weights")
    assert f"mine ({DIGEST[:12]}…)" in problem["errors"][0]["detail"]
