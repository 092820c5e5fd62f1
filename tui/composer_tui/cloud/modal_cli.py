"""The modal command line, in a fresh process with a time limit.

The second, independent way to Modal: it shares nothing with this process's own client, so it works
where that hangs or cannot be imported. It imports no modal. Tokens go by environment only.
"""

import os
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import NamedTuple, TypeVar

import msgspec

from composer_tui.cloud.problems import CloudProblem, problem, problem_of_text, redact

CALL_SECONDS = 15.0
_KEPT_CHARACTERS = 4000
_T = TypeVar("_T")

# -P: a file called modal.py where the user happens to stand is not the modal that is meant.
_COMMAND = (sys.executable, "-P", "-m", "modal")
_PLAIN = {"NO_COLOR": "1", "COLUMNS": "4096", "TERM": "dumb", "PYTHONUTF8": "1"}
_COLOURED = ("FORCE_COLOR", "CLICOLOR_FORCE", "MODAL_LOGLEVEL", "MODAL_TRACEBACK")


class Finished(NamedTuple):
    """How a command ended; ``said`` is its stderr, without tokens."""

    status: int
    output: bytes
    said: str


class AppRow(msgspec.Struct, frozen=True, kw_only=True):
    """A line of ``modal app list --json``: stopped apps stay on it for about two hours."""

    app_id: str
    description: str = ""
    state: str = "unknown"
    tasks: str = "0"
    created_at: str | None = None
    stopped_at: str | None = None

    @property
    def is_over(self) -> bool:
        return self.state in ("stopped", "disabled")

    @property
    def task_count(self) -> int:
        return int(self.tasks) if self.tasks.isdecimal() else 0


class ContainerRow(msgspec.Struct, frozen=True, kw_only=True):
    """A line of ``modal container list --json``; ``start_time`` is "Pending" before it starts."""

    container_id: str
    app_id: str
    app_name: str = ""
    start_time: str = ""


class _EnvironmentRow(msgspec.Struct, frozen=True, kw_only=True):
    name: str


class _Lifecycle(msgspec.Struct, frozen=True, kw_only=True):
    state: str = "unknown"


class _AppInfo(msgspec.Struct, frozen=True, kw_only=True):
    lifecycle: _Lifecycle = _Lifecycle()


class ModalCli:
    """One account's modal command line. ``environ`` lies over this process's own environment."""

    def __init__(
        self, environ: Mapping[str, str] | None = None, call_seconds: float = CALL_SECONDS
    ) -> None:
        self._environ, self._seconds = dict(environ or {}), call_seconds

    @property
    def environ(self) -> Mapping[str, str]:
        """What a command's environment is made of, its account's names included."""
        return {**os.environ, **self._environ}

    def run(self, *arguments: str) -> Finished:
        """One command, however it ends. Raises `CloudProblem`: it took too long, or never began."""
        try:
            return self._run(arguments)
        except OSError as error:  # no process, no memory or no descriptor is to be had
            what = f"the modal command line cannot be started: {error.strerror or error}"
            raise CloudProblem(problem("server", what)) from None

    def _run(self, arguments: Sequence[str]) -> Finished:
        environ = {**os.environ, **_PLAIN, **self._environ}
        for name in _COLOURED:
            environ.pop(name, None)
        with subprocess.Popen(  # noqa: S603  # argv is ours, and ids that were checked
            [*_COMMAND, *arguments],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env=environ,
            start_new_session=True,
        ) as process:
            try:
                output, errors = process.communicate(timeout=self._seconds)
            except BaseException as error:
                _kill_group(process)
                if isinstance(error, subprocess.TimeoutExpired):
                    raise CloudProblem(
                        problem(
                            "timeout",
                            f"Modal did not answer within {round(self._seconds, 1):g} s"
                            f" (`modal {' '.join(arguments[:2])}`)",
                        )
                    ) from None
                raise
        said = redact(errors.decode("utf-8", "replace")[-_KEPT_CHARACTERS:])
        return Finished(process.returncode, output, said)

    def app_list(self) -> list[AppRow]:
        """Apps of the environment, those that stopped lately included. Raises `CloudProblem`."""
        return self._json(list[AppRow], "app", "list", "--json")

    def container_list(self, app_id: str = "") -> list[ContainerRow]:
        """Containers that run, of one app or of the environment. Raises `CloudProblem`."""
        which = ("--app-id", app_id) if app_id else ()
        return self._json(list[ContainerRow], "container", "list", "--json", *which)

    def environment_names(self) -> list[str]:
        """Of all environments of the workspace. Raises `CloudProblem`."""
        return [
            row.name for row in self._json(list[_EnvironmentRow], "environment", "list", "--json")
        ]

    def app_state(self, app_id: str) -> str | None:
        """Modal's word for its state; None when Modal knows no such app. Raises `CloudProblem`."""
        done = self.run("app", "info", app_id, "--json")
        if done.status and _is_unknown(done.said):
            return None
        return _decoded(done, _AppInfo, "app info").lifecycle.state

    def stop_app(self, app_id: str) -> None:
        """Accepted, or over already. Raises `CloudProblem`, `UnknownApp` among them."""
        done = self.run("app", "stop", app_id, "--yes")
        if done.status == 0 or "already stopped" in done.said:
            return
        if _is_unknown(done.said):
            raise UnknownApp(app_id)
        raise CloudProblem(problem_of_text(done.said))

    def stop_container(self, container_id: str) -> None:
        """Accepted, or over already. Raises `CloudProblem`."""
        done = self.run("container", "stop", container_id, "--yes")
        if done.status and "already stopped" not in done.said:
            raise CloudProblem(problem_of_text(done.said))

    def _json(self, kind: type[_T], *arguments: str) -> _T:
        return _decoded(self.run(*arguments), kind, " ".join(arguments[:2]))


class UnknownApp(CloudProblem):
    """Modal knows no app of that id, in this account."""

    def __init__(self, app_id: str) -> None:
        super().__init__(
            problem(
                "refused",
                f"this account has no app {app_id}",
                "composer-tui apps lists those there are; modal profile current names the account",
            )
        )


def unix_seconds(text: str | None) -> float | None:
    """A time as the modal command line prints it; None for one that it does not name."""
    try:
        return datetime.fromisoformat(text).timestamp() if text else None
    except ValueError:
        return None  # "Pending"


def _decoded(done: Finished, kind: type[_T], command: str) -> _T:
    if done.status:
        raise CloudProblem(problem_of_text(done.said))
    try:
        return msgspec.json.decode(done.output, type=kind)
    except msgspec.DecodeError as error:
        message = f"`modal {command}` answered what this program cannot read: {error}"
        raise CloudProblem(problem("server", message)) from None


def _is_unknown(said: str) -> bool:
    lowered = said.lower()
    return "not found" in lowered or "no app with" in lowered or "does not exist" in lowered


def _kill_group(process: "subprocess.Popen[bytes]") -> None:
    """Whatever it started goes with it."""
    try:
        os.killpg(process.pid, signal.SIGKILL)
    except ProcessLookupError:
        return


def ids(values: Sequence[str]) -> str:
    """A few ids, for one line."""
    shown = " ".join(values[:4])
    return shown if len(values) <= 4 else f"{shown} and {len(values) - 4} more"  # noqa: PLR2004
