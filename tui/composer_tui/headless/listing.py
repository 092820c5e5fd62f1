"""The Runs screen and one run's facts, as tables and as JSON."""

import sys
import time
from collections.abc import Iterator, Mapping
from typing import Any

import msgspec

from composer_engine.config import RunConfig, differences, field_text
from composer_engine.protocol import Event, Unrecognized
from composer_tui.headless.catching_up import NOT_ON_MODAL, Standing, catch_up, standing_of
from composer_tui.headless.narrator import failure_lines
from composer_tui.headless.tables import print_table
from composer_tui.numbers import DASH, dollars, duration, number
from composer_tui.runners.attach import attach
from composer_tui.runners.local import LocalRunner
from composer_tui.runs.cost import (
    AttemptCost,
    price,
    rate_words,
    read_costs,
    so_far,
    spent,
    spent_words,
)
from composer_tui.runs.feed import RunFeed
from composer_tui.runs.folder import RunFolder
from composer_tui.runs.framer import Framer
from composer_tui.runs.journal import read_line
from composer_tui.runs.sanitise import clean
from composer_tui.runs.state import RunState
from composer_tui.runs.store import RunStore, RunSummary
from composer_tui.runs.timeline import PhaseCost, Timeline, timeline
from composer_tui.runs.words import TAKEN_AWAY, life_word, state_words

_BLOCK = 1 << 18


def settle_all(store: RunStore) -> None:
    """Give a last word to every run whose engine died while nobody looked."""
    runner = LocalRunner(store)
    for folder in store.folders():
        attach(runner, folder).settle()


def print_runs(store: RunStore, *, as_json: bool) -> int:
    """All runs, the newest first."""
    settle_all(store)
    standings = catch_up(store, store.folders())
    summaries = store.summaries()
    if as_json:
        # A folder's name need not be UTF-8; JSON must be.
        rows = [
            msgspec.to_builtins(msgspec.structs.replace(one, run_id=clean(one.run_id)))
            | standings.get(one.run_id, NOT_ON_MODAL).facts()
            for one in summaries
        ]
        sys.stdout.buffer.write(msgspec.json.encode(rows) + b"\n")
    elif not summaries:
        print(f"no runs in {store.root}; start one: composer-tui run smoke")
    else:
        _print_table(summaries, standings)
    return 0


def _print_table(summaries: list[RunSummary], standings: Mapping[str, Standing]) -> None:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, pad_edge=False)
    for heading in ("RUN", "STATE"):
        table.add_column(heading, no_wrap=True)
    for heading in ("STEP", "REWARD", "AGE"):
        table.add_column(heading, justify="right", no_wrap=True)
    table.add_column("MODEL")
    table.add_column("NOTE")
    now = time.time()
    for summary in summaries:
        cells = (
            summary.run_id,
            life_word(summary.life, summary.ended_by),
            f"{summary.steps}/{summary.total_steps}",
            number(summary.reward_mean),
            duration(now - summary.created_at),
            summary.model or DASH,
            summary.damage
            or summary.failure
            or summary.guard_rail
            or (TAKEN_AWAY if summary.is_taken_away else "")
            or standings.get(summary.run_id, NOT_ON_MODAL).words(now),
        )
        # A folder's name is the one text here that no feed has cleaned.
        table.add_row(*(Text(clean(cell)) for cell in cells))
    # A pipe has no width to fit: nothing is cut there.
    console = Console() if sys.stdout.isatty() else Console(width=250)
    console.print(table)


def read_to_now(folder: RunFolder) -> RunFeed:
    """Everything that the run's folder holds at this moment."""
    feed = RunFeed(folder)
    try:
        while feed.poll() or not feed.caught_up:
            pass
    finally:
        feed.close()
    return feed


def run_facts(folder: RunFolder) -> tuple[dict[str, Any], RunState]:
    """What `show` and `watch --once` tell of a run, and the state they tell it from."""
    state = read_to_now(folder).state
    record = folder.read_record()
    facts = {
        "run_id": record.run_id,
        "folder": str(folder.path),
        "target": record.target,
        "life": state.life,
        "step": state.last.step if state.last else 0,
        "total_steps": state.total_steps or record.config.optimizer.steps,
        "model": state.model,
        "parameters": state.parameters,
        "device": state.device,
        "created_at": record.created_at,
        "started_at": state.started_at,
        "ended_at": state.ended_at,
        "last": state.last,
        "checkpoint": state.checkpoint,
        "alerts": state.alerts,
        "alert_count": state.alert_count,
        "finish": state.finish,
        "failure": state.failure,
        "missing_events": state.missing,
        "duplicate_events": state.duplicates,
        "unrecognized_lines": state.unrecognized,
        "config": record.config,
    }
    return facts, state


def print_run(folder: RunFolder, *, as_json: bool) -> int:
    """One run, whole."""
    attach(LocalRunner(RunStore(folder.path.parent)), folder).settle()  # its engine may be gone
    standing = standing_of(folder)
    facts, state = run_facts(folder)
    attempts = so_far(read_costs(folder), state)
    phases = timeline(_all_events(folder), attempts)
    if as_json:
        money = {
            "timeline": phases.phases,
            "attempts": attempts,
            "gpu_seconds": phases.gpu_seconds,
            "usd": spent(attempts).usd if attempts else None,
        }
        sys.stdout.buffer.write(msgspec.json.encode(facts | standing.facts() | money) + b"\n")
        return 0
    age = standing.words(time.time())
    for name, value in [*_lines(facts, state), *([("current", age)] if age else [])]:
        print(f"{name:<12}{clean(value)}")
    if state.failure is not None:
        print("\n".join(failure_lines(state.failure)))
    _print_timeline(phases, attempts)
    return 0


def _print_timeline(phases: Timeline, attempts: tuple[AttemptCost, ...]) -> None:
    """Where time and money went; a run on this machine has a timeline without money."""
    if not phases.phases:
        return
    print()
    print_table(("ATTEMPT", "PHASE", "TIME", "COST"), map(_phase_cells, phases.phases), "TIME COST")
    if not attempts:
        return
    print()
    headings = ("ATTEMPT", "CONTAINER", "GPU", "TIME", "$/H", "COST", "ENDED", "RETRY", "WHY")
    print_table(headings, map(_attempt_cells, attempts), "TIME $/H COST")
    times = (f"{duration(seconds)} of {name}" for name, seconds in phases.gpu_seconds.items())
    print(f"{spent_words(attempts)}: {', '.join(times)}, {rate_words(attempts[-1])}")


def _phase_cells(row: PhaseCost) -> tuple[str, ...]:
    more = "+?" if row.is_open else ""
    cost = dollars(row.usd, DASH) if row.attempt else "free"
    return (str(row.attempt or ""), row.phase, duration(row.seconds) + more, cost + more)


def _attempt_cells(one: AttemptCost) -> tuple[str, ...]:
    more = "" if one.ended_at is not None else "+?"
    retry = {True: "worth it", False: "no use", None: "?"}[one.worth_retrying]
    gpus = f"{one.gpus}x " if one.gpus > 1 else ""
    return (
        str(one.attempt),
        one.container_id or DASH,
        gpus + one.gpu_type,
        duration(one.seconds) + more,
        dollars(price(one.usd_per_hour)),
        dollars(one.usd) + more,
        one.outcome or "?",
        DASH if one.outcome in ("finished", "stopped") else retry,
        one.reason,
    )


def _all_events(folder: RunFolder) -> Iterator[Event | Unrecognized]:
    """The whole stream, as it is on disk at this moment."""
    framer = Framer()
    try:
        with folder.events_path.open("rb") as file:
            while data := file.read(_BLOCK):
                for line in framer.feed(data):
                    if line:
                        yield read_line(line)
    except FileNotFoundError:
        return


def _lines(facts: dict[str, Any], state: RunState) -> list[tuple[str, str]]:
    last = state.last
    end = state.ended_at or state.updated_at
    took = None if state.started_at is None or end is None else end - state.started_at
    channels = last.channels if last else None
    lines = [
        ("run", facts["run_id"]),
        ("state", state_words(state)),
        ("folder", facts["folder"]),
        ("model", f"{state.model}  {state.parameters:,} parameters" if state.model else DASH),
        ("device", state.device.name if state.device else DASH),
        ("step", f"{facts['step']}/{facts['total_steps']}"),
        ("time", f"{duration(took)} from its start, with what came before the first step"),
        ("reward", number(last.reward_mean if last else None)),
        ("grpo", number(channels.grpo if channels else None)),
        ("sdpo", number(channels.sdpo if channels else None)),
        ("replay", number(channels.replay if channels else None)),
        ("checkpoint", state.checkpoint.path if state.checkpoint else DASH),
        ("alerts", str(state.alert_count)),
    ]
    if not took:
        lines = [line for line in lines if line[0] != "time"]
    changed = differences(facts["config"], RunConfig())
    lines += [("config", f"{path} = {field_text(value)}") for path, _, value in changed]
    return lines
