"""Memory and devices, sampled beside the training thread."""

import contextlib
import threading
from collections.abc import Iterator
from types import TracebackType
from typing import Any, Self

import psutil
import torch

from composer_engine.emitter import Emitter
from composer_engine.protocol import DeviceSample, MemorySampled


class MemorySampler:
    """Emits `MemorySampled` at once and then every ``seconds``, until it is left.

    Memory is this process's, the devices are those of all ``count`` processes.
    """

    def __init__(
        self, emitter: Emitter, device: torch.device, seconds: float, count: int = 1
    ) -> None:
        self._emitter, self._device, self._seconds = emitter, device, seconds
        self._count = count
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._run, name="memory", daemon=True)
        self._process = psutil.Process()

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._done.set()
        self._thread.join(timeout=5)

    def _run(self) -> None:
        with _driver(self._device, self._count) as handles:
            while True:
                # A reader of stdout that went away ends the run in the training thread.
                with contextlib.suppress(OSError):
                    self._emitter.emit(self._sample(handles))
                if self._done.wait(self._seconds):
                    return

    def _sample(self, handles: list[Any]) -> MemorySampled:
        host = MemorySampled(
            host_rss_bytes=self._process.memory_info().rss,
            host_total_bytes=psutil.virtual_memory().total,
        )
        if self._device.type != "cuda":
            return host
        return MemorySampled(
            allocated_bytes=torch.cuda.memory_allocated(self._device),
            reserved_bytes=torch.cuda.memory_reserved(self._device),
            peak_bytes=torch.cuda.max_memory_allocated(self._device),
            total_bytes=torch.cuda.get_device_properties(self._device).total_memory,
            host_rss_bytes=host.host_rss_bytes,
            host_total_bytes=host.host_total_bytes,
            devices=tuple(_device_sample(index, handle) for index, handle in enumerate(handles)),
        )


@contextlib.contextmanager
def _driver(device: torch.device, count: int) -> Iterator[list[Any]]:
    """NVML handles of the devices in use; none without CUDA or without the driver's library."""
    if device.type != "cuda":
        yield []
        return
    import pynvml

    try:
        pynvml.nvmlInit()
    except pynvml.NVMLError:
        yield []
        return
    try:
        # By UUID, since CUDA_VISIBLE_DEVICES renumbers what torch sees.
        devices = [device] if count == 1 else [torch.device("cuda", n) for n in range(count)]
        uuids = [f"GPU-{torch.cuda.get_device_properties(one).uuid}" for one in devices]
        try:
            handles = [pynvml.nvmlDeviceGetHandleByUUID(uuid) for uuid in uuids]
        except pynvml.NVMLError:
            handles = []
        yield handles
    finally:
        pynvml.nvmlShutdown()


def _device_sample(index: int, handle: Any) -> DeviceSample:
    import pynvml

    def ask(question: Any, *arguments: Any) -> Any:
        try:
            return question(handle, *arguments)
        except pynvml.NVMLError:
            return None

    used = ask(pynvml.nvmlDeviceGetMemoryInfo)
    busy = ask(pynvml.nvmlDeviceGetUtilizationRates)
    power = ask(pynvml.nvmlDeviceGetPowerUsage)  # milliwatts
    return DeviceSample(
        index=index,
        utilization=None if busy is None else busy.gpu / 100,
        power_watts=None if power is None else power / 1000,
        temperature_c=ask(pynvml.nvmlDeviceGetTemperature, pynvml.NVML_TEMPERATURE_GPU),
        used_bytes=None if used is None else used.used,
        total_bytes=None if used is None else used.total,
    )
