"""The devices that this worker gives out, and the share of the machine that a run gets.

Devices are the GPUs of the machine (`worker.nvml`), or stand-ins on the CPU for tests and trials (`WCL_DEVICES`).
"""

from __future__ import annotations

import contextlib
import logging
import os
import shutil
import socket
import sys
import sysconfig
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from jobs.devices import Device
from jobs.settings import Settings
from wcl_core.digests import digest_of
from wcl_core.limits import gpu_numbers, num_cores
from wcl_core.protocol import DEVICE_FAULT_FILES, DeviceFault
from worker.background import BackgroundWork
from worker.nvml import Nvml, Unavailable

log = logging.getLogger(__name__)

Source = Callable[[], tuple[Device, ...]]
_PATIENCE_SECONDS = 2.0  # of a caller; a driver that takes longer is read in the background
_SILENCE_SECONDS = 30.0  # a driver that takes longer does not respond


class TooFewDevices(Exception):  # noqa: N818 (named as what is wrong with the settings)
    """The settings offer more GPUs than there are."""


@dataclass(frozen=True)
class Share:
    """The part of the machine that a run gets.

    Attributes:
        visible: value of `CUDA_VISIBLE_DEVICES`; None leaves that of the worker.
        threads: CPU threads of all its processes together; None for all cores.
    """

    visible: str | None = None
    threads: int | None = None


class Machine:
    """The devices of a worker, as they were last read, and the CPU slots beside them.

    Args:
        source: reads the devices.
        cpu_slots: number of attempts without devices that run at once.
        visible: how a run sees each device, by UUID; None if this worker does not decide which GPUs a run sees.

    """

    def __init__(self, source: Source, cpu_slots: int, visible: dict[str, str] | None) -> None:
        self._source, self.cpu_slots, self._visible = source, cpu_slots, visible
        self._locks: dict[str, int] = {}  # their descriptors by UUID
        self._reading: BackgroundWork[tuple[Device, ...]] | None = None
        self._lock = threading.Lock()  # the heartbeat and supervisors read
        self._taken_out: dict[str, str] = {}  # problems that runs have reported, by UUID
        self._last_read = tuple(map(self._owned, source()))
        self._units = len(self.devices) + cpu_slots
        if others := [str(device.index) for device in self.devices if device.uuid not in self._locks]:
            log.error("another worker of this machine has the GPUs %s", ", ".join(others))

    @property
    def devices(self) -> tuple[Device, ...]:
        """The devices as they were last read, those that were taken out with their problem."""
        return tuple(replace(each, problem=each.problem or self._taken_out.get(each.uuid)) for each in self._last_read)

    def read(self) -> tuple[Device, ...]:
        """Read the devices again and return them; a driver that takes long makes them broken, and blocks no caller."""
        with self._lock:
            self._reading = self._reading or BackgroundWork(self._source)
            if self._reading.is_done(_PATIENCE_SECONDS):
                reading, self._reading = self._reading, None
                read = {device.uuid: device for device in reading.result()}
                gone = "its driver no longer lists it"
                now = (read.get(each.uuid, replace(each, problem=gone)) for each in self._last_read)
                self._last_read = tuple(map(self._owned, now))
            elif self._reading.seconds() > _SILENCE_SECONDS:
                silent = "its driver does not respond"
                self._last_read = tuple(replace(each, problem=silent) for each in self._last_read)
            return self.devices

    def problem(self, uuids: Sequence[str]) -> str | None:
        """Return a sentence without a full stop that names the broken ones of these devices; None if all work.

        A device that only a run has reported counts as working: other runs that already use it may go on.
        """
        broken = [each for each in self._last_read if each.problem and each.uuid in uuids]
        return "; ".join(f"GPU {each.index} ({each.name}): {each.problem}" for each in broken) or None

    def take_out(self, uuids: Sequence[str], problem: str) -> None:
        """Offer these devices no longer, until this worker is restarted: a run could not use them."""
        log.error("GPUs are given to no run until this worker is restarted: %s: %s", ", ".join(uuids), problem)
        self._taken_out |= {uuid: self._taken_out.get(uuid, problem) for uuid in uuids}

    def note_faults(self, uuids: Sequence[str], folder: Path) -> None:
        """Take out the devices that the ranks of a run report in its folder as broken, or as of no use to any run.

        Args:
            uuids: those of the run, in the order of its ranks.
            folder: of the attempt.
        """
        for path in sorted(folder.glob(DEVICE_FAULT_FILES)) if uuids else ():
            with contextlib.suppress(OSError, ValueError):
                fault, rank = DeviceFault.read(path), int(path.stem.rpartition("-")[2])
                all_uuids = [each.uuid for each in self._last_read]
                own = uuids[rank : rank + 1] or uuids
                self.take_out(all_uuids if fault.is_whole_machine else own, fault.message)

    def num_gpus(self, uuids: Sequence[str]) -> int | None:
        """Return the number of GPUs that a run with these devices holds; stand-ins are none, None where unknown."""
        return None if self._visible is None else sum(bool(self._visible.get(uuid)) for uuid in uuids)

    def share(self, uuids: Sequence[str]) -> Share:
        """Return the share of a run with these devices: they alone are visible, and its part of the cores.

        The part does not depend on other runs, so that a job has the same number of threads in each attempt.
        """
        visible = None if self._visible is None else ",".join(filter(None, map(self._visible.get, uuids)))
        units = len(uuids) or 1
        threads = None if units >= self._units else max(1, num_cores() * units // self._units)
        return Share(visible, threads)

    def _owned(self, device: Device) -> Device:
        """Return the device, with a problem while another worker of this machine has it."""
        if device.uuid not in self._locks:
            if (lock := _lock(device.uuid)) is None:
                return replace(device, problem="another worker of this machine has it")
            self._locks[device.uuid] = lock
        return device


def has_compiler(machine: Machine) -> bool:
    """Return whether steps can be compiled here, by the programs that torch's compiler starts.

    For a CPU it starts a C++ compiler, for a GPU a C compiler that needs Python's headers (Triton).
    """
    if machine.num_gpus([device.uuid for device in machine.devices]):
        headers = Path(sysconfig.get_path("include"), "Python.h")
        return _has_program("CC", "gcc", "clang") and headers.is_file()
    return _has_program("CXX", "g++")


def _has_program(variable: str, *names: str) -> bool:
    return any(shutil.which(name) for name in filter(None, (os.environ.get(variable), *names)))


def find(settings: Settings) -> Machine:
    """Return the devices that this worker offers by its settings.

    Raises:
        TooFewDevices: the settings offer more GPUs than the machine has.
    """
    cpu_slots = settings.cpu_slots
    if settings.devices is not None:
        owner = digest_of([socket.gethostname(), str(settings.attempts_dir), settings.worker_name])[:16]
        stand_ins = tuple(
            Device(f"stand-in-{owner}-{index}", index, "Stand-in on the CPU") for index in range(settings.devices)
        )
        return Machine(lambda: stand_ins, cpu_slots, dict.fromkeys((each.uuid for each in stand_ins), ""))
    if settings.gpus == 0:
        return Machine(tuple, cpu_slots, {})
    try:
        nvml = Nvml(os.environ.get("CUDA_VISIBLE_DEVICES"))
    except Unavailable as error:
        if settings.gpus is None and (numbers := gpu_numbers()):
            return _unusable(numbers, cpu_slots, str(error))
        return _unnamed(settings.gpus or 0, cpu_slots, str(error))
    offered = nvml.read()[: settings.gpus]
    if len(offered) < (settings.gpus or 0):
        raise TooFewDevices(f"WCL_GPUS is {settings.gpus}, but this worker sees {len(offered)}; use at most that")
    uuids = [device.uuid for device in offered]

    def read() -> tuple[Device, ...]:
        return tuple(device for device in nvml.read() if device.uuid in uuids)

    return Machine(read, cpu_slots, {uuid: uuid for uuid in uuids})


def _unusable(numbers: Sequence[int], cpu_slots: int, reason: str) -> Machine:
    """Return GPUs that the machine has and whose driver does not work, so that no job takes it for one without GPUs."""
    log.error("the GPUs of this machine cannot be used: %s", reason)
    problem = f"{reason}; repair the driver, then restart the worker"
    host = socket.gethostname()[:63]
    devices = tuple(Device(f"{host}-gpu-{number}", number, "NVIDIA GPU", problem=problem) for number in numbers)
    return Machine(lambda: devices, cpu_slots, {})


def _unnamed(count: int, cpu_slots: int, reason: str) -> Machine:
    """Return so many GPUs without NVML, such as those of another maker; the system numbers them."""
    if count == 0:
        log.info("this worker offers no GPU (%s)", reason)
        return Machine(tuple, cpu_slots, None)
    listed = [entry for entry in os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",") if entry]
    entries = listed or [str(index) for index in range(count)]
    if len(entries) < count:
        raise TooFewDevices(f"WCL_GPUS is {count}, but CUDA_VISIBLE_DEVICES names {len(entries)}; use at most that")
    host, named = socket.gethostname()[:63], entries[:count]
    devices = tuple(Device(f"{host}-gpu-{entry}"[:128], index, "GPU") for index, entry in enumerate(named))
    visible = {device.uuid: entry for device, entry in zip(devices, named, strict=True)}
    return Machine(lambda: devices, cpu_slots, visible)


def _lock(uuid: str) -> int | None:
    """Lock a device on this machine while the returned descriptor is open; return None if another worker has it.

    The lock is a name in the kernel's abstract socket namespace: it needs no folder that all accounts may write to, and
    the kernel frees it however the process ends.
    """
    lock = socket.socket(socket.AF_UNIX)
    if sys.platform == "linux":
        try:
            lock.bind("\0wcl-device-" + digest_of(uuid))
        except OSError:
            lock.close()
            return None
    return lock.detach()
