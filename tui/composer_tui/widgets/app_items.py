"""What is live, on Modal and here, as items, columns and rows: functions of values."""

from collections.abc import Callable, Mapping, Sequence
from decimal import Decimal
from typing import NamedTuple

from composer_engine.cloud_spec import app_name
from composer_tui.cloud.wire import App, Apps, StopProgress
from composer_tui.numbers import age, dollars
from composer_tui.runs.store import RunSummary
from composer_tui.widgets.app_status import ORPHANS, app_status
from composer_tui.widgets.burn import as_of_words, is_orphan
from composer_tui.widgets.cells import Row, Span, cut_middle, fit, fit_right
from composer_tui.widgets.glyphs import Glyphs
from composer_tui.widgets.status import Status, status_of

HERE = "this machine"
_LEASE_SHORT_SECONDS = 600.0
_NO_CENTS = 1000
_LEAD_CELLS = 3
_GPU_CELLS = 9
_TAIL_CELLS = 5  # of a run's id


class Item(NamedTuple):
    """One live thing: an app, a run on this machine, or a stop whose app is not listed any more.

    ``key`` is the app's id, or the run's for what is no app.
    """

    key: str
    name: str
    app: App | None = None
    run: RunSummary | None = None
    stop: StopProgress | None = None


def live_items(
    apps: Apps | None,
    kills: Mapping[str, StopProgress],
    runs: Sequence[RunSummary],
    live: frozenset[str],
) -> list[Item]:
    """Apps by what they burn; then stops of apps that are listed no more; then runs here.

    A list that is older than the end of an app does not bring it back.
    """
    gone = {stop.app_id for stop in kills.values() if stop.stage == "gone"}
    listed = [app for app in (apps.apps if apps else ()) if app.app_id not in gone]
    listed.sort(key=_burn_order)
    items = [Item(a.app_id, a.name, a, stop=kills.get(a.app_id)) for a in listed]
    ids = {app.app_id for app in listed}
    items += [
        Item(stop.app_id, stop.name, stop=stop) for stop in kills.values() if stop.app_id not in ids
    ]
    known = {app.run_id for app in listed if app.run_id}
    items += [
        Item(run.run_id, run.run_id, run=run)
        for run in runs
        if run.run_id in live and app_name(run.run_id) not in known and run.run_id not in known
    ]
    return items


def _burn_order(app: App) -> tuple[Decimal, bool, str, str]:
    """The dearest first; among those that seem free, the ones whose price is not known first."""
    burn = app.burn_usd_per_hour
    return (-(burn or Decimal(0)), burn is not None or not app.containers, app.name, app.app_id)


def matching(items: Sequence[Item], needle: str) -> list[Item]:
    """The items whose names, ids, state, GPU or owner contain every word of ``needle``."""
    words = needle.lower().split()
    return [item for item in items if all(_has(item, word) for word in words)]


def _has(item: Item, word: str) -> bool:
    texts = [item.key, item.name]
    if item.app is not None:
        app = item.app
        texts += [app.state, app.gpu, app.owner, app.orphan, ORPHANS[app.orphan]]
    if item.run is not None:
        texts += [item.run.life, item.run.target, item.run.model]
    return any(word in text.lower() for text in texts)


# ---- one item in one row ----


class Cell(NamedTuple):
    """The text of one column, and its style."""

    text: str
    style: str = "text"


class Column(NamedTuple):
    """``cells`` include the space before the column; it is there from ``least`` cells on."""

    title: str
    cells: int
    least: int
    read: Callable[[Item, float, Glyphs], Cell]
    is_right: bool = True


def short_dollars(amount: Decimal | None) -> str:
    """At most seven characters up to $99,999: what is dear needs no cents."""
    if amount is not None and round(amount, 2) >= _NO_CENTS:
        return f"${amount:,.0f}"
    return dollars(amount)


def short_gpu(gpu: str) -> str:
    """A GPU in few characters that keep the count."""
    return gpu if len(gpu) <= _GPU_CELLS else gpu.replace("GB", "")


def item_status(item: Item, *, stopping: bool = False, with_class: bool = True) -> Status:
    """The state of anything in the table."""
    if item.app is not None:
        return app_status(item.app, item.stop, with_class=with_class)
    if item.run is not None:
        return status_of(item.run.life, stopping=stopping, ended_by=item.run.ended_by)
    if item.stop is not None:
        return app_status(App(app_id="", name="", state="", created_at=0), item.stop)
    raise ValueError(item.key)


def is_free(item: Item) -> bool:
    """A run that only this machine works for."""
    return item.run is not None and item.run.target != "modal"


def _containers(item: Item, _now: float, _glyphs: Glyphs) -> Cell:
    if item.app is not None:
        return Cell(str(len(item.app.containers)))
    return Cell(str(len(item.stop.containers)) if item.stop is not None else "")


def _gpu(item: Item, _now: float, _glyphs: Glyphs) -> Cell:
    if item.app is not None:
        return Cell(short_gpu(item.app.gpu) or "cpu", "text" if item.app.gpu else "dim")
    return Cell(item.run.target if item.run is not None else "", "dim")


def _up(item: Item, now: float, _glyphs: Glyphs) -> Cell:
    since = item.app.created_at if item.app else item.run.created_at if item.run else None
    return Cell(age(max(0.0, now - since)) if since else "", "dim")


def _rate(item: Item, _now: float, _glyphs: Glyphs) -> Cell:
    if item.app is not None:
        burns = bool(item.app.burn_usd_per_hour)
        return Cell(short_dollars(item.app.burn_usd_per_hour), "strong" if burns else "dim")
    if item.stop is not None:
        return Cell(dollars(Decimal(0)) if item.stop.stage == "gone" else "?", "dim")
    return Cell(dollars(Decimal(0)) if is_free(item) else "?", "dim")


def _spent(item: Item, _now: float, _glyphs: Glyphs) -> Cell:
    if item.stop is not None and item.stop.stage == "gone":
        return Cell(short_dollars(item.stop.final_usd), "good")
    if item.app is not None:
        return Cell(short_dollars(item.app.spent_usd))
    return Cell(dollars(Decimal(0)) if is_free(item) else "?", "dim")


def lease_cell(app: App, now: float) -> Cell:
    """How long until a run's lease ends it."""
    if not app.lease_until:
        return Cell("")
    left = app.lease_until - now
    if left <= 0:
        return Cell("over", "bad")
    return Cell(age(left), "warn" if left < _LEASE_SHORT_SECONDS else "text")


def _lease(item: Item, now: float, _glyphs: Glyphs) -> Cell:
    return lease_cell(item.app, now) if item.app is not None else Cell("")


def _owner(item: Item, _now: float, glyphs: Glyphs) -> Cell:
    if item.app is not None:
        return Cell(item.app.owner or glyphs.missing, "dim")
    return Cell(HERE if item.run is not None else "", "dim")


def _orphan(item: Item, _now: float, _glyphs: Glyphs) -> Cell:
    orphan = item.app.orphan if item.app is not None else ""
    words = orphan.lower().replace("_", " ")
    return Cell(words, "bad" if item.app is not None and is_orphan(item.app) else "dim")


def _id(item: Item, _now: float, _glyphs: Glyphs) -> Cell:
    return Cell("" if item.run is not None else item.key, "dim")


_STATE_CELLS = 13
_NAME_CELLS = 46  # at most: a longer way to the numbers is hard to follow
_CLASSED = 116  # from here on an orphan's class has a column
COLUMNS = (
    Column("CTR", 4, 68, _containers),
    Column("GPU", _GPU_CELLS + 1, 68, _gpu, is_right=False),
    Column("UP", 5, 68, _up),
    Column("$/H", 8, 0, _rate),
    Column("SPENT", 8, 0, _spent),
    Column("LEASE", 6, 68, _lease),
    Column("ORPHAN", 15, _CLASSED, _orphan, is_right=False),
    Column("OWNER", 18, 98, _owner, is_right=False),
    Column("ID", 26, 150, _id, is_right=False),
)


def columns(width: int) -> tuple[list[Column], int]:
    """The columns that a width has room for, and what they leave for the name."""
    shown = [column for column in COLUMNS if width >= column.least]
    left = width - _LEAD_CELLS - _STATE_CELLS - sum(column.cells for column in shown)
    return shown, min(left, _NAME_CELLS)


def head_row(width: int, glyphs: Glyphs) -> Row:
    """The names of the columns."""
    shown, name = columns(width)
    text = " " * _LEAD_CELLS + fit("APP", name) + fit(" STATE", _STATE_CELLS)
    for column in shown:
        place = fit_right if column.is_right else fit
        text += " " + place(column.title, column.cells - 1, glyphs.ellipsis)
    return (Span(text, "dim"),)


def item_row(
    item: Item,
    now: float,
    width: int,
    glyphs: Glyphs,
    *,
    at_cursor: bool = False,
    is_marked: bool = False,
    stopping: bool = False,
) -> Row:
    """One item in one row of ``width`` cells."""
    shown, name = columns(width)
    status = item_status(item, stopping=stopping, with_class=width < _CLASSED)
    foreign = item.app is not None and item.app.orphan == "UNTAGGED"
    words = "strong" if at_cursor else "dim" if foreign else "text"
    row = [
        Span(glyphs.cursor if at_cursor else " ", "accent"),
        Span(glyphs.changed if is_marked else " ", "key"),
        Span(" "),
        Span(fit(cut_middle(item.name, name, _TAIL_CELLS, glyphs.ellipsis), name), words),
        Span(
            " " + fit(f"{getattr(glyphs, status.glyph)} {status.word}", _STATE_CELLS - 1),
            status.style,
        ),
    ]
    for column in shown:
        place = fit_right if column.is_right else fit
        cell = column.read(item, now, glyphs)
        style = "dim" if foreign and cell.style == "text" else cell.style
        row.append(Span(" " + place(cell.text, column.cells - 1, glyphs.ellipsis), style))
    return tuple(row)


# ---- what there is to say where there are no rows ----


def problem_words(apps: Apps | None) -> tuple[str, ...]:
    """What is wrong, and what to do about it; nothing when nothing is."""
    if apps is None:
        return ("Modal has not answered yet.", "The first answer takes some seconds; r asks again.")
    if apps.problem is None:
        return ()
    problem = apps.problem
    if problem.kind == "no_token":
        return (
            "There is no token for Modal on this machine.",
            "modal token new   makes one; or set MODAL_TOKEN_ID and MODAL_TOKEN_SECRET. Then r.",
        )
    return (problem.message, problem.hint or "r asks again.")


def nothing_words(apps: Apps | None, needle: str, now: float) -> tuple[str, ...]:
    """Why the table has no row, and what to do next. What is old does not say what is live."""
    if needle:
        return (f"Nothing live matches {needle}.", "", "esc shows everything again.")
    if problem := problem_words(apps):
        first, then = problem
        return (first, "", then, "Nothing is live on this machine.")
    if apps is not None and (as_of := as_of_words(apps, now)):
        return (as_of, "", "Nothing was live then; what is live now is not known yet.")
    return (
        "Nothing is live: nothing costs anything by the hour.",
        "",
        "Press 1 to launch; there, where: modal is the cloud and rehearsal is a free try.",
        "Volumes keep what was saved, and cost by the month.",
    )
