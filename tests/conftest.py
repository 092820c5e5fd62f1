"""What all tests share: properties are judged by their answers, not by how busy the machine is."""

import gc
import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

settings.register_profile(
    "composer",
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow],
    print_blob=True,
)
settings.load_profile("composer")

LONGEST = (  # files begin in this order, or the last of them would be waited for alone
    "cloud/test_follow.py",
    "cloud/test_kill.py",
    "engine/test_faults.py",
    "cloud/test_gc.py",
    "cloud/test_cloud_runner.py",
    "cloud/test_apps.py",
    "engine/test_distributed.py",
    "cloud/test_launch.py",
    "headless/test_commands.py",
    "faults/test_cloud_kills.py",
    "cloud/test_attach.py",
    "rehearsal/test_apps.py",
    "screens/test_cloud_desk.py",
    "rehearsal/test_containers.py",
    "cloud/test_export_app.py",
    "cloud/test_link.py",
    "screens/test_stopping.py",
)

gc.disable()  # what is imported while tests are collected stays: nothing is gained by walking it


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    here = Path(__file__).parent
    ranks = {here / name: rank for rank, name in enumerate(LONGEST)}
    items.sort(key=lambda item: ranks.get(item.path, len(ranks)))


def pytest_collection_finish() -> None:
    gc.freeze()
    gc.enable()


@pytest.fixture(scope="session", autouse=True)
def _nobodys_account(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """No test, and no program that one starts, sees the account or the files of who runs it."""
    home = tmp_path_factory.mktemp("home")
    ours = {
        "XDG_STATE_HOME": str(home / "state"),
        "XDG_CACHE_HOME": str(home / "cache"),
        "XDG_DATA_HOME": str(home / "data"),
        "MODAL_CONFIG_PATH": str(home / "no-modal.toml"),
    }
    with pytest.MonkeyPatch.context() as patch:
        for name in [name for name in os.environ if name.startswith(("MODAL_", "COMPOSER_R"))]:
            patch.delenv(name)
        for name, text in ours.items():
            patch.setenv(name, text)
        yield
