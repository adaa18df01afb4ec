"""Nothing leaves the server whose bytes were not compared with the registered digest since they were last touched."""

from __future__ import annotations

import hashlib
import json
import os
import re
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import pytest

from api.http.watch import StorageWatch
from jobs import storage_id
from jobs.models import Checkpoint
from tests.api.rest.test_artifacts import store
from tests.api.served import Served, assert_problem, native_checkpoint
from tests.jobs import rows

GOOD = native_checkpoint()
KINDS = ("native", "backbone")


def flipped(content: bytes) -> bytes:
    """Return the content with one wrong bit in the first tensor of the backbone."""
    length = struct.unpack("<Q", content[:8])[0]
    header = json.loads(content[8 : 8 + length])
    place = 8 + length + header["model/backbone.conv1.weight"]["data_offsets"][0]
    return content[:place] + bytes([content[place] ^ 1]) + content[place + 1 :]


BAD = flipped(GOOD)


@pytest.fixture
def run(served: Served) -> rows.Run:
    run = rows.Run(served.database, rows.running(served.database))
    run.deliver(rows.started())
    return run


def fetch(served: Served, checkpoint_id: str, kind: str) -> httpx.Response:
    return served.client("read").get(f"/v1/checkpoints/{checkpoint_id}/download?kind={kind}")


def flaw(served: Served, checkpoint_id: str) -> str | None:
    with served.database.read() as session:
        return session.get_one(Checkpoint, checkpoint_id).flaw


def warnings(served: Served, job_id: str) -> list[str]:
    return [event.data["reason"] for event in rows.events(served.database, job_id) if event.type == "warning"]


def exports(served: Served) -> list[str]:
    folder = served.settings.exports_dir
    return [path.name for path in folder.iterdir()] if folder.exists() else []


@pytest.mark.parametrize("kind", KINDS)
def test_a_flipped_bit_is_answered_with_410_marked_and_reported(served: Served, run: rows.Run, kind: str) -> None:
    checkpoint_id = served.checkpoint(GOOD, run)
    place = served.file_of(checkpoint_id)
    place.write_bytes(BAD)

    for _ in range(2):
        problem = assert_problem(fetch(served, checkpoint_id, kind), 410)
        assert "damaged" in problem["detail"]

    assert flaw(served, checkpoint_id) == "damaged"
    assert warnings(served, run.job_id) == ["damaged_checkpoint"]
    assert exports(served) == []
    place.write_bytes(GOOD)
    answer = fetch(served, checkpoint_id, kind)
    assert answer.headers["etag"] == f'"{hashlib.sha256(answer.content).hexdigest()}"'
    assert GOOD.startswith(answer.content) or len(answer.content) < len(GOOD)
    assert flaw(served, checkpoint_id) is None
    assert warnings(served, run.job_id) == ["damaged_checkpoint", "restored_checkpoint"]


def test_a_damaged_checkpoint_spoils_no_twin(served: Served, run: rows.Run) -> None:
    """Two checkpoints have equal bytes, and so one export."""
    first, twin = served.checkpoint(GOOD, run, 1), served.checkpoint(GOOD, run, 2)
    served.file_of(first).write_bytes(BAD)

    assert_problem(fetch(served, first, "backbone"), 410)
    good = fetch(served, twin, "backbone")

    assert good.status_code == 200
    assert_problem(fetch(served, first, "backbone"), 410)
    assert [flaw(served, each) for each in (first, twin)] == ["damaged", None]
    served.file_of(first).write_bytes(GOOD)
    assert fetch(served, first, "backbone").content == good.content


def test_bytes_that_change_under_their_old_times_are_noticed(small: Served) -> None:
    checkpoint_id = small.checkpoint(GOOD)
    assert fetch(small, checkpoint_id, "native").status_code == 200
    place = small.file_of(checkpoint_id)
    times = place.stat()
    place.write_bytes(BAD)
    os.utime(place, ns=(times.st_atime_ns, times.st_mtime_ns))

    for kind in KINDS:
        assert_problem(fetch(small, checkpoint_id, kind), 410)
    head = small.client("read").head(f"/v1/checkpoints/{checkpoint_id}/download")
    assert head.status_code == 410


@pytest.mark.parametrize("note", ["wrong bytes", "junk"])
def test_an_export_with_other_bytes_is_made_again(small: Served, note: str) -> None:
    checkpoint_id = small.checkpoint(GOOD)
    good = fetch(small, checkpoint_id, "backbone")
    out = next(small.settings.exports_dir.glob("*.safetensors"))
    noted = out.with_suffix(".sha256")
    out.write_bytes(good.content[:-1] + b"?")
    if note == "junk":
        noted.write_text("2 x y")

    answer = fetch(small, checkpoint_id, "backbone")

    assert (answer.content, answer.headers["etag"]) == (good.content, good.headers["etag"])
    assert out.read_bytes() == good.content


@pytest.mark.parametrize("words", ["{digest}", "1 {digest} {size}"])
def test_an_export_of_an_older_version_is_made_again(small: Served, words: str) -> None:
    """It may be of bytes that were never compared with the checkpoint's digest."""
    checkpoint_id = small.checkpoint(GOOD)
    good = fetch(small, checkpoint_id, "backbone")
    out = next(small.settings.exports_dir.glob("*.safetensors"))
    wrong = flipped_export(good.content)
    out.write_bytes(wrong)
    noted = words.format(digest=hashlib.sha256(wrong).hexdigest(), size=len(wrong))
    out.with_suffix(".sha256").write_text(noted)

    assert fetch(small, checkpoint_id, "backbone").content == good.content


def flipped_export(content: bytes) -> bytes:
    return content[:-1] + bytes([content[-1] ^ 1])


def _with_offsets(offsets: Any) -> bytes:
    """Return the good checkpoint with other offsets of its first tensor of the backbone, registered as it is."""
    length = struct.unpack("<Q", GOOD[:8])[0]
    header = json.loads(GOOD[8 : 8 + length])
    header["model/backbone.conv1.weight"]["data_offsets"] = offsets
    text = json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + GOOD[8 + length :]


@pytest.mark.parametrize(
    "offsets",
    [[48, 0], [0, 48, 96], ["0", "48"], [0.0, 48.0], [0, 2**70], {"a": 1}, [-96, -48], [0, 12], [True, 48], None, []],
)
def test_odd_offsets_are_a_foreign_file(small: Served, offsets: Any) -> None:
    checkpoint_id = small.checkpoint(_with_offsets(offsets))

    problem = assert_problem(fetch(small, checkpoint_id, "backbone"), 410)

    assert "foreign" in problem["detail"]
    assert exports(small) == []
    assert flaw(small, checkpoint_id) is None, "its bytes are the registered ones"


@pytest.mark.parametrize("nesting", ["header", "metadata"])
def test_deep_json_is_a_foreign_file(small: Served, nesting: str) -> None:
    deep = b"[" * 200_000
    text = deep if nesting == "header" else json.dumps({"__metadata__": {"wcl": deep.decode()}}).encode()
    checkpoint_id = small.checkpoint(struct.pack("<Q", len(text)) + text)

    assert_problem(fetch(small, checkpoint_id, "backbone"), 410)


@pytest.mark.parametrize("where", ["outside", "nowhere"])
@pytest.mark.parametrize("kind", KINDS)
def test_a_link_out_of_the_storage_is_not_followed(small: Served, tmp_path: Path, where: str, kind: str) -> None:
    run = rows.Run(small.database, rows.running(small.database))
    run.deliver(rows.started())
    checkpoint_id, _ = small.checkpoint(GOOD, run, 2), small.checkpoint(GOOD, run, 1)
    place = small.file_of(checkpoint_id)
    place.unlink()
    (tmp_path / "outside").write_bytes(GOOD)
    place.symlink_to(tmp_path / where)

    assert_problem(fetch(small, checkpoint_id, kind), 410)


def test_one_missing_file_is_marked_and_all_of_a_job_are_not(served: Served, run: rows.Run) -> None:
    first, second = served.checkpoint(GOOD, run, 1), served.checkpoint(GOOD, run, 2)
    second_id = next(row.id for row in rows.checkpoints(served.database, run.job_id) if row.step == 2)
    assert second_id == second
    served.file_of(second).unlink()

    assert "missing" in assert_problem(fetch(served, second, "native"), 410)["detail"]
    assert [flaw(served, each) for each in (first, second)] == [None, "missing"]
    served.file_of(first).unlink()
    assert "all 2 missing" in assert_problem(fetch(served, first, "native"), 410)["detail"]

    assert flaw(served, first) is None
    assert warnings(served, run.job_id) == ["missing_checkpoint"]


def test_another_storage_is_a_server_that_is_not_ready(served: Served, run: rows.Run) -> None:
    checkpoint_id = served.checkpoint(GOOD, run)
    store(served, run, "probe.png", b"pixels")
    storage = served.app.state.storage
    storage_id.connect(served.database, storage)
    served.app.state.storage_watch.check()
    assert served.bare().get("/readyz").json()["status"] == "ok"
    (storage.root / "storage-id").write_text("another one")
    served.app.state.storage_watch.check()

    for address in (f"checkpoints/{checkpoint_id}/download", f"jobs/{run.job_id}/artifacts/probe.png"):
        assert "another storage" in assert_problem(served.client("read").get(f"/v1/{address}"), 503)["detail"]

    assert flaw(served, checkpoint_id) is None
    ready = served.bare().get("/readyz")
    assert ready.status_code == 200
    assert "another storage" in ready.json()["problems"][0]
    assert str(served.settings.data_dir) not in ready.text
    assert "\nwcl_storage_available 0.0\n" in served.client("read").get("/metrics").text


def test_a_storage_that_hangs_holds_up_no_request(small: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    watch = StorageWatch(small.database, small.app.state.storage)
    monkeypatch.setattr("api.http.watch._HANG_SECONDS", -1.0)
    seen: list[str | None] = []
    monkeypatch.setattr("jobs.storage_id.connect", lambda *_: seen.append(watch.problem))

    watch.check()

    assert seen[0] is not None
    assert "has not responded" in seen[0]
    assert watch.problem is None


@pytest.mark.parametrize("damage", [lambda path: path.write_bytes(b"other pixels"), lambda path: path.unlink()])
def test_an_artifact_with_other_bytes_is_not_served(
    served: Served, run: rows.Run, damage: Callable[[Path], None]
) -> None:
    for name in ("probe.png", "probe.json"):
        store(served, run, name, b"these pixels")
    client = served.client("read")
    address = f"/v1/jobs/{run.job_id}/artifacts"
    etag = client.get(f"{address}/probe.png").headers["etag"]
    for path in served.settings.checkpoints_dir.rglob("*-probe.*"):
        damage(path)

    assert_problem(client.get(f"{address}/probe.png"), 410)
    assert_problem(client.get(f"{address}/probe.png", headers={"If-None-Match": etag}), 410)
    assert client.get(f"/v1/jobs/{run.job_id}/groups").json()["groups"] == []


def test_verify_reads_the_file_whatever_was_read_before(served: Served, run: rows.Run) -> None:
    first, second = served.checkpoint(GOOD, run, 1), served.checkpoint(GOOD, run, 2)
    client = served.client()
    address = f"/v1/checkpoints/{second}/verify"
    assert client.post(address).json()["damaged_at"] is None
    served.file_of(second).write_bytes(BAD)

    damaged = client.post(address).json()
    served.file_of(second).unlink()
    missing = client.post(address).json()
    served.file_of(second).write_bytes(GOOD)
    restored = client.post(address).json()

    assert (damaged["damaged_at"] is None, damaged["missing_at"] is None) == (False, True)
    assert (missing["damaged_at"] is None, missing["missing_at"] is None) == (True, False)
    assert (restored["damaged_at"], restored["missing_at"]) == (None, None)
    assert warnings(served, run.job_id) == ["damaged_checkpoint", "missing_checkpoint", "restored_checkpoint"]
    for each in (first, second):
        served.file_of(each).unlink()
    assert_problem(client.post(address), 503)
    assert_problem(client.post("/v1/checkpoints/none/verify"), 404)
    assert served.client("read").post(address).status_code == 403


def test_a_file_that_changes_under_a_download_breaks_it_off(small: Served) -> None:
    content = os.urandom(30_000_000)
    checkpoint_id = small.checkpoint(content)
    place = small.file_of(checkpoint_id)

    with small.client("read").stream("GET", f"/v1/checkpoints/{checkpoint_id}/download") as answer:
        coming = answer.iter_raw(65_536)
        next(coming)
        with place.open("r+b") as file:
            file.write(b"?")
        with pytest.raises(httpx.TransportError):
            for _ in coming:
                pass


def test_one_module_of_the_server_reads_the_storage() -> None:
    modules = (Path(__file__).parents[3] / "api").rglob("*.py")
    readers = {path.name for path in modules if re.search(r"\bstorage\.(open|path)\(", path.read_text())}

    assert readers == {"stored_files.py"}


def test_a_refusal_names_no_folder(served: Served, run: rows.Run) -> None:
    checkpoint_id = served.checkpoint(GOOD, run)
    served.file_of(checkpoint_id).unlink()

    text = fetch(served, checkpoint_id, "native").text

    assert str(served.settings.data_dir) not in text
