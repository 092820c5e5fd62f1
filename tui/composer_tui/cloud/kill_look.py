"""What is left of some apps, looked up by the modal command line: the kill switch's eyes."""

import itertools
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

from composer_tui.cloud.kill_rules import Look
from composer_tui.cloud.modal_cli import AppRow, ModalCli, unix_seconds
from composer_tui.cloud.problems import CloudProblem
from composer_tui.cloud.wire import Container, Problem
from composer_tui.runs.sanitise import clean

_COMMANDS_AT_ONCE = 4


def look_at(cli: ModalCli, app_ids: Sequence[str]) -> Look:
    """What Modal's lists say of these apps: first their states, and after that their containers.

    An app that is not on the environment's list (it belongs to another, or has ended long ago) is
    asked for by its id, and so are its containers.
    """
    states: dict[str, str | None] | None = None
    elsewhere: list[str] = []
    trouble: Problem | None = None
    names: dict[str, str] = {}
    try:
        rows = {row.app_id: row for row in cli.app_list()}
        states = {}
        for app_id in app_ids:
            if app_id in rows:
                states[app_id] = _state(rows[app_id])
                names[app_id] = clean(rows[app_id].description)
            else:
                elsewhere.append(app_id)
        with ThreadPoolExecutor(_COMMANDS_AT_ONCE) as pool:
            for app_id, state in zip(elsewhere, pool.map(cli.app_state, elsewhere), strict=True):
                states[app_id] = state
    except CloudProblem as failure:
        trouble = failure.problem
    try:
        containers = _containers(cli, elsewhere)
    except CloudProblem as failure:
        return Look(states, None, failure.problem, names)
    return Look(states, containers, trouble, names)


def _containers(cli: ModalCli, elsewhere: Sequence[str]) -> dict[str, tuple[Container, ...]]:
    found = cli.container_list()
    with ThreadPoolExecutor(_COMMANDS_AT_ONCE) as pool:
        found.extend(itertools.chain.from_iterable(pool.map(cli.container_list, elsewhere)))
    by_app: dict[str, dict[str, Container]] = {}
    for row in found:
        box = Container(container_id=row.container_id, started_at=unix_seconds(row.start_time))
        by_app.setdefault(row.app_id, {})[row.container_id] = box
    return {app_id: tuple(boxes.values()) for app_id, boxes in by_app.items()}


def _state(row: AppRow) -> str:
    """Its state in one word; one that is over and has tasks is not over."""
    return "stopping" if row.is_over and row.task_count else row.state.rstrip(".")
