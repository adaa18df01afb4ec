"""Every option, argument and variable of the command line with odd values: one clear line, and never a traceback."""

from __future__ import annotations

import hashlib
import itertools
import json
import os
import random
import subprocess
import sys
from collections.abc import Iterator
from contextlib import suppress
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import httpx
import pytest
from typer.main import get_command

from jobs.settings import InvalidSettings, read_settings
from tests.fuzz import mutations
from tests.odd import ODD
from tests.wcl_client.answers import ID, answer
from tests.wcl_client.test_terminal import COMMANDS
from wcl_client import cli, up
from wcl_client.api import WclClient
from wcl_client.demo import choose_data
from wcl_client.sse import Message
from wcl_client.up import UpOptions
from worker.__main__ import _parser, _time_problem

ROOT = Path(__file__).parents[2]
BELOW = [value for value in ODD if ".." not in value and value not in ("/", "~")]  # `wcl up` makes these folders
URLS = ("http://[", "http://a:99999", "ftp://x", "//", "x", "http://\udcff", "http://a@b", "http://" + "a" * 100_000)
# A value that the other parameters of a command have meanwhile, where a default does not do.
USUAL = {"spec": "SPEC", "file": "SPEC", "reference": ID, "job": ID, "jobs": ID, "group_id": ID, "preset": "digits-cpu"}
USUAL |= {
    "references": ID,
    "name": "mine",
    "new_name": "other",
    "path": "absent",
    "folder": "absent",
    "images": "absent",
    "dataset": "digits",
    "image": "x",
    "url": "https://example.org/",
    "project": "default",
}


def _parameters() -> Iterator[tuple[tuple[str, ...], Any, Any]]:
    """Yield the name, the command and each parameter that takes a value."""

    def walk(command: Any, path: tuple[str, ...]) -> Iterator[tuple[tuple[str, ...], Any, Any]]:
        for parameter in command.params:
            if not getattr(parameter, "is_flag", False):
                yield path, command, parameter
        for name, below in getattr(command, "commands", {}).items():
            yield from walk(below, (*path, name))

    yield from walk(get_command(cli.app), ())


PARAMETERS = [each for each in _parameters() if each[2].name not in ("install_completion", "show_completion")]


@pytest.fixture(autouse=True)
def without_a_server(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Let each request be written and answered without a network, and let no command start a process."""

    def respond(request: httpx.Request) -> httpx.Response:
        if request.method == "HEAD":
            return httpx.Response(404)
        path = request.url.path
        if request.method == "POST" and path in ("/v1/jobs", "/v1/sweeps"):  # what is made, rather than a list
            made = answer(path, lambda: "text")
            return httpx.Response(200, json=made | made["items"][0])
        return httpx.Response(200, json=answer(path, lambda: "text"))

    client = partial(httpx.Client, transport=httpx.MockTransport(respond))
    monkeypatch.setattr("wcl_client.connection.httpx.Client", client)
    monkeypatch.setattr("wcl_client.api.WclClient.follow", lambda _self, _id: iter(()))
    for check in ("_python", "_torch"):
        monkeypatch.setattr(f"wcl_client.doctor.{check}", lambda: cli_finding())
    monkeypatch.setattr("wcl_client.doctor._database", lambda _folder: [])
    monkeypatch.setattr("wcl_client.commands.service.run", _prepare)
    monkeypatch.setattr("wcl_client.commands.service.run_demo", lambda data, *_, **__: choose_data(data))
    monkeypatch.setattr("wcl_client.commands.workers.os.execve", _parse_worker)
    ended = SimpleNamespace(run=lambda *_, **__: subprocess.CompletedProcess([], 1, "", ""), PIPE=subprocess.PIPE)
    for module in ("commands.datasets", "commands.images", "commands.operation", "unit"):
        monkeypatch.setattr(f"wcl_client.{module}.subprocess", ended)
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    for name in ("WCL_URL", "WCL_KEY", "WCL_DATA_DIR", "WCL_DATASETS", "SSL_CERT_FILE", "SSL_CERT_DIR"):
        monkeypatch.delenv(name, raising=False)
    (tmp_path / "spec.yaml").write_text("epochs: 1")
    monkeypatch.chdir(tmp_path)


def cli_finding() -> Any:
    from wcl_client.doctor import Finding

    return Finding("Python", True, "3")


def _prepare(options: UpOptions, _report: object) -> None:
    """Do what `wcl up` does before it starts a process."""
    with up.locked(options.data_dir):
        up.free_port(options.host, options.port)
        up._environment(options)


def _parse_worker(_program: str, arguments: list[str], _environment: dict[str, str]) -> None:
    with suppress(InvalidSettings):
        _time_problem(_parser().parse_args(arguments[3:]).max_seconds, read_settings())


def lines_of(capsys: pytest.CaptureFixture[str], *arguments: str) -> list[str]:
    """Run a command in this process, and return what it says; it may fail, with one clear message."""
    try:
        code = cli.run(arguments)
    except SystemExit as end:  # of the worker's parser
        code = int(str(end.code))
    printed = capsys.readouterr()
    lines = printed.err.splitlines()
    shown = (arguments, code, printed.err[:2_000])
    assert 0 <= code <= 7, shown
    assert not any(words in printed.err for words in ("Traceback", "unexpected", "object at 0x")), shown
    if code not in (0, 1):  # 1 is also the end of a job that is watched
        assert lines, shown
        assert "error: " in printed.err, shown
    assert len(printed.err) < 5_000, shown
    return lines


@pytest.mark.server
@pytest.mark.parametrize(
    ("path", "command", "parameter"),
    PARAMETERS,
    ids=[f"{' '.join(path)} {parameter.name}" for path, _, parameter in PARAMETERS],
)
def test_each_option_and_argument_takes_an_odd_value_or_is_named(
    path: tuple[str, ...],
    command: Any,
    parameter: Any,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
) -> None:
    others = [
        USUAL[other.name].replace("SPEC", str(tmp_path / "spec.yaml"))
        for other in command.params
        if other is not parameter and other.param_type_name == "argument" and other.required
    ]
    option = [] if parameter.param_type_name == "argument" else [max(parameter.opts, key=len)]
    extra = ["--preset", "digits-cpu"] if path == ("submit",) and parameter.name not in ("preset", "spec") else []

    for value in ODD if parameter.name != "data_dir" else BELOW:
        value_in_place = [f"{option[0]}={value}"] if option else ["--", value]
        lines = lines_of(capsys, *path, *extra, *(others if option else []), *value_in_place)
        assert len(lines) < 12, (value, lines)


@pytest.mark.server
@pytest.mark.parametrize(
    "variable", ["WCL_URL", "WCL_KEY", "WCL_DATA_DIR", "WCL_DATASETS", "SSL_CERT_FILE", "SSL_CERT_DIR", "HOME"]
)
@pytest.mark.parametrize("command", [("jobs",), ("doctor",), ("up", "--port", "0", "--dataset", "a=/"), ("worker",)])
def test_each_variable_of_the_client_takes_an_odd_value_or_is_named(
    variable: str, command: tuple[str, ...], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    if variable.startswith("SSL"):
        monkeypatch.setenv("WCL_URL", "https://127.0.0.1:1")
    for value in (*ODD, *URLS) if variable != "WCL_DATA_DIR" else BELOW:
        monkeypatch.setenv(variable, value)
        lines_of(capsys, *command)


@pytest.mark.parametrize(
    "body",
    [b"", b"<html>", b"null", b"[]", b"5", b'"x"', b"{}", b'{"items": 5}', b'{"items": [5]}', b"[" * 100_000, b"\xff"],
)
@pytest.mark.parametrize("command", [("jobs",), ("workers",), ("datasets",), ("show", ID), ("group", ID), ("audit",)])
def test_another_server_is_named(
    body: bytes, command: tuple[str, ...], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    transport = httpx.MockTransport(lambda _request: httpx.Response(200, content=body))
    monkeypatch.setattr("wcl_client.connection.httpx.Client", partial(httpx.Client, transport=transport))

    lines = lines_of(capsys, *command)

    assert len(lines) == 1
    assert "expected a WCL server there" in lines[0]


MUTATIONS = 15


@pytest.mark.parametrize(
    "command", [*COMMANDS, ("retry", ID), ("clone", ID), ("submit", "spec.yaml", "--watch")], ids=" ".join
)
def test_an_answer_of_another_form_is_named(
    command: tuple[str, ...], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """One of the answers that a command reads is mutated: it is shown, or the server is named in one message."""
    for seed in range(MUTATIONS):
        generator = random.Random(f"{command} {seed}")
        mutated, count = generator.randrange(3), itertools.count()

        def mutate(value: Any, generator: random.Random = generator) -> Any:
            for _ in range(generator.choice((1, 1, 3))):
                value = mutations.of_json(generator, value)
            return value

        def respond(
            request: httpx.Request, mutated: int = mutated, count: Any = count, mutate: Any = mutate
        ) -> httpx.Response:
            value = answer(request.url.path, lambda: "text")
            if request.method == "POST" and request.url.path == "/v1/jobs":
                value = value["items"][0]
            return httpx.Response(200, content=json.dumps(mutate(value) if next(count) == mutated else value).encode())

        def follow(_self: WclClient, _id: str, mutate: Any = mutate) -> Iterator[Message]:
            progress = {"step": 1, "total_steps": 2, "epoch": 0.5, "total_epochs": 1, "eta_seconds": 5.0}
            points = {"points": [{"name": "train/loss", "value": 0.5}]}
            warning = {"type": "warning", "data": {"message": "text"}}
            sent = {"progress": progress, "metrics": points, "event": warning, "job": answer("/v1/jobs/x", lambda: "t")}
            yield from (Message(name, mutate(value)) for name, value in sent.items())

        client = partial(httpx.Client, transport=httpx.MockTransport(respond))
        monkeypatch.setattr("wcl_client.connection.httpx.Client", client)
        monkeypatch.setattr("wcl_client.api.WclClient.follow", follow)
        lines_of(capsys, *command)


@pytest.mark.parametrize("name", ["../x", "/x", "a/b", "", "..", "x\0", "a" * 5_000])
def test_a_server_chooses_no_place_of_a_download(
    name: str, capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The id of a checkpoint is a part of the name of the file."""
    content = b"content"
    headers = {"ETag": f'"{hashlib.sha256(content).hexdigest()}"', "Content-Length": str(len(content))}

    def respond(request: httpx.Request) -> httpx.Response:
        if "download" in request.url.path:
            return httpx.Response(200, content=content, headers=headers)
        value = answer(request.url.path, lambda: "text")
        for checkpoint in value.get("items", ()):
            checkpoint["id"] = name
        return httpx.Response(200, json=value)

    client = partial(httpx.Client, transport=httpx.MockTransport(respond))
    monkeypatch.setattr("wcl_client.connection.httpx.Client", client)
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")

    lines = lines_of(capsys, "download", ID)

    assert "expected a WCL server there" in lines[0]
    assert [path.name for path in tmp_path.rglob("*") if path.is_file()] == ["spec.yaml"]


@pytest.mark.parametrize("pages", [b'{"items": [], "next_cursor": "x"}', b'{"items": [{"id": "x"}], "next_cursor": 5}'])
def test_a_list_that_never_ends_is_named(
    pages: bytes, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    transport = httpx.MockTransport(lambda _request: httpx.Response(200, content=pages))
    monkeypatch.setattr("wcl_client.connection.httpx.Client", partial(httpx.Client, transport=transport))

    assert "expected a WCL server there" in lines_of(capsys, "jobs")[0]


def test_a_stream_of_another_server_is_named(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its answers are no streams; the command does not ask again for ever."""
    monkeypatch.undo()
    job = answer(f"/v1/jobs/{ID}", lambda: "text") | {"status": "running"}
    transport = httpx.MockTransport(lambda _request: httpx.Response(200, json=job))
    monkeypatch.setattr("wcl_client.connection.httpx.Client", partial(httpx.Client, transport=transport))

    assert "sent no stream of events" in lines_of(capsys, "watch", ID)[-1]


@pytest.mark.process
@pytest.mark.parametrize(
    ("script", "code"),
    [
        ("PYTHONIOENCODING=ascii wcl show '\u00e9'", 3),
        ("PYTHONIOENCODING=ascii wcl --help >/dev/null", 0),
        ("LC_ALL=C PYTHONUTF8=0 wcl submit '\u732b.yaml'", 2),
        ("wcl --version >/dev/full", 1),
        ("wcl --help >/dev/full", 1),
        ("wcl --version >&-", 0),
        ("wcl --help 2>&-", 0),
        ("mkdir gone; cd gone; rmdir ../gone; wcl jobs", 3),
        ("env -u HOME wcl --help", 0),
        ("COLUMNS=\u00b2 LINES=x wcl --help", 0),
        ("COLUMNS=999999999999 TERM='\x1b' wcl --help", 0),
        ("_WCL_COMPLETE=x wcl", None),
        ("_WCL_COMPLETE=complete_bash COMP_WORDS='\"' COMP_CWORD=x wcl", None),
        ("TMPDIR=/none TZ=/x LANG=xx wcl --help", 0),
        ("ulimit -n 4; wcl --help", None),
    ],
)
def test_an_odd_machine_ends_no_command_with_a_traceback(script: str, code: int | None, tmp_path: Path) -> None:
    wcl = tmp_path / "bin" / "wcl"
    wcl.parent.mkdir()
    wcl.write_text(f'#!/bin/sh\nexec {sys.executable} -m wcl_client "$@"\n')
    wcl.chmod(0o755)
    environment = {name: value for name, value in os.environ.items() if not name.startswith("WCL_")}
    environment |= {"PATH": f"{wcl.parent}:{environment['PATH']}", "PYTHONPATH": str(ROOT)}
    environment |= {"WCL_URL": "http://127.0.0.1:1"}

    done = subprocess.run(["bash", "-c", script], cwd=tmp_path, env=environment, capture_output=True, text=True)

    assert "Traceback" not in done.stderr
    assert "unexpected" not in done.stderr
    if code is not None:
        assert done.returncode == code, done.stderr
