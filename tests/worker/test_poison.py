"""Jobs that crash their process: each gets the correct failure reason and does not delay a good job."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
from sqlalchemy import func, select

from jobs.database import Database
from jobs.models import Log
from tests.waiting import eventually
from tests.worker import poison
from tests.worker.conftest import StartWorker
from tests.worker.running import SHORT, Jobs
from worker.exit_reason import OomKills, count_oom_kills
from worker.process import MARK
from worker.spool import Output

pytestmark = pytest.mark.timeout(600)


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """Return the folder of the plugin, for the tests' specs and for the worker's PYTHONPATH."""
    poison.install(tmp_path / "site")
    monkeypatch.syspath_prepend(tmp_path / "site")
    return str(tmp_path / "site")


def poisoned(variant: str, base: dict[str, Any] = SHORT) -> dict[str, Any]:
    return base | {"backbone": {"name": "poison", "variant": variant}, "epochs": 1, "warmup_epochs": 0}


def processes_of(job_id: str) -> list[psutil.Process]:
    strays = []
    for process in psutil.process_iter():
        try:
            if process.environ().get(MARK, "").startswith(job_id) and process.status() != psutil.STATUS_ZOMBIE:
                strays.append(process)
        except psutil.Error:
            continue
    return strays


@pytest.mark.long
def test_each_crash_gets_its_reason_and_a_good_job_behind_them_succeeds(
    sqlite_database: Database, jobs: Jobs, start_worker: StartWorker, site: str
) -> None:
    names = {
        "segfault": ("failed", "killed", "SIGSEGV"),
        "kill": ("failed", "killed", "SIGKILL"),
        "exit": ("failed", "internal_error", "exit code 3"),
        "cuda-memory": ("failed", "out_of_memory", "CUDA out of memory"),
        "shout": ("succeeded", None, ""),
        "multiply": ("succeeded", None, ""),
    }
    worker = start_worker(sqlite_database, PYTHONPATH=site, WCL_MAX_FAILURES="1")
    bad = {variant: jobs.submit(poisoned(variant)) for variant in names}
    good = jobs.submit(SHORT)

    assert jobs.wait_for(good, "failed", "succeeded", seconds=500).status == "succeeded", worker.log()
    for variant, (status, reason, words) in names.items():
        job = jobs.wait_for(bad[variant], "failed", "succeeded")
        assert (job.status, job.status_reason) == (status, reason), variant
        assert words in (job.status_message or ""), variant
    assert processes_of(bad["multiply"]) == []
    with sqlite_database.read() as session:
        count = select(func.count()).where(Log.job_id == bad["shout"])
        assert session.execute(count).scalar_one() <= 10_001
        # Its place depends on the speed of the output: lines that arrive too fast are dropped before the cap.
        assert session.execute(count.where(Log.line.contains("dropped"))).scalar_one() >= 1


def test_an_error_of_cuda_has_its_reason_and_a_broken_device_is_given_to_no_run(
    sqlite_database: Database, jobs: Jobs, start_worker: StartWorker, site: str
) -> None:
    worker = start_worker(sqlite_database, PYTHONPATH=site, WCL_MAX_FAILURES="1", WCL_DEVICES="2")
    wrong, unclear, broken = (jobs.submit(poisoned(f"cuda-{kind}"), gpus=1) for kind in ("assert", "launch", "ecc"))

    ended = [jobs.wait_for(job_id, "failed", "succeeded") for job_id in (wrong, unclear, broken)]

    assert [job.status_reason for job in ended] == ["device_assert", "device_error", "device_failed"]
    assert [job.failures for job in ended] == [0, 1, 1], "a fault of the code is not retried"
    assert ended[2].status_message == "the GPU is broken: CUDA error: uncorrectable ECC error encountered"
    eventually(lambda: worker.row().gpus == 1, "the heartbeat without the broken device")
    assert [device["problem"] for device in worker.row().devices or ()].count(ended[2].status_message) == 1
    assert jobs.wait_for(jobs.submit(SHORT, gpus=1), "failed", "succeeded").status == "succeeded", worker.log()


def test_a_silent_run_fails_as_stalled(
    sqlite_database: Database, jobs: Jobs, start_worker: StartWorker, site: str
) -> None:
    worker = start_worker(sqlite_database, PYTHONPATH=site, WCL_MAX_FAILURES="1", WCL_STALL_SECONDS="15")
    job_id = jobs.submit(poisoned("hang"))

    job = jobs.wait_for(job_id, "failed", "succeeded")

    assert (job.status, job.status_reason, job.failures) == ("failed", "stalled", 1)
    assert processes_of(job_id) == []
    eventually(worker.is_idle, "the worker's rest")


@pytest.fixture
def small_memory() -> Iterator[Path]:
    """Create a memory control group of 1 GB below the group of this process."""
    if os.getuid() or count_oom_kills() is None:
        pytest.skip("NOT TESTED HERE: a control group for memory needs root and a kernel that counts")
    groups = (line.split(":", 2) for line in Path("/proc/self/cgroup").read_text().splitlines())
    own = next((group for _, controllers, group in groups if controllers == "memory"), "")
    folder = Path("/sys/fs/cgroup/memory") / own.lstrip("/") / f"wcl-test-{os.getpid()}"
    try:
        folder.mkdir()
        (folder / "memory.limit_in_bytes").write_text(str(1 << 30))
    except OSError:
        pytest.skip("NOT TESTED HERE: this machine does not let its control groups be divided")
    yield folder
    folder.rmdir()


@pytest.mark.long
def test_a_run_that_the_kernel_kills_for_memory_gets_that_reason(
    sqlite_database: Database, jobs: Jobs, start_worker: StartWorker, site: str, small_memory: Path
) -> None:
    worker = start_worker(sqlite_database, PYTHONPATH=site)
    (small_memory / "cgroup.procs").write_text(str(worker.pid))

    job = jobs.wait_for(jobs.submit(poisoned("eat-memory")), "failed", "succeeded")

    assert (job.status, job.status_reason) == ("failed", "out_of_memory"), worker.log()
    assert "kernel" in (job.status_message or "")
    worker.stop()


@pytest.mark.parametrize(
    ("group", "counter", "text", "count"),
    [
        ("0::/app", "app/memory.events", "low 0\nmax 3\noom 2\noom_kill 2\n", 2),
        ("9:cpu:/x\n4:memory:/app", "memory/app/memory.oom_control", "under_oom 0\noom_kill 7", 7),
        ("4:memory:/not/seen/here", "memory/memory.oom_control", "oom_kill 1", 1),
        ("0::/app", "app/other", "oom_kill 1", None),
    ],
)
def test_both_versions_of_control_groups_count(
    tmp_path: Path, group: str, counter: str, text: str, count: int | None
) -> None:
    (tmp_path / counter).parent.mkdir(parents=True, exist_ok=True)
    (tmp_path / counter).write_text(text)
    (tmp_path / "membership").write_text(group + "\n")

    assert count_oom_kills(tmp_path / "membership", tmp_path) == count
    assert count_oom_kills(tmp_path / "absent", tmp_path) is None


def test_a_kill_for_lack_of_memory_explains_the_end_of_one_attempt() -> None:
    """Several attempts run at once, and the kernel's counter does not tell which of them it has killed."""
    count = 3
    kills = OomKills(lambda: count)
    first, second = kills.watch(), kills.watch()
    assert first
    assert second

    assert not first(), "the kills before the run are not its own"
    count = 4
    assert first()
    assert not second()
    count = 5
    assert second()
    assert OomKills(lambda: None).watch() is None


def test_an_endless_log_is_capped_before_it_is_read(tmp_path: Path) -> None:
    """Output that is written faster than it is read must not fill the disk; later lines are still delivered."""
    path = tmp_path / "output"
    output = Output(path, max_lines=1000, max_bytes=10_000)
    path.write_bytes(b"early\n")
    assert output.new() == [(1, "early")]
    with path.open("ab") as file:
        file.write(b"x" * 50_000 + b"\n")
        file.flush()
        output.cap()
        assert path.stat().st_size == 0
        file.write(b"late\n")
        file.flush()

    (note, late) = output.new()
    assert "50001 bytes" in note[1]
    assert late == (3, "late")
