"""Commands for imported weights, and references to jobs and weights by name, against a real server."""

from __future__ import annotations

from pathlib import Path
from typing import TextIO

import httpx
import pytest
from sqlalchemy import update

from jobs import weights as stored_weights
from jobs.models import Job
from tests.api.served import Served
from tests.jobs import rows
from tests.waiting import patch_clock
from tests.wcl_client.test_operations import printed_json, submit, wcl
from tests.weight_files import TINY, weight_file
from wcl_client import connection
from wcl_client.api import WclClient
from wcl_client.commands import weights as commands
from wcl_client.doctor import verify_files
from wcl_client.errors import ConflictError, InvalidError, NotFoundError

CONTENT, DIGEST = weight_file()


@pytest.fixture
def conversions(monkeypatch: pytest.MonkeyPatch) -> list[list[str]]:
    """Replace the conversion, which needs PyTorch: a file that is called by a number becomes that example."""
    calls: list[list[str]] = []

    def run(arguments: list[str], stdout: TextIO | None = None) -> None:
        calls.append(arguments)
        seed = int(Path(arguments[-2]).name.partition(".")[0].removeprefix("number-"))
        Path(arguments[-1]).write_bytes(weight_file(seed)[0])

    monkeypatch.setattr(commands, "run_library", run)
    return calls


def test_weights_are_imported_listed_shown_and_removed(server: Served, conversions: list[list[str]]) -> None:
    assert "no weights are imported" in wcl("weights", "list").stdout

    done = wcl("weights", "import", "number-0.pth.tar", "--prefix", "module.", "--stem", "small")
    assert done.exit_code == 0, done.output
    assert conversions[0][:-2] == ["import-weights", "--prefix=module.", "--stem=small", "--"]
    assert DIGEST in done.stdout
    assert "wcl submit --preset NAME --weights number-0" in done.stdout
    again = wcl("weights", "import", "number-0.pth", "--name", "other")
    assert "already, as number-0" in again.stdout
    assert [row["name"] for row in printed_json("weights", "list")] == ["number-0"]  # type: ignore[attr-defined]
    for reference in ("number-0", DIGEST, DIGEST[:8]):
        shown = wcl("weights", "show", reference).stdout
        assert "tiny, stem small, width 4" in shown
        assert "fc.weight" in shown

    taken = wcl("weights", "import", "number-1.pth", "--name", "number-0")
    assert isinstance(taken.exception, ConflictError)
    assert "other weights are called number-0" in str(taken.exception)
    job_id = submit("--weights", "number-0")
    refused = wcl("weights", "remove", "number-0")
    assert isinstance(refused.exception, ConflictError)
    assert job_id in str(refused.exception)
    assert wcl("cancel", job_id).exit_code == 0
    assert wcl("weights", "remove", "number-0").stdout == "number-0 is removed\n"
    assert isinstance(wcl("weights", "show", "number-0").exception, NotFoundError)


def test_an_import_survives_a_server_that_starts_again(
    server: Served, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with WclClient(server.url, server.key()) as client:
        real = client._http.send
        pauses: list[float] = []

        def broken(request: httpx.Request, **options: object) -> httpx.Response:
            if len(pauses) < 3:
                raise httpx.ConnectError("refused")
            return real(request, **options)  # type: ignore[arg-type]

        monkeypatch.setattr(client._http, "send", broken)
        patch_clock(monkeypatch, connection, sleep=pauses.append)
        file = tmp_path / "number-0"
        file.write_bytes(CONTENT)
        sent: list[int] = []
        row = client.add_weights(file, "mine", DIGEST, on_bytes=lambda done, total: sent.append(done))

    assert (row["sha256"], sent[-1], pauses) == (DIGEST, len(CONTENT), [1.0, 2.0, 4.0])


def test_a_spec_gets_the_digest_and_the_network_of_the_weights(server: Served, conversions: list[list[str]]) -> None:
    wcl("weights", "import", "number-0", "--name", "mine")

    for reference in ("mine", DIGEST[:10]):
        spec = printed_json("show", submit("--weights", reference))["spec"]  # type: ignore[index]
        assert (spec["weights"], spec["backbone"]["width"]) == (DIGEST, 4)
    other = wcl("submit", "--preset", "digits-cpu", "--weights", "mine", "--set", "backbone.width=8")
    assert isinstance(other.exception, InvalidError)
    assert "are of another network" in str(other.exception)
    assert isinstance(wcl("submit", "--preset", "digits-cpu", "--weights", "absent").exception, NotFoundError)
    assert wcl("submit", "spec.yaml", "--kind", "evaluate", "--weights", "mine").exit_code == 2


def trained(server: Served, name: str) -> str:
    job_id = rows.submit(server.database, spec={"backbone": TINY}, name=name)
    run = rows.Run(server.database, rows.claim(server.database))
    run.deliver(rows.started(), rows.checkpoint(100))
    run.end("succeeded")
    return job_id


def test_a_job_stands_for_its_last_weights(server: Served) -> None:
    job_id = trained(server, "first")

    for reference in ("first", job_id[-8:], "last"):
        spec = printed_json("show", submit("--weights", reference))["spec"]  # type: ignore[index]
        assert (spec["weights"], spec["backbone"]["width"]) == (rows.SHA, 4)
        server.database.write(lambda session: session.execute(update(Job).where(Job.id != job_id).values(kind="other")))


def test_a_job_is_named_by_its_name(server: Served) -> None:
    first, second = submit("--name", "first"), submit("--name", "first, again")

    assert printed_json("show", "first")["id"] == first  # type: ignore[index]
    assert wcl("cancel", "first, again").stdout == f"{second} cancelled\n"
    assert "no job matches frist; did you mean first?" in str(wcl("show", "frist").exception)
    third = submit("--name", "first")
    ambiguous = wcl("cancel", "first").exception
    assert isinstance(ambiguous, InvalidError)
    assert "first matches 2 jobs; choose one by its id" in str(ambiguous)
    assert all(f"{each[-12:]}: first (pretrain, queued, " in str(ambiguous) for each in (first, third))
    for each, named in ((second, "AGAIN"), (third, third[9:18]), (third, third[:-1]), (third, third[1:])):
        assert printed_json("show", named)["id"] == each, "a part of a name or of an id"  # type: ignore[index]
    wcl("cancel", third)
    assert printed_json("show", "first")["id"] == first, "the other one was cancelled before it began"  # type: ignore[index]
    assert "no job matches aga;" in str(wcl("show", "aga").exception), "too short a part"
    part = first[-12:]
    fourth = submit("--name", part)
    assert fourth[-12:] in str(wcl("show", part).exception), "a name that is a part of another job's id is ambiguous"


def test_last_means_the_newest_training_where_weights_are_needed(server: Served) -> None:
    job_id = trained(server, "mine")
    evaluation = wcl("evaluate", "last", "--protocol", "knn").stdout.strip()
    assert printed_json("show", "last")["id"] == evaluation  # type: ignore[index]

    again = printed_json("evaluate", "last", "--protocol", "knn")
    assert again["parent_id"] == job_id  # type: ignore[index]
    assert len(printed_json("checkpoints", "last")) == 1  # type: ignore[arg-type]
    server.database.write(
        lambda session: session.execute(update(Job).where(Job.id == evaluation).values(name="mine", kind="evaluate"))
    )
    assert printed_json("evaluate", "mine", "--protocol", "knn")["parent_id"] == job_id  # type: ignore[index]


def test_last_without_a_training_says_so(server: Served) -> None:
    for command in ("evaluate", "show"):
        failed = wcl(command, "last").exception
        assert isinstance(failed, NotFoundError)
        assert "yet" in str(failed)


def test_doctor_reads_the_files_of_weights(server: Served, conversions: list[list[str]]) -> None:
    wcl("weights", "import", "number-0", "--name", "mine")
    storage = server.app.state.storage
    with WclClient(server.url, server.key()) as client:
        assert [(each.is_ok, each.detail) for each in verify_files(client)] == [
            (True, "1 read, 0 of them damaged or missing")
        ]
        storage.path(stored_weights.storage_key(DIGEST)).unlink()
        findings = list(verify_files(client))
    assert "weights mine: its file is missing" in findings[0].detail
    assert "import the same file again" in findings[0].detail
