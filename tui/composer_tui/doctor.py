"""What this machine has and lacks, each finding with the command that mends it.

Nothing heavy is imported: versions come from package metadata, and of a token only its presence
is looked at, never its value.
"""

from __future__ import annotations

import locale
import os
import shutil
import sys
import tempfile
from importlib.metadata import PackageNotFoundError, requires, version
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import msgspec
from packaging.requirements import Requirement

from composer_tui.cloud.account_check import Account, BadAccount, reach, read_account
from composer_tui.cloud.problems import CloudProblem
from composer_tui.numbers import memory
from composer_tui.rehearsal.sandbox import is_available
from composer_tui.runs.sanitise import clean

if TYPE_CHECKING:
    from collections.abc import Iterator

Status = Literal["ok", "warning", "problem"]
LOW_DISK_BYTES = 5 * 2**30
SMALLEST_COLUMNS, SMALLEST_LINES = 80, 24


class Finding(msgspec.Struct, frozen=True):
    """One thing looked at. ``fix`` is empty for what is well, a command or an action otherwise."""

    name: str
    status: Status
    message: str
    fix: str = ""


def examine(runs_dir: Path, *, online: bool = False) -> list[Finding]:
    """Every finding, in the order in which a person would mend them.

    Only with ``online`` is anything asked of the network.
    """
    return [
        _python(),
        *_packages(),
        *_accelerators(),
        _runs_folder(runs_dir),
        _disk(runs_dir),
        *_terminal(),
        _modal_version(),
        *_modal_account(online=online),
        _rehearsal(),
    ]


def _python() -> Finding:
    running = ".".join(map(str, sys.version_info[:3]))
    return Finding("python", "ok", f"{running} at {sys.executable}")


def _packages() -> Iterator[Finding]:
    """Our declared requirements against what is installed; the engine's are one finding."""
    light: list[str] = []
    engine: list[str] = []
    engine_versions: list[str] = []
    for text in requires("composer-tui") or ():
        requirement = Requirement(text)
        complaint, installed = _installed(requirement)
        if requirement.marker is None or requirement.marker.evaluate({"extra": ""}):
            light += [complaint] if complaint else []
        elif requirement.marker.evaluate({"extra": "engine"}):
            engine += [complaint] if complaint else []
            engine_versions.append(f"{requirement.name} {installed}")
    if light:
        fix = "pip install --upgrade composer-tui"
        yield Finding("packages", "problem", "; ".join(light), fix)
    else:
        modules = ("textual", "msgspec", "modal")
        yield Finding("packages", "ok", ", ".join(f"{name} {version(name)}" for name in modules))
    if engine:
        fix = 'pip install "composer-tui[engine]"'
        yield Finding("engine", "problem", f"no local runs: {'; '.join(engine)}", fix)
    else:
        yield Finding("engine", "ok", ", ".join(engine_versions))


def _installed(requirement: Requirement) -> tuple[str, str]:
    """(complaint or '', installed version or '')."""
    try:
        installed = version(requirement.name)
    except PackageNotFoundError:
        return f"{requirement.name} is not installed", ""
    if not requirement.specifier.contains(installed, prereleases=True):
        return f"{requirement.name} is {installed}, wanted {requirement.specifier}", installed
    return "", installed


def _accelerators() -> Iterator[Finding]:
    import pynvml

    try:
        pynvml.nvmlInit()
    except pynvml.NVMLError as error:
        message = f"no NVIDIA GPU to be seen ({error}); local runs use the CPU"
        yield Finding("gpu", "warning", message, "nvidia-smi")
        return
    try:
        for index in range(pynvml.nvmlDeviceGetCount()):
            device = pynvml.nvmlDeviceGetHandleByIndex(index)
            state = pynvml.nvmlDeviceGetMemoryInfo(device)
            name = pynvml.nvmlDeviceGetName(device)
            free = f"{memory(state.free)} of {memory(state.total)} free"
            yield Finding(f"gpu {index}", "ok", f"{name}, {free}")
    finally:
        pynvml.nvmlShutdown()


def _runs_folder(runs_dir: Path) -> Finding:
    fix = "composer-tui --runs-dir FOLDER, or set COMPOSER_RUNS_DIR"
    try:
        runs_dir.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=runs_dir):
            pass
    except OSError as error:
        return Finding("runs folder", "problem", f"{runs_dir}: {error.strerror}", fix)
    return Finding("runs folder", "ok", str(runs_dir))


def _disk(runs_dir: Path) -> Finding:
    nearest = next(path for path in (runs_dir, *runs_dir.parents) if path.exists())
    free = shutil.disk_usage(nearest).free
    message = f"{memory(free)} free for runs"
    if free >= LOW_DISK_BYTES:
        return Finding("disk", "ok", message)
    return Finding("disk", "warning", message, f"du -sh {runs_dir}/*/checkpoints")


def _terminal() -> Iterator[Finding]:
    term = os.environ.get("TERM", "")
    size = shutil.get_terminal_size((0, 0))
    if not sys.stdout.isatty():
        yield Finding("terminal", "ok", "not a terminal: the commands work, the app needs one")
        return
    if term in {"", "dumb"}:
        message = f"TERM is {term or 'unset'}: the app cannot draw"
        yield Finding("terminal", "warning", message, "export TERM=xterm-256color")
    elif size.columns < SMALLEST_COLUMNS or size.lines < SMALLEST_LINES:
        message = f"{size.columns}x{size.lines} is less than {SMALLEST_COLUMNS}x{SMALLEST_LINES}"
        yield Finding("terminal", "warning", message, "enlarge the window")
    else:
        colour = os.environ.get("COLORTERM") or "256 colours or fewer"
        yield Finding("terminal", "ok", f"{term}, {size.columns}x{size.lines}, {colour}")
    encoding = locale.getencoding()
    if encoding.lower().replace("-", "") != "utf8":
        message = f"the locale's encoding is {encoding}; charts need UTF-8"
        yield Finding("encoding", "warning", message, "export LC_ALL=C.UTF-8, or COMPOSER_ASCII=1")


def _modal_version() -> Finding:
    """Another version may speak to Modal otherwise, and the rehearsal serves this one."""
    wanted = next(
        one for one in map(Requirement, requires("composer-tui") or ()) if one.name == "modal"
    )
    complaint, installed = _installed(wanted)
    if complaint:
        return Finding("modal", "problem", complaint, f'pip install "modal{wanted.specifier}"')
    return Finding("modal", "ok", f"{installed}, as wanted ({wanted.specifier})")


def _modal_account(*, online: bool) -> Iterator[Finding]:
    try:
        account = read_account()
    except BadAccount as bad:
        yield Finding("modal token", "warning", f"{clean(str(bad))}: local runs only", bad.fix)
        return
    environment = account.environment or "the usual one"
    if not account.has_token:
        yield Finding("modal token", "warning", "none: local runs only", "modal token new")
    else:
        profile = f"profile {account.profile} of " if account.profile else ""
        message = clean(f"in {profile}{account.source}; environment: {environment}")
        yield Finding("modal token", "ok", message)
        if account.is_open_to_others:
            message = f"others on this machine can read {account.source}"
            yield Finding("token file", "warning", message, f"chmod 600 {account.source}")
    if online:
        yield _reachability(account)


def _reachability(account: Account) -> Finding:
    try:
        return Finding("modal online", "ok", reach(account))
    except CloudProblem as failure:
        problem = failure.problem
        fix = problem.hint or "see status.modal.com"
        return Finding("modal online", "warning", problem.message, fix)


def _rehearsal() -> Finding:
    if sys.platform != "linux":
        message = "rehearsals need Linux: Modal's containers do"
        return Finding("rehearsal", "warning", message, "run composer-tui on a Linux machine")
    if is_available():
        return Finding(
            "rehearsal", "ok", "containers can be rehearsed here, each with its own root"
        )
    message = "user namespaces are refused: rehearsals share this machine's file system"
    fix = (
        "sudo sysctl kernel.apparmor_restrict_unprivileged_userns=0 user.max_user_namespaces=15000"
    )
    return Finding("rehearsal", "warning", message, fix)
