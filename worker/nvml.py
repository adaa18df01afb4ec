"""GPUs by NVML, the library of the NVIDIA driver (`nvidia-ml-py`); it occupies no memory of a GPU, as PyTorch would.

A GPU in MIG mode is split into instances, each a device of its own.  Written by NVML's documentation; its answers on
hardware faults are not tested on a card.
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

from jobs.devices import Device

try:
    import pynvml
except ImportError:  # wcl_core and a worker without GPUs need no driver library
    pynvml = None

log = logging.getLogger(__name__)

# Xids that a program causes; every other one is a fault of the GPU or its driver.  13: exception in a kernel, 31: wrong
# address, 43: the program was stopped, 45: its channels were cleaned up, 68: video, 109: context timeout.
_OF_PROGRAMS = frozenset({13, 31, 43, 45, 68, 109})


class Unavailable(Exception):  # noqa: N818 (named as the state of the library)
    """NVML cannot be used: the package or the driver is not installed, or the driver does not respond."""


@dataclass
class _Handle:
    """A device of NVML.

    Attributes:
        handle: of the GPU, or of the MIG instance.
        gpu: of the GPU that the instance is a part of; the same for a whole GPU.
        ecc_errors: uncorrected errors when this worker started; None where the GPU does not count them.
        problem: a fault that stays until the worker is restarted.
    """

    uuid: str
    index: int
    name: str
    handle: Any
    gpu: Any
    ecc_errors: int | None
    problem: str | None = None


class Nvml:
    """The GPUs that this process may use.

    Args:
        visible: value of `CUDA_VISIBLE_DEVICES`; None for all.
        library: the module `pynvml`.

    Raises:
        Unavailable: there is no library, no driver, or no answer.
    """

    def __init__(self, visible: str | None = None, library: Any = pynvml) -> None:
        if library is None:
            raise Unavailable("the package nvidia-ml-py is not installed")
        self._library = library
        try:
            library.nvmlInit()
            self._handles = _visible(list(self._find()), visible)
        except library.NVMLError as error:
            raise Unavailable(f"NVML: {error}") from error
        self._events = self._watch_for_xids()

    def read(self) -> tuple[Device, ...]:
        """Return the devices with their present load and problems."""
        self._note_xids()
        return tuple(map(self._read, self._handles))

    def _find(self) -> Iterator[_Handle]:
        nvml = self._library
        for number in range(nvml.nvmlDeviceGetCount()):
            gpu = nvml.nvmlDeviceGetHandleByIndex(number)
            parts = list(self._instances(gpu)) or [gpu]
            for part in parts:
                name, errors = _text(nvml.nvmlDeviceGetName(part)), self._ecc_errors(gpu)
                yield _Handle(_text(nvml.nvmlDeviceGetUUID(part)), number, name, part, gpu, errors)

    def _instances(self, gpu: Any) -> Iterator[Any]:
        """Yield the MIG instances of a GPU; none for a whole one."""
        nvml = self._library
        try:
            is_split = nvml.nvmlDeviceGetMigMode(gpu)[0] == nvml.NVML_DEVICE_MIG_ENABLE
        except nvml.NVMLError:
            return  # the GPU cannot be split
        for number in range(nvml.nvmlDeviceGetMaxMigDeviceCount(gpu)) if is_split else ():
            with contextlib.suppress(nvml.NVMLError_NotFound):  # a place without an instance
                yield nvml.nvmlDeviceGetMigDeviceHandleByIndex(gpu, number)

    def _read(self, device: _Handle) -> Device:
        nvml = self._library
        bare = Device(device.uuid, device.index, device.name)
        try:
            memory = nvml.nvmlDeviceGetMemoryInfo(device.handle)
            self._note_ecc_errors(device)
        except nvml.NVMLError as error:
            return replace(bare, problem=device.problem or f"NVML: {error}")
        load = temperature = None
        with contextlib.suppress(nvml.NVMLError):  # a MIG instance has none
            load = nvml.nvmlDeviceGetUtilizationRates(device.handle).gpu / 100
        with contextlib.suppress(nvml.NVMLError):
            temperature = int(nvml.nvmlDeviceGetTemperature(device.gpu, nvml.NVML_TEMPERATURE_GPU))
        return replace(
            bare,
            memory_bytes=memory.total,
            memory_used=memory.used,
            load=load,
            temperature=temperature,
            problem=device.problem,
        )

    def _note_ecc_errors(self, device: _Handle) -> None:
        errors = self._ecc_errors(device.gpu)
        if errors is not None and errors > (device.ecc_errors or 0) and device.problem is None:
            device.problem = "its memory has an uncorrected ECC error"

    def _ecc_errors(self, gpu: Any) -> int | None:
        nvml = self._library
        try:
            kinds = nvml.NVML_MEMORY_ERROR_TYPE_UNCORRECTED, nvml.NVML_VOLATILE_ECC
            return int(nvml.nvmlDeviceGetTotalEccErrors(gpu, *kinds))
        except nvml.NVMLError:
            return None  # the GPU has no ECC, or it is off

    def _watch_for_xids(self) -> Any:
        """Return the set of events that NVML adds critical Xids to; None where it cannot."""
        nvml = self._library
        try:
            events = nvml.nvmlEventSetCreate()
            for gpu in {id(device.gpu): device.gpu for device in self._handles}.values():
                nvml.nvmlDeviceRegisterEvents(gpu, nvml.nvmlEventTypeXidCriticalError, events)
        except nvml.NVMLError as error:
            log.warning("faults of GPUs (Xids) are not reported: %s", error)
            return None
        return events

    def _note_xids(self) -> None:
        nvml = self._library
        while self._events is not None:
            try:
                event = nvml.nvmlEventSetWait_v2(self._events, 0)
                uuid = _text(nvml.nvmlDeviceGetUUID(event.device))
            except nvml.NVMLError:
                return  # no further event
            if (xid := int(event.eventData)) not in _OF_PROGRAMS:
                for device in self._handles:
                    if uuid in (device.uuid, _text(nvml.nvmlDeviceGetUUID(device.gpu))):
                        device.problem = device.problem or f"its driver reports Xid {xid}"


def _visible(devices: list[_Handle], visible: str | None) -> list[_Handle]:
    """Return the devices that `CUDA_VISIBLE_DEVICES` names, in its order, up to its first wrong entry, as CUDA does.

    An entry is the index of a GPU, or the beginning of a UUID.
    """
    if visible is None:
        return devices
    result: list[_Handle] = []
    for entry in (entry.strip() for entry in visible.split(",")):
        if entry.isdecimal():
            matching = [device for device in devices if device.index == int(entry)]
        else:
            named = [device for device in devices if device.uuid.startswith(entry)]
            matching = named if entry.startswith(("GPU-", "MIG-")) and len(named) == 1 else []
        if not matching:
            break
        result += [device for device in matching if device not in result]
    return result


def _text(value: str | bytes) -> str:
    return value.decode() if isinstance(value, bytes) else value
