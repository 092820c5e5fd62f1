"""The calls of modal's public Python API that the list of apps and the kill switch need.

Coroutines, for `modal_thread.within`. modal is imported by the first that runs.
"""

import asyncio
from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple

import msgspec

from composer_engine.cloud_spec import ControlAsk, ControlBeat
from composer_engine.contract import CONTROL_DICT
from composer_tui.cloud.modal_cli import UnknownApp
from composer_tui.cloud.modal_thread import each
from composer_tui.cloud.problems import CloudProblem, problem, problem_of
from composer_tui.pricing.rates import region_multiplier

_LIST_SECONDS = 2.0

_handles: dict[str, Any] = {}  # modal's own objects, by app id, of the last list and of look-ups

OnResult = Callable[[str, CloudProblem | None], object]


class LiveApp(NamedTuple):
    """An app as modal's list has it. Times are unix seconds, 0 for not known."""

    app_id: str
    name: str
    state: str
    created_at: float
    created_by: str
    stopped_at: float
    function_ids: tuple[str, ...]
    is_deployed: bool


class Need(NamedTuple):
    """What one function's containers reserve. ``gpus`` are alternatives, the first preferred."""

    gpus: tuple[tuple[str, int], ...]
    cpu_cores: float
    memory_mib: int
    region: str
    nonpreemptible: bool


class Details(NamedTuple):
    """What is asked of each app once."""

    tags: Mapping[str, str]
    needs: tuple[Need, ...]


async def environment_name() -> str:
    """The environment that this process's account works in."""
    return str((await _environment()).name or "")


async def server_time() -> float:
    """Unix seconds by Modal's own clock, a call's time ago; 0 where it does not say."""
    import modal

    async with modal.Dict.ephemeral() as stamped:  # it costs nothing, and is dated when it is made
        return float((await stamped.info.aio()).created_at.timestamp())


async def live_apps() -> list[LiveApp]:
    """All apps of the environment that are not stopped.

    Raises KeyError for an app in a state that this version of modal has no name for.
    """
    return [await _live_app(handle) for handle in await _list()]


async def details(app_id: str, function_ids: Iterable[str]) -> Details:
    """Tags and reservations of an app; its functions are looked up where none is named."""
    import modal

    app = await _handle(app_id)
    tags = await app.get_tags.aio()
    functions = list(function_ids) or (await app.info.aio(refresh=True)).functions.values()
    needs = [_need(await modal.Function.from_id(one).info.aio()) for one in functions]
    return Details(dict(tags), tuple(needs))


async def details_of(functions: Mapping[str, Iterable[str]], seconds: float) -> dict[str, Details]:
    """The details of several apps, by id, at once; those that could not be had are left out."""
    work = {app_id: details(app_id, ids) for app_id, ids in functions.items()}
    outcomes = {app_id: outcome async for app_id, outcome in each(seconds, work)}
    return {app_id: found for app_id, found in outcomes.items() if isinstance(found, Details)}


async def is_idle(function_ids: Iterable[str]) -> bool:
    """No input runs, and none waits, in any of the functions."""
    import modal

    for function_id in function_ids:
        function = modal.Function.from_id(function_id)
        await function.hydrate.aio()
        stats = await function.get_current_stats.aio()
        if stats.num_running_inputs or stats.backlog:
            return False
    return True


async def stop_all(app_ids: Iterable[str], seconds: float, on_result: OnResult) -> None:
    """Asks Modal to stop all of them at once. ``on_result`` gets None for each that it accepted.

    Accepted is not stopped.
    """
    wanted = list(app_ids)
    began = asyncio.get_running_loop().time()
    if len(wanted) > 1 and not _handles.keys() >= set(wanted):
        # One call for the handles of all; each is looked up when this does not come.
        async for _ in each(_LIST_SECONDS, {"list": _list()}):
            pass
    left = seconds - (asyncio.get_running_loop().time() - began)
    async for app_id, outcome in each(left, {app_id: _stop(app_id) for app_id in wanted}):
        on_result(app_id, _failure(app_id, outcome))


async def read_beats(names: Iterable[str], seconds: float) -> dict[str, ControlBeat]:
    """What the containers of these apps last said, by app name; the silent ones are left out."""
    control = await _control()
    beats: dict[str, ControlBeat] = {}
    async for name, text in each(
        seconds, {name: control.get.aio(f"{name}/beat") for name in set(names)}
    ):
        if isinstance(text, str):
            try:
                beats[name] = msgspec.json.decode(text, type=ControlBeat)
            except msgspec.DecodeError:
                continue  # another version's; it says nothing to us
        elif isinstance(text, Exception) and problem_of(text) is None:
            raise text
    return beats


async def put_stop_asks(
    names: Iterable[str], why: str, seconds: float
) -> dict[str, Exception | None]:
    """Tells runs to save and end. None for each that was told."""
    control = await _control()

    async def ask(name: str) -> None:
        before = await read_ask(name)
        after = ControlAsk(stop=why, lease_until=before.lease_until)
        await control.put.aio(f"{name}/ask", msgspec.json.encode(after).decode())

    asks = {name: ask(name) for name in set(names)}
    return {name: outcome async for name, outcome in each(seconds, asks)}


async def read_ask(name: str) -> ControlAsk:
    """What was last asked of a run; nothing, when nothing was."""
    text = await (await _control()).get.aio(f"{name}/ask")
    try:
        return msgspec.json.decode(text, type=ControlAsk) if isinstance(text, str) else ControlAsk()
    except msgspec.DecodeError:
        return ControlAsk()


async def put_lease(name: str, lease_until: float) -> None:
    """Extends a run's lease where it is watched: in its container. A stop that was asked stays."""
    asked = msgspec.structs.replace(await read_ask(name), lease_until=lease_until)
    control = await _control()
    await control.put.aio(f"{name}/ask", msgspec.json.encode(asked).decode())


async def read_tags(app_id: str) -> dict[str, str]:
    """An app's tags, as they are now."""
    return dict(await (await _handle(app_id)).get_tags.aio())


async def change_tags(app_id: str, changes: Mapping[str, str]) -> None:
    """Sets some tags of an app; the others stay."""
    app = await _handle(app_id)
    await app.set_tags.aio({**await app.get_tags.aio(), **changes})


async def find_app(app_id: str) -> LiveApp:
    """One app, live or not. Raises `UnknownApp`."""
    return await _live_app(await _handle(app_id))


async def rates() -> dict[str, Any]:
    """Prices by Modal's keys, Decimals."""
    import modal

    prices = await modal.Workspace.from_context().billing.rates.aio()
    return {key: prices[key] for key in prices}  # a retired key is not iterated, and raises


async def _environment() -> Any:
    import modal

    environment = modal.Environment.from_context()
    await environment.hydrate.aio()
    return environment


async def _control() -> Any:
    import modal

    control = modal.Dict.from_name(CONTROL_DICT, create_if_missing=True)
    await control.hydrate.aio()
    return control


async def _list() -> list[Any]:
    handles = list(await (await _environment()).apps.list.aio())
    _handles.clear()
    _handles.update({handle.app_id: handle for handle in handles})
    return handles


async def _handle(app_id: str) -> Any:
    import modal

    handle = _handles.get(app_id)
    if handle is None:
        try:
            handle = await modal.App.lookup.aio(app_id)
        except modal.exception.NotFoundError:
            raise UnknownApp(app_id) from None
        _handles[app_id] = handle
    return handle


async def _stop(app_id: str) -> None:
    app = await _handle(app_id)
    await app.stop.aio()


def _failure(app_id: str, outcome: object) -> CloudProblem | None:
    if not isinstance(outcome, Exception):
        return None
    if isinstance(outcome, CloudProblem):
        return outcome
    found = problem_of(outcome)
    if found is None:
        found = problem("server", f"{app_id}: {type(outcome).__name__}: {outcome}")
    return CloudProblem(found)


async def _live_app(handle: Any) -> LiveApp:
    info = await handle.info.aio()  # no call: it came with the handle
    life = info.lifecycle
    return LiveApp(
        app_id=handle.app_id,
        name=info.description or handle.name or "",
        state=life.state.value,
        created_at=life.created_at.timestamp(),
        created_by=life.created_by or "",
        stopped_at=life.stopped_at.timestamp() if life.stopped_at else 0.0,
        function_ids=tuple(info.functions.values()),
        is_deployed=life.deployed_at is not None,
    )


def _need(info: Any) -> Need:
    return Need(
        gpus=tuple((str(name), int(count)) for name, count in info.gpus),
        cpu_cores=_reserved(info.cpu, 0.125),
        memory_mib=int(_reserved(info.memory_mib, 128)),
        region=min(info.regions or [""], key=region_multiplier),
        nonpreemptible=bool(info.nonpreemptible),
    )


def _reserved(value: Any, default: float) -> float:
    """What is reserved, and paid for at least: the first of (reserved, limit)."""
    if isinstance(value, tuple | list):
        value = value[0]
    return float(value or default)
