"""The accounts that runs live in: the user's own on Modal, and one for each rehearsal.

An account is named by its connection: "" is the one that the environment or ``~/.modal.toml``
names, anything else the path of a rehearsal's connection file.
"""

import threading
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path

import platformdirs

from composer_tui.cloud.cloud import Cloud
from composer_tui.cloud.link import Link
from composer_tui.cloud.problems import CloudProblem
from composer_tui.cloud.wire import Problem
from composer_tui.rehearsal import process
from composer_tui.runs.store import RunStore

OWN = ""


def log_path() -> Path:
    """Where the helper processes write what goes wrong with them."""
    return platformdirs.user_state_path("composer-tui") / "cloud.log"


def has_own_account(environ: Mapping[str, str]) -> bool:
    """Something names a token; whether it is a good one is for Modal to say."""
    if environ.get("MODAL_TOKEN_ID") or environ.get("MODAL_SERVER_URL"):
        return True
    return Path(environ.get("MODAL_CONFIG_PATH") or Path.home() / ".modal.toml").is_file()


def account_environ(connection: str) -> Mapping[str, str]:
    """What names an account to a child process. Raises `CloudProblem`: its rehearsal is gone."""
    if connection == OWN:
        return {}
    found = process.find(Path(connection))
    if found is None:
        raise CloudProblem(
            Problem(
                kind="refused",
                message="the rehearsal's control plane is gone, and its containers with it",
            )
        )
    return found.environ()


class Accounts:
    """A `Cloud` for each connection, made when it is first asked for."""

    def __init__(self, store: RunStore, own: Callable[[RunStore], Cloud] | None = None) -> None:
        """``own`` makes the one for the user's own account; without it that is a helper, too."""
        self._store, self._own = store, own
        self._clouds: dict[str, Cloud] = {}
        self._lock = threading.Lock()

    def __call__(self, connection: str) -> Cloud:
        with self._lock:
            cloud = self._clouds.get(connection)
            if cloud is None:
                cloud = self._clouds[connection] = self._make(connection)
            return cloud

    def close(self) -> None:
        """Let go of all of them. Runs go on."""
        with self._lock:
            clouds = list(self._clouds.values())
        for cloud in clouds:
            cloud.close()

    def _make(self, connection: str) -> Cloud:
        if connection == OWN and self._own is not None:
            return self._own(self._store)
        return Link(self._store.root, partial(account_environ, connection), log_path())


def for_commands(store: RunStore) -> Accounts:
    """A command talks to the user's own account itself, and to rehearsals through helpers."""
    from composer_tui.cloud.direct import DirectCloud

    return Accounts(store, DirectCloud)
