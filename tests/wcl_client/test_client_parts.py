"""The parts of the client that need no server: stream format, addresses, errors, spec files, the demo's table."""

from __future__ import annotations

import io
import json
import os
import re
import shutil
import socket
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
from rich.console import Console
from typer.main import get_command

from api.__main__ import _withdraw
from docs import write_async_client
from wcl_client import cli, comparison, output
from wcl_client.address import DEFAULT_URL, Address, find_address
from wcl_client.api import WclClient
from wcl_client.cli import _advice
from wcl_client.commands.jobs import whole_groups
from wcl_client.errors import (
    ConflictError,
    DeniedError,
    InvalidAddress,
    InvalidError,
    NotFoundError,
    Unreachable,
    api_error,
)
from wcl_client.output import duration, phase_text
from wcl_client.progress import JobView
from wcl_client.responses import Evaluation, Job, Progress
from wcl_client.specfile import apply_overrides
from wcl_client.sse import Message, Parser
from wcl_client.terminal import Terminal, out
from wcl_core.spec_files import SpecFileError, read_spec, read_specs, spec_files
from wcl_core.text import Secret


def parsed(lines: list[str]) -> list[Message | None]:
    parser = Parser()
    return [message for line in lines for message in parser.feed(line)]


def test_an_sse_message_has_event_id_and_json_data() -> None:
    lines = ["id: 3.1.7", "event: progress", 'data: {"step": 5}', "", ": heartbeat", "", "data: a", "data: b", ""]

    assert parsed(lines) == [Message("progress", {"step": 5}, "3.1.7"), None, Message("message", "a\nb", None)]


def test_an_incomplete_sse_message_is_dropped() -> None:
    assert parsed(["event: progress", 'data: {"step": 5}']) == []


def test_a_metric_of_zero_is_shown_and_one_without_a_value_is_not(capsys: pytest.CaptureFixture[str]) -> None:
    metrics = {"collapsed_share": 0.0, "kept": 0.25, "missing": None}
    out.show(output.metrics_table({"latest_metrics": metrics}))

    lines = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert ["collapsed_share", "0"] in lines
    assert ["kept", "0.25"] in lines
    assert not any("missing" in line for line in lines)


@pytest.mark.parametrize(("status", "is_shown"), [("failed", True), ("paused", True), ("running", False)])
def test_a_job_that_needs_a_user_is_shown_with_what_to_do(
    capsys: pytest.CaptureFixture[str], status: str, is_shown: bool
) -> None:
    job: Job = {"id": "f6a4135d-1100-4000-8000-f6a4135d1100", "status": status, "status_reason": "disk_full"}
    page = "/troubleshooting#disk_full"
    job["explanation"] = {"meaning": "No room is left.", "advice": "Free disk space.", "page": page}

    out.show(output.answer_table(job, "http://server"))

    printed = capsys.readouterr().out
    for text in ("No room is left.", "Free disk space.", f"http://server{page}"):
        assert (text in printed) == is_shown


def test_a_link_to_a_service_behind_a_path_has_the_path_once(capsys: pytest.CaptureFixture[str]) -> None:
    job: Job = {"id": "f6a4135d-1100-4000-8000-f6a4135d1100", "status": "failed", "status_reason": "disk_full"}
    page = "/wcl/troubleshooting#disk_full"  # as the service sends it
    job["explanation"] = {"meaning": "No room is left.", "advice": "Free disk space.", "page": page}

    out.show(output.answer_table(job, "https://server/wcl"))

    assert f" https://server{page}" in capsys.readouterr().out


def test_the_warnings_about_a_spec_are_shown(capsys: pytest.CaptureFixture[str]) -> None:
    job: Job = {"id": "f6a4135d-1100-4000-8000-f6a4135d1100", "status": "succeeded"}
    job["warnings"] = ["20 steps in all", "too high a rate"]
    out.show(output.answer_table(job))
    lines = [line.split(maxsplit=1) for line in capsys.readouterr().out.splitlines()]
    assert [text.strip() for name, text in lines if name == "warning"] == ["20 steps in all.", "Too high a rate."]


@pytest.mark.parametrize(
    ("status", "protocols", "is_shown"),
    [("succeeded", ["map"], True), ("running", ["map"], False), ("succeeded", ["knn"], False)],
)
def test_a_job_that_has_made_a_map_links_to_it(
    status: str, protocols: list[str], is_shown: bool, capsys: pytest.CaptureFixture[str]
) -> None:
    job: Job = {"id": "f6a4135d-1100-4000-8000-f6a4135d1100", "status": status, "spec": {"protocols": protocols}}
    out.show(output.answer_table(job, "http://server"))
    assert (f"http://server/jobs/{job['id']}/map" in capsys.readouterr().out) == is_shown


def test_a_row_is_one_line_of_a_terminal_and_whole_in_a_pipe() -> None:
    job = {"id": "f6a4135d-1100-4000-8000-f6a4135d1100", "name": "a rather long name " * 8, "kind": "pretrain"}
    job |= {"dataset": {"name": "photos-of-a-long-holiday"}, "status": "failed", "status_reason": "out_of_memory"}
    progress = {"step": 5, "total_steps": 10}
    table = output.jobs_table([job | {"created_at": "2026-01-01T00:00:00Z", "progress": progress}])  # type: ignore[list-item]
    narrow = Console(file=io.StringIO(), width=80, force_terminal=True, no_color=True, legacy_windows=False)
    piped = Console(file=io.StringIO(), width=1_000)

    Terminal(narrow).show(table)
    Terminal(Console(file=io.StringIO()), piped).show(table)

    row = re.sub(r"\x1b\[[\d;]*m", "", narrow.file.getvalue().splitlines()[1])  # type: ignore[attr-defined]
    assert len(row) == 80
    for word in ("f6a4135d1100", "failed (out_of_memory)", "50%", "…", " d"):
        assert word in row
    assert len(narrow.file.getvalue().splitlines()) == 2  # type: ignore[attr-defined]
    assert str(job["name"]).strip() in piped.file.getvalue()  # type: ignore[attr-defined]


def test_the_help_lists_each_command_once_on_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.run(["--help"]) == 0

    commands = get_command(cli.app).commands  # type: ignore[attr-defined]
    lines = capsys.readouterr().out.splitlines()
    listed = [line.split()[0] for line in lines if re.match(r"  [a-z][\w-]* {2,}\S", line)]
    assert sorted(listed) == sorted(name for name, command in commands.items() if not command.hidden)
    assert not any(line.endswith("...") for line in lines[1:])


@pytest.mark.parametrize(
    ("environment", "expected"),
    [
        ({"execution": "captured"}, "captured"),
        ({"execution": "eager", "execution_reason": "no C++ compiler"}, "eager: no C++ compiler"),
        (None, None),
    ],
)
def test_a_job_shows_the_form_of_its_steps_and_why(
    environment: dict[str, str] | None, expected: str | None, capsys: pytest.CaptureFixture[str]
) -> None:
    out.show(output.job_table({"id": "1", "kind": "pretrain", "status": "running"}, environment))
    rows = [line.rstrip().split(maxsplit=2) for line in capsys.readouterr().out.splitlines() if "steps are" in line]
    assert rows == ([["steps", "are", expected]] if expected else [])


@pytest.fixture(autouse=True)
def clean_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("WCL_URL", "WCL_KEY", "WCL_DATA_DIR"):
        monkeypatch.delenv(name, raising=False)


def test_local_files_name_server_and_key(tmp_path: Path) -> None:
    (tmp_path / "server.json").write_text('{"url": "http://127.0.0.1:9123/", "pid": 1}')
    (tmp_path / "key").write_text("wcl_local\n")

    address = find_address(tmp_path)

    assert (address.url, address.key) == ("http://127.0.0.1:9123", Secret("wcl_local"))


def test_a_service_that_is_down_has_its_last_address(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "server.json").write_text(json.dumps({"url": "http://127.0.0.1:9123", "pid": os.getpid()}))
    _withdraw(tmp_path / "server.json")
    assert find_address(tmp_path).url == "http://127.0.0.1:9123"
    monkeypatch.setenv("WCL_DATA_DIR", str(tmp_path))
    assert "Start the service with `wcl up --port 9123`" in _advice(Unreachable("no answer"))
    monkeypatch.setenv("WCL_KEY", "wcl_other")
    assert find_address(tmp_path).url == DEFAULT_URL, "the key of the environment is for no server of a file"


def test_a_named_server_of_this_machine_is_started_as_it_is_there(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WCL_URL", "http://127.0.0.1:18080")
    assert "`wcl up`, its unit (`systemctl status wcl-server`) or `python -m api`" in _advice(Unreachable("no answer"))


def test_a_client_of_a_server_elsewhere_is_not_sent_to_wcl_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WCL_URL", "https://wcl.example/wcl")
    advice = _advice(Unreachable("no answer"))
    assert "curl https://wcl.example/wcl/healthz" in advice
    assert "wcl up" not in advice
    monkeypatch.setenv("WCL_URL", "http://127.0.0.1:9123")
    assert "wcl up" in _advice(Unreachable("no answer"))


@pytest.mark.process
def test_the_help_of_run_up_needs_no_environment_and_names_every_option(tmp_path: Path) -> None:
    shutil.copy("run", tmp_path)
    for name in ("requirements.lock", "pyproject.toml"):
        shutil.copy(name, tmp_path)
    environment = {name: value for name, value in os.environ.items() if name != "WCL_VENV"}
    done = subprocess.run([tmp_path / "run", "up", "--help"], env=environment, capture_output=True, text=True)
    options = {option for each in get_command(cli.app).commands["up"].params for option in each.opts}  # type: ignore[attr-defined]
    assert {word for word in done.stdout.split() if word.startswith("--")} == options
    assert (done.returncode, done.stderr, (tmp_path / ".venv").exists()) == (0, "", False)


def test_the_local_key_never_goes_to_another_server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "server.json").write_text('{"url": "http://127.0.0.1:9123", "pid": 1}')
    (tmp_path / "key").write_text("wcl_local")
    monkeypatch.setenv("WCL_URL", "http://elsewhere.example:80")

    assert find_address(tmp_path).key is None


@pytest.mark.parametrize("name", ["key", "server.json"])
@pytest.mark.parametrize("make", [Path.mkdir, os.mkfifo, lambda path: path.symlink_to(path.parent.parent / "other")])
def test_a_data_folder_lends_no_file_of_another_place(
    tmp_path: Path, name: str, make: Callable[[Path], object]
) -> None:
    """A folder from elsewhere could link to a key of the user; a FIFO would keep each command waiting."""
    (tmp_path / "other").write_text("wcl_other" if name == "key" else '{"url": "http://other.example"}')
    folder = tmp_path / "wcl-data"
    folder.mkdir()
    (folder / "server.json").write_text('{"url": "http://elsewhere.example"}')
    (folder / "key").write_text("wcl_local")
    (folder / name).unlink()
    make(folder / name)

    expected = ("http://elsewhere.example", None) if name == "key" else (DEFAULT_URL, Secret("wcl_local"))
    address = find_address(folder)
    assert (address.url, address.key) == expected


@pytest.mark.parametrize("url", ["http://elsewhere.example:80", "http://127.0.0.1:1", "http://[::1]:1"])
@pytest.mark.parametrize("pid", [1, "own", None, -1, "x", 1 << 70])
def test_a_key_of_the_environment_goes_to_no_server_that_only_a_file_names(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, url: str, pid: object
) -> None:
    announced = {"url": url, "pid": os.getpid() if pid == "own" else pid}
    (tmp_path / "server.json").write_text(json.dumps(announced))
    monkeypatch.setenv("WCL_KEY", "wcl_mine")

    address = find_address(tmp_path)

    assert (address.url, address.key, address.is_key_withheld) == (url, None, True)


@pytest.mark.server
@pytest.mark.parametrize(("host", "family"), [("127.0.0.1", socket.AF_INET), ("::1", socket.AF_INET6)])
def test_a_key_of_the_environment_goes_to_a_server_of_this_user(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, host: str, family: int
) -> None:
    monkeypatch.setenv("WCL_KEY", "wcl_mine")
    with socket.socket(family) as listener:
        listener.bind((host, 0))
        listener.listen()
        url = f"http://{f'[{host}]' if ':' in host else host}:{listener.getsockname()[1]}"
        (tmp_path / "server.json").write_text(json.dumps({"url": url, "pid": os.getpid()}))

        assert find_address(tmp_path) == Address(url, Secret("wcl_mine"))


def test_a_key_of_the_environment_goes_to_the_address_of_the_environment(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "server.json").write_text('{"url": "http://elsewhere.example:80"}')
    monkeypatch.setenv("WCL_KEY", " wcl_mine\r\n")
    monkeypatch.setenv("WCL_URL", " https://mine.example/wcl/\n")

    assert find_address(tmp_path) == Address("https://mine.example/wcl", Secret("wcl_mine"))


@pytest.mark.parametrize("key", ["", " \n"])
def test_an_empty_key_of_the_environment_is_not_replaced_by_the_local_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, key: str
) -> None:
    (tmp_path / "server.json").write_text('{"url": "http://127.0.0.1:9123", "pid": 1}')
    (tmp_path / "key").write_text("wcl_local")
    monkeypatch.setenv("WCL_KEY", key)

    with pytest.raises(InvalidAddress, match="WCL_KEY is set and empty"):
        find_address(tmp_path)


@pytest.mark.parametrize("key", ["wcl_se cret", "wcl_secr\net", "wcl_sécret", "wcl_secret\0", "wcl_\udcffsecret"])
def test_a_key_that_cannot_be_one_is_refused_and_not_shown(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, key: str
) -> None:
    with pytest.raises(InvalidAddress, match="WCL_KEY has a character at place") as error:
        WclClient("http://127.0.0.1:1", key)

    assert "cret" not in str(error.value)


@pytest.mark.parametrize(
    "url",
    [
        "x",
        "ftp://x",
        "http://",
        "http://[",
        "http://a:99999",
        "http://a:b",
        "//a",
        "http://a b",
        "http://a\nb",
        "http://a?b=c",
        "http://a#b",
        "http://\x1b[31m",
        "http://" + "a" * 300000,
        "http://\udcff",
        "https:a",
    ],
)
def test_a_malformed_address_is_refused_by_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, url: str) -> None:
    monkeypatch.setenv("WCL_URL", url)

    with pytest.raises(InvalidAddress, match="^WCL_URL is ") as error:
        find_address(tmp_path)

    assert len(str(error.value)) < 1_000


def test_a_password_in_an_address_is_not_shown(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WCL_URL", "https://me:hunter2@mine.example")

    with pytest.raises(InvalidAddress, match="WCL_URL holds a user name or a password") as error:
        find_address(tmp_path)

    assert "hunter2" not in str(error.value)


@pytest.mark.parametrize("content", ["", "not json", "[]", "null", '{"url": 5}', '{"url": "http://["}', "[" * 90_000])
def test_a_broken_server_file_means_the_default(tmp_path: Path, content: str) -> None:
    (tmp_path / "server.json").write_text(content)

    assert find_address(tmp_path).url == DEFAULT_URL


@pytest.mark.parametrize(
    ("status", "kind"),
    [(401, DeniedError), (403, DeniedError), (404, NotFoundError), (409, ConflictError), (422, InvalidError)],
)
def test_status_chooses_the_exception(status: int, kind: type[Exception]) -> None:
    assert type(api_error(status, {"title": "t"}, "")) is kind


def test_an_error_names_each_field() -> None:
    body = {"title": "Invalid", "detail": "2 problems", "errors": [{"pointer": "/spec/epochs", "detail": "too small"}]}

    error = api_error(422, body, "")

    assert error.errors[0].pointer == "/spec/epochs"
    assert str(error) == "Invalid (422)\n  /spec/epochs: too small"


def test_an_error_without_json_keeps_the_reason_phrase() -> None:
    assert str(api_error(502, None, "Bad Gateway")) == "Bad Gateway (502)"


def test_overrides_reach_into_the_spec() -> None:
    spec = apply_overrides({"data": {"name": "digits"}}, ["data.image_size=8", "method=simclr", "threads=null"])

    assert spec == {"data": {"name": "digits", "image_size": 8}, "method": "simclr", "threads": None}


@pytest.mark.parametrize(
    "override", ["epochs", "=3", "data.name.x=3", "a=1e400", "a=[NaN]", "a=-Infinity", "a." * 9000 + "b=1"]
)
def test_a_bad_override_is_refused(override: str) -> None:
    with pytest.raises(SpecFileError):
        apply_overrides({"data": {"name": "digits"}}, [override])


@pytest.mark.parametrize(
    ("name", "text"), [("s.json", '{"epochs": 3}'), ("s.yaml", "epochs: 3"), ("s.yml", "{epochs: 3}")]
)
def test_spec_files(tmp_path: Path, name: str, text: str) -> None:
    (tmp_path / name).write_text(text)

    assert read_spec(tmp_path / name) == {"epochs": 3}


def test_a_file_holds_several_specs(tmp_path: Path) -> None:
    (tmp_path / "s.yaml").write_text("epochs: 3\n---\nepochs: 4")
    (tmp_path / "s.json").write_text('[{"epochs": 3}, {"epochs": 4}]')
    (tmp_path / "t.yaml").write_text("epochs: 3\n---\n- 4")

    assert read_specs(tmp_path / "s.yaml") == read_specs(tmp_path / "s.json") == [{"epochs": 3}, {"epochs": 4}]
    assert [file.name for file in spec_files(tmp_path)] == ["s.json", "s.yaml", "t.yaml"]
    with pytest.raises(SpecFileError, match="expected one spec, but the file holds 2"):
        read_spec(tmp_path / "s.json")
    with pytest.raises(SpecFileError, match="document 2 is a list"):
        read_specs(tmp_path / "t.yaml")
    with pytest.raises(SpecFileError, match="but the folder has none"):
        spec_files(Path(__file__).parent)


_BOMB = "a0: &a0 [x]\n" + "\n".join(f"a{n + 1}: &a{n + 1} [{', '.join([f'*a{n}'] * 9)}]" for n in range(9))
BAD_SPECS = [
    ("s.yaml", _BOMB),
    ("s.yaml", "[" * 100_000),
    ("s.json", "[" * 100_000),
    ("s.yaml", "a: " + "9" * 5_000),
    ("s.json", '{"a": ' + "9" * 5_000 + "}"),
    ("s.yaml", "a: \x00"),
    ("s.yaml", "a: \x1b[31m"),
    ("s.yaml", "a: !!binary x"),
    ("s.yaml", "a: !!float x"),
    ("s.yaml", "a: !!int x"),
    ("s.yaml", "a: !!bool x"),
    ("s.yaml", "a: !!timestamp x\n? !!float y\n: 1"),
    ("s.yaml", "%YAML 9.9\n---\na: 1"),
    ("s.yaml", "a: *b"),
    ("s.yaml", "--- 1\n--- 2"),
    ("s.yaml", ""),
    ("s.json", ""),
]


@pytest.mark.parametrize(
    ("name", "text"), [("s.json", "{"), ("s.yaml", "a: [1"), ("s.yaml", "- 1"), ("s.json", "3"), *BAD_SPECS]
)
def test_a_bad_spec_file_is_named(tmp_path: Path, name: str, text: str) -> None:
    (tmp_path / name).write_text(text)

    with pytest.raises(SpecFileError, match=name) as error:
        read_spec(tmp_path / name)

    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("a: .inf", "a is inf; expected a finite number"),
        ("a:\n  b: -.INF", "a.b is -inf"),
        ("a: 1.0e+400", "a is inf"),
        ("epochs: 010", r"010 has two readings as a number; write it in decimals \(line 1\)"),
        ("a: 1:30", "1:30 has two readings"),
        ("a: 1_000", "1_000 has two readings"),
        ("epochs: 1\nseed: 2\nepochs: 3", r"the key epochs occurs 2 times; expected once \(line 1\)"),
        ("010: 1", "010 has two readings"),
        ("8: 1", "the key 8; expected text"),
        ("null: 1", "the key None; expected text"),
        ("a: !!set {b, c}", "a is a set"),
        ("a: &a [*a]", "nested too deeply"),
        ("a: 1\n? [b]\n: c", "line 2"),
    ],
)
def test_a_yaml_file_has_one_reading(tmp_path: Path, text: str, words: str) -> None:
    (tmp_path / "s.yaml").write_text(text)

    with pytest.raises(SpecFileError, match=words):
        read_spec(tmp_path / "s.yaml")


def test_a_json_file_with_a_key_twice_or_an_infinite_number_is_refused(tmp_path: Path) -> None:
    (tmp_path / "twice.json").write_text('{"a": {"b": 1, "b": 2}}')
    (tmp_path / "infinite.json").write_text('{"a": 1e400}')

    with pytest.raises(SpecFileError, match="the key b occurs 2 times"):
        read_spec(tmp_path / "twice.json")
    with pytest.raises(SpecFileError, match="a is inf"):
        read_spec(tmp_path / "infinite.json")


def test_plain_yaml_keeps_its_values(tmp_path: Path) -> None:
    (tmp_path / "s.yaml").write_text("a: &x {b: -3, c: 2020-01-02, é: [0, 1.5, true, null]}\nd: {<<: *x, b: 4}")

    below = {"b": -3, "c": "2020-01-02", "é": [0, 1.5, True, None]}
    assert read_spec(tmp_path / "s.yaml") == {"a": below, "d": below | {"b": 4}}


def test_a_spec_file_that_is_not_text_is_named(tmp_path: Path) -> None:
    (tmp_path / "s.yaml").write_bytes(b"\x00\xff")

    with pytest.raises(SpecFileError, match=r"s\.yaml: expected JSON or YAML"):
        read_spec(tmp_path / "s.yaml")


def test_yaml_never_creates_python_objects(tmp_path: Path) -> None:
    (tmp_path / "s.yaml").write_text("a: !!python/object/apply:os.getcwd []")

    with pytest.raises(SpecFileError):
        read_spec(tmp_path / "s.yaml")


@pytest.mark.parametrize(("seconds", "text"), [(None, "–"), (5, "0:05"), (65, "1:05"), (3661, "1:01:01")])
def test_duration(seconds: float | None, text: str) -> None:
    assert duration(seconds) == text


def test_a_view_of_a_job_is_updated_by_the_stream() -> None:
    view = JobView({"id": "x", "kind": "pretrain", "status": "queued"})
    progress = {
        "step": 5,
        "total_steps": 10,
        "epoch": 1.0,
        "total_epochs": 2,
        "images_per_second": 9.0,
        "eta_seconds": 3,
    }
    for message in (
        Message("job", {"id": "x", "status": "running"}),
        Message("progress", progress),
        Message("metrics", {"attempt": 1, "points": [{"name": "train/loss", "step": 5, "value": 2.5}]}),
        Message("event", {"type": "warning", "data": {"message": "careful"}}),
        Message("progress", "not a mapping"),
    ):
        view.take(message)

    assert (view.fraction, view.epoch, view.warnings) == (0.5, "epoch 1/2", ["careful"])
    assert view.facts == ["about 0:03 left", "loss 2.500", "9 images/s"]
    for report in (progress | {"eta_seconds": None}, progress | {"phase": "prepare", "share": 0.4}):
        view.take(Message("progress", report))
        assert not any(fact.endswith("left") for fact in view.facts), "no time left by preparation or first steps"


@pytest.mark.parametrize(
    ("phase", "done", "text"),
    [
        ("load", None, "loading the dataset"),
        ("prepare", None, "waiting for the dataset"),
        ("prepare", 0.43, "preparing the dataset, 43%"),
        ("evaluate", None, "measuring"),
        ("train", None, None),
    ],
)
def test_the_work_of_a_run_before_its_first_step_is_named(phase: str, done: float | None, text: str | None) -> None:
    job: Job = {"id": "x", "kind": "pretrain", "status": "running"}
    progress = Progress(
        step=0, total_steps=0, epoch=0.0, total_epochs=0, images_per_second=None, eta_seconds=None, phase=phase
    )
    job["progress"] = progress | {"share": done}
    assert phase_text(job) == text
    assert JobView(job).facts == ([text] if text else [])


def test_the_seeds_of_a_group_share_a_line_of_the_folded_list() -> None:
    facts = {"kind": "pretrain", "created_at": "2026-01-01T00:00:00Z", "progress": None}
    states = ("running", "succeeded", "succeeded")
    jobs = [
        facts | {"id": f"{number}" * 12, "name": f"ours, seed {2 - number}", "status": state, "group_id": "g"}
        for number, state in enumerate(states)
    ]
    alone = facts | {"id": "a" * 12, "name": "alone, seed 1", "status": "queued", "group_id": "other"}
    everything = [*jobs, alone]

    def lines(*, folded: bool) -> list[str]:
        piped = Console(file=io.StringIO(), width=1_000)
        Terminal(piped).show(output.jobs_table(everything, folded=folded))  # type: ignore[arg-type]
        return piped.file.getvalue().splitlines()[1:]  # type: ignore[attr-defined]

    shared, other = lines(folded=True)
    assert re.split(" {2,}", shared.strip())[:3] == ["000000000000", "ours (3 seeds)", "1 running 2 succeeded"]
    assert "alone, seed 1" in other
    assert len(lines(folded=False)) == 4
    cut = [job["id"][0] for job in whole_groups([jobs[0], alone, *jobs[1:], alone | {"group_id": "third"}], 2)]  # type: ignore[list-item]
    assert cut == ["0", "a", "1", "2"], "a group that the limit cuts has all its seeds"


def test_jobs_of_several_keys_or_projects_show_theirs() -> None:
    job = {"kind": "pretrain", "created_at": "2026-01-01T00:00:00Z", "progress": None, "status": "queued", "name": "x"}

    def header(*belongings: tuple[str | None, str]) -> list[str]:
        jobs = [
            job | {"id": f"{number}" * 12, "owner": owner, "project": project}
            for number, (owner, project) in enumerate(belongings)
        ]
        piped = Console(file=io.StringIO(), width=1_000)
        Terminal(piped).show(output.jobs_table(jobs))  # type: ignore[arg-type]
        return piped.file.getvalue().splitlines()[0].split()  # type: ignore[attr-defined]

    assert header(("anna", "alpha"), ("anna", "alpha"))[:3] == ["id", "name", "dataset"]
    assert header(("anna", "alpha"), ("ben", "alpha"))[:4] == ["id", "name", "by", "dataset"]
    assert header(("anna", "alpha"), (None, "beta"))[:5] == ["id", "name", "by", "project", "dataset"]


def test_a_running_evaluation_names_its_part() -> None:
    view = JobView({"id": "x", "kind": "evaluate", "status": "running"})
    report = Progress(
        step=2, total_steps=3, epoch=0.7, total_epochs=1, images_per_second=None, eta_seconds=None, phase="evaluate"
    )
    view.take(Message("progress", report | {"part": "linear probe of the untrained network"}))
    assert (view.epoch, view.facts) == ("", ["linear probe of the untrained network, part 3 of 3"])


def evaluation(protocol: str, value: float, stderr: float | None, n: int | None = None, **params: int) -> Evaluation:
    return {"protocol": protocol, "metric": "top1", "value": value, "stderr": stderr, "n": n, "params": params}


def test_a_difference_below_two_standard_errors_is_noise() -> None:
    ours = [evaluation("few_labels", 0.80, 0.03, labels_per_class=1), evaluation("knn", 0.97, None, 400, k=20)]
    other = [evaluation("few_labels", 0.75, 0.04, labels_per_class=1), evaluation("knn", 0.80, None, 400, k=20)]

    few, knn = comparison.differences(ours, other)

    assert few == "1 label per class: +5.0 points, within noise (± 10.0)"
    assert "better beyond noise" in knn


def test_a_negative_difference_beyond_noise_is_worse() -> None:
    ours = [evaluation("few_labels", 0.60, 0.01, labels_per_class=5)]
    other = [evaluation("few_labels", 0.75, 0.01, labels_per_class=5)]

    assert "worse beyond noise" in comparison.differences(ours, other)[0]


def test_equal_values_without_any_spread_are_within_noise() -> None:
    entries = [evaluation("knn", 1.0, None, 21, k=1)]

    assert comparison.differences(entries, entries) == ["kNN, k = 1: +0.0 points, within noise (± 0.0)"]


def test_the_columns_are_those_that_were_measured() -> None:
    """On a dataset whose smallest class has few images, the evaluation takes fewer labels and neighbours."""
    entries = [
        evaluation("few_labels", 0.6, 0.01, labels_per_class=1),
        evaluation("linear", 0.9, None),
        evaluation("knn", 0.8, None, k=3),
    ]

    titles = [column.title for column in comparison.columns([entries, entries])]

    assert titles == ["1 label per class", "linear, all labels", "kNN, k = 3"]


def test_without_a_standard_error_a_difference_is_not_judged() -> None:
    entries = [evaluation("linear", 0.9, None)]

    assert comparison.differences(entries, entries) == [
        "linear, all labels: +0.0 points, the standard error is unknown"
    ]


@pytest.mark.parametrize(("status", "advises"), [(401, True), (403, False)])
def test_only_a_key_that_is_refused_brings_the_advice_to_set_another_one(
    status: int, advises: bool, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("WCL_DATA_DIR", str(tmp_path))
    monkeypatch.setenv("WCL_URL", "http://127.0.0.1:1")
    text = cli._advice(DeniedError(status, "Not allowed", "job a is of another key"))

    assert ("Set WCL_KEY" in text) is advises
    assert "job a is of another key" in text


@pytest.mark.process
def test_the_asynchronous_client_is_the_one_that_its_sources_make() -> None:
    text = write_async_client.TARGET.read_text(encoding="utf-8")

    assert text == write_async_client.generated(), "run: PYTHONPATH=. python docs/write_async_client.py"
