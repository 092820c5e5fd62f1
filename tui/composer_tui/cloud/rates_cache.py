"""Modal's own prices, asked for once an hour and kept on disk with their date."""

import hashlib
import os
from collections.abc import Callable, Mapping
from decimal import Decimal, InvalidOperation
from pathlib import Path
from typing import NamedTuple

import msgspec
import platformdirs

from composer_tui.cloud.problems import CloudProblem, problem, problem_of
from composer_tui.cloud.wire import Problem
from composer_tui.pricing.catalog import catalog
from composer_tui.pricing.rates import Rates, snapshot_rates
from composer_tui.runs.folder import DamagedFolder, read_json, write_whole

REFRESH_SECONDS = 3600.0
STALE_SECONDS = 7 * 24 * 3600.0
MODAL = "modal"

# Which account the prices are for: contracts differ, and a rehearsal's are its own.
_ACCOUNT_VARIABLES = ("MODAL_SERVER_URL", "MODAL_PROFILE", "MODAL_TOKEN_ID", "MODAL_CONFIG_PATH")
_NAME_DIGITS = 12


class KnownRates(NamedTuple):
    """Prices, and how far to trust them.

    ``missing`` are keys of the catalogue that Modal did not name (a GPU without a price),
    ``unknown`` those that it named and the catalogue does not. ``problem`` says why they are not
    from now.
    """

    rates: Rates
    is_stale: bool = False
    missing: tuple[str, ...] = ()
    unknown: tuple[str, ...] = ()
    problem: Problem | None = None


class _Kept(msgspec.Struct, frozen=True, kw_only=True):
    as_of: float
    usd_per_hour: dict[str, Decimal]


def rates_path(environ: Mapping[str, str] = os.environ) -> Path:
    """Where the prices of the account that ``environ`` names are kept."""
    account = "\0".join(environ.get(name, "") for name in _ACCOUNT_VARIABLES)
    digest = hashlib.sha256(account.encode()).hexdigest()[:_NAME_DIGITS]
    return platformdirs.user_cache_path("composer-tui") / f"rates-{digest}.json"


def current_rates(
    fetch: Callable[[], Mapping[str, Decimal]], now: float, path: Path | None = None
) -> KnownRates:
    """The prices of the last hour: kept, else fetched, else older ones, else the snapshot.

    Raises nothing: that prices cannot be had is part of the answer.
    """
    path = path or rates_path()
    kept = _read(path)
    if kept is not None and 0 <= now - kept.as_of < REFRESH_SECONDS:
        return _known(kept, now)
    try:
        fresh = _Kept(as_of=now, usd_per_hour=_checked(fetch()))
    except Exception as error:
        found = problem_of(error)
        if found is None:
            raise
        return _known(kept, now, found)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_whole(path, msgspec.json.encode(fresh))
    except OSError:
        return _known(fresh, now)  # not kept: it is asked for again next time
    return _known(fresh, now)


def kept_rates(now: float, path: Path | None = None) -> KnownRates:
    """What is known without asking Modal."""
    return _known(_read(path or rates_path()), now)


def _known(kept: _Kept | None, now: float, trouble: Problem | None = None) -> KnownRates:
    if kept is None:
        return KnownRates(snapshot_rates(), problem=trouble)
    ours = catalog().rates.keys()
    return KnownRates(
        Rates(usd_per_hour=kept.usd_per_hour, source=MODAL, as_of=kept.as_of),
        is_stale=now - kept.as_of > STALE_SECONDS,
        missing=tuple(sorted(ours - kept.usd_per_hour.keys())),
        unknown=tuple(sorted(kept.usd_per_hour.keys() - ours)),
        problem=trouble,
    )


def _checked(prices: Mapping[str, Decimal]) -> dict[str, Decimal]:
    """Only prices that are numbers; raises `CloudProblem` when there is none among them."""
    good: dict[str, Decimal] = {}
    for key, price in prices.items():
        try:
            number = Decimal(str(price))
        except InvalidOperation:
            continue
        if number.is_finite() and number >= 0:
            good[key] = number
    if not good:
        raise CloudProblem(problem("server", "Modal named no prices"))
    return good


def _read(path: Path) -> _Kept | None:
    try:
        return read_json(path, _Kept)
    except DamagedFolder:
        return None
