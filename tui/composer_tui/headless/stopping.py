"""`stop`: end runs and apps, and say of each, once it is verified, how it ended."""

import contextlib
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence

import msgspec

from composer_tui.cloud.kill_rules import dashboard_url, stop_command
from composer_tui.cloud.ledger import mark_gone
from composer_tui.cloud.problems import CloudProblem
from composer_tui.cloud.wire import StopProgress, StopResult
from composer_tui.headless.consent import has_consent
from composer_tui.headless.stop_targets import (
    OWN_ACCOUNT,
    CannotStop,
    CloudTarget,
    Request,
    Targets,
    account,
    describe,
    find_targets,
)
from composer_tui.headless.troubles import (
    TO_MEND,
    TOKEN_PROBLEMS,
    check_account,
    print_failure,
    telling,
)
from composer_tui.numbers import dollars, duration
from composer_tui.runners.base import RunHandle, StopReport
from composer_tui.runs.stop_mode import StopMode
from composer_tui.runs.store import RunStore

REFUSED = 2
LAST_WORDS_SECONDS = 8.0
_LOOK_SECONDS = 0.05
_SILENCE_SECONDS = 4.0  # a little more passes until it is told
GIVE_UP_SECONDS = 900.0  # where nobody watches, a stop that does not end must not hang for ever


def stop_run(handle: RunHandle, mode: StopMode, grace: float | None, *, as_json: bool) -> int:
    """One run of this machine. 0 only when no process of it is left."""
    run_id = handle.folder.run_id
    if not as_json and handle.alive():
        verb = "stopping at once" if mode == "now" else "saving and stopping"
        print(f"{run_id}: {verb}...", file=sys.stderr)
    with telling(f"{run_id}: still stopping"):
        report = handle.stop(mode, grace)
    if as_json:
        sys.stdout.buffer.write(msgspec.json.encode({"run_id": run_id} | report._asdict()) + b"\n")
    else:
        print(_report_line(run_id, report))
    return 0 if report.ended else 1


def stop_all(store: RunStore, request: Request) -> int:
    """0 only when nothing is left of any of it; 2 when there was no consent.

    Raises `CannotStop`.
    """
    try:
        targets = find_targets(store, request)
        if any(target.connection == OWN_ACCOUNT for target in targets.cloud):
            check_account()
    except CloudProblem as failure:
        return print_failure(failure.problem, as_json=request.as_json)
    if len(request.names) == 1 and len(targets.local) == 1 and not targets.cloud:
        mode, grace = request.mode, request.grace_seconds
        return stop_run(targets.local[0], mode, grace, as_json=request.as_json)
    if not targets.number:
        return _nothing(targets, request)
    if not request.yes:
        word = "STOP" if request.every else "y" if targets.number == 1 else str(targets.number)
        consent = has_consent(describe(targets, request.mode), word)
        if consent is None:
            raise CannotStop(f"would stop {targets.number}: say --yes where there is no terminal")
        if not consent:
            print("composer-tui: nothing was stopped", file=sys.stderr)
            return REFUSED
    return _carry_out(store, targets, request)


def stop_cloud(
    store: RunStore,
    targets: Sequence[CloudTarget],
    mode: StopMode,
    grace_seconds: float | None,
    on_progress: Callable[[StopProgress], object],
) -> list[StopResult]:
    """Stops apps, each in its account, all accounts at once. Blocks until verified."""
    by_account: dict[str, list[CloudTarget]] = {}
    for target in targets:
        by_account.setdefault(target.connection, []).append(target)
    results: list[StopResult] = []

    def one(connection: str, group: list[CloudTarget]) -> None:
        grace = grace_seconds
        if grace is None:
            grace = max(target.grace_seconds for target in group)
        try:
            results.append(_stop_in(store, connection, group, mode, grace, on_progress))
        except CloudProblem as failure:  # there is no way at all to this account
            results.append(_not_stopped(group, failure))

    *others, first = by_account.items()
    threads = [threading.Thread(target=one, args=item, daemon=True) for item in others]
    for thread in threads:
        thread.start()
    one(*first)  # here, where ctrl+c is heard: it is noted what was not verified
    for thread in threads:
        thread.join()
    return results


def tell(progress: StopProgress) -> None:
    """Where a stop is, on stderr."""
    name = f"{progress.name} ({progress.app_id})" if progress.name else progress.app_id
    left = f", {len(progress.containers)} left" if progress.containers else ""
    note = f": {progress.message}" if progress.message else ""
    words = progress.stage.replace("_", " ")
    print(f"{name}: {words}{left} [{duration(progress.seconds)}]{note}", file=sys.stderr)


def quiet_teller(
    last: dict[str, StopProgress] | None = None,
) -> Callable[[StopProgress], None]:
    """Tells what is new, and after some silence how it stands. ``last`` is kept up to date."""
    told: dict[str, tuple[object, ...]] = {}
    told_at: dict[str, float] = {}

    def on_progress(progress: StopProgress) -> None:
        if last is not None:
            last[progress.app_id] = progress
        now = (progress.stage, progress.containers, progress.message)
        last_at = told_at.get(progress.app_id, -_SILENCE_SECONDS)
        is_due = progress.seconds - last_at >= _SILENCE_SECONDS
        if (is_due or told.get(progress.app_id) != now) and progress.stage != "gone":
            tell(progress)
            told_at[progress.app_id] = progress.seconds
        told[progress.app_id] = now

    return on_progress


def result_line(progress: StopProgress) -> str:
    """How the stop of one app ended: "gone" is only said of what was verified."""
    name = f"{progress.name} ({progress.app_id})" if progress.name else progress.app_id
    took = duration(progress.seconds)
    if progress.stage == "gone":
        saved = "saved and gone" if progress.saved else "gone"
        cost = f", final {dollars(progress.final_usd)}" if progress.final_usd is not None else ""
        return f"{name}: {saved} in {took}, 0 containers left{cost}"
    if progress.stage == "failed":
        return f"{name}: NOT stopped: {progress.message}"
    left = " ".join(progress.containers) or "its containers could not be listed"
    note = f"; {progress.message}" if progress.message else ""
    return f"{name}: NOT verified as gone after {took}: {left}{note}"


def by_hand_lines(progress: StopProgress, target: CloudTarget | None) -> list[str]:
    """Of an app that was not seen to end: what it goes on costing, and what a person can try."""
    if progress.stage == "gone":
        return []
    if target is not None and target.connection != OWN_ACCOUNT:
        again = f"composer-tui stop {target.run_id or progress.app_id} --now --yes"
        return ["  it costs nothing: a rehearsal", f"  try: {again}"]
    burn = progress.usd_per_hour
    if burn is None and target is not None and target.usd_per_hour is not None:
        burn = target.usd_per_hour * max(1, len(progress.containers))
    if burn:
        costs = f"up to {dollars(burn)}/h"
    else:
        costs = "nothing by the hour as far as is known" if burn == 0 else "at a price not known"
    return [
        f"  may go on costing: {costs}",
        f"  look: {dashboard_url(progress.app_id)}",
        f"  try:  {progress.by_hand or stop_command(progress.app_id)}",
    ]


def volumes_line(*, is_rehearsed: bool = False) -> str:
    """What goes on costing when all containers are gone."""
    if is_rehearsed:
        return "volumes stay on this machine, with their checkpoints: they cost nothing"
    from composer_tui.cloud.rates_cache import kept_rates

    rate = kept_rates(time.time()).rates.usd_per_hour.get("volume_storage_gib_month_cost")
    price = f"{dollars(rate)} per GiB-month" if rate is not None else "by the GiB-month"
    return f"volumes stay, with their checkpoints: {price} beyond what the plan has free"


def _nothing(targets: Targets, request: Request) -> int:
    if request.as_json:
        _write_json([], [], targets.over, 0.0, zero=True)
    else:
        for run_id in targets.over:
            print(f"{run_id}: was already over")
        if not targets.over:
            print("nothing to stop")
    return 0


def _carry_out(store: RunStore, targets: Targets, request: Request) -> int:
    began = time.monotonic()
    reports: dict[str, StopReport] = {}

    def stop_one(handle: RunHandle) -> None:
        run_id = handle.folder.run_id
        try:
            reports[run_id] = handle.stop(request.mode, request.grace_seconds)
        except OSError as error:
            print(f"{run_id}: NOT stopped: {error.strerror or error}", file=sys.stderr)

    threads = [
        threading.Thread(target=stop_one, args=(handle,), daemon=True) for handle in targets.local
    ]
    for thread in threads:
        thread.start()
    results: list[StopResult] = []
    if targets.cloud:
        mode, grace = request.mode, request.grace_seconds
        last: dict[str, StopProgress] = {}
        try:
            results = stop_cloud(store, targets.cloud, mode, grace, quiet_teller(last))
        except KeyboardInterrupt:
            _tell_interrupted(targets.cloud, last)
            raise
    waits = telling("still stopping what runs on this machine") if threads else None
    with waits or contextlib.nullcontext():
        for thread in threads:
            thread.join()
    stopped = [app for result in results for app in result.apps]
    gone = {app.app_id for app in stopped if app.stage == "gone"}
    zero = (
        all(target.app_id in gone for target in targets.cloud)
        and len(reports) == len(targets.local)
        and all(report.ended for report in reports.values())
    )
    if request.as_json:
        seconds = time.monotonic() - began
        is_rehearsed = all(target.connection for target in targets.cloud)
        _write_json(
            stopped,
            list(reports.items()),
            targets.over,
            seconds,
            zero=zero,
            still_costs=volumes_line(is_rehearsed=is_rehearsed) if stopped else "",
        )
    else:
        _print_outcome(stopped, reports, targets.over, targets.cloud)
    sys.stdout.flush()
    _see_out(store, [target for target in targets.cloud if target.app_id in gone])
    if not zero and stopped and all(app.kind in TOKEN_PROBLEMS for app in stopped):
        return TO_MEND
    return 0 if zero else 1


def _see_out(store: RunStore, targets: Sequence[CloudTarget]) -> None:
    """The runs' own records of their end, for those who look at them: nothing spends any more."""
    from composer_tui.cloud.accounts import for_commands
    from composer_tui.runners.cloud import CloudRun

    with contextlib.suppress(OSError):  # whoever follows them sees their end, too
        mark_gone(store, {target.app_id for target in targets})
    accounts = for_commands(store)
    left = [CloudRun(target.folder, accounts) for target in targets if target.folder is not None]
    deadline = time.monotonic() + LAST_WORDS_SECONDS
    try:
        while left and time.monotonic() < deadline:
            left = [run for run in left if not run.settle()]
            time.sleep(_LOOK_SECONDS)
    finally:
        accounts.close()


def _stop_in(
    store: RunStore,
    connection: str,
    group: Sequence[CloudTarget],
    mode: StopMode,
    grace_seconds: float,
    on_progress: Callable[[StopProgress], object],
) -> StopResult:
    ids = [target.app_id for target in group]
    if connection != OWN_ACCOUNT:
        return account(store, connection).stop(ids, mode, grace_seconds, on_progress)
    from composer_tui.cloud.kill import LIMITS, stop_apps

    limits = LIMITS if sys.stderr.isatty() else LIMITS._replace(give_up=GIVE_UP_SECONDS)
    return stop_apps(ids, mode, grace_seconds, on_progress, limits=limits)


def _tell_interrupted(targets: Sequence[CloudTarget], last: Mapping[str, StopProgress]) -> None:
    """Ctrl-C: what was not seen to end is named, and the command that goes on."""
    left = [
        target
        for target in targets
        if (seen := last.get(target.app_id)) is None or seen.stage != "gone"
    ]
    for target in left:
        seen = last.get(target.app_id)
        boxes = " ".join(seen.containers) if seen is not None else ""
        containers = f" (seen last: {boxes})" if boxes else ""
        name = f"{target.name} ({target.app_id})" if target.name else target.app_id
        print(f"composer-tui: NOT verified as gone: {name}{containers}", file=sys.stderr)
    if left:
        names = " ".join(target.run_id or target.app_id for target in left)
        print(f"composer-tui: go on with: composer-tui stop {names} --now --yes", file=sys.stderr)


def _not_stopped(group: Sequence[CloudTarget], failure: CloudProblem) -> StopResult:
    message = failure.problem.message
    return StopResult(
        apps=tuple(
            StopProgress(
                app_id=target.app_id, name=target.name, stage="failed", seconds=0.0, message=message
            )
            for target in group
        ),
        seconds=0.0,
    )


def _print_outcome(
    stopped: Sequence[StopProgress],
    reports: dict[str, StopReport],
    over: Sequence[str],
    targets: Sequence[CloudTarget],
) -> None:
    for run_id in over:
        print(f"{run_id}: was already over")
    for run_id, report in reports.items():
        print(_report_line(run_id, report))
    by_id = {target.app_id: target for target in targets}
    for progress in stopped:
        print(result_line(progress))
        for line in by_hand_lines(progress, by_id.get(progress.app_id)):
            print(line)
    gone = [by_id.get(progress.app_id) for progress in stopped if progress.stage == "gone"]
    if gone:
        print(volumes_line(is_rehearsed=all(one and one.connection for one in gone)))


def _report_line(run_id: str, report: StopReport) -> str:
    left = f"; still alive: {', '.join(map(str, report.left))}" if report.left else ""
    return f"{run_id}: {report.how} ({report.seconds:.1f} s){left}"


def _write_json(
    stopped: Sequence[StopProgress],
    reports: Sequence[tuple[str, StopReport]],
    over: Sequence[str],
    seconds: float,
    *,
    zero: bool,
    still_costs: str = "",
) -> None:
    answer = {
        "zero": zero,
        "seconds": round(seconds, 3),
        "apps": stopped,
        "runs": [{"run_id": run_id} | report._asdict() for run_id, report in reports],
        "already_over": over,
        "still_costs": still_costs,
    }
    sys.stdout.buffer.write(msgspec.json.encode(answer) + b"\n")
