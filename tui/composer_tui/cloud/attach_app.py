"""A run that this machine knows nothing of: from Modal to a folder, with a token and no more."""

import asyncio
import time
from typing import Any, NamedTuple

import msgspec

from composer_engine.cloud_spec import CloudSpec, app_name
from composer_engine.config import ModalConfig, config_hash
from composer_engine.contract import TAG_RUN
from composer_tui.cloud.ledger import CloudRef, write_ref
from composer_tui.cloud.log_stream import call_in_log, find_app
from composer_tui.cloud.modal_cli import ModalCli, UnknownApp, unix_seconds
from composer_tui.cloud.problems import CloudProblem, problem
from composer_tui.cloud.transfer import run
from composer_tui.cloud.whose import account_words
from composer_tui.runs.folder import RunFolder, RunRecord, Target
from composer_tui.runs.store import RunStore

CALL_SECONDS = 30.0
_SPEC_FILE = "spec.json"


class Attached(NamedTuple):
    """``existed``: this machine had the run's folder already."""

    folder: RunFolder
    existed: bool


class _Remote(NamedTuple):
    spec: CloudSpec
    app_id: str
    function_id: str
    call_id: str
    created_at: float


def attach_app(
    store: RunStore,
    which: str,
    *,
    environment: str = "",
    volume: str = "",
    connection: str = "",
    target: Target = "modal",
) -> Attached:
    """A folder for the run of an app (its id or name), or of a run's id; live or ended.

    Raises `CloudProblem`, or OSError when the folder cannot be made.
    """
    if which in store.run_ids() and RunFolder(store.root / which).cloud_path.exists():
        return Attached(RunFolder(store.root / which), existed=True)
    remote = run(_find(which, environment, volume or ModalConfig().runs_volume))
    spec = remote.spec
    folder = RunFolder(store.root / spec.run_id)
    existed = spec.run_id in store.run_ids()
    if not existed:
        folder = store.adopt(_record(remote, target))
    if not folder.cloud_path.exists():
        write_ref(
            folder,
            CloudRef(
                app_name=app_name(spec.run_id),
                environment=environment or spec.config.modal.environment,
                connection=connection,
                app_id=remote.app_id,
                function_id=remote.function_id,
                call_id=remote.call_id,
                usd_per_hour=spec.usd_per_hour,
                cap_usd=f"{spec.config.modal.cap_usd:g}",
                lease_until=spec.lease_until,
                account="" if connection else account_words(),
                launched_at=remote.created_at or time.time(),
            ),
        )
    return Attached(folder, existed)


def _record(remote: _Remote, target: Target) -> RunRecord:
    from importlib import metadata

    spec = remote.spec
    return RunRecord(
        run_id=spec.run_id,
        created_at=remote.created_at or time.time(),
        target=target,
        config=spec.config,
        config_hash=config_hash(spec.config),
        engine_version=metadata.version("composer-tui"),
        cwd="",
    )


async def _find(which: str, environment: str, volume_name: str) -> _Remote:
    """Raises whatever Modal does, and `CloudProblem` when nothing is called so."""
    app_id, name = await _app_of(which, environment)
    spec = await _spec_of(name, environment, volume_name)
    if spec is None:
        message = f"no run is called {which!r} on the volume {volume_name}"
        if app_id:
            message = f"{app_id} is no run of this program, or has not begun to write"
        raise CloudProblem(problem("refused", message, "composer-tui apps lists the live ones"))
    if not app_id:
        app_id, _ = await _app_of(app_name(spec.run_id), environment)
    function_id, call_id, created_at = "", "", 0.0
    if app_id:
        app = await find_app(app_id)
        call_id = await call_in_log(app)
        info = await app.info.aio(refresh=True)
        function_id = next(iter(info.functions.values()), "")
        created_at = info.lifecycle.created_at.timestamp()
    return _Remote(spec, app_id, function_id, call_id, created_at)


async def _app_of(which: str, environment: str) -> tuple[str, str]:
    """(its id, or "" when Modal knows none; the name of its run)."""
    import modal

    if which.startswith("ap-"):
        try:
            app = await find_app(which)
            async with asyncio.timeout(CALL_SECONDS):
                tags = await app.get_tags.aio()
                info = await app.info.aio()
        except modal.exception.NotFoundError:
            raise UnknownApp(which) from None
        return which, tags.get(TAG_RUN, info.description or "")
    cli = ModalCli({"MODAL_ENVIRONMENT": environment} if environment else {})
    rows = await asyncio.to_thread(cli.app_list)
    name = app_name(which)
    found = [
        (unix_seconds(row.created_at) or 0.0, row.app_id) for row in rows if row.description == name
    ]
    return (max(found)[1] if found else ""), name


async def _spec_of(name: str, environment: str, volume_name: str) -> CloudSpec | None:
    """What the run's folder on the volume says it is; its folder may have a longer name."""
    import modal

    volume = modal.Volume.from_name(volume_name, environment_name=environment or None)
    try:
        async with asyncio.timeout(CALL_SECONDS):
            spec = await _read_spec(volume, name)
            if spec is not None:
                return spec
            for entry in await volume.listdir.aio("/"):
                run_id = entry.path.strip("/")
                if run_id != name and app_name(run_id) == name:
                    return await _read_spec(volume, run_id)
    except modal.exception.NotFoundError:
        return None  # there is no such volume
    return None


async def _read_spec(volume: Any, run_id: str) -> CloudSpec | None:
    try:
        data = b"".join([block async for block in volume.read_file.aio(f"{run_id}/{_SPEC_FILE}")])
        return msgspec.json.decode(data, type=CloudSpec)
    except FileNotFoundError:
        return None
    except msgspec.DecodeError as error:
        message = f"{run_id}/{_SPEC_FILE} was written by another version: {error}"
        raise CloudProblem(problem("refused", message)) from None
