"""One run on Modal, seen through: launched if asked, followed to its end, and verified gone."""

import asyncio
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import msgspec

from composer_engine.config import ModalConfig
from composer_engine.contract import EVENTS_FILE
from composer_engine.protocol import RunFailed
from composer_tui.cloud.account_check import SERVER_URL, BadAccount, read_account
from composer_tui.cloud.follow import conclude, follow
from composer_tui.cloud.kill_rules import OVER
from composer_tui.cloud.launch import Launched, is_launching, was_tried
from composer_tui.cloud.launch import launch as put_on_modal
from composer_tui.cloud.ledger import CloudRef, known_ref, write_ref
from composer_tui.cloud.log_stream import call_in_log, find_app
from composer_tui.cloud.modal_cli import ModalCli, unix_seconds
from composer_tui.cloud.modal_thread import within
from composer_tui.cloud.notebook import Notebook, only_follower
from composer_tui.cloud.problems import CloudProblem
from composer_tui.cloud.transfer import run
from composer_tui.cloud.trouble import REMIND_SECONDS
from composer_tui.cloud.verdict import PLANE_GONE, STOPPED, Ending
from composer_tui.cloud.whose import is_another, note_workspace, own_words
from composer_tui.cloud.wire import StopProgress
from composer_tui.numbers import duration
from composer_tui.rehearsal import process
from composer_tui.runs.folder import DamagedFolder, RunFolder
from composer_tui.runs.log_end import read_log_end

FIND_SECONDS = 5.0  # for an app that was created a moment ago to be listed
STOP_SECONDS = 20.0
GONE_SECONDS = 10.0  # from the stop to no container; then they are stopped one by one
AGAIN_SECONDS = 5.0
YOUNG_SECONDS = 60.0  # so old an app may be that Modal does not know yet
CLOSE_SECONDS = 60.0  # so long Modal is tried for the last word of a run whose app is gone
PLANE_SECONDS = 1.0  # between two looks whether a rehearsal is still there
MISSES = 3  # so often Modal does not know the app of a run that is over, before it is gone
_LOOK_SECONDS = 0.3
_EARLIER_SECONDS = 24 * 3600.0  # Modal's clock and ours need not agree

ShouldStop = Callable[[], bool]


def tend(folder: RunFolder, *, launch: bool, should_stop: ShouldStop) -> None:
    """Returns when the run is over and nothing of it is left, or soon after ``should_stop()``.

    One at a time for each run: while another program is at it this returns at once, and asking
    again is harmless. What goes wrong is told by the run's own events and log. Raises OSError when
    the folder cannot be written.
    """
    with only_follower(folder) as ours:
        if ours:
            _Tender(folder, should_stop).run(launch=launch)


class _Found(NamedTuple):
    """An app that bears the run's name. ``has_call``: something was, or is, called in it."""

    app_id: str
    function_id: str = ""
    call_id: str = ""
    has_call: bool = False


class _Tender:
    def __init__(self, folder: RunFolder, should_stop: ShouldStop) -> None:
        self._folder, self._should_stop = folder, should_stop
        self._notebook = Notebook(folder)
        self._misses = 0
        self._plane = _Plane("")
        try:
            self._config = folder.read_record().config.modal
            self._created_at = folder.read_record().created_at
        except DamagedFolder:
            self._config = ModalConfig()
            self._created_at = 0.0

    def run(self, *, launch: bool) -> None:
        try:
            ref = known_ref(self._folder)
        except DamagedFolder as error:
            # What became of it is not known: it may run, and nothing here may say that it is over.
            self._notebook.note(f"{error}; `composer-tui apps` shows its app, if there is one")
            return
        self._plane = _Plane("" if ref.rebuilt else ref.connection)
        if not self._leaves():
            self._try_on(ref, launch=launch)
        if self._plane.is_gone:
            self._conclude(known_ref(self._folder), PLANE_GONE)

    def _try_on(self, ref: CloudRef, *, launch: bool) -> None:
        """Until there is nothing left to do, or it was told to stop."""
        began = time.monotonic()
        while not (ref.ended and self._notebook.state.ended):
            try:
                if self._carry_on(ref, launch=launch):
                    return
                self._notebook.back("app")
            except CloudProblem as error:
                if ref.ended and time.monotonic() - began > CLOSE_SECONDS:
                    self._conclude(ref, STOPPED)
                    return
                hint = f": {error.problem.hint}" if error.problem.hint else ""
                self._notebook.lost("app", f"{error.problem.message}{hint}")
            if not self._pause(AGAIN_SECONDS):
                return
            launch = False
            ref = known_ref(self._folder)

    def _leaves(self) -> bool:
        """Told to stop, or there is nothing any more to follow it by."""
        return self._should_stop() or self._plane.look()

    def _carry_on(self, ref: CloudRef, *, launch: bool) -> bool:
        """True when there is nothing left to do, or it was told to stop. Raises `CloudProblem`."""
        if ref.ended and not self._notebook.state.ended:
            return self._hear_out(ref)
        if not ref.call_id and (ref.rebuilt or not ref.launched_at):
            begun = self._begin(ref, launch=launch)
            if begun is None:
                return True
            ref = begun.ref
            if begun.failure is not None:
                if self._leaves():
                    return True
                if not self._notebook.state.ended:
                    self._notebook.say(begun.failure)
                return self._end(ref, look=begun.asked and begun.failure.kind != "config")
        if not self._is_here(ref):
            return self._miss(ref)
        ref = self._with_workspace(ref)
        if not run(follow(self._folder, ref, self._notebook, self._leaves)):
            return True
        return self._end(ref)

    def _hear_out(self, ref: CloudRef) -> bool:
        """Whoever stopped its app saw that it is gone: only the last word is to be had.

        True when there is nothing left to do. Raises `CloudProblem`.
        """
        if ref.app_id and self._is_here(ref):
            run(follow(self._folder, ref, self._notebook, self._leaves))
            return True
        if self._is_anothers(ref):
            return True
        self._misses += 1
        if self._misses < MISSES:
            return False
        self._conclude(ref, STOPPED)
        return True

    def _conclude(self, ref: CloudRef, ending: Ending) -> None:
        """Nothing more can be had of it: it is over, and its last word comes from what is here."""
        left = self._folder.path / "rehearsal" / "volumes" / self._config.runs_volume
        copy = left / self._folder.run_id / EVENTS_FILE if ref.connection else None
        conclude(self._folder, ref, self._notebook, ending, left=copy)
        write_ref(self._folder, msgspec.structs.replace(ref, ended=True, rebuilt=False))

    # The beginning.

    def _begin(self, ref: CloudRef, *, launch: bool) -> Launched | None:
        """The run with its ids, or why it has none; None when told to stop before that is known."""
        fresh = not (ref.app_id or ref.rebuilt) and self._notebook.merge.next_seq == 0
        if launch and fresh and not is_launching(self._folder):
            return put_on_modal(self._folder, self._notebook)
        while is_launching(self._folder):  # its parent is gone, the child is still at it
            if not self._pause(_LOOK_SECONDS):
                return None
        ref = known_ref(self._folder)
        if ref.call_id:
            return Launched(ref)
        return self._reconcile(ref)

    def _reconcile(self, ref: CloudRef) -> Launched | None:
        """An interrupted launch: what came of it is found by its name."""
        found: _Found | None = None
        was_rebuilt = ref.rebuilt
        deadline = time.monotonic() + FIND_SECONDS
        while was_rebuilt or was_tried(self._folder):  # else Modal was never asked for anything
            found = self._find(ref)
            if (found is not None and found.has_call) or time.monotonic() > deadline:
                break
            if not self._pause(1.0):
                return None
        if found is not None:
            ref = msgspec.structs.replace(
                ref,
                app_id=found.app_id,
                function_id=found.function_id or ref.function_id,
                call_id=found.call_id or ref.call_id,
                launched_at=ref.launched_at or (time.time() if found.has_call else 0.0),
                rebuilt=False,
            )
            write_ref(self._folder, ref)
            if found.has_call or was_rebuilt:
                return Launched(ref)
        elif self._is_anothers(ref):  # which may have its app
            return None
        elif was_rebuilt:  # whether it was ever launched is not known
            return Launched(ref)
        what = "an app was created and nothing was run in it" if found else "no app was created"
        return Launched(
            ref,
            RunFailed(
                kind="runner",
                message=f"the launch was interrupted: {what}",
                hint="nothing is left of it; launch it again",
            ),
        )

    def _find(self, ref: CloudRef) -> _Found | None:
        """The app that bears its name. Raises `CloudProblem`."""
        try:
            return within(STOP_SECONDS, _find(ref, self._created_at), "the app's name")
        except CloudProblem as error:
            if error.problem.kind in ("no_token", "wrong_token"):
                return None  # nothing came to be without one
            raise

    # An app that Modal does not know.

    def _is_anothers(self, ref: CloudRef) -> bool:
        """It is in another account than Modal is asked in, and its log says so.

        Raises `CloudProblem`.
        """
        if ref.connection or not is_another(ref):
            return False
        self._note_once(
            f"{ref.app_id or ref.app_name} is not in the account of {_account()}, but in that of "
            f"{own_words(ref)}: nothing is said of how it fares until it is asked for there"
        )
        return True

    def _with_workspace(self, ref: CloudRef) -> CloudRef:
        """Modal knows its app: this is its account."""
        if ref.connection or ref.workspace:
            return ref
        named = msgspec.structs.replace(known_ref(self._folder), workspace=note_workspace(ref))
        if named.workspace:
            write_ref(self._folder, named)
        return named

    def _is_here(self, ref: CloudRef) -> bool:
        """Modal knows the app, in the account that it is asked in. Raises `CloudProblem`."""
        if not ref.app_id:
            return not ref.rebuilt
        return within(STOP_SECONDS, _is_known(ref.app_id), "the app")

    def _miss(self, ref: CloudRef) -> bool:
        """True when nothing is left to do here: another account has it, or nobody any more.

        Whose stream has ended was seen to end: it is over when Modal has forgotten it. For any
        other, only what it left on the volume shows that this is the account that it was in.
        """
        app = ref.app_id or ref.app_name
        if self._is_anothers(ref):
            return True
        if self._notebook.state.ended:
            self._misses += 1
            if self._misses < MISSES:
                return False
            self._note_once(f"{app} is not in the account of {_account()}: it is taken as gone")
            write_ref(self._folder, msgspec.structs.replace(ref, ended=True, rebuilt=False))
            return True
        if within(STOP_SECONDS, self._is_on_volume(), "the volume"):
            gone = msgspec.structs.replace(ref, app_id="")
            return not run(follow(self._folder, gone, self._notebook, self._leaves))
        if not ref.rebuilt and time.time() - ref.launched_at < YOUNG_SECONDS:
            return False
        self._note_once(
            f"{app} is not in the account of {_account()}, so nothing is said of how it fares; "
            "its own account's profile follows it"
        )
        return True

    async def _is_on_volume(self) -> bool:
        import modal

        volume = modal.Volume.from_name(
            self._config.runs_volume, environment_name=self._config.environment or None
        )
        try:
            async for _ in volume.read_file.aio(f"{self._folder.run_id}/{EVENTS_FILE}"):
                return True
        except (FileNotFoundError, modal.exception.NotFoundError):
            return False
        return False

    def _note_once(self, line: str) -> None:
        if not any(line in said for said in read_log_end(self._folder.log_path)):
            self._notebook.note(line)

    # The end.

    def _end(self, ref: CloudRef, *, look: bool = False) -> bool:
        """Ends the app, and sees that no container is left.

        With ``look`` it may have one of which only its name is known.
        """
        if look and not ref.app_id:
            looked = self._look_for(ref)
            if looked is None:
                return True
            ref = looked
        while ref.app_id and not ref.ended and not self._is_gone(ref):
            if not self._pause(AGAIN_SECONDS):
                return True
            if not self._is_here(ref):
                return self._miss(ref)
        write_ref(self._folder, msgspec.structs.replace(ref, ended=True))
        return True

    def _look_for(self, ref: CloudRef) -> CloudRef | None:
        """With the id of the app that bears its name, should one be listed by now, or soon.

        None when told to stop before that is known. Raises `CloudProblem`.
        """
        deadline = time.monotonic() + FIND_SECONDS
        while (found := self._find(ref)) is None:
            if time.monotonic() > deadline:
                return ref
            if not self._pause(1.0):
                return None
        return msgspec.structs.replace(ref, app_id=found.app_id)

    def _is_gone(self, ref: CloudRef) -> bool:
        try:
            within(STOP_SECONDS, _stop(ref.app_id), "the stop")
            deadline = time.monotonic() + GONE_SECONDS
            cli = ModalCli(_environ(ref))
            while not within(STOP_SECONDS, _is_over(ref.app_id)) or cli.container_list(ref.app_id):
                if time.monotonic() > deadline:
                    return self._insist(ref)
                time.sleep(_LOOK_SECONDS)
        except CloudProblem as error:
            why = f"whether {ref.app_id} is gone cannot be seen: {error.problem.message}"
            self._notebook.lost("app", why)
            return False
        self._notebook.back()
        return True

    def _insist(self, ref: CloudRef) -> bool:
        """Its containers do not go by themselves."""
        from composer_tui.cloud.kill import emergency_stop

        self._notebook.note(f"{ref.app_id} is over and its containers are still there: stopping")
        told_at = time.monotonic()

        def tell(progress: StopProgress) -> None:
            nonlocal told_at
            if progress.stage != "gone" and time.monotonic() - told_at >= REMIND_SECONDS:
                told_at = time.monotonic()
                self._notebook.note(still_there_words(progress))

        stopped = emergency_stop([ref.app_id], _environ(ref), tell, give_up=self._leaves)
        if stopped.zero:
            self._notebook.back()
            took = duration(stopped.seconds)
            self._notebook.note(f"{ref.app_id} is gone after {took}, no container is left")
        return stopped.zero

    def _pause(self, seconds: float) -> bool:
        """False when told to stop meanwhile."""
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            if self._leaves():
                return False
            self._notebook.remind()
            time.sleep(min(_LOOK_SECONDS, seconds))
        return not self._leaves()


class _Plane:
    """The rehearsal that a run is in; "" for Modal itself, which is never gone."""

    def __init__(self, connection: str) -> None:
        self._connection = connection
        self._looked_at = -PLANE_SECONDS
        self.is_gone = False

    def look(self) -> bool:
        """Its process has ended. Cheap: it is seldom looked at."""
        now = time.monotonic()
        if self._connection and now - self._looked_at >= PLANE_SECONDS:
            self._looked_at = now
            self.is_gone = process.find(Path(self._connection)) is None
        return self.is_gone


def still_there_words(progress: StopProgress) -> str:
    """What is said of containers that do not go, while they are stopped."""
    left = f"its containers {' '.join(progress.containers)} are" if progress.containers else "it is"
    why = f" ({progress.message})" if progress.message else ""
    return f"{progress.app_id}: {left} still there after {duration(progress.seconds)}{why}"


def _environ(ref: CloudRef) -> dict[str, str]:
    return {"MODAL_ENVIRONMENT": ref.environment} if ref.environment else {}


async def _find(ref: CloudRef, created_at: float) -> _Found | None:
    """The newest app of the run's name, live or lately stopped."""
    rows = await asyncio.to_thread(ModalCli(_environ(ref)).app_list)
    ours = [
        (unix_seconds(row.created_at) or 0.0, row.app_id)
        for row in rows
        if row.description == ref.app_name
    ]
    ours = [one for one in ours if one[0] > created_at - _EARLIER_SECONDS]
    if not ours:
        return None
    app_id = max(ours)[1]
    app = await find_app(app_id)
    functions = list((await app.info.aio(refresh=True)).functions.values())
    call_id = await call_in_log(app)
    busy = False
    for function_id in functions if not call_id else ():
        function = modal_function(function_id)
        await function.hydrate.aio()
        stats = await function.get_current_stats.aio()
        busy = busy or bool(stats.backlog or stats.num_total_runners or stats.num_running_inputs)
    return _Found(app_id, functions[0] if functions else "", call_id, bool(call_id) or busy)


def _account() -> str:
    """Which one Modal is asked in, as a person names it: no token, and nothing asked."""
    try:
        account = read_account()
    except BadAccount as error:
        return str(error)
    parts = [f"profile {account.profile}" if account.profile else "the environment's token"]
    if account.environment:
        parts.append(f"environment {account.environment}")
    if account.server_url != SERVER_URL:
        parts.append(account.server_url)
    return ", ".join(parts)


async def _is_known(app_id: str) -> bool:
    import modal

    try:
        await find_app(app_id)
    except modal.exception.NotFoundError:
        return False
    return True


def modal_function(function_id: str) -> Any:
    """modal's handle of a function."""
    import modal

    return modal.Function.from_id(function_id)


async def _is_over(app_id: str) -> bool:
    """By Modal's word: a stop that was accepted is not one that has happened."""
    app = await find_app(app_id)
    return (await app.info.aio(refresh=True)).lifecycle.state.value in OVER


async def _stop(app_id: str) -> None:
    if not await _is_over(app_id):
        await (await find_app(app_id)).stop.aio()
