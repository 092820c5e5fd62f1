"""A run on Modal, followed into its folder: its log as it comes, and its volume for the rest.

Runs on an event loop of its own, and every call has a time limit. What cannot be had now is tried
again, and log.txt says so; the run's events are complete in the end, each once.
"""

import asyncio
import contextlib
import time
from collections import Counter
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any

import msgspec

from composer_engine.config import ModalConfig
from composer_engine.contract import EVENTS_FILE, SPENDING_FILE
from composer_engine.protocol import Event, Logged, PhaseChanged, Unrecognized
from composer_tui.cloud.audit import own_stop
from composer_tui.cloud.cost_ledger import CostLedger
from composer_tui.cloud.ledger import CloudRef
from composer_tui.cloud.log_stream import LogStream, Sieve
from composer_tui.cloud.notebook import Begun, Chunk, Notebook
from composer_tui.cloud.problems import problem_of
from composer_tui.cloud.verdict import (
    PLANE_GONE,
    RETRIED,
    UNKNOWN,
    Ending,
    ending_of_error,
    ending_of_value,
    last_word,
    may_be_a_stop,
    stopped_word,
)
from composer_tui.cloud.wire import Problem
from composer_tui.runs.folder import DamagedFolder, RunFolder
from composer_tui.runs.framer import Framer
from composer_tui.runs.journal import read_line
from composer_tui.runs.log_end import read_log_end

TICK_SECONDS = 0.1
POLL_SECONDS = 1.0  # is the call over?
CALL_SECONDS = 20.0
SILENCE_SECONDS = 4.0  # so long an answer may take before that is told
HOLE_SECONDS = 4.0  # so long an event may be missing before the volume is asked for it
LANE_SECONDS = 0.5  # so long a new container's events wait for their place
AGAIN_SECONDS = 5.0
LOST_SECONDS = 60.0  # the volume is committed every 15 s: what it has not by then, nobody has
SAVE_SECONDS = 2.0
IDLE_SECONDS = 15.0  # an app without work, of which we do not know the call, is over
QUIET_SECONDS = 10.0  # for the log to end after the call has
RETRY_SECONDS = 3.0  # so long after a failure a call that is not retried is over
_VOLUME_TRIES = 20  # a minute and a half: a network that is gone for a moment loses no event


async def follow(
    folder: RunFolder, ref: CloudRef, notebook: Notebook, should_stop: Callable[[], bool]
) -> bool:
    """Until the call is over and its last word is written; False when told to stop before.

    Raises OSError when the folder cannot be written.
    """
    return await _Follower(folder, ref, notebook, should_stop).run()


def conclude(
    folder: RunFolder,
    ref: CloudRef,
    notebook: Notebook,
    ending: Ending,
    *,
    left: Path | None = None,
) -> None:
    """The last word from what there is, when nothing more can be had from Modal.

    ``left`` is the volume's copy of the events where this machine has it itself. Raises OSError.
    """
    follower = _Follower(folder, ref, notebook, lambda: True)
    if left is not None:
        with contextlib.suppress(FileNotFoundError):
            notebook.write_events(notebook.merge.take_volume(_events_in(left.read_bytes())))
    follower.conclude(ending)


class _Follower:
    def __init__(
        self, folder: RunFolder, ref: CloudRef, notebook: Notebook, should_stop: Callable[[], bool]
    ) -> None:
        self._folder, self._ref, self._notebook = folder, ref, notebook
        self._should_stop = should_stop
        try:
            self._config = folder.read_record().config.modal
        except DamagedFolder:
            self._config = ModalConfig()  # it is followed all the same; its volume's name is usual
        self._costs = CostLedger(folder, ref)
        position = notebook.position
        self._sieve = Sieve(Counter(position.recent), position.log_time)
        self._stream = LogStream(ref.app_id, self._sieve, 0.0)
        self._framers: dict[tuple[str, str], Framer] = {}
        self._events: list[tuple[str, Event]] = []
        self._lines: list[str] = []
        self._containers: list[str] = []
        self._ending: Ending | None = None
        self._idle_since: float | None = None
        self._held_since: float | None = None
        self._failed_at: float | None = None
        self._asked_volume_at = -AGAIN_SECONDS
        self._saved_at = 0.0
        self._changed = False
        self._is_deaf = False
        self._hears = False  # all of the log up to now, and what comes
        self._current_at = 0.0
        for begun in position.begun:
            self._framer(begun.container, begun.source).feed(begun.text.encode())

    async def run(self) -> bool:
        if not self._ref.app_id:  # Modal has forgotten it: its volume is all there is
            return await self._finish()
        if self._is_silent() and self._notebook.state.phase != "loading":
            self._say_phase("queued")
        reading = asyncio.create_task(self._stream.run(self._take, self._lose, self._hear))
        watching = asyncio.create_task(self._watch_call())
        try:
            while not (watching.done() or self._has_ended(reading)):
                await asyncio.sleep(TICK_SECONDS)
                self._flush()
                self._mark_current()
                self._notebook.remind()
                if self._should_stop():
                    self._save()
                    self._costs.write()
                    return False
                await self._fill_holes()
            if not reading.done():  # the call is over: its log ends soon
                await asyncio.wait({reading}, timeout=QUIET_SECONDS)
            self._flush()
            if (
                self._ref.call_id and not watching.done()
            ):  # the app is over: so is its call, if it ever says so
                await asyncio.wait({watching}, timeout=QUIET_SECONDS)
            if watching.done() and watching.exception() is None:
                self._ending = watching.result()
            return await self._finish()
        finally:
            for task in (reading, watching):
                task.cancel()
            await asyncio.gather(reading, watching, return_exceptions=True)

    def _has_ended(self, reading: "asyncio.Task[None]") -> bool:
        """The log has come to its end. When it cannot be read at all, the call tells the end."""
        if not reading.done():
            return False
        error = reading.exception()
        if error is None:
            return True
        found = problem_of(error)
        if found is None:
            raise error
        if not self._is_deaf:
            self._is_deaf = True
            self._notebook.note(f"the log cannot be read: {found.message}")
        return False

    # What the log tells.

    def _take(self, chunk: Chunk) -> None:
        if chunk.container and chunk.container not in self._containers:
            self._saw(chunk.container)
        if chunk.container:
            self._costs.saw(chunk.container, chunk.time)
        for line in self._framer(chunk.container, chunk.source).feed(chunk.text.encode()):
            self._take_line(chunk, line)
        self._changed = True

    def _take_line(self, chunk: Chunk, line: bytes) -> None:
        event = _event_in(line) if chunk.source == "stdout" else None
        if event is not None:
            self._events.append((chunk.container, event))
            self._costs.heard(chunk.container, event)
        elif line:
            self._lines.append(line.decode("utf-8", "replace").rstrip("\r"))

    def _saw(self, container: str) -> None:
        self._containers.append(container)
        if self._is_silent():
            self._say_phase("loading")
        before = self._notebook.merge.lane
        if before and before != container:
            self._notebook.say(
                Logged(
                    level="warning",
                    message=f"container {before} has ended; the run goes on in {container}",
                )
            )

    def _framer(self, container: str, source: str) -> Framer:
        return self._framers.setdefault((container, source), Framer())

    def _lose(self, problem: Problem) -> None:
        self._hears = False
        self._notebook.lost("log", problem.message)

    def _hear(self) -> None:
        self._hears, self._current_at = True, time.time()
        self._notebook.back("log")

    def _mark_current(self) -> None:
        """What came until Modal last answered is written. Raises OSError."""
        if self._current_at and self._hears and not self._notebook.merge.held:
            self._notebook.mark_current(self._current_at)
            self._current_at = 0.0

    def _flush(self) -> None:
        """Writes what came. Raises OSError."""
        merge, notebook = self._notebook.merge, self._notebook
        lines, self._lines = self._lines, []
        events, self._events = self._events, []
        notebook.write_lines(lines)
        due: list[Event] = []
        for lane, event in events:
            due += merge.take(lane, [event])
        notebook.write_events(due)
        now = time.monotonic()
        if self._changed and now - self._saved_at > SAVE_SECONDS:
            self._save()

    def _save(self, *, is_over: bool = False) -> None:
        """Not while events are held: whoever comes after us must hear them again.

        Nor while what was told before is still being told again: the rest would count as new.
        """
        if self._notebook.merge.held or not (self._hears or is_over):
            return
        begun = [
            Begun(
                container=container, source=source, text=framer.partial.decode("utf-8", "replace")
            )
            for (container, source), framer in self._framers.items()
            if framer.partial
        ]
        self._notebook.save_position(self._sieve.newest, self._sieve.recent(), begun)
        self._saved_at, self._changed = time.monotonic(), False

    # What the volume tells.

    async def _fill_holes(self) -> None:
        merge, now = self._notebook.merge, time.monotonic()
        if not merge.held:
            self._held_since = None
            return
        self._held_since = self._held_since or now
        waited = now - self._held_since
        patience = LANE_SECONDS if merge.has_new_lane else HOLE_SECONDS
        if waited < patience or now - self._asked_volume_at < AGAIN_SECONDS:
            return
        self._asked_volume_at = now
        if await self._read_volume() and waited > LOST_SECONDS:
            self._notebook.write_events(merge.give_up())

    async def _read_volume(self) -> bool:
        """The log once more and then the volume's copy, into the merge; False if it cannot be."""
        try:
            if self._ref.app_id:
                await self._stream.fetch_all(self._take)
                self._flush()
            events = await self._volume_events()
            self._costs.take_book(await self._volume_book())
        except Exception as error:  # the border: `problem_of` says whether it is the way to Modal
            found = problem_of(error)
            if found is None:
                raise
            self._notebook.lost("volume", f"the run's volume: {found.message}")
            return False
        self._notebook.back("volume")
        self._notebook.write_events(self._notebook.merge.take_volume(events))
        return True

    async def _volume_events(self) -> list[Event]:
        import modal

        name, environment = self._config.runs_volume, self._config.environment or None
        volume = modal.Volume.from_name(name, environment_name=environment)
        path = f"{self._folder.run_id}/{EVENTS_FILE}"
        blocks, read = volume.read_file.aio(path), list[bytes]()
        try:
            while True:
                async with asyncio.timeout(CALL_SECONDS):
                    block = await anext(blocks, None)
                if block is None:
                    break
                read.append(block)
        except (FileNotFoundError, modal.exception.NotFoundError):
            return []  # nothing has been committed yet
        return _events_in(b"".join(read))

    async def _volume_book(self) -> bytes:
        """What the containers wrote of their own times; nothing before the first commit."""
        import modal

        name, environment = self._config.runs_volume, self._config.environment or None
        volume = modal.Volume.from_name(name, environment_name=environment)
        try:
            async with asyncio.timeout(CALL_SECONDS):
                blocks = volume.read_file.aio(f"{self._folder.run_id}/{SPENDING_FILE}")
                return b"".join([block async for block in blocks])
        except (FileNotFoundError, modal.exception.NotFoundError):
            return b""

    # What Modal says of the call.

    async def _watch_call(self) -> Ending:
        """Returns when the call is over."""
        while True:
            ending, asked_at = None, time.monotonic()
            try:
                async with asyncio.timeout(CALL_SECONDS):
                    ending = await self._impatiently(self._look())
            except TimeoutError as error:
                self._lose_call(error)
            except Exception as error:  # noqa: BLE001  # the border: it is the call's result
                ending = await self._outcome(error)
                if ending is None:
                    self._lose_call(error)
            else:
                self._current_at = time.time()
                self._notebook.back("call")
                if ending is None:
                    self._expect_attempt(asked_at)
            if ending is not None:
                return ending
            await asyncio.sleep(POLL_SECONDS)

    def _lose_call(self, error: Exception) -> None:
        found = problem_of(error)
        if found is not None:
            self._notebook.lost("call", found.message)

    def _expect_attempt(self, asked_at: float) -> None:
        """The call went on then: after a failure that is tried again the run waits for its turn."""
        failure = self._notebook.state.failure
        if failure is None:
            self._failed_at = None
            return
        self._failed_at = asked_at if self._failed_at is None else self._failed_at
        tries = self._costs.failed_attempts
        if failure.kind not in RETRIED or tries > self._config.retries:
            return
        if asked_at - self._failed_at >= RETRY_SECONDS:
            self._notebook.note(
                f"the attempt failed; retry {tries} of {self._config.retries} is expected"
            )
            self._say_phase("queued")
            self._failed_at = None

    async def _impatiently(self, look: Coroutine[Any, Any, Ending | None]) -> Ending | None:
        """Says soon that nothing comes, and waits on: a way may be lost in silence."""
        task = asyncio.ensure_future(look)
        try:
            done, _ = await asyncio.wait({task}, timeout=SILENCE_SECONDS)
            if not done:
                self._notebook.lost("call", f"no answer for {SILENCE_SECONDS:g} s")
            return await task
        finally:
            task.cancel()

    async def _look(self) -> Ending | None:
        import modal

        if self._is_silent() and not self._containers:
            await self._look_for_container()
        if not self._ref.call_id:
            return await self._look_for_work()
        call = modal.FunctionCall.from_id(self._ref.call_id)
        try:
            value = await call.get.aio(timeout=0)
        except TimeoutError:
            return None  # Modal's answer: it goes on
        except KeyboardInterrupt as error:
            return ending_of_error(error)
        return ending_of_value(value)

    async def _outcome(self, error: Exception) -> Ending | None:
        """What the call ended with; None when it is only that Modal cannot be asked now."""
        is_engines = type(error).__module__.split(".")[0] == "composer_engine"
        if is_engines or type(error).__name__ in _RESULTS:
            return ending_of_error(error)
        if problem_of(error) is not None:
            return UNKNOWN if type(error).__name__ == "NotFoundError" else None
        # The function's, or this machine's own trouble: only what does not work any more is over.
        return ending_of_error(error) if await self._does_nothing() else None

    async def _does_nothing(self) -> bool:
        """By Modal's word; False when it cannot be asked."""
        try:
            async with asyncio.timeout(CALL_SECONDS):
                stats = await self._stats()
        except Exception:  # noqa: BLE001  # whatever keeps Modal from being asked tells nothing
            return False
        if stats is None:
            return False
        return not (stats.num_total_runners or stats.backlog or stats.num_running_inputs)

    async def _look_for_container(self) -> None:
        stats = await self._stats()
        if stats is not None:
            self._say_phase("loading" if stats.num_total_runners else "queued")

    async def _look_for_work(self) -> Ending | None:
        stats = await self._stats()
        if stats is None or stats.num_total_runners or stats.backlog or stats.num_running_inputs:
            self._idle_since = None
            return None
        now = time.monotonic()
        self._idle_since = self._idle_since or now
        return UNKNOWN if now - self._idle_since > IDLE_SECONDS else None

    async def _stats(self) -> Any:
        import modal

        if not self._ref.function_id:
            return None
        function = modal.Function.from_id(self._ref.function_id)
        await function.hydrate.aio()
        return await function.get_current_stats.aio()

    def _is_silent(self) -> bool:
        """No engine has said anything yet."""
        return not self._notebook.merge.record.segments

    def _say_phase(self, phase: Any) -> None:
        if self._notebook.state.phase != phase:
            self._notebook.say(PhaseChanged(phase=phase))

    # The end.

    async def _finish(self) -> bool:
        """Everything that either source has, and the last word; False when told to stop before."""
        for attempt in range(_VOLUME_TRIES):
            if await self._read_volume():
                break
            await asyncio.sleep(min(attempt, AGAIN_SECONDS))
            if self._should_stop():
                self._save()
                return False
        ending = self._ending or UNKNOWN
        self.conclude(PLANE_GONE if ending == UNKNOWN and _lost_its_plane(self._ref) else ending)
        return True

    def conclude(self, ending: Ending) -> None:
        """The last word, after all that is known. Raises OSError."""
        notebook = self._notebook
        notebook.write_events(notebook.merge.give_up())
        for (container, source), framer in self._framers.items():
            rest = framer.flush()
            if rest:
                chunk = Chunk(time=0.0, source=source, container=container, text="")
                self._take_line(chunk, rest)
        self._flush()
        if not notebook.state.ended:
            last = notebook.state.last
            steps = last.step if last else 0
            word = self._own_stop(steps) if may_be_a_stop(ending) else None
            log = read_log_end(self._folder.log_path)
            notebook.say(word or last_word(ending, log, steps))
        self._costs.over(notebook.state, time.time(), notebook.merge.newest)
        self._save(is_over=True)

    def _own_stop(self, steps: int) -> Event | None:
        """The last word, where this machine's audit has a stop of the app."""
        stop = own_stop(self._ref.app_id)
        if stop is None:
            return None
        return stopped_word(stop, steps, is_started=self._notebook.merge.is_started)


# What modal raises for a call that is over, though it is no error of the function's.
_RESULTS = frozenset(
    {"FunctionTimeoutError", "RemoteError", "InputCancellation", "OutputExpiredError"}
)


class _Stamp(msgspec.Struct, frozen=True):
    time: float


_stamps = msgspec.json.Decoder(_Stamp)


def _lost_its_plane(ref: CloudRef) -> bool:
    """Its rehearsal was started again since the launch: its containers ended with the first."""
    if not ref.connection:
        return False
    try:
        return Path(ref.connection).stat().st_mtime > ref.launched_at
    except OSError:
        return True


def _events_in(data: bytes) -> list[Event]:
    """The events in a file's whole lines."""
    found = (_event_in(line) for line in Framer().feed(data))
    return [event for event in found if event is not None]


def _event_in(line: bytes) -> Event | None:
    """The event in a line; None for a line that is none.

    An event of a newer version, or one that is too long, keeps its place as a line for people.
    """
    event = read_line(line)
    if not isinstance(event, Unrecognized):
        return event
    if event.seq is None:
        return None
    time = 0.0
    with contextlib.suppress(msgspec.DecodeError, UnicodeDecodeError):
        time = _stamps.decode(line).time
    return Logged(seq=event.seq, time=time, level="warning", message=f"not shown: {event.reason}")
