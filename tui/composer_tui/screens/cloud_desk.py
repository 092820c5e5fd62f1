"""What the app has to do with Modal: it looks, launches, stops and extends, each in a thread.

Nothing here waits: what comes of it is posted. Which account a run is in, its folder says.
"""

import math
import threading
from collections.abc import Callable, Sequence
from typing import Literal

from textual.message import Message

from composer_engine.config import ConfigError, RunConfig
from composer_tui.cloud.account_check import BadAccount, read_account
from composer_tui.cloud.accounts import OWN, Accounts
from composer_tui.cloud.ledger import cloud_runs
from composer_tui.cloud.problems import CloudProblem, problem
from composer_tui.cloud.rates_cache import kept_rates
from composer_tui.cloud.reach import obstacle, way_to
from composer_tui.cloud.wire import Apps, Problem, StopProgress
from composer_tui.messages import (
    AppsListed,
    AppStopTold,
    CloudLaunched,
    LaunchRefused,
    LeaseExtended,
)
from composer_tui.numbers import duration
from composer_tui.pricing.rates import Rates
from composer_tui.runners.cloud import CloudRunner
from composer_tui.runners.local import LaunchFailed
from composer_tui.runs.sanitise import clean
from composer_tui.runs.stop_mode import StopMode
from composer_tui.runs.store import RunStore
from composer_tui.widgets.app_status import ENDING

LOOK_SECONDS = 5.0  # while the apps are on the screen
GLANCE_SECONDS = 30.0  # for the header

Post = Callable[[Message], object]


class CloudDesk:
    """``accounts`` are the ways to Modal; ``has_account``: the user has a token for their own."""

    def __init__(
        self, store: RunStore, accounts: Accounts, post: Post, *, has_account: bool
    ) -> None:
        self.accounts = accounts
        self._store, self._post, self._has_account = store, post, has_account
        self._stops: list[AppsStop] = []
        self._apps = Apps()
        self._listing = False
        self._looked_at = 0.0
        self._every_seconds = math.inf

    def look(self, now: float, every_seconds: float) -> None:
        """Have the live apps listed, if that is due; posts `AppsListed`.

        Whoever wants news more often than before gets some at once.
        """
        if every_seconds < self._every_seconds:
            self._looked_at = 0.0
        self._every_seconds = every_seconds
        if self._listing or now - self._looked_at < every_seconds:
            return
        self._looked_at = now
        if not self._has_account:
            if self._apps.problem is None:
                self._apps = Apps(problem=problem("no_token"))
                self._post(AppsListed(self._apps))
            return
        self._listing = True
        _start(self._list)

    def look_now(self, now: float) -> None:
        """The same, because something has changed or a person asked."""
        self._looked_at = 0.0
        self.look(now, self._every_seconds)

    def rates(self, now: float) -> Rates:
        """The prices that were last heard, or the snapshot."""
        return kept_rates(now).rates

    def launch(self, config: RunConfig, target: Literal["modal", "rehearsal"]) -> None:
        """Launch; posts `CloudLaunched` or `LaunchRefused`."""
        _start(lambda: self._launch(config, target))

    def stop(self, app_ids: Sequence[str], mode: StopMode, grace_seconds: float) -> None:
        """Stop apps, each in its account; posts `AppStopTold` for all that happens.

        A stop at once that is under way goes on by itself: another one beside it would only
        contradict it.
        """
        connections = {ref.app_id: ref.connection for _, ref in cloud_runs(self._store)}
        by_account: dict[str, list[str]] = {}
        for app_id in app_ids:
            if any(stop.is_ending(app_id) for stop in self._stops):
                continue
            by_account.setdefault(connections.get(app_id, OWN), []).append(app_id)
        for connection, group in by_account.items():
            names = {app.app_id: app.name for app in self._apps.apps}
            stop = AppsStop(self.accounts, connection, group, names, self._post)
            self._stops.append(stop)
            stop.start(mode, grace_seconds)

    def stops_under_way(self) -> list["AppsStop"]:
        """The stops whose outcome is not known yet."""
        return [stop for stop in self._stops if not stop.shown]

    def extend(self, app_id: str, minutes: float) -> None:
        """Extend a lease; posts `LeaseExtended`."""
        connections = {ref.app_id: ref.connection for _, ref in cloud_runs(self._store)}

        def ask() -> None:
            try:
                cloud = self.accounts(connections.get(app_id, OWN))
                self._post(LeaseExtended(app_id, cloud.extend_lease(app_id, minutes)))
            except CloudProblem as error:
                self._post(LeaseExtended(app_id, None, _words(error.problem)))

        _start(ask)

    def close(self) -> None:
        """Let the helper processes go. Runs go on."""
        self.accounts.close()

    def _list(self) -> None:
        try:
            self._apps = self.accounts(OWN).apps()
        except CloudProblem as error:
            last = self._apps
            self._apps = Apps(
                apps=last.apps,
                as_of=last.as_of,
                environment=last.environment,
                rates_source=last.rates_source,
                rates_as_of=last.rates_as_of,
                problem=error.problem,
            )
        self._listing = False
        self._post(AppsListed(self._apps))

    def _launch(self, config: RunConfig, target: Literal["modal", "rehearsal"]) -> None:
        if target == "modal" and (found := _in_the_way()) is not None:
            self._refuse("modal was not reached", _words(found))
            return
        try:
            handle = CloudRunner(self._store, target, self.accounts).start(config)
        except ConfigError as error:
            self._post(refusal(error))
        except LaunchFailed as error:
            self._refuse(f"{target} was not reached", str(error))
        except OSError as error:
            where = f"{error.filename}: " if error.filename else ""
            self._refuse("no run folder", f"{where}{error.strerror or error}")
        else:
            self._post(CloudLaunched(handle))

    def _refuse(self, title: str, words: str) -> None:
        self._post(LaunchRefused(title, clean(words)))


class AppsStop:
    """One stop of some apps, carried out beside whatever asked for it.

    ``shown``: nothing is left to be told about it.
    """

    def __init__(
        self,
        accounts: Accounts,
        connection: str,
        app_ids: Sequence[str],
        names: "dict[str, str]",
        post: Post,
    ) -> None:
        self._accounts, self._connection = accounts, connection
        self._app_ids, self._names, self._post = tuple(app_ids), names, post
        self._last: dict[str, StopProgress] = {}
        self._thread: threading.Thread | None = None
        self._mode: StopMode = "graceful"
        self.shown = False

    def start(self, mode: StopMode, grace_seconds: float) -> None:
        """Begin."""
        self._mode = mode
        self._thread = _start(lambda: self._carry_out(mode, grace_seconds))

    def wait(self) -> None:
        """Until there is an outcome."""
        if self._thread is not None:
            self._thread.join()

    def is_ending(self, app_id: str) -> bool:
        """Whether it is at it to end an app, without waiting for it to save."""
        if self.shown or app_id not in self._app_ids:
            return False
        last = self._last.get(app_id)
        if last is None:
            return self._mode == "now"
        return last.stage in ENDING

    @property
    def run_id(self) -> str:
        """What is being stopped, in a few words."""
        first = clean(self._names.get(self._app_ids[0]) or self._app_ids[0])
        more = len(self._app_ids) - 1
        return f"{first} and {more} more" if more else first

    @property
    def ended(self) -> bool:
        """No container of any of them is left, as verified."""
        return all(
            app_id in self._last and self._last[app_id].stage == "gone" for app_id in self._app_ids
        )

    @property
    def words(self) -> str:
        """The outcome: "gone" is said of what was verified, and of nothing else."""
        if self.ended:
            took = max(progress.seconds for progress in self._last.values())
            return f"gone in {duration(took)}; no container is left"
        left = [
            f"{app_id}: {clean(self._last[app_id].message) or 'not verified as gone'}"
            if app_id in self._last
            else f"{app_id}: not verified as gone"
            for app_id in self._app_ids
            if app_id not in self._last or self._last[app_id].stage != "gone"
        ]
        return f"NOT stopped: {'; '.join(left)}"

    def _carry_out(self, mode: StopMode, grace_seconds: float) -> None:
        try:
            cloud = self._accounts(self._connection)
            result = cloud.stop(self._app_ids, mode, grace_seconds, self._told)
            for progress in result.apps:
                self._told(progress)
        except CloudProblem as error:
            for app_id in self._app_ids:
                name = self._names.get(app_id, "")
                self._told(
                    StopProgress(
                        app_id=app_id,
                        name=name,
                        stage="failed",
                        seconds=0.0,
                        message=_words(error.problem),
                    )
                )
        finally:
            self.shown = True

    def _told(self, progress: StopProgress) -> None:
        self._last[progress.app_id] = progress
        self._post(AppStopTold(progress))


def refusal(error: ConfigError) -> LaunchRefused:
    """What the form is told of a run that cannot be launched as it stands."""
    words = clean("; ".join(map(str, error.problems)))
    return LaunchRefused("it cannot be run so", words, error.problems)


def _in_the_way() -> Problem | None:
    try:
        way = way_to(read_account().server_url)
    except BadAccount as error:
        return problem("no_token", str(error), error.fix)
    return obstacle(way) if way is not None else None


def _words(found: Problem) -> str:
    return clean(f"{found.message}: {found.hint}" if found.hint else found.message)


def _start(work: Callable[[], None]) -> threading.Thread:
    thread = threading.Thread(target=work, name="cloud", daemon=True)
    thread.start()
    return thread
