"""Downloads: exact bytes under every condition, exports, pins and deletions."""

from __future__ import annotations

import hashlib
import os
import random
import re
import threading
from collections.abc import Callable
from pathlib import Path

import httpx
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.numpy import load
from sqlalchemy import update

from api.rest import exports
from jobs.database import new_id
from jobs.models import Checkpoint
from tests.api.served import SPEC, Served, assert_problem, native_checkpoint
from tests.jobs import rows
from tests.waiting import eventually
from wcl_client.api import WclClient

CONTENT = random.Random(0).randbytes(1000)
DIGEST = hashlib.sha256(CONTENT).hexdigest()
ETAG = f'"{DIGEST}"'
SIZE = len(CONTENT)


@pytest.fixture
def address(small: Served) -> str:
    return f"/v1/checkpoints/{small.checkpoint(CONTENT)}/download"


def test_the_bytes_are_the_registered_ones(served: Served) -> None:
    content = random.Random(1).randbytes(700_001)  # more than two chunks
    checkpoint_id = served.checkpoint(content)
    client = served.client("read")

    answer = client.get(f"/v1/checkpoints/{checkpoint_id}/download")
    head = client.head(f"/v1/checkpoints/{checkpoint_id}/download")
    shown = client.get(f"/v1/checkpoints/{checkpoint_id}").json()

    assert answer.status_code == head.status_code == 200
    assert answer.content == content
    assert head.content == b""
    digest = hashlib.sha256(content).hexdigest()
    assert (shown["sha256"], shown["size"]) == (digest, len(content))
    for headers in (answer.headers, head.headers):
        assert headers["etag"] == f'"{digest}"'
        assert headers["content-length"] == str(len(content))
        assert headers["accept-ranges"] == "bytes"
        assert headers["content-type"] == "application/octet-stream"
        assert headers["content-disposition"] == f'attachment; filename="{checkpoint_id}-native.safetensors"'
        assert headers["x-content-type-options"] == "nosniff"
        assert "content-range" not in headers


NUMBERS = st.integers(0, 2 * SIZE)
RANGES = st.one_of(
    st.builds("bytes={}-{}".format, NUMBERS, NUMBERS),
    st.builds("bytes={}-".format, NUMBERS),
    st.builds("bytes=-{}".format, NUMBERS),
    st.builds("Bytes = {} - {}".format, NUMBERS, NUMBERS),
    st.builds("bytes={}-{},{}-{}".format, NUMBERS, NUMBERS, NUMBERS, NUMBERS),
    st.builds("{}={}-{}".format, st.sampled_from(["lines", "byte", ""]), NUMBERS, NUMBERS),
    st.text(st.characters(min_codepoint=33, max_codepoint=126), max_size=30),
    st.sampled_from(["bytes=-", "bytes=--1", "bytes=1--2", "bytes=a-b", "bytes=+1-2", "bytes=0x1-2", "bytes=٣-٤"]),
    st.just("bytes=" + "9" * 100 + "-"),
)
CONDITIONS = st.sampled_from([None, ETAG, f"W/{ETAG}", '"other"', "Tue, 24 Nov 2026 20:00:00 GMT", "", "*"])


def expected(header: str, condition: str | None) -> tuple[int, int] | str | None:
    """Return the range by the specification: (first, last), None for the whole file, or `none`."""
    match = re.fullmatch(r"bytes=(\d*)-(\d*)", header.replace(" ", "").lower(), re.ASCII)
    if match is None or condition not in (None, ETAG) or match.group(1) == match.group(2) == "":
        return None
    if match.group(1) == "":
        length = min(int(match.group(2)), SIZE)
        return (SIZE - length, SIZE - 1) if length else "none"
    first = int(match.group(1))
    last = int(match.group(2)) if match.group(2) else max(first, SIZE)
    if last < first:
        return None
    return (first, min(last, SIZE - 1)) if first < SIZE else "none"


@settings(max_examples=250, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(header=RANGES, condition=CONDITIONS)
def test_any_range_gets_exactly_its_bytes(small: Served, address: str, header: str, condition: str | None) -> None:
    client = _client(small)
    headers = {"Range": header.encode()} | ({} if condition is None else {"If-Range": condition.encode()})

    answer = client.get(address, headers=headers)

    served_range = expected(header, condition)
    assert answer.headers["etag"] == ETAG
    if served_range is None:
        assert (answer.status_code, answer.content) == (200, CONTENT)
        assert "content-range" not in answer.headers
    elif served_range == "none":
        assert_problem(answer, 416)
        assert answer.headers["content-range"] == f"bytes */{SIZE}"
    else:
        first, last = (int(number) for number in served_range)
        assert (answer.status_code, answer.content) == (206, CONTENT[first : last + 1])
        assert answer.headers["content-range"] == f"bytes {first}-{last}/{SIZE}"
        assert answer.headers["content-length"] == str(last - first + 1)


@settings(max_examples=50, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(cuts=st.lists(st.integers(1, SIZE - 1), max_size=5, unique=True).map(sorted))
def test_pieces_join_to_the_file(small: Served, address: str, cuts: list[int]) -> None:
    client = _client(small)
    bounds = zip([0, *cuts], [*cuts, SIZE], strict=True)

    parts = [
        client.get(address, headers={"Range": f"bytes={start}-{end - 1}", "If-Range": ETAG}) for start, end in bounds
    ]

    assert all(part.status_code == 206 for part in parts)
    assert b"".join(part.content for part in parts) == CONTENT


def test_ten_thousand_ranges_are_one_whole_file(small: Served, address: str) -> None:
    many = ",".join(f"{number}-{number}" for number in range(10_000))[:60_000]

    answer = small.client("read").get(address, headers={"Range": f"bytes=0-0,{many}"})

    assert (answer.status_code, answer.content) == (200, CONTENT)


@pytest.mark.parametrize(
    ("etag", "status"),
    [
        (ETAG, 304),
        (f"W/{ETAG}", 304),
        (f'"x", {ETAG}', 304),
        ("*", 304),
        ('"x"', 200),
        (DIGEST, 200),
        ("", 200),
    ],
)
def test_a_matching_etag_gets_no_body(small: Served, address: str, etag: str, status: int) -> None:
    client = small.client("read")
    for answer in (
        client.get(address, headers={"If-None-Match": etag}),
        client.head(address, headers={"If-None-Match": etag}),
        client.get(address, headers={"If-None-Match": etag, "Range": "bytes=0-"}),
    ):
        assert answer.status_code == (206 if status == 200 and answer.request.headers.get("range") else status)
        assert answer.headers["etag"] == ETAG
        if status == 304:
            assert answer.content == b""
            assert "content-type" not in answer.headers


def test_head_ignores_ranges(small: Served, address: str) -> None:
    answer = small.client("read").head(address, headers={"Range": "bytes=0-1"})

    assert (answer.status_code, answer.headers["content-length"]) == (200, str(SIZE))


def test_the_client_resumes_a_download(small: Served, tmp_path: Path) -> None:
    checkpoint_id = small.checkpoint(CONTENT)
    target = tmp_path / "model.safetensors"
    (tmp_path / "model.safetensors.part").write_bytes(CONTENT[:400])
    (tmp_path / "model.safetensors.part.etag").write_text(ETAG)

    with WclClient(small.url, small.key("read")) as client:
        done = client.download(checkpoint_id, target)

    assert (done.resumed_from, done.sha256) == (400, DIGEST)
    assert target.read_bytes() == CONTENT


def test_no_connection_is_held_while_a_file_is_sent(small: Served) -> None:
    checkpoint_id = small.checkpoint(random.Random(2).randbytes(30_000_000))
    pool = small.database.engine.pool

    with small.client("read").stream("GET", f"/v1/checkpoints/{checkpoint_id}/download") as answer:
        coming = answer.iter_raw(100_000)
        next(coming)
        held = [pool.checkedout() for _ in range(50) if next(coming)]  # type: ignore[attr-defined]

    assert max(held) == 0


# --- missing and damaged files -----------------------------------------------------------------------------------


def test_a_missing_file_is_a_problem_of_its_own(small: Served) -> None:
    checkpoint_id = small.checkpoint(native_checkpoint())
    small.file_of(checkpoint_id).unlink()
    client = small.client("read")

    for kind in ("native", "backbone"):
        problem = assert_problem(client.get(f"/v1/checkpoints/{checkpoint_id}/download?kind={kind}"), 410)
        assert "missing" in problem["detail"]
        assert str(small.settings.data_dir) not in str(problem)
    assert_problem(client.get(f"/v1/checkpoints/{new_id()}/download"), 404)


def test_a_file_of_another_size_is_not_served(small: Served) -> None:
    checkpoint_id = small.checkpoint(CONTENT)
    small.file_of(checkpoint_id).write_bytes(CONTENT[:-1])

    assert_problem(small.client("read").get(f"/v1/checkpoints/{checkpoint_id}/download"), 410)


@pytest.mark.parametrize("content", [b"", b"x", b"\xff" * 100, b"\x02" + bytes(7) + b"{}", CONTENT])
def test_a_backbone_of_no_checkpoint_is_a_problem(small: Served, content: bytes) -> None:
    checkpoint_id = small.checkpoint(content)

    assert_problem(small.client("read").get(f"/v1/checkpoints/{checkpoint_id}/download?kind=backbone"), 410)


# --- the backbone alone --------------------------------------------------------------------------------------------


def test_the_backbone_has_its_own_digest_and_plain_names(served: Served) -> None:
    checkpoint_id = served.checkpoint(native_checkpoint())
    client = served.client("read")
    address = f"/v1/checkpoints/{checkpoint_id}/download?kind=backbone"

    answer, again = client.get(address), client.get(address, headers={"Range": "bytes=10-"})

    digest = hashlib.sha256(answer.content).hexdigest()
    assert answer.headers["etag"] == again.headers["etag"] == f'"{digest}"'
    assert again.content == answer.content[10:]
    assert client.get(f"/v1/checkpoints/{checkpoint_id}/download").headers["etag"] != answer.headers["etag"]
    assert f"{checkpoint_id}-backbone.safetensors" in answer.headers["content-disposition"]
    tensors = load(answer.content)
    assert tensors.keys() == {"conv1.weight", "bn1.bias"}
    assert tensors["conv1.weight"].tolist() == [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9, 10, 11]]


def test_many_at_once_get_the_same_backbone(small: Served) -> None:
    checkpoint_id = small.checkpoint(native_checkpoint())
    clients = [small.client("read") for _ in range(12)]

    answers = rows.at_once(
        12, lambda number: clients[number].get(f"/v1/checkpoints/{checkpoint_id}/download?kind=backbone")
    )

    assert {answer.status_code for answer in answers} == {200}
    assert len({answer.content for answer in answers}) == 1
    assert len({answer.headers["etag"] for answer in answers}) == 1
    assert sorted(path.suffix for path in small.settings.exports_dir.iterdir()) == [".safetensors", ".sha256"]


def test_an_export_without_its_digest_is_written_again(small: Served) -> None:
    checkpoint_id = small.checkpoint(native_checkpoint())
    client = small.client("read")
    address = f"/v1/checkpoints/{checkpoint_id}/download?kind=backbone"
    before = client.get(address)
    next(small.settings.exports_dir.glob("*.sha256")).unlink()

    assert client.get(address).headers["etag"] == before.headers["etag"]


def test_a_checkpoint_shows_that_its_file_is_damaged(served: Served) -> None:
    run = rows.Run(served.database, rows.running(served.database))
    run.deliver(rows.started())
    address = f"/v1/checkpoints/{served.checkpoint(native_checkpoint(), run)}"
    client = served.client()
    assert client.get(address).json()["damaged_at"] is None

    served.database.write(lambda session: session.execute(update(Checkpoint).values(damaged_at=1500)) and None)

    assert client.get(address).json()["damaged_at"] == "1970-01-01T00:00:01.500Z"


# --- pin and delete ------------------------------------------------------------------------------------------------


def test_a_pinned_or_needed_checkpoint_is_not_deleted(served: Served) -> None:
    run = rows.Run(served.database, rows.running(served.database))
    run.deliver(rows.started())
    checkpoint_id = served.checkpoint(native_checkpoint(), run)
    client = served.client()
    address = f"/v1/checkpoints/{checkpoint_id}"

    assert_problem(client.delete(address), 409)
    run.deliver(rows.end("succeeded"))
    assert client.patch(address, json={"pinned": True}).json()["pinned"] is True
    assert_problem(client.delete(address), 409)
    assert_problem(client.patch(address, json={"pinned": "yes"}), 422, "/pinned")
    assert_problem(client.patch(address, json={}), 422, "/pinned")
    assert_problem(client.patch(address, json={"pinned": False, "path": "/etc"}), 422, "/path")
    assert client.patch(address, json={"pinned": False}).json()["pinned"] is False
    spec = SPEC | {"features": {"kind": "checkpoint", "checkpoint_id": checkpoint_id}}
    evaluation = client.post("/v1/jobs", json={"kind": "evaluate", "spec": spec}).json()["id"]
    assert_problem(client.delete(address), 409)
    client.post(f"/v1/jobs/{evaluation}/cancel")
    assert client.get(f"{address}/download?kind=backbone").status_code == 200
    place = served.file_of(checkpoint_id)

    assert client.delete(address).status_code == 204

    assert not place.exists()
    assert list(served.settings.exports_dir.iterdir()) == []
    assert_problem(client.get(address), 404)
    assert_problem(client.delete(address), 404)
    assert_problem(client.patch(address, json={"pinned": True}), 404)
    assert_problem(client.get(f"{address}/download"), 404)


def test_equal_checkpoints_share_an_export_until_the_last_is_deleted(small: Served) -> None:
    run = rows.Run(small.database, rows.running(small.database))
    run.deliver(rows.started())
    first = small.checkpoint(native_checkpoint(), run, 1)
    second = small.checkpoint(native_checkpoint(), run, 2)
    run.deliver(rows.end("succeeded"))
    client = small.client()
    client.get(f"/v1/checkpoints/{first}/download?kind=backbone")

    client.delete(f"/v1/checkpoints/{first}")
    assert len(list(small.settings.exports_dir.iterdir())) == 2
    client.delete(f"/v1/checkpoints/{second}")
    assert list(small.settings.exports_dir.iterdir()) == []


def test_the_export_of_a_checkpoint_that_retention_removed_goes(small: Served) -> None:
    """Retention works on rows and in workers, which do not know exports."""
    run = rows.Run(small.database, rows.running(small.database, spec={"checkpoints": {"keep_last": 1}}))
    run.deliver(rows.started())
    removed = small.checkpoint(native_checkpoint(), run, 1)
    assert small.client("read").get(f"/v1/checkpoints/{removed}/download?kind=backbone").status_code == 200
    small.checkpoint(CONTENT, run, 2)
    folder = small.settings.exports_dir
    (folder / f"{DIGEST}.safetensors").write_bytes(b"of the checkpoint that is kept")
    (folder / f"{DIGEST}.sha256").write_text("f" * 64)
    assert len(list(folder.iterdir())) == 4

    exports.sweep(small.database, folder)

    assert sorted(path.name for path in folder.iterdir()) == [f"{DIGEST}.safetensors", f"{DIGEST}.sha256"]
    exports.sweep(small.database, folder, days=90)
    assert len(list(folder.iterdir())) == 2
    os.utime(folder / f"{DIGEST}.sha256", (0, 0))
    exports.sweep(small.database, folder, days=90)
    assert list(folder.iterdir()) == []


def test_a_download_that_began_survives_the_deletion(small: Served) -> None:
    content = random.Random(3).randbytes(20_000_000)
    run = rows.Run(small.database, rows.running(small.database))
    run.deliver(rows.started())
    checkpoint_id = small.checkpoint(content, run)
    run.deliver(rows.end("succeeded"))

    with small.client("read").stream("GET", f"/v1/checkpoints/{checkpoint_id}/download") as answer:
        coming = answer.iter_raw(65_536)
        received = [next(coming)]
        assert small.client().delete(f"/v1/checkpoints/{checkpoint_id}").status_code == 204
        received += coming

    assert b"".join(received) == content


def test_readers_that_leave_close_the_file(small: Served) -> None:
    checkpoint_id = small.checkpoint(random.Random(4).randbytes(20_000_000))
    place = small.file_of(checkpoint_id)
    for _ in range(3):
        with small.client("read").stream("GET", f"/v1/checkpoints/{checkpoint_id}/download") as answer:
            next(answer.iter_raw(1000))

    def open_files() -> list[str]:
        links = [Path("/proc/self/fd") / name for name in os.listdir("/proc/self/fd")]
        return [str(link.readlink()) for link in links if link.exists() and link.readlink() == place]

    eventually(lambda: open_files() == [], "the end of the abandoned downloads")
    assert threading.active_count() < 80


def test_an_export_ends_when_its_client_leaves(small: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    has_ended = threading.Event()

    def endless(native: object, out: Path, check: Callable[[], None]) -> None:
        try:
            while True:
                check()
        finally:
            has_ended.set()

    monkeypatch.setattr(exports, "copy_backbone", endless)
    checkpoint_id = small.checkpoint(native_checkpoint())
    with pytest.raises(httpx.ReadTimeout):
        small.client("read").get(f"/v1/checkpoints/{checkpoint_id}/download?kind=backbone", timeout=0.5)

    assert has_ended.wait(60)
    monkeypatch.undo()
    assert small.client("read").get(f"/v1/checkpoints/{checkpoint_id}/download?kind=backbone").status_code == 200


_CLIENTS: dict[int, httpx.Client] = {}


def _client(served: Served) -> httpx.Client:
    """Return one client for all examples of a property."""
    return _CLIENTS.setdefault(id(served), served.client())
