"""What the doctor says of machines that tests do not have."""

from types import SimpleNamespace

import pynvml
import pytest

from composer_tui import doctor


def test_a_gpu_is_named_with_its_free_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    answers = {
        "nvmlInit": None,
        "nvmlShutdown": None,
        "nvmlDeviceGetCount": 1,
        "nvmlDeviceGetHandleByIndex": object(),
        "nvmlDeviceGetMemoryInfo": SimpleNamespace(free=3 << 30, total=24 << 30),
        "nvmlDeviceGetName": "NVIDIA L4",
    }
    for name, answer in answers.items():
        monkeypatch.setattr(pynvml, name, lambda *_, answer=answer: answer)
    (finding,) = doctor._accelerators()
    assert finding == doctor.Finding("gpu 0", "ok", "NVIDIA L4, 3.0 GiB of 24.0 GiB free")
