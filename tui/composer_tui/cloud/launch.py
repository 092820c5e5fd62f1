"""Putting a run on Modal, so that nothing that begins to cost is ever forgotten.

The folder names the app before Modal is asked for anything, and a short child process does the
asking. Whoever is killed on the way, the app bears the name that the folder has, or there is none.
"""

import contextlib
import os
import selectors
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import msgspec

from composer_engine.config import ConfigError
from composer_engine.contract import TAG_CAP_USD
from composer_engine.protocol import Logged, PhaseChanged, RunFailed
from composer_tui.cloud import modal_api
from composer_tui.cloud.account_check import BadAccount, read_account
from composer_tui.cloud.known_failures import diagnose
from composer_tui.cloud.launch_words import SPEC_FILE, LaunchWord
from composer_tui.cloud.ledger import CloudRef, read_ref, write_ref
from composer_tui.cloud.modal_thread import within
from composer_tui.cloud.notebook import Notebook, is_held, take_lock
from composer_tui.cloud.owner import owner_tag
from composer_tui.cloud.plan import Plan, dumped, plan
from composer_tui.cloud.problems import CloudProblem, problem
from composer_tui.cloud.rates_cache import current_rates
from composer_tui.cloud.reach import obstacle, way_to
from composer_tui.pricing.rates import Rates
from composer_tui.runs.folder import RunFolder, write_whole
from composer_tui.runs.framer import Framer
from composer_tui.runs.log_end import read_log_end

CALL_SECONDS = 8.0
_CLOCK_SECONDS = 3.0
_LOOK_SECONDS = 0.2
_END_SECONDS = 20.0  # from the last id to the child's end
_LOCK = ".launch"


class Launched(NamedTuple):
    """``failure`` is why there is no call. ``asked``: Modal may have made an app all the same."""

    ref: CloudRef
    failure: RunFailed | None = None
    asked: bool = True


def launch(folder: RunFolder, notebook: Notebook) -> Launched:
    """Puts the run on Modal. Blocks for as long as its image takes to build. Raises OSError.

    Every id is on disk as soon as it is known.
    """
    ref = read_ref(folder)
    with _launching(folder) as lock:
        if lock is None:
            return Launched(ref)  # another program is at it
        try:
            made = _plan(folder)
        except ConfigError as error:
            message = "; ".join(map(str, error.problems))
            return Launched(ref, RunFailed(kind="config", message=message), asked=False)
        except CloudProblem as error:
            return Launched(ref, failure_of(error), asked=False)
        rates = made.rates
        ref = msgspec.structs.replace(
            ref,
            usd_per_hour=made.plan.spec.usd_per_hour,
            rates_source=rates.source,
            rates_as_of=rates.as_of,
            lease_until=made.plan.spec.lease_until,
            cap_usd=made.plan.spec.tags.get(TAG_CAP_USD, ""),
        )
        write_ref(folder, ref)
        for warning in made.plan.warnings:
            notebook.say(Logged(level="warning", message=warning))
        write_whole(folder.path / SPEC_FILE, dumped(made.plan.spec))
        notebook.say(PhaseChanged(phase="building"))
        return _follow_child(folder, ref, lock, notebook)


def was_tried(folder: RunFolder) -> bool:
    """Somebody has begun to launch it."""
    return (folder.path / _LOCK).exists()


def is_launching(folder: RunFolder) -> bool:
    """A launch is under way: its parent, or the child alone, still lives. Cheap."""
    return is_held(folder.path / _LOCK)


def failure_of(error: CloudProblem) -> RunFailed:
    """A problem with Modal as a run's last word."""
    if error.problem.kind == "timeout":
        return RunFailed(
            kind="runner",
            message=f"Modal did not answer within {CALL_SECONDS:g} s",
            hint="nothing was launched; check the network or a proxy, then launch it again",
        )
    is_the_users = error.problem.kind in ("no_token", "wrong_token")
    return RunFailed(
        kind="config" if is_the_users else "runner",
        message=error.problem.message,
        hint=error.problem.hint,
    )


class _Planned(NamedTuple):
    plan: Plan
    rates: Rates


def _plan(folder: RunFolder) -> _Planned:
    """What is asked for, at Modal's own prices of now. Raises `ConfigError`, `CloudProblem`."""
    record = folder.read_record()
    now = time.time()
    _check_way()
    secrets = _secrets(record.config.modal.environment)  # the first that Modal is asked for
    known = current_rates(lambda: within(CALL_SECONDS, modal_api.rates(), "the prices"), now)
    made = plan(
        record.config,
        record.run_id,
        known.rates,
        now=now,
        clock_ahead_seconds=_clock_ahead(),
        owner=owner_tag(),
        existing_secrets=secrets,
    )
    return _Planned(made, known.rates)


def _check_way() -> None:
    """Raises `CloudProblem` where no connection can be made: modal's client would go on trying."""
    try:
        way = way_to(read_account().server_url)
    except BadAccount as error:
        raise CloudProblem(problem("no_token", str(error), error.fix)) from None
    if way is not None and (found := obstacle(way, CALL_SECONDS)) is not None:
        raise CloudProblem(found)


def _secrets(environment: str) -> list[str] | None:
    """Their names; None when Modal would not say.

    Raises `CloudProblem` when there is no way to Modal: modal's own client tries for a minute.
    """

    async def ask() -> list[str]:
        import modal

        found = await modal.Secret.objects.list.aio(environment_name=environment)
        return [secret.name or "" for secret in found]

    try:
        return within(CALL_SECONDS, ask(), "reaching Modal")
    except CloudProblem as error:
        if error.problem.kind in ("no_token", "wrong_token", "no_network", "timeout", "clock"):
            raise
        return None


def _clock_ahead() -> float:
    """How far this machine's clock is ahead of Modal's, in seconds; 0 where Modal does not say."""
    began = time.time()
    try:
        theirs = within(_CLOCK_SECONDS, modal_api.server_time(), "Modal's time")
    except CloudProblem:
        return 0.0
    return (began + time.time()) / 2 - theirs if theirs > 0 else 0.0


def _follow_child(folder: RunFolder, ref: CloudRef, lock: int, notebook: Notebook) -> Launched:
    argv = [sys.executable, "-P", "-m", "composer_tui.cloud.launch_child", str(folder.path)]
    with folder.log_path.open("ab") as log:
        child = subprocess.Popen(  # noqa: S603  # argv is ours
            argv,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=log,
            cwd=folder.read_record().cwd,
            env={**os.environ, "NO_COLOR": "1", "COLUMNS": "200", "TERM": "dumb"},
            pass_fds=(lock,),
            start_new_session=True,
        )
    failure: RunFailed | None = None
    with child:
        for word in _words(child, folder):
            if word.note:
                notebook.say(Logged(level="info", message=word.note))
                continue
            if word.message:
                failure = RunFailed(kind=word.kind, message=word.message, hint=word.hint)
                continue
            ref = _with_ids(ref, word)
            write_ref(folder, ref)
    if folder.stop_path.exists() and not ref.call_id:
        failure = RunFailed(kind="killed", message="it was stopped before it had begun")
    if not ref.call_id and failure is None:
        failure = _silent_end(child.returncode, folder.log_path)
    return Launched(ref, None if ref.call_id else failure)


def _words(child: "subprocess.Popen[bytes]", folder: RunFolder) -> Iterator[LaunchWord]:
    """What it says until it ends. A stop that is asked for meanwhile ends it."""
    framer = Framer()
    deadline: float | None = None
    if child.stdout is None:
        return
    with selectors.DefaultSelector() as selector:
        selector.register(child.stdout, selectors.EVENT_READ)
        while True:
            if selector.select(_LOOK_SECONDS):
                data = os.read(child.stdout.fileno(), 1 << 16)
                if not data:
                    break
                for line in framer.feed(data):
                    with contextlib.suppress(msgspec.DecodeError):
                        word = msgspec.json.decode(line, type=LaunchWord)
                        if word.call_id:
                            deadline = time.monotonic() + _END_SECONDS
                        yield word
            stopped = deadline is None and folder.stop_path.exists()
            if stopped or (deadline is not None and time.monotonic() > deadline):
                child.kill()
    child.wait()


def _with_ids(ref: CloudRef, word: LaunchWord) -> CloudRef:
    return msgspec.structs.replace(
        ref,
        app_id=word.app_id or ref.app_id,
        function_id=word.function_id or ref.function_id,
        call_id=word.call_id or ref.call_id,
        launched_at=time.time() if word.call_id else ref.launched_at,
    )


def _silent_end(status: int | None, log: Path) -> RunFailed:
    """The child was killed, or broke down so early that it could not say why."""
    lines = read_log_end(log)
    known = diagnose("\n".join(lines))
    detail = "\n".join(lines)
    if known is not None:
        return RunFailed(kind=known.kind, message=known.what, hint=known.fix, detail=detail)
    how = f"signal {-status}" if status and status < 0 else f"exit status {status}"
    return RunFailed(
        kind="runner",
        message=f"the launch ended without a word, with {how}",
        hint="log.txt says more; whatever was begun on Modal has been stopped",
        detail=detail,
    )


@contextlib.contextmanager
def _launching(folder: RunFolder) -> Iterator[int | None]:
    """The lock of a launch, which the child shares: it is free when both are gone."""
    fd = os.open(folder.path / _LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        yield fd if take_lock(fd) else None
    finally:
        os.close(fd)
