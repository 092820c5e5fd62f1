"""What all tests share: properties are judged by their answers, not by how busy the machine is."""

import os
from collections.abc import Iterator

import pytest
from hypothesis import HealthCheck, settings

settings.register_profile(
    "composer",
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow],
    print_blob=True,
)
settings.load_profile("composer")


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
