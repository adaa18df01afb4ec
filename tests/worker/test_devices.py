"""The devices of a worker and the share of a run.

No card is needed: `Driver` answers as the functions of NVML do by its documentation, and stand-ins need no driver.
"""

from __future__ import annotations

import os
import threading
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from jobs.devices import Device, working
from jobs.settings import Settings
from wcl_core.limits import num_cores
from wcl_core.protocol import DeviceFault, device_fault_file
from worker import devices
from worker.devices import Machine, TooFewDevices
from worker.nvml import Nvml, Unavailable

GIB = 1 << 30


@pytest.fixture(autouse=True)
def _devices_of_this_process_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """Lock no device that a worker or another run of the tests on this machine may have: locks are the machine's."""
    own = devices.digest_of
    monkeypatch.setattr(devices, "digest_of", lambda data: own([os.getpid(), data]))


class NvmlError(Exception):
    pass


class NotFound(NvmlError):  # noqa: N818 (as NVML names it)
    pass


class Driver:
    """NVML of a machine with two GPUs, of which the second is split into two MIG instances if `is_split`."""

    NVMLError, NVMLError_NotFound = NvmlError, NotFound
    NVML_DEVICE_MIG_ENABLE, NVML_TEMPERATURE_GPU = 1, 0
    NVML_MEMORY_ERROR_TYPE_UNCORRECTED, NVML_VOLATILE_ECC = 1, 0
    nvmlEventTypeXidCriticalError = 8  # noqa: N815

    def __init__(self, *, is_split: bool = False) -> None:
        self.is_split = is_split
        self.lost: set[str] = set()
        self.ecc_errors = {"GPU-a": 0, "GPU-b": 3}
        self.xids: list[tuple[str, int]] = []

    def nvmlInit(self) -> None:  # noqa: N802
        pass

    def nvmlDeviceGetCount(self) -> int:  # noqa: N802
        return 2

    def nvmlDeviceGetHandleByIndex(self, index: int) -> str:  # noqa: N802
        return ("GPU-a", "GPU-b")[index]

    def nvmlDeviceGetUUID(self, handle: str) -> str:  # noqa: N802
        return handle

    def nvmlDeviceGetName(self, handle: str) -> bytes:  # noqa: N802
        return b"NVIDIA H100"  # older versions return bytes

    def nvmlDeviceGetMigMode(self, handle: str) -> list[int]:  # noqa: N802
        if handle == "GPU-a":
            raise NvmlError("Not Supported")
        return [int(self.is_split), 0]

    def nvmlDeviceGetMaxMigDeviceCount(self, handle: str) -> int:  # noqa: N802
        return 7

    def nvmlDeviceGetMigDeviceHandleByIndex(self, handle: str, index: int) -> str:  # noqa: N802
        if index not in (0, 2):
            raise NotFound
        return f"MIG-{index}"

    def nvmlDeviceGetMemoryInfo(self, handle: str) -> Any:  # noqa: N802
        if handle in self.lost:
            raise NvmlError("GPU is lost")
        return SimpleNamespace(total=(10 if handle.startswith("MIG") else 80) * GIB, used=GIB)

    def nvmlDeviceGetUtilizationRates(self, handle: str) -> Any:  # noqa: N802
        if handle.startswith("MIG"):
            raise NvmlError("Not Supported")
        return SimpleNamespace(gpu=35)

    def nvmlDeviceGetTemperature(self, handle: str, sensor: int) -> int:  # noqa: N802
        return 51

    def nvmlDeviceGetTotalEccErrors(self, handle: str, kind: int, counter: int) -> int:  # noqa: N802
        return self.ecc_errors[handle]

    def nvmlEventSetCreate(self) -> object:  # noqa: N802
        return object()

    def nvmlDeviceRegisterEvents(self, handle: str, kinds: int, events: object) -> None:  # noqa: N802
        pass

    def nvmlEventSetWait_v2(self, events: object, milliseconds: int) -> Any:  # noqa: N802
        if not self.xids:
            raise NvmlError("Timeout")
        device, xid = self.xids.pop(0)
        return SimpleNamespace(device=device, eventData=xid)


def uuids(read: tuple[Device, ...]) -> list[str]:
    return [device.uuid for device in read]


def test_a_gpu_is_announced_with_its_memory_load_and_temperature() -> None:
    first, _ = Nvml(None, Driver()).read()

    assert first == Device("GPU-a", 0, "NVIDIA H100", 80 * GIB, None, 0.35, GIB, 51)


def test_a_split_gpu_is_as_many_devices_as_it_has_instances() -> None:
    read = Nvml(None, Driver(is_split=True)).read()

    assert uuids(read) == ["GPU-a", "MIG-0", "MIG-2"]
    assert read[1] == Device("MIG-0", 1, "NVIDIA H100", 10 * GIB, None, None, GIB, 51)


@pytest.mark.parametrize(
    ("visible", "expected"),
    [
        ("", []),
        ("-1", []),
        ("1", ["MIG-0", "MIG-2"]),
        ("MIG-2,0", ["MIG-2", "GPU-a"]),
        (" GPU-a , 0", ["GPU-a"]),
        ("0,7,1", ["GPU-a"]),  # CUDA ignores all entries after a wrong one
        ("MIG-,0", []),  # two devices begin so
    ],
)
def test_only_visible_devices_are_offered(visible: str, expected: list[str]) -> None:
    assert uuids(Nvml(visible, Driver(is_split=True)).read()) == expected


def test_a_broken_device_is_not_offered() -> None:
    driver = Driver()
    nvml = Nvml(None, driver)
    driver.xids = [("GPU-a", 31), ("GPU-b", 13)]  # a fault of the program that ran
    assert len(working(nvml.read())) == 2, "errors from before the start of the worker do not count"

    driver.lost = {"GPU-b"}
    assert [device.problem for device in nvml.read()] == [None, "NVML: GPU is lost"]
    driver.lost = set()
    assert len(working(nvml.read())) == 2
    driver.ecc_errors["GPU-b"] += 1
    driver.xids = [("GPU-a", 79)]
    expected = ["its driver reports Xid 79", "its memory has an uncorrected ECC error"]
    assert [device.problem for device in nvml.read()] == expected
    assert [device.problem for device in nvml.read()] == expected, "until the worker is restarted"


def test_without_the_library_or_a_driver_nvml_is_unavailable() -> None:
    class Absent(Driver):
        def nvmlInit(self) -> None:  # noqa: N802
            raise NvmlError("Driver Not Loaded")

    for library in (None, Absent()):
        with pytest.raises(Unavailable):
            Nvml(None, library)


# --- stand-ins and shares ------------------------------------------------------------------------------------------


def stand_ins(tmp_path: Path, **settings: Any) -> Machine:
    return devices.find(Settings(data_dir=tmp_path, **settings))


def unlock(machine: Machine) -> None:
    """Free the devices, as when the machine's worker ends."""
    while machine._locks:
        os.close(machine._locks.popitem()[1])


def test_a_run_sees_its_devices_only_and_gets_its_share_of_the_cores(tmp_path: Path) -> None:
    pair = (Device("GPU-a", 0, "H100"), Device("GPU-b", 1, "H100"))
    visible = {device.uuid: device.uuid for device in pair}
    machine = Machine(lambda: pair, 1, visible)
    third = max(1, num_cores() // 3)

    assert machine.share(["GPU-b"]) == devices.Share("GPU-b", third)
    assert machine.share(["GPU-a", "GPU-b"]) == devices.Share("GPU-a,GPU-b", max(1, num_cores() * 2 // 3))
    assert machine.share([]) == devices.Share("", third)
    on_cpu = stand_ins(tmp_path, devices=4)
    assert on_cpu.share(uuids(on_cpu.devices[:2])).visible == ""
    assert stand_ins(tmp_path, gpus=0).share([]) == devices.Share("", None)


@pytest.mark.parametrize(
    ("programs", "has_headers", "on_a_cpu", "on_a_gpu"),
    [
        ((), True, False, False),
        (("g++",), True, True, False),
        (("gcc",), True, False, True),
        (("gcc", "g++"), False, True, False),
        (("my-cc",), True, False, True),
    ],
)
def test_steps_are_compiled_where_the_compilers_programs_are(
    programs: tuple[str, ...],
    has_headers: bool,
    on_a_cpu: bool,
    on_a_gpu: bool,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for name in programs:
        (tmp_path / name).touch(mode=0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setenv("CC", "my-cc")
    monkeypatch.delenv("CXX", raising=False)
    (tmp_path / "Python.h").touch()
    monkeypatch.setattr(devices.sysconfig, "get_path", lambda _: str(tmp_path if has_headers else tmp_path / "absent"))
    gpu = Device("GPU-1", 0, "card")
    assert devices.has_compiler(Machine(lambda: (), 1, {})) is on_a_cpu
    assert devices.has_compiler(Machine(lambda: (gpu,), 1, {"GPU-1": "GPU-1"})) is on_a_gpu


def test_two_workers_of_a_machine_share_no_device(tmp_path: Path) -> None:
    first, second = stand_ins(tmp_path, devices=2), stand_ins(tmp_path, devices=3)
    other = stand_ins(tmp_path, devices=2, worker_name="another")

    assert (len(working(first.devices)), len(working(other.devices))) == (2, 2)
    assert [device.problem for device in second.devices] == ["another worker of this machine has it"] * 2 + [None]
    unlock(first)
    assert len(working(second.read())) == 3


def test_a_driver_that_takes_long_makes_devices_broken_and_blocks_no_caller(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(devices, "_PATIENCE_SECONDS", 0.0)
    monkeypatch.setattr(devices, "_SILENCE_SECONDS", 0.0)
    answers = [(Device("slow", 0, "H100"),)]
    waiting = threading.Event()

    def read() -> tuple[Device, ...]:
        if len(answers) > 1:
            waiting.wait(30)
        answers.append(answers[0])
        return answers[0]

    machine = Machine(read, 1, {})
    assert machine.read()[0].problem == "its driver does not respond"
    waiting.set()
    monkeypatch.setattr(devices, "_PATIENCE_SECONDS", 30.0)  # only bounds a failure
    assert machine.read()[0].problem is None
    assert machine.problem(["slow"]) is None


def test_gpus_without_nvml_are_those_that_the_settings_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def absent(visible: str | None) -> Nvml:
        raise Unavailable("no driver")

    monkeypatch.setattr(devices, "Nvml", absent)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "2,5")
    machine = stand_ins(tmp_path, gpus=2)

    assert machine.share(uuids(machine.devices[1:])).visible == "5"
    assert stand_ins(tmp_path).devices == ()
    assert stand_ins(tmp_path).share([]) == devices.Share(None, None), "the run sees what the worker sees"
    with pytest.raises(TooFewDevices, match="WCL_GPUS is 3, but CUDA_VISIBLE_DEVICES names 2"):
        stand_ins(tmp_path, gpus=3)


def test_gpus_whose_driver_does_not_work_are_announced_as_broken(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Otherwise the machine would count as one without GPUs, and jobs would train on its CPU."""

    def absent(visible: str | None) -> Nvml:
        raise Unavailable("NVML: Driver/library version mismatch")

    monkeypatch.setattr(devices, "Nvml", absent)
    monkeypatch.setattr(devices, "gpu_numbers", lambda: [0, 1])
    machine = stand_ins(tmp_path)

    problem = "NVML: Driver/library version mismatch; repair the driver, then restart the worker"
    assert [device.problem for device in machine.devices] == [problem] * 2
    assert machine.share([]).visible == ""


@pytest.mark.parametrize(
    ("rank", "is_whole_machine", "expected"), [(1, False, [2]), (2, False, [1, 2]), (0, True, [0, 1, 2])]
)
def test_devices_that_runs_report_are_given_out_no_more(
    tmp_path: Path, rank: int, is_whole_machine: bool, expected: list[int]
) -> None:
    machine = stand_ins(tmp_path, devices=3)
    used = uuids(machine.devices[1:])
    fault = DeviceFault(message="the GPU is broken", is_whole_machine=is_whole_machine)
    (tmp_path / device_fault_file(rank)).write_text(fault.model_dump_json())

    machine.note_faults(used, tmp_path)

    for _ in range(2):
        assert [device.index for device in machine.devices if device.problem == fault.message] == expected
        machine.read()
    assert machine.problem(used) is None, "runs that already use them may go on"
    assert machine.num_gpus(used) == 0
    unlock(machine)
