"""Follow a run that is already there, or say once where it stands."""

import sys
import time
from collections.abc import Callable

import msgspec

from composer_engine.protocol import Unrecognized
from composer_tui.cloud.verdict import RETRIED
from composer_tui.headless.catching_up import standing_of
from composer_tui.headless.follow import follow
from composer_tui.headless.listing import run_facts
from composer_tui.headless.narrator import Narrator, failure_lines, step_line
from composer_tui.headless.notes import Closing, Notes
from composer_tui.headless.status import FAILED, FINISHED, exit_status
from composer_tui.runners.base import RunHandle
from composer_tui.runners.cloud import CloudRun
from composer_tui.runs.folder import DamagedFolder
from composer_tui.runs.state import RunState, advance
from composer_tui.runs.words import state_words


def watch_to_end(handle: RunHandle, *, as_json: bool) -> int:
    """Every event from the first; the exit status says how the run ended."""
    return tell_to_end(handle, as_json=as_json, heading=f"run {handle.folder.run_id}")


def tell_to_end(
    handle: RunHandle,
    *,
    as_json: bool,
    heading: str,
    wait: Callable[[float], None] = time.sleep,
    since_seq: int = 0,
) -> int:
    """Follow to the end. With ``as_json`` stdout gets the event lines as they are, only those.

    Of what came before ``since_seq``, in earlier attempts, nothing is told.
    """
    state, foreign = RunState(), 0
    with Narrator(quiet=as_json) as narrator:
        narrator.say(heading)
        notes = Notes(handle.folder) if isinstance(handle, CloudRun) else None
        closing = Closing()
        for line in follow(handle, wait=wait):
            if line is None:
                for note in notes.poll() if notes is not None else ():
                    narrator.warn(f"composer-tui: {note}")
                if notes is not None and (
                    said := closing.look(
                        state, time.monotonic(), may_go_on=_may_go_on(handle, state)
                    )
                ):
                    narrator.warn(f"composer-tui: {said}")
                continue
            if state.next_seq < since_seq:
                state = advance(state, line.event)
                continue
            if isinstance(line.event, Unrecognized) and line.event.seq is None:
                foreign += 1  # torn by a kill, or nothing of the stream's at all
            elif as_json:
                sys.stdout.buffer.write(line.raw + b"\n")
                sys.stdout.buffer.flush()
            state = advance(state, line.event)
            narrator.tell(line.event)
        for note in notes.poll() if notes is not None else ():
            narrator.warn(f"composer-tui: {note}")
        if closing.was_told:
            narrator.warn("composer-tui: it is gone")
    if foreign:
        print(f"composer-tui: left out {foreign} lines that are no events", file=sys.stderr)
    if not state.ended:
        # The engine is gone and its folder could not be given a last word.
        print("composer-tui: the run is over and does not say how", file=sys.stderr)
        return FAILED
    return exit_status(state)


def watch_once(handle: RunHandle, *, as_json: bool) -> int:
    """Where the run stands now, as a line or an object, and how old that is."""
    handle.settle()
    standing = standing_of(handle.folder)
    facts, state = run_facts(handle.folder)
    if as_json:
        sys.stdout.buffer.write(msgspec.json.encode(facts | standing.facts()) + b"\n")
        return FINISHED if _may_go_on(handle, state) else exit_status(state)
    narrator = Narrator(quiet=False)
    age = standing.words(time.time())
    goes_on = _may_go_on(handle, state)
    words = "the attempt failed; a new attempt is expected" if goes_on else state_words(state)
    narrator.say(f"{handle.folder.run_id}: {words}{f' ({age})' if age else ''}")
    if state.last is not None:
        narrator.say(step_line(state.last, state.total_steps))
    if state.failure is not None:
        for line in failure_lines(state.failure):
            narrator.say(line)
    return FINISHED if goes_on else exit_status(state)


def _may_go_on(handle: RunHandle, state: RunState) -> bool:
    """Its attempt failed in a way that Modal tries again, and its app is not seen to be gone."""
    failure = state.failure
    if not isinstance(handle, CloudRun) or failure is None or failure.kind not in RETRIED:
        return False
    try:
        retries = handle.folder.read_record().config.modal.retries
    except DamagedFolder:
        return False
    return 0 < state.attempt <= retries and handle.alive()
