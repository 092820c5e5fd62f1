"""Containers: which there are, and how busy the functions are that they serve."""

import re

import msgspec

from composer_engine.cloud_spec import app_name
from composer_tui.cloud.modal_cli import AppRow, ModalCli, ids, unix_seconds
from composer_tui.cloud.modal_thread import within
from composer_tui.cloud.problems import CloudProblem, problem

CALL_SECONDS = 15.0
LIST_SECONDS = 12.0
_APP_ID = re.compile(r"ap-[A-Za-z0-9]{22}\Z")


class ContainerLine(msgspec.Struct, frozen=True, kw_only=True):
    """A container that is there; ``started_at`` is None while it is pending."""

    container_id: str
    app_id: str
    app_name: str = ""
    started_at: float | None = None


class FunctionLine(msgspec.Struct, frozen=True, kw_only=True):
    """How busy one function of an app is, now."""

    function_id: str
    name: str
    containers: int
    running_inputs: int
    waiting_inputs: int


def list_containers(app_id: str = "", call_seconds: float = LIST_SECONDS) -> list[ContainerLine]:
    """Those of an app, or of the environment. Raises `CloudProblem`."""
    return [
        ContainerLine(
            container_id=row.container_id,
            app_id=row.app_id,
            app_name=row.app_name,
            started_at=unix_seconds(row.start_time),
        )
        for row in ModalCli(call_seconds=call_seconds).container_list(app_id)
    ]


def find_app(text: str, call_seconds: float = LIST_SECONDS) -> str:
    """The id of the app that an id, a name or a run's id means; a live one before a stopped one.

    Raises `CloudProblem` when it means none, or several.
    """
    if _APP_ID.match(text):
        return text
    rows = ModalCli(call_seconds=call_seconds).app_list()
    named = [row for row in rows if row.description in (text, app_name(text))]
    live = [row for row in named if not row.is_over]
    if len(live) > 1:
        message = f"{len(live)} live apps are called {text}: {ids([row.app_id for row in live])}"
        raise CloudProblem(problem("refused", message, "give the id of one of them"))
    if not named:
        hint = "composer-tui apps lists those there are"
        raise CloudProblem(problem("refused", f"there is no app called {text}", hint))
    return (live or sorted(named, key=_started, reverse=True))[0].app_id


def function_stats(app_id: str) -> list[FunctionLine]:
    """Every function of an app. Raises `CloudProblem`."""

    async def ask() -> list[FunctionLine]:
        import modal

        app = await modal.App.lookup.aio(app_id)
        functions = (await app.info.aio()).functions
        lines = []
        for name, function_id in sorted(functions.items()):
            function = modal.Function.from_id(function_id)
            await function.hydrate.aio()
            stats = await function.get_current_stats.aio()
            lines.append(
                FunctionLine(
                    function_id=function_id,
                    name=name,
                    containers=stats.num_total_runners,
                    running_inputs=stats.num_running_inputs,
                    waiting_inputs=stats.backlog,
                )
            )
        return lines

    return within(CALL_SECONDS, ask(), "asking for the functions")


def _started(row: AppRow) -> float:
    return unix_seconds(row.created_at) or 0.0
