"""`containers` and `logs`: what runs on Modal, and what it prints."""

import sys
import time
from collections import deque

import msgspec

from composer_engine.protocol import RunStarted, StepCompleted, Unrecognized, decode
from composer_tui.cloud.app_logs import LogLine, follow_logs, read_logs
from composer_tui.cloud.containers import (
    ContainerLine,
    FunctionLine,
    find_app,
    function_stats,
    list_containers,
)
from composer_tui.cloud.known_failures import diagnose
from composer_tui.cloud.wire import Problem
from composer_tui.headless.naming import in_its_account
from composer_tui.headless.narrator import Narrator, step_line
from composer_tui.headless.tables import local_time, print_table
from composer_tui.headless.troubles import asking_modal
from composer_tui.numbers import duration
from composer_tui.runs.sanitise import clean, clean_event
from composer_tui.runs.store import RunStore

_EVIDENCE_LINES = 200


class _Listing(msgspec.Struct, frozen=True, kw_only=True):
    containers: list[ContainerLine]
    functions: list[FunctionLine]


def print_containers(store: RunStore, app: str, *, as_json: bool) -> int:
    """Containers of the environment; of one app also how busy its functions are."""
    which = in_its_account(store, app).which if app else ""
    with asking_modal(quietly=as_json):
        app_id = find_app(which) if which else ""
        listing = _Listing(
            containers=list_containers(app_id),
            functions=function_stats(app_id) if app_id else [],
        )
    if as_json:
        sys.stdout.buffer.write(msgspec.json.encode(listing) + b"\n")
        return 0
    now = time.time()
    if listing.containers:
        print_table(
            ("CONTAINER", "APP", "NAME", "STARTED", "UP"),
            [
                (
                    row.container_id,
                    row.app_id,
                    row.app_name,
                    local_time(row.started_at) if row.started_at else "pending",
                    duration(now - row.started_at) if row.started_at else "",
                )
                for row in listing.containers
            ],
            right="UP",
        )
    else:
        print("no containers run")
    if listing.functions:
        print()
        print_table(
            ("FUNCTION", "CONTAINERS", "INPUTS RUNNING", "WAITING"),
            [
                (row.name, str(row.containers), str(row.running_inputs), str(row.waiting_inputs))
                for row in listing.functions
            ],
            right="CONTAINERS INPUTS RUNNING WAITING",
        )
    return 0


def print_logs(
    store: RunStore,
    text: str,
    *,
    follow: bool,
    since: float | None,
    tail: int,
    timestamps: bool,
    as_json: bool,
) -> int:
    """The lines, and on stderr what they say of a known failure."""
    which = in_its_account(store, text).which
    evidence: deque[str] = deque(maxlen=_EVIDENCE_LINES)
    teller = _Teller(timestamps=timestamps)
    with asking_modal(quietly=as_json) as heard:

        def show(line: LogLine) -> None:
            heard()
            text = clean(line.text)
            evidence.append(text)
            if as_json:
                cleaned = msgspec.structs.replace(line, text=text)
                sys.stdout.buffer.write(msgspec.json.encode(cleaned) + b"\n")
            else:
                teller.take(line, text)
            if follow:
                sys.stdout.flush()

        if follow:
            follow_logs(which, show, _trouble, tail=tail)
        else:
            read_logs(which, show, since=since, tail=tail)
    sys.stdout.flush()
    if diagnosis := diagnose("\n".join(evidence)):
        print(f"composer-tui: {diagnosis.what} (try: {diagnosis.fix})", file=sys.stderr)
    return 0


class _Teller(Narrator):
    """Lines as they are; those that are a run's events are told in words, every step of them."""

    def __init__(self, *, timestamps: bool) -> None:
        super().__init__(quiet=False)
        self._timestamps, self._time, self._steps = timestamps, 0.0, 0

    def take(self, line: LogLine, text: str) -> None:
        self._time = line.time
        event = decode(line.text.encode()) if line.text.startswith("{") else None
        match event:
            case None | Unrecognized(seq=None):
                self.say(text)
            case StepCompleted():
                self.say(step_line(event, self._steps))
            case _:
                if isinstance(event, RunStarted):
                    self._steps = event.total_steps
                self.tell(clean_event(event))

    def say(self, text: str) -> None:
        when = f"{local_time(self._time)} " if self._timestamps and self._time else ""
        sys.stdout.write(f"{when}{text}\n")


def _trouble(problem: Problem) -> None:
    print(f"composer-tui: {problem.message}; connecting again", file=sys.stderr, flush=True)
