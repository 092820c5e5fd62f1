"""The kill switch: ends apps on Modal, and returns when it has seen that nothing of them is left.

Two ways lead to Modal: its client in this process, and its command line in a fresh one. What the
first does not get through in time, the second does; what is left is always looked up by the second.
The rules, and all that may be claimed, are in `kill_rules`. modal itself is not imported here.
"""

import queue
import re
import threading
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import NamedTuple

from composer_engine.cloud_spec import ControlBeat
from composer_tui.cloud import audit
from composer_tui.cloud import kill_rules as rules
from composer_tui.cloud.account_check import SERVER_URL, BadAccount, read_account
from composer_tui.cloud.cloud import OnProgress
from composer_tui.cloud.kill_look import look_at
from composer_tui.cloud.kill_rules import Limits, Look, Track
from composer_tui.cloud.modal_cli import ModalCli, UnknownApp
from composer_tui.cloud.modal_thread import within
from composer_tui.cloud.problems import CloudProblem, problem, problem_of
from composer_tui.cloud.reach import obstacle, way_to
from composer_tui.cloud.seen import SEEN
from composer_tui.cloud.spending import Meter
from composer_tui.cloud.wire import App, StopProgress, StopResult
from composer_tui.runs.stop_mode import StopMode

LIMITS = Limits()
_APP_ID = re.compile(r"ap-[A-Za-z0-9]{22}")
_COMMANDS_AT_ONCE = 4
_TICK_SECONDS = 0.1
_DEAF_SECONDS = 600.0  # a container that has not spoken for so long may not hear either
_SPEAK_SECONDS = 25.0  # within which one that can hear has spoken twice
_FIRST_LOOK_SECONDS = 1.5
_WAY_SECONDS = 2.0
_WHY = "stopped from composer-tui"

_Change = Callable[[Track, float], Track]  # before, now -> after


class Clock(NamedTuple):
    """Where the time comes from: seconds that only go on, and unix seconds."""

    monotonic: Callable[[], float] = time.monotonic
    wall: Callable[[], float] = time.time


def stop_apps(
    app_ids: Sequence[str],
    mode: StopMode,
    grace_seconds: float,
    on_progress: OnProgress,
    *,
    known: Mapping[str, App] | None = None,
    limits: Limits = LIMITS,
    audit_path: Path | None = None,
    give_up: Callable[[], bool] = lambda: False,
    clock: Clock = Clock(),  # noqa: B008  # immutable
) -> StopResult:
    """Ends apps of this process's account, all at once. Blocks; raises nothing for an app.

    "graceful" asks those that can hear it to save, and gives them ``grace_seconds``; the others are
    stopped at once. Returns when every app is gone, as verified, or could not even be asked; it
    goes on beyond all limits until then, or until ``give_up()``, and tells ``on_progress``
    (in this thread) at each change and every few seconds. ``known`` is what was last listed: names
    and prices come from there.
    """
    return _Stop(
        app_ids,
        mode,
        grace_seconds,
        on_progress,
        known=SEEN.apps if known is None else known,
        cli=ModalCli(call_seconds=limits.cli),
        use_api=True,
        limits=limits,
        audit_path=audit_path or audit.audit_path(),
        give_up=give_up,
        clock=clock,
    ).run()


def emergency_stop(
    app_ids: Sequence[str],
    environ: Mapping[str, str],
    on_progress: OnProgress,
    *,
    known: Mapping[str, App] | None = None,
    limits: Limits = LIMITS,
    audit_path: Path | None = None,
    give_up: Callable[[], bool] = lambda: False,
    clock: Clock = Clock(),  # noqa: B008  # immutable
) -> StopResult:
    """The same, at once and by the modal command line alone: for when all else hangs.

    ``environ`` lies over this process's own environment and names the account.
    """
    return _Stop(
        app_ids,
        "now",
        0.0,
        on_progress,
        known=SEEN.apps if known is None else known,
        cli=ModalCli(environ, limits.cli),
        use_api=False,
        limits=limits,
        audit_path=audit_path or audit.audit_path(),
        give_up=give_up,
        clock=clock,
    ).run()


class _Stop:
    """One stop of some apps. Only one thread changes its tracks; the others post what they saw."""

    def __init__(
        self,
        app_ids: Sequence[str],
        mode: StopMode,
        grace_seconds: float,
        on_progress: OnProgress,
        *,
        known: Mapping[str, App],
        cli: ModalCli,
        use_api: bool,
        limits: Limits,
        audit_path: Path,
        give_up: Callable[[], bool],
        clock: Clock,
    ) -> None:
        self._mode, self._grace_seconds, self._on_progress = mode, grace_seconds, on_progress
        self._known, self._cli, self._use_api = known, cli, use_api
        self._limits, self._audit_path, self._clock = limits, audit_path, clock
        self._asked_to_give_up = give_up
        self._began_at = clock.monotonic()
        grace = grace_seconds if mode == "graceful" and use_api else None
        self._server_url, environment = _account(cli.environ)
        self._tracks = {
            app_id: rules.begun(app_id, self._name(app_id), self._began_at, grace, environment)
            for app_id in dict.fromkeys(app_ids)
        }
        self._meters = {app_id: self._meter(app_id) for app_id in self._tracks}
        self._told: dict[str, tuple[Track, float]] = {}
        self._posts: queue.SimpleQueue[tuple[Iterable[str], _Change]] = queue.SimpleQueue()
        self._looks: queue.SimpleQueue[Look] = queue.SimpleQueue()
        self._unnoted = ""
        self._in_the_way = ""
        self._has_client = use_api
        self._reached = threading.Event()
        self._sent = threading.Event()
        self._wake = threading.Event()
        self._done = threading.Event()

    def run(self) -> StopResult:
        self._audit("before", self._tracks.values())
        for app_id in self._tracks:
            if not _APP_ID.fullmatch(app_id):
                why = f"{app_id!r} is no app id: those are ap- and 22 letters and digits"
                self._change([app_id], partial(rules.failed, why=why))
        try:
            self._tell()
            if any(track.is_saving for track in self._tracks.values()):
                self._start(self._save)
            self._start(self._look_on)
            self._start(self._try_the_way)
            while self._open() and not self._gives_up():
                self._take_posts()
                self._tick()
                self._tell()
        finally:
            self._done.set()
            self._wake.set()
            left = [track for track in self._tracks.values() if track.is_open]
            self._audit("after", left)  # an end that was not seen is written down as that
        now = self._clock.monotonic()
        return StopResult(
            apps=tuple(self._progress(track, now) for track in self._tracks.values()),
            seconds=now - self._began_at,
        )

    def _open(self) -> list[Track]:
        return [track for track in self._tracks.values() if track.is_open]

    def _gives_up(self) -> bool:
        limit = self._limits.give_up
        if limit is not None and self._clock.monotonic() - self._began_at >= limit:
            return True
        return self._asked_to_give_up()

    def _take_posts(self) -> None:
        """What other threads saw, for a moment at most."""
        try:
            app_ids, change = self._posts.get(timeout=_TICK_SECONDS)
            self._change(app_ids, change)
            while True:
                app_ids, change = self._posts.get_nowait()
                self._change(app_ids, change)
        except queue.Empty:
            pass
        while not self._looks.empty():
            self._take_look(self._looks.get())

    def _take_look(self, look: Look) -> None:
        if look.problem is None:
            self._reached.set()
        if look.containers is not None:
            for app_id, meter in self._meters.items():
                if self._tracks[app_id].is_open:
                    meter.saw(look.containers.get(app_id, ()), self._clock.wall())
        self._change(
            list(self._tracks), lambda track, now: rules.saw(track, look, now, self._limits)
        )

    def _tick(self) -> None:
        self._change(list(self._tracks), lambda track, now: rules.ticked(track, now, self._limits))
        now = self._clock.monotonic()
        if due := [track.app_id for track in self._open() if rules.to_send(track, now)]:
            self._change(due, rules.sending)
            self._start(lambda: self._send(due))
        escalating = [t for t in self._open() if rules.to_escalate(t, now, self._limits)]
        if boxes := [box for track in escalating for box in track.containers or ()]:
            self._change([track.app_id for track in escalating], rules.escalated)
            self._start(lambda: self._stop_containers(boxes))
        if due := [t.app_id for t in self._open() if rules.to_plead(t, now, self._limits)]:
            self._change(due, lambda track, _now: rules.pleading(track))
            if self._has_client:
                self._start(lambda: self._plead(due))

    def _change(self, app_ids: Iterable[str], change: _Change) -> None:
        """The one place where a track changes."""
        now = self._clock.monotonic()
        ended: list[Track] = []
        for app_id in app_ids:
            before = self._tracks[app_id]
            after = change(before, now)
            self._tracks[app_id] = after
            if before.is_open and not after.is_open:
                ended.append(after)
        self._audit("after", ended)

    # What other threads do. Each ends by itself, for each of its calls has a time limit.

    def _start(self, work: Callable[[], None]) -> None:
        threading.Thread(target=work, name="stop", daemon=True).start()

    def _post(self, app_ids: Iterable[str], change: _Change) -> None:
        self._posts.put((app_ids, change))

    def _send(self, app_ids: Sequence[str]) -> None:
        left = self._send_by_client(app_ids) if self._use_api else list(app_ids)
        self._each(left, self._send_by_command)
        self._sent.set()
        self._wake.set()

    def _send_by_client(self, app_ids: Sequence[str]) -> list[str]:
        """Those that it did not get through for."""
        from composer_tui.cloud import modal_api

        left = set(app_ids)
        reason = problem("server", "modal's client failed")

        def on_result(app_id: str, failure: CloudProblem | None) -> None:
            if failure is None:
                left.discard(app_id)
                self._post([app_id], lambda track, _now: rules.accepted(track))
            else:
                found = failure.problem
                self._post([app_id], lambda track, _now: rules.first_way_failed(track, found))

        limit = self._limits.api
        try:
            within(limit + 1, modal_api.stop_all(app_ids, limit, on_result), "modal's client")
        except Exception as error:  # noqa: BLE001  # whatever ails it, there is a second way
            reason = problem_of(error) or problem("server", f"modal's client failed: {error!r}")
            self._post(list(left), lambda track, _now: rules.first_way_failed(track, reason))
        if len(left) == len(app_ids):
            self._use_api = False  # it got through for none: the next try need not wait for it
        return [app_id for app_id in app_ids if app_id in left]

    def _send_by_command(self, app_id: str) -> None:
        try:
            self._cli.stop_app(app_id)
        except UnknownApp as unknown:
            why = unknown.problem.message
            self._post([app_id], partial(rules.failed, why=why))
        except CloudProblem as failure:
            found = failure.problem
            self._post([app_id], lambda track, now: rules.no_way(track, found, now, self._limits))
        else:
            self._post([app_id], lambda track, _now: rules.accepted(track))

    def _stop_containers(self, container_ids: Sequence[str]) -> None:
        self._each(container_ids, self._stop_container)
        self._wake.set()

    def _stop_container(self, container_id: str) -> None:
        try:
            self._cli.stop_container(container_id)
        except CloudProblem:
            return  # the next look tells what is left, and it is tried again

    def _each(self, items: Sequence[str], work: Callable[[str], None]) -> None:
        """Some commands at a time; none any more when the stop has been given up."""
        if not items:
            return

        def unless_done(item: str) -> None:
            if not self._done.is_set():
                work(item)

        with ThreadPoolExecutor(min(_COMMANDS_AT_ONCE, len(items))) as pool:
            list(pool.map(unless_done, items))

    def _plead(self, app_ids: Sequence[str]) -> None:
        """Asks runs of ours to end themselves: where Modal's own stop does nothing, that may."""
        from composer_tui.cloud import modal_api

        try:
            names = self._names(app_ids)
            beats = within(self._limits.api, modal_api.read_beats(names.values(), 6.0))
            able = {name for name, beat in beats.items() if beat.state != "ended"}
            asked = within(self._limits.api, modal_api.put_stop_asks(able, _WHY, 6.0))
        except Exception:  # noqa: BLE001  # it was a last resort, and the stop goes on without
            return
        told = [app_id for app_id, name in names.items() if asked.get(name, _WHY) is None]
        self._post(told, lambda track, _now: rules.pleaded(track))

    def _try_the_way(self) -> None:
        """Says soon what is in the way to Modal: its client and command line are long silent."""
        way = way_to(self._server_url, self._cli.environ)
        while way is not None and not self._reached.is_set():
            found = obstacle(way)
            self._in_the_way = found.message if found is not None else ""
            if found is None or self._done.wait(_WAY_SECONDS):
                return
        self._in_the_way = ""

    def _save(self) -> None:
        """Asks runs to save and listens to what they say, until none is saving any more."""
        from composer_tui.cloud import modal_api

        waiting = [track.app_id for track in self._open() if track.is_saving]
        try:
            names = self._names(waiting)
            beats = within(self._limits.api, modal_api.read_beats(names.values(), 6.0))
            able = {name for name, beat in beats.items() if beat.state != "ended"}
            asked = within(self._limits.api, modal_api.put_stop_asks(able, _WHY, 6.0))
        except Exception as error:  # noqa: BLE001  # spending ends also where nobody can be asked
            found = problem_of(error) or problem("server", f"modal's client failed: {error!r}")
            self._use_api = found.kind != "timeout"
            self._deny(waiting, f"could not be asked to save ({found.message})")
            return
        for app_id in waiting:
            name = names.get(app_id, "")
            if name in asked and asked[name] is None:
                self._post([app_id], self._told_to_save)
            elif name in able:
                self._deny([app_id], "could not be asked to save")
            else:
                self._deny([app_id], "nothing in it can be asked to save")
        doubtful = {name: beats[name].time for name in able if self._is_old(beats[name])}
        doubted_until = self._clock.monotonic() + _SPEAK_SECONDS
        while not self._done.wait(self._limits.beat):
            if not any(track.is_saving for track in self._open()):
                return
            try:
                beats = within(self._limits.api, modal_api.read_beats(names.values(), 6.0))
            except CloudProblem:
                continue  # its grace ends anyway
            if self._clock.monotonic() >= doubted_until:
                silent = {n for n, time in doubtful.items() if n in beats and beats[n].time <= time}
                self._deny(
                    [i for i, n in names.items() if n in silent], "it does not speak any more"
                )
                doubtful.clear()
            for app_id, name in names.items():
                beat = beats.get(name)
                self._post([app_id], partial(rules.heard, beat=beat))

    def _told_to_save(self, track: Track, _now: float) -> Track:
        return rules.told_to_save(track, self._grace_seconds)

    def _is_old(self, beat: ControlBeat) -> bool:
        """It does not speak any more, or this machine's clock and its own do not agree."""
        return self._clock.wall() - beat.time >= _DEAF_SECONDS

    def _deny(self, app_ids: Iterable[str], why: str) -> None:
        self._post(list(app_ids), partial(rules.not_asked, why=why))

    def _names(self, app_ids: Sequence[str]) -> dict[str, str]:
        """The apps' names, by which their containers are spoken to."""
        from composer_tui.cloud import modal_api

        names = {app_id: self._name(app_id) for app_id in app_ids}
        if not all(names.values()):
            live = within(self._limits.api, modal_api.live_apps())
            names |= {app.app_id: app.name for app in live if app.app_id in names}
        return {app_id: name for app_id, name in names.items() if name}

    def _look_on(self) -> None:
        """Looks at Modal's lists until the stop is over."""
        if not any(track.is_saving for track in self._open()):
            self._sent.wait(_FIRST_LOOK_SECONDS)  # nothing can have ended before,
            self._done.wait(self._limits.poll)  # and hardly anything at once
        while not self._done.is_set():
            self._wake.clear()
            self._looks.put(look_at(self._cli, [track.app_id for track in self._open()]))
            self._wake.wait(self._pause())

    def _pause(self) -> float:
        is_slow = all(track.is_saving or track.stage == "alarm" for track in self._open())
        return self._limits.slow_poll if is_slow else self._limits.poll

    # What is said of it.

    def _tell(self) -> None:
        now = self._clock.monotonic()
        for app_id, track in self._tracks.items():
            last = self._told.get(app_id)
            is_due = track.is_open and last is not None and now - last[1] >= self._limits.tell
            if last is None or last[0] != track or is_due:
                self._told[app_id] = (track, now)
                try:
                    self._on_progress(self._progress(track, now))
                except Exception:  # noqa: BLE001, S112  # a terminal that is gone keeps nothing alive
                    continue

    def _progress(self, track: Track, now: float) -> StopProgress:
        known = self._known.get(track.app_id)
        is_known = track.stage == "gone" or known is not None
        price = known.usd_per_hour if known is not None else None
        left = len(track.containers) if track.containers is not None else None
        if left is None and known is not None:
            left = len(known.containers)
        return StopProgress(
            app_id=track.app_id,
            name=track.name,
            stage=track.stage,
            seconds=(track.ended_at or now) - track.began_at,
            containers=track.containers or (),
            message="; ".join(filter(None, self._parts(track))),
            saved=track.saved,
            final_usd=self._meters[track.app_id].total(self._clock.wall()) if is_known else None,
            kind=track.kind,
            usd_per_hour=price * left if price is not None and left is not None else None,
            by_hand=rules.stop_command(track.app_id, track.environment),
        )

    def _parts(self, track: Track) -> tuple[str, ...]:
        way = "" if track.accepted or track.kind is not None else self._in_the_way
        if track.stage == "failed":
            return (way or track.message, self._unnoted)
        if way:
            return (way, "trying on", self._unnoted)
        return (way, track.message, track.note, self._unnoted)

    def _audit(self, when: "audit.When", tracks: Iterable[Track]) -> None:
        now, wall = self._clock.monotonic(), self._clock.wall()
        lines = [
            audit.line_of(
                wall,
                when,
                track.app_id,
                track.name,
                self._mode,
                result=track.stage if when == "after" else "",
                seconds=now - track.began_at,
                message=track.message if when == "after" else "",
            )
            for track in tracks
        ]
        if not lines:
            return
        try:
            audit.append(self._audit_path, lines)
        except OSError as error:
            # A full disk keeps nobody from ending what costs money; that it was not noted is said.
            self._unnoted = f"not noted in {self._audit_path.name}: {error.strerror or error}"

    def _name(self, app_id: str) -> str:
        app = self._known.get(app_id)
        return app.name if app is not None else ""

    def _meter(self, app_id: str) -> Meter:
        app = self._known.get(app_id)
        return Meter(app.usd_per_hour, app.containers) if app is not None else Meter(None)


def _account(environ: Mapping[str, str]) -> tuple[str, str]:
    """The server's address, and the environment ("": the usual one), of a process's account."""
    try:
        account = read_account(environ)
    except BadAccount:
        return SERVER_URL, ""
    return account.server_url, account.environment or SEEN.environment
