"""`gc` and `lease`: ending what has outlived its lease or its run, and extending what has not."""

import sys
import time

import msgspec

from composer_tui.cloud.problems import CloudProblem, problem
from composer_tui.cloud.wire import Problem, StopProgress
from composer_tui.headless.apps import ask_for_apps, is_current
from composer_tui.headless.consent import has_consent
from composer_tui.headless.naming import in_its_account
from composer_tui.headless.stop_targets import CannotStop, CloudTarget
from composer_tui.headless.stopping import (
    REFUSED,
    by_hand_lines,
    quiet_teller,
    result_line,
    stop_cloud,
    volumes_line,
)
from composer_tui.headless.troubles import print_failure, print_problem, status_of
from composer_tui.numbers import dollars, duration
from composer_tui.runs.sanitise import clean
from composer_tui.runs.store import RunStore

_ROUNDS = 3  # an app that shows up while others are being stopped is stopped, too


def collect(store: RunStore, *, yes: bool, as_json: bool) -> int:
    """Stops expired leases and what runs left behind, and reads again until there is none.

    Silent when there is nothing. 0 when nothing is left, as far as all could be looked at, and 2
    without consent. Raises `CannotStop`.
    """
    from composer_tui.cloud.lease import left_over

    stopped: dict[str, StopProgress] = {}
    left, told = [], list[Problem]()
    for is_last in (*(False,) * _ROUNDS, True):
        now = time.time()  # from cron nothing is to be said while there is nothing to tell
        apps = ask_for_apps(store, now, quietly=as_json or not sys.stderr.isatty())
        if not is_current(apps, now):
            if apps.problem is None:
                return status_of(None)
            return print_failure(apps.problem, as_json=as_json)
        if apps.problem is not None and apps.problem not in told:
            told.append(apps.problem)
            print_problem(apps.problem)
        left = left_over(apps)
        if not left or is_last:
            break
        if not yes:
            lines = [f"  {app.name}  {app.app_id}  {app.orphan_why}" for app in left]
            consent = has_consent([f"stop {len(left)}:", *lines], str(len(left)))
            if consent is None:
                raise CannotStop(f"would stop {len(left)}: say --yes where there is no terminal")
            if not consent:
                return REFUSED
        targets = [CloudTarget(app.app_id, app.name, app=app) for app in left]
        for result in stop_cloud(store, targets, "graceful", None, quiet_teller()):
            stopped |= {app.app_id: app for app in result.apps}
    if as_json:
        zero = not left
        answer = {"zero": zero, "apps": list(stopped.values())}
        sys.stdout.buffer.write(msgspec.json.encode(answer) + b"\n")
    else:
        for progress in stopped.values():
            print(result_line(progress))
            for line in by_hand_lines(progress, None):
                print(line)
        if stopped:
            print(volumes_line())
    unknown = [found for found in told if found.kind != "clock"]
    return 1 if left or unknown else 0


def extend_lease(store: RunStore, text: str, minutes: float) -> int:
    """Prints the lease's new end, and what it may cost until then. Raises `CloudProblem`."""
    named = in_its_account(store, text)
    app_id = named.which
    if named.folder is not None and named.ref.ended:
        raise CloudProblem(problem("refused", f"{named.folder.run_id} has ended: it has no lease"))
    from composer_tui.cloud.lease import extend

    now = time.time()
    apps = ask_for_apps(store, now)
    if not is_current(apps, now) and apps.problem is not None:
        print_problem(apps.problem)
        return status_of(apps.problem)
    app = next((app for app in apps.apps if app_id in (app.app_id, app.run_id, app.name)), None)
    if app is None and not app_id.startswith("ap-"):
        message = f"neither a run here nor a live app on Modal is called {clean(text)!r}"
        raise CloudProblem(problem("refused", message, "composer-tui apps"))
    until = extend(store, app.app_id if app else app_id, minutes, now)
    burn = app.burn_usd_per_hour if app else None
    most = f"; at most {dollars(burn * round(until - now) / 3600)} until then" if burn else ""
    stamp = time.strftime("%Y-%m-%d %H:%M", time.localtime(until))
    name = named.folder.run_id if named.folder is not None else text
    print(f"{name}: its lease ends {stamp}, in {duration(until - now)}{most}")
    return 0
