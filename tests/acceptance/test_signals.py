"""Signals to `wcl up` and its processes: each one says what it does, does it, and leaves no process behind."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest

from tests import parallel
from tests.acceptance.service import LONG_SPEC, ROOT, Service, submit_when_ready
from tests.chaos.proxy import Proxy
from tests.processes import Forked
from tests.waiting import eventually
from wcl_client.up import free_port

pytestmark = [pytest.mark.timeout(300), pytest.mark.process]


def up_log(service: Service) -> str:
    """The messages of `wcl up`, which it keeps also when its terminal is closed."""
    path = service.data_dir / "logs" / "up.log"
    return path.read_text() if path.exists() else ""


def start_job(service: Service) -> str:
    with service.client() as client:
        job_id = submit_when_ready(client, LONG_SPEC | {"epochs": 100_000})["id"]
        eventually(lambda: client.checkpoints(job_id), "a checkpoint")
    return job_id


def process_of(service: Service) -> Forked | subprocess.Popen[bytes]:
    assert service._process
    return service._process


def everything_below(service: Service) -> list[psutil.Process]:
    return psutil.Process(process_of(service).pid).children(recursive=True)


def alive(processes: list[psutil.Process]) -> list[psutil.Process]:
    return [each for each in processes if each.is_running() and each.status() != psutil.STATUS_ZOMBIE]


def test_a_worker_that_is_stopped_from_outside_comes_back_and_a_drained_one_does_not(small_service: Service) -> None:
    first = eventually(lambda: small_service.process("worker"), "the worker")
    with small_service.client() as client:
        eventually(lambda: [w for w in client.workers() if w["is_live"]], "its announcement")
        first.terminate()
        eventually(lambda: (w := small_service.process("worker")) and w.pid != first.pid, "another worker")
        assert "worker 1 was stopped from outside by a signal; it starts again in 1 s" in up_log(small_service)

        (row,) = eventually(lambda: [w for w in client.workers() if w["is_live"]], "its announcement")
        client.drain_worker(row["id"])
        eventually(lambda: "worker 1 was drained and is not started again" in up_log(small_service), "the drain")
        assert client.is_ready()


def test_ctrl_c_twice_ends_a_running_job_at_once_and_a_third_one_changes_nothing(small_service: Service) -> None:
    start_job(small_service)
    below = everything_below(small_service)
    assert any("attempt" in each.cmdline() for each in below)
    hung = next(each for each in below if "worker" in each.cmdline())
    hung.suspend()  # so that the first Ctrl-C alone would take its whole time
    up = process_of(small_service)

    up.send_signal(signal.SIGINT)
    eventually(lambda: "Ctrl-C: stopping" in up_log(small_service), "the answer to the first one")
    time.sleep(1)
    up.send_signal(signal.SIGINT)
    began = time.monotonic()
    eventually(lambda: "Ctrl-C again: ending at once" in up_log(small_service), "the answer to the second one")
    up.send_signal(signal.SIGINT)

    up.wait(timeout=15)
    assert time.monotonic() - began < 15
    assert "Ctrl-C again: already ending" in up_log(small_service)
    assert up_log(small_service).splitlines()[-1].endswith("stopped")
    assert alive(below) == []


@pytest.mark.parametrize("number", [signal.SIGHUP, signal.SIGTERM])
def test_a_closed_terminal_stops_the_service_in_order(small_service: Service, number: signal.Signals) -> None:
    job_id = start_job(small_service)
    below = everything_below(small_service)

    process_of(small_service).send_signal(number)
    process_of(small_service).wait(timeout=40)

    assert f"{number.name}" in up_log(small_service)
    assert alive(below) == []
    small_service.start()
    with small_service.client() as client:
        eventually(client.is_ready, "the next start")
        ends = [event["type"] for event in client.events(job_id)]
        assert "requeued" in ends
        assert client.job(job_id)["failures"] == 0


def test_under_nohup_it_outlives_its_terminal(tmp_path: Path) -> None:
    service = Service(tmp_path / "data")
    service.is_forked = False  # a command inherits which signals are ignored
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        service.start()
        process_of(service).send_signal(signal.SIGHUP)
        for each in everything_below(service):
            each.send_signal(signal.SIGHUP)
        time.sleep(2)
        assert all(service.process(name) for name in ("api", "worker"))
        with service.client() as client:
            assert client.is_ready()
    finally:
        signal.signal(signal.SIGHUP, before)
        service.stop()


def test_a_second_one_on_the_same_folder_names_the_first_and_disturbs_nothing(small_service: Service) -> None:
    command = [parallel.python(), "-m", "wcl_client", "up", "--data-dir", str(small_service.data_dir), "--port", "0"]
    second = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60)

    assert second.returncode == 1
    assert f"another `wcl up` (process {process_of(small_service).pid})" in " ".join(second.stderr.split())
    with small_service.client() as client:
        assert client.is_ready()


def test_a_wrong_setting_ends_it_at_once_with_the_reason(tmp_path: Path) -> None:
    command = [*parallel.wcl(), "up", "--data-dir", str(tmp_path), "--port", str(free_port())]
    environment = os.environ | {"WCL_LEASE_SECONDS": "-1"}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=60)

    assert done.returncode == 1
    assert "the server cannot start: WCL_LEASE_SECONDS: Input should be greater than 0" in " ".join(done.stderr.split())
    assert "it starts again" not in done.stderr
    assert "Traceback" not in done.stderr


def test_a_slow_start_is_waited_for(tmp_path: Path, postgres_url: str) -> None:
    """The database is away for more starts than `wcl up` once tried."""
    proxy = Proxy(int(postgres_url.rpartition(":")[2].partition("/")[0]))
    proxy.cut()
    host = postgres_url.partition("@")[2].partition("/")[0]
    service = Service(tmp_path / "data", WCL_DATABASE_URL=postgres_url.replace(host, f"127.0.0.1:{proxy.port}"))
    try:
        _start_during(service, lambda: up_log(service).count("the server ended with exit code 1") >= 3, proxy.mend)
        assert "(error: the database does not respond " in up_log(service)
        with service.client() as client:
            assert client.is_ready()
    finally:
        service.stop()
        proxy.close()


def _start_during(service: Service, condition: Callable[[], bool], act: Callable[[], None]) -> None:
    """Start the service; act once the condition holds, and wait until it serves."""
    service.spawn()
    eventually(condition, f"the condition\n{service.words()}", 120)
    act()
    eventually(service._serves, "the start", 90)
