"""All live apps of an account: what they are, what they cost, and which of them nobody watches.

Every question to Modal has a time limit, and each may fail alone: what could be learnt is answered,
with the problem beside it.
"""

import time
from collections.abc import Callable, Coroutine, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from decimal import Decimal, InvalidOperation
from typing import Any, NamedTuple, TypeVar

import msgspec

from composer_engine.cloud_spec import ControlBeat, app_name
from composer_engine.contract import TAG_CAP_USD, TAG_LEASE_UNTIL, TAG_OWNER, TAG_RUN
from composer_tui.cloud import audit, rates_cache
from composer_tui.cloud.ledger import CloudRef, cloud_runs
from composer_tui.cloud.modal_cli import AppRow, ModalCli, unix_seconds
from composer_tui.cloud.modal_thread import within
from composer_tui.cloud.orphans import SETUP_SECONDS, Facts, Verdict, classify
from composer_tui.cloud.owner import owner_tag
from composer_tui.cloud.problems import CloudProblem, problem
from composer_tui.cloud.rates_cache import KnownRates
from composer_tui.cloud.seen import SEEN, Seen
from composer_tui.cloud.spending import Meter
from composer_tui.cloud.wire import App, Apps, Container, Problem
from composer_tui.numbers import duration
from composer_tui.pricing.catalog import UnknownGpu
from composer_tui.pricing.rates import Rates, container_usd_per_hour
from composer_tui.runs.folder import DamagedFolder, RunFolder
from composer_tui.runs.journal import read_tail
from composer_tui.runs.sanitise import clean, clean_event
from composer_tui.runs.state import ENDED, RunState, advance_all
from composer_tui.runs.store import RunStore

_T = TypeVar("_T")
_TOTAL_SECONDS = 12.0  # for all that is asked; nobody waits longer for a list
_LIST_SECONDS = 6.0
_LEAST_SECONDS = 0.5
_DETAIL_SECONDS = 4.0
_DETAILS_LAST_SECONDS = 300.0
_SKEW_SECONDS = 60.0
_CLOCK_LASTS_SECONDS = 300.0
_NONPREEMPTIBLE = 3  # times, on cores and memory, where there is no GPU

Boxes = Mapping[str, tuple[Container, ...]]


class Ledger(NamedTuple):
    """What this machine knows of a run on Modal."""

    folder: RunFolder
    ref: CloudRef


class _Listed(NamedTuple):
    """An app as whichever list said it. ``tasks`` is None where the list does not count them."""

    app_id: str
    name: str
    state: str
    created_at: float
    created_by: str = ""
    stopped_at: float = 0.0
    function_ids: tuple[str, ...] = ()
    tasks: int | None = None


def list_apps(
    store: RunStore,
    now: float,
    *,
    seen: Seen = SEEN,
    cli: ModalCli | None = None,
) -> Apps:
    """All live apps of this process's account, those that cost most first. Blocks for seconds.

    Raises nothing for Modal's sake: a list that cannot be had is the last one, with the problem.
    """
    until = time.monotonic() + _TOTAL_SECONDS
    with ThreadPoolExecutor(3, "apps") as pool:
        return _Asking(store, now, seen, cli, pool, until).apps()


class _Asking:
    """One list in the making. ``problem`` is the first thing that went wrong."""

    def __init__(
        self,
        store: RunStore,
        now: float,
        seen: Seen,
        cli: ModalCli | None,
        pool: ThreadPoolExecutor,
        until: float,
    ) -> None:
        self._now, self._seen, self._given_cli, self._pool = now, seen, cli, pool
        self._until = until
        self._as_of = now  # by this machine's clock; ages are told by Modal's
        self._store = store
        self._problem: Problem | None = None
        self._has_api = True

    def apps(self) -> Apps:
        boxes_to_come = self._pool.submit(self._cli().container_list)
        rates_to_come = self._pool.submit(
            rates_cache.current_rates, lambda: _from_modal("rates"), self._now
        )
        try:
            listed = self._list()
        except CloudProblem as failure:
            self._note(failure.problem)
            return self._last(rates_to_come.result())
        self._now -= self._clock_ahead()
        boxes = self._boxes(boxes_to_come.result)
        self._learn(listed)
        ledgers = self._ledgers()
        beats = self._beats(listed, ledgers)
        rates = rates_to_come.result()
        rows = []
        for app in listed:
            ledger = ledgers.get(app.app_id) or ledgers.get(app.name)
            rows.append(self._row(app, boxes, ledger, beats, rates.rates))
        self._tell_clock()
        rows.sort(key=_dearest_first)
        seen = self._seen
        seen.apps = {row.app_id: row for row in rows}
        seen.as_of = self._as_of
        seen.keep_only(seen.apps)
        return self._answer(tuple(rows), rates, self._as_of)

    def _left(self, seconds: float) -> float:
        """At most so many seconds, and no more than are left for all."""
        return max(_LEAST_SECONDS, min(seconds, self._until - time.monotonic()))

    def _cli(self) -> ModalCli:
        """The modal command line, with the time that is left."""
        return self._given_cli or ModalCli(call_seconds=self._left(_TOTAL_SECONDS))

    # What is asked of Modal.

    def _list(self) -> list[_Listed]:
        """By modal's client, else by its command line. Raises `CloudProblem`."""
        from composer_tui.cloud import modal_api

        first: CloudProblem | None = None
        try:
            live = within(self._left(_LIST_SECONDS), modal_api.live_apps(), "the list of apps")
            if not self._seen.environment:
                seconds = self._left(_DETAIL_SECONDS)
                self._seen.environment = within(seconds, modal_api.environment_name())
        except KeyError:
            pass  # a state that this version of modal has no name for; its command line does
        except CloudProblem as failure:
            if failure.problem.kind in ("no_token", "wrong_token"):
                raise
            self._has_api, first = False, failure
        else:
            return [_Listed(*app[:7]) for app in live]
        try:
            return [_from_row(row) for row in self._cli().app_list() if not row.is_over]
        except CloudProblem as second:
            if first and first.problem.kind == second.problem.kind == "timeout":
                message = f"Modal did not answer within {_TOTAL_SECONDS:g} s"
                raise CloudProblem(problem("timeout", message)) from None
            # What the command line prints says less of why than an error of the library's.
            raise (first if first and second.problem.kind == "refused" else second) from None

    def _clock_ahead(self) -> float:
        """How far this machine's clock is ahead of Modal's, in seconds; 0 where they agree.

        Leases, beats and containers are dated by clocks at Modal: by a wrong one here a healthy run
        looks expired, or an expired one healthy. Where Modal does not say its time, ours counts.
        """
        from composer_tui.cloud import modal_api

        seen, moment = self._seen, time.monotonic()
        is_due = seen.clock_seen_at is None or moment - seen.clock_seen_at > _CLOCK_LASTS_SECONDS
        if self._has_api and (is_due or seen.clock_ahead_seconds):
            began = time.time()
            theirs = self._try(modal_api.server_time(), _DETAIL_SECONDS)
            if theirs is not None:
                ahead = began - theirs if theirs > 0 else 0.0
                seen.clock_ahead_seconds = ahead if abs(ahead) > _SKEW_SECONDS else 0.0
                seen.clock_seen_at = moment
        return seen.clock_ahead_seconds

    def _tell_clock(self) -> None:
        ahead = self._seen.clock_ahead_seconds
        if ahead:
            how = "ahead of" if ahead > 0 else "behind"
            by = duration(abs(ahead))
            self._note(problem("clock", f"this machine's clock is {by} {how} Modal's"))

    def _boxes(self, result: Callable[[], list[Any]]) -> Boxes | None:
        """Containers by app; those of the last look where there is none now, None before any."""
        try:
            rows = result()
        except CloudProblem as failure:
            self._note(failure.problem)
            return self._seen.containers
        boxes: dict[str, tuple[Container, ...]] = {}
        for row in rows:
            box = Container(container_id=row.container_id, started_at=unix_seconds(row.start_time))
            boxes[row.app_id] = (*boxes.get(row.app_id, ()), box)
        self._seen.containers = boxes
        return boxes

    def _learn(self, listed: Iterable[_Listed]) -> None:
        """Tags and reservations of the apps that are new, or were not asked about lately."""
        from composer_tui.cloud import modal_api

        details = self._seen.details
        due = {
            app.app_id: app.function_ids
            for app in listed
            if app.app_id not in details
            or self._now - details[app.app_id][0] > _DETAILS_LAST_SECONDS
        }
        if not due or not self._has_api:
            return
        found = self._try(modal_api.details_of(due, _DETAIL_SECONDS), _DETAIL_SECONDS)
        for app_id, detail in (found or {}).items():
            details[app_id] = (self._now, detail)
        if unknown := due.keys() - details.keys():
            what = (
                f"{len(unknown)} of {len(details.keys() | unknown)} apps did not say what they are"
            )
            self._note(problem("timeout", what))

    def _beats(
        self, listed: Iterable[_Listed], ledgers: Mapping[str, Ledger]
    ) -> Mapping[str, ControlBeat] | None:
        """What the containers of our runs said last; None where that could not be read."""
        from composer_tui.cloud import modal_api

        names = [
            app.name
            for app in listed
            if app.name in ledgers or app.app_id in ledgers or self._tags(app.app_id).get(TAG_RUN)
        ]
        if not names:
            return {}
        if not self._has_api:
            return None
        return self._try(modal_api.read_beats(names, _DETAIL_SECONDS), _DETAIL_SECONDS)

    def _try(self, work: "Coroutine[Any, Any, _T]", seconds: float) -> _T | None:
        try:
            return within(self._left(seconds + 1), work)
        except CloudProblem as failure:
            self._note(failure.problem)
            return None

    def _is_idle(self, app: _Listed) -> bool:
        from composer_tui.cloud import modal_api

        if not self._has_api:
            return False
        try:
            return within(self._left(_DETAIL_SECONDS), modal_api.is_idle(app.function_ids))
        except CloudProblem:
            return False  # not known is not idle

    # What is made of it.

    def _row(
        self,
        app: _Listed,
        boxes: Boxes | None,
        ledger: Ledger | None,
        beats: Mapping[str, ControlBeat] | None,
        rates: Rates,
    ) -> App:
        tags = self._tags(app.app_id)
        beat = None if beats is None else beats.get(app.name)
        containers = () if boxes is None else boxes.get(app.app_id, ())
        gpu, price = self._price(app, ledger, rates)
        if boxes is None and app.tasks != 0:
            price = None  # how many there are is not known: neither is what they cost
        row = App(
            app_id=app.app_id,
            name=clean(app.name),
            state=app.state,
            created_at=app.created_at,
            containers=containers,
            gpu=gpu,
            usd_per_hour=price,
            spent_usd=self._spent(app, price, containers, beat),
            owner=clean(tags.get(TAG_OWNER) or app.created_by),
            run_id=ledger.folder.run_id if ledger else clean(tags.get(TAG_RUN, "")),
            lease_until=_lease(tags, beat, ledger),
            cap_usd=_decimal(tags.get(TAG_CAP_USD, "")) or _decimal(_ref(ledger).cap_usd),
            step=beat.step if beat else 0,
            total_steps=beat.total_steps if beat else 0,
            last_step_at=beat.last_step_at if beat else 0.0,
            checkpoint_step=beat.checkpoint_step if beat else 0,
            stopping_since=self._stopping_since(app),
        )
        verdict = self._verdict(app, row, ledger, beats)
        return msgspec.structs.replace(row, orphan=verdict.orphan, orphan_why=verdict.why)

    def _spent(
        self,
        app: _Listed,
        price: Decimal | None,
        containers: tuple[Container, ...],
        beat: ControlBeat | None,
    ) -> Decimal | None:
        """What was seen to run, or what its run has said of itself where that is more."""
        if price is None:
            return None
        meter = self._seen.meters.setdefault(app.app_id, Meter(price))
        meter.costs(price)
        meter.saw(containers, self._now)
        said = (_decimal(beat.spent_usd) if beat else None) or Decimal(0)
        return max(meter.total(self._now) or Decimal(0), said)

    def _verdict(
        self,
        app: _Listed,
        row: App,
        ledger: Ledger | None,
        beats: Mapping[str, ControlBeat] | None,
    ) -> Verdict:
        detail = self._seen.details.get(app.app_id)
        tags = self._tags(app.app_id)
        is_tagged = TAG_RUN in tags or ledger is not None
        beat = None if beats is None else beats.get(app.name)
        starts = [box.started_at for box in row.containers if box.started_at is not None]
        facts = Facts(
            state=app.state,
            created_at=app.created_at,
            is_ours=True if is_tagged else None if detail is None else False,
            newest_start=max(starts, default=None),
            is_launched_here=tags.get(TAG_OWNER) == owner_tag(),
            has_beats=beats is not None,
            beat=beat,
            step_seconds=_step_seconds(beat),
            lease_until=row.lease_until,
            stopping_since=row.stopping_since,
            idle_since=self._idle_since(app, row),
            burn_usd_per_hour=row.burn_usd_per_hour,
        )
        return classify(_with_ledger(facts, ledger), self._now)

    def _price(
        self, app: _Listed, ledger: Ledger | None, rates: Rates
    ) -> tuple[str, Decimal | None]:
        """The GPU as it was asked for, and a container at the dearest of what it may get."""
        detail = self._seen.details.get(app.app_id)
        needs = detail[1].needs if detail else ()
        if not needs:
            return "", _decimal(_ref(ledger).usd_per_hour)
        costs: list[tuple[Decimal, str]] = []
        unknown = ""
        for need in needs:
            text = "/".join(_gpu_text(*gpu) for gpu in need.gpus)
            for name, count in need.gpus or (("", 0),):
                cost = _cost(rates, name, count, need)
                if cost is None:
                    unknown = text or "CPU"
                else:
                    costs.append((cost, text))
        if unknown or not costs:
            return unknown.removesuffix("CPU"), _decimal(_ref(ledger).usd_per_hour)
        dearest = max(costs)
        return dearest[1], dearest[0]

    def _stopping_since(self, app: _Listed) -> float:
        """By Modal's word, by our own record of who stopped it, or since it was first seen so."""
        memory = self._seen.stopping_since
        if app.state != "stopping":
            memory.pop(app.app_id, None)
            return 0.0
        if app.app_id not in memory:
            memory[app.app_id] = app.stopped_at or _asked_to_stop_at(app.app_id) or self._now
        return memory[app.app_id]

    def _idle_since(self, app: _Listed, row: App) -> float:
        memory = self._seen.idle_since
        if app.state != "deployed" or not row.containers or not self._is_idle(app):
            memory.pop(app.app_id, None)
            return 0.0
        return memory.setdefault(app.app_id, self._now)

    def _ledgers(self) -> dict[str, Ledger]:
        """This machine's runs on Modal, by app id and by the app's name."""
        found: dict[str, Ledger] = {}
        for folder, ref in cloud_runs(self._store):
            if ref.ended:
                continue
            ledger = Ledger(folder, ref)
            found[ref.app_name or app_name(folder.run_id)] = ledger
            if ref.app_id:
                found[ref.app_id] = ledger
        return found

    def _tags(self, app_id: str) -> Mapping[str, str]:
        detail = self._seen.details.get(app_id)
        return detail[1].tags if detail else {}

    def _note(self, found: Problem) -> None:
        self._problem = self._problem or found

    def _last(self, rates: KnownRates) -> Apps:
        return self._answer(tuple(self._seen.apps.values()), rates, self._seen.as_of)

    def _answer(self, rows: tuple[App, ...], rates: KnownRates, as_of: float) -> Apps:
        return Apps(
            apps=rows,
            as_of=as_of,
            environment=self._seen.environment,
            rates_source=rates.rates.source,
            rates_as_of=rates.rates.as_of,
            problem=self._problem,
        )


def _from_modal(what: str) -> Mapping[str, Decimal]:
    from composer_tui.cloud import modal_api

    return within(_LIST_SECONDS, modal_api.rates(), what)


def _from_row(row: AppRow) -> _Listed:
    state = row.state.rstrip(".")
    return _Listed(
        app_id=row.app_id,
        name=row.description,
        state="detached" if state == "ephemeral (detached)" else state,
        created_at=unix_seconds(row.created_at) or 0.0,
        stopped_at=unix_seconds(row.stopped_at) or 0.0,
        tasks=row.task_count,
    )


def _with_ledger(facts: Facts, ledger: Ledger | None) -> Facts:
    """What this machine's run folder adds."""
    if ledger is None:
        return facts
    try:
        events = read_tail(ledger.folder.events_path)
    except OSError:
        events = []  # it has not begun to speak
    state = advance_all(RunState(), map(clean_event, events))
    try:
        config = ledger.folder.read_record().config.modal
    except DamagedFolder:
        pass
    else:
        facts = facts._replace(
            stall_seconds=config.stall_minutes * 60,
            setup_seconds=max(SETUP_SECONDS, float(config.startup_timeout_seconds)),
        )
    if state.life in ENDED:
        return facts._replace(ledger="over", over_since=state.ended_at or 0.0)
    return facts._replace(ledger="live" if ledger.ref.launched_at else "unlaunched")


def _lease(tags: Mapping[str, str], beat: ControlBeat | None, ledger: Ledger | None) -> float:
    """The latest that is known: a lease is only ever extended."""
    tagged = float(_decimal(tags.get(TAG_LEASE_UNTIL, "")) or 0)
    return max(tagged, beat.lease_until if beat else 0.0, _ref(ledger).lease_until)


def _step_seconds(beat: ControlBeat | None) -> float:
    """A step's mean, of a run in its first attempt; 0 where it cannot be told."""
    if beat is None or beat.attempt != 1 or not beat.step:
        return 0.0
    return max(0.0, beat.last_step_at - beat.attempt_started_at) / beat.step


def _asked_to_stop_at(app_id: str) -> float:
    try:
        lines = audit.read(audit.audit_path())
    except OSError:
        return 0.0
    return max((line.time for line in lines if line.app_id == app_id), default=0.0)


def _cost(rates: Rates, gpu: str, count: int, need: Any) -> Decimal | None:
    try:
        cost = container_usd_per_hour(
            rates, gpu, count, need.cpu_cores, need.memory_mib, need.region
        )
    except UnknownGpu:
        return None
    return cost * _NONPREEMPTIBLE if cost and need.nonpreemptible and not gpu else cost


def _gpu_text(name: str, count: int) -> str:
    return name if count == 1 else f"{name}:{count}"


def _ref(ledger: Ledger | None) -> CloudRef:
    return ledger.ref if ledger else CloudRef(app_name="")


def _decimal(text: str) -> Decimal | None:
    try:
        number = Decimal(text)
    except InvalidOperation:
        return None
    return number if number.is_finite() else None


def _dearest_first(app: App) -> tuple[bool, Decimal, float]:
    return (app.orphan == "UNTAGGED", -(app.burn_usd_per_hour or Decimal(0)), -app.created_at)
