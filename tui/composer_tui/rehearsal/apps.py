"""Apps: how they come to be, who is still there for them, and how they end."""

import asyncio
import time
from collections.abc import Iterable
from typing import Any

import msgspec
from google.protobuf.empty_pb2 import Empty
from grpclib import GRPCError, Status
from modal_proto import api_pb2

from composer_tui.rehearsal.ids import new_id
from composer_tui.rehearsal.journal import write_whole
from composer_tui.rehearsal.neighbours import NeighbourlyArea
from composer_tui.rehearsal.rpc import unary
from composer_tui.rehearsal.workspace import Workspace

EPHEMERAL = api_pb2.APP_STATE_EPHEMERAL
DETACHED = api_pb2.APP_STATE_DETACHED
DEPLOYED = api_pb2.APP_STATE_DEPLOYED
STOPPING = api_pb2.APP_STATE_STOPPING
STOPPED = api_pb2.APP_STATE_STOPPED
INITIALIZING = api_pb2.APP_STATE_INITIALIZING
DISCONNECTED = api_pb2.APP_STATE_DETACHED_DISCONNECTED

_WHEN_CLIENT_GOES = {  # what an app comes to when its client leaves, or is not heard of any more
    EPHEMERAL: STOPPING,
    INITIALIZING: STOPPING,
    DETACHED: DISCONNECTED,
}
_LISTED_AFTER_STOP_SECONDS = 2 * 3600
_OWNER = "rehearsal"


class Deployment(msgspec.Struct):
    """One version of a deployed app."""

    version: int
    deployed_at: float
    tag: str = ""
    client_version: str = ""


class App(msgspec.Struct, kw_only=True):
    """What is known of an app, and kept in its folder. Times are Unix seconds, 0 for never.

    ``state`` is an AppState and moves only forward to STOPPING and STOPPED.
    """

    app_id: str
    description: str
    environment: str
    state: int
    created_at: float
    name: str = ""
    tags: dict[str, str] = {}
    stopped_at: float = 0.0
    stopped_by: str = ""
    function_ids: dict[str, str] = {}
    class_ids: dict[str, str] = {}
    deployments: list[Deployment] = []
    has_been_called: bool = False

    @property
    def is_over(self) -> bool:
        """Whether it is stopped and nothing of it runs any more."""
        return self.state == STOPPED

    @property
    def takes_calls(self) -> bool:
        """Whether it has not begun to stop."""
        return self.state not in (STOPPING, STOPPED)

    @property
    def lifecycle(self) -> api_pb2.AppLifecycle:
        """The same in Modal's own words."""
        newest = self.deployments[-1] if self.deployments else None
        return api_pb2.AppLifecycle(
            app_state=self.state,  # type: ignore[arg-type]
            created_at=self.created_at,
            created_by=_OWNER,
            deployed_at=newest.deployed_at if newest else 0.0,
            deployed_by=_OWNER if newest else "",
            version=newest.version if newest else 0,
            stopped_at=self.stopped_at,
            stopped_by=self.stopped_by,
        )


class Apps(NeighbourlyArea):
    """Every app of this rehearsal, those of earlier processes included."""

    def __init__(self, plane: Any) -> None:
        super().__init__(plane)
        self._apps: dict[str, App] = {}
        self._heard: dict[str, float] = {}  # monotonic seconds of a client's last sign of life

    def restore(self) -> None:
        """What was live when the last process died is stopped: its containers died with it."""
        for path in sorted((self.plane.root / "apps").glob("*/app.json")):
            app = msgspec.json.decode(path.read_bytes(), type=App)
            self._apps[app.app_id] = app
            if app.state not in (DEPLOYED, STOPPED):
                app.state, app.stopped_at = STOPPED, self.plane.now()
                self._save(app)

    async def start(self) -> None:
        self.plane.spawn(self._watch_clients())

    def get(self, app_id: str) -> App:
        """Raises GRPCError NOT_FOUND."""
        app = self._apps.get(app_id)
        if app is None:
            raise GRPCError(Status.NOT_FOUND, f"App {app_id} not found.")
        return app

    def deployed(self, name: str, environment: str) -> App | None:
        """The app deployed under that name."""
        for app in self._apps.values():
            if app.state == DEPLOYED and (app.name, app.environment) == (name, environment):
                return app
        return None

    def note_call(self, app_id: str) -> None:
        """It has been called: a detached app ends when its calls have."""
        app = self.get(app_id)
        if not app.has_been_called:
            app.has_been_called = True
            self._save(app)

    def end_if_idle(self, app_id: str) -> None:
        """Stops a detached app which nobody looks at, some time after its last call."""
        if self._is_idle(self.get(app_id)):
            self.plane.spawn(self._end_if_still_idle(app_id))

    def stop(self, app: App, by: str = "") -> None:
        """Begins the end of it. The end itself is `STOPPED`, when its containers are gone."""
        if app.takes_calls:
            app.state, app.stopped_by = STOPPING, by
            self.plane.spawn(self._end(app))  # before the disk, which may be full
            self._save(app)

    @unary
    async def AppCreate(self, request: api_pb2.AppCreateRequest) -> api_pb2.AppCreateResponse:
        app = self._create(
            request.description, request.environment_name, request.app_state, dict(request.tags)
        )
        url = f"{self.plane.connection.url}/apps/{app.app_id}"
        return api_pb2.AppCreateResponse(app_id=app.app_id, app_page_url=url, app_logs_url=url)

    @unary
    async def AppGetOrCreate(
        self, request: api_pb2.AppGetOrCreateRequest
    ) -> api_pb2.AppGetOrCreateResponse:
        name = request.app_name
        app = self._apps.get(name) or self.deployed(name, _environment(request))
        if app is None and request.object_creation_type:
            app = self._create(name, request.environment_name, DEPLOYED, {})
            app.name = name
            self._save(app)
        if app is None:
            raise GRPCError(Status.NOT_FOUND, f"App '{name}' not found.")
        return api_pb2.AppGetOrCreateResponse(
            app_id=app.app_id, handle_metadata=self._metadata(app)
        )

    @unary
    async def AppGetByDeploymentName(
        self, request: api_pb2.AppGetByDeploymentNameRequest
    ) -> api_pb2.AppGetByDeploymentNameResponse:
        environment = _environment(request)
        response = api_pb2.AppGetByDeploymentNameResponse(environment_name=environment)
        app = self.deployed(request.name, environment)
        earlier = [
            app
            for app in self._listed()
            if (app.name, app.environment, app.state) == (request.name, environment, STOPPED)
        ]
        if app is not None:
            response.app_id = app.app_id
        elif earlier:
            app = max(earlier, key=lambda app: app.stopped_at)
            response.previous_app_id = app.app_id
        if app is not None:
            response.lifecycle.CopyFrom(app.lifecycle)
        return response

    @unary
    async def AppPublish(self, request: api_pb2.AppPublishRequest) -> api_pb2.AppPublishResponse:
        app = self._live(request.app_id)
        app.function_ids, app.class_ids = dict(request.function_ids), dict(request.class_ids)
        app.tags |= dict(request.tags)
        deployed_at = 0.0
        if request.app_state == DEPLOYED:
            deployed_at = self.plane.now()
            app.state, app.name = DEPLOYED, request.name
            version = app.deployments[-1].version + 1 if app.deployments else 1
            app.deployments.append(
                Deployment(version, deployed_at, request.deployment_tag, request.client_version)
            )
        elif request.app_state:
            app.state = request.app_state
        self._save(app)
        self.containers.retire_outdated(app.app_id)
        for function_id in app.function_ids.values():
            self.containers.scale(function_id)
        url = f"{self.plane.connection.url}/apps/{app.app_id}"
        return api_pb2.AppPublishResponse(url=url, deployed_at=deployed_at)

    @unary
    async def AppHeartbeat(self, request: api_pb2.AppHeartbeatRequest) -> Empty:
        app = self.get(request.app_id)
        self._heard[app.app_id] = time.monotonic()
        if app.state == DISCONNECTED:  # it was only silent for a while
            app.state = DETACHED
            self._save(app)
        return Empty()

    @unary
    async def AppClientDisconnect(self, request: api_pb2.AppClientDisconnectRequest) -> Empty:
        self._leave(self.get(request.app_id))
        return Empty()

    @unary
    async def AppList(self, request: api_pb2.AppListRequest) -> api_pb2.AppListResponse:
        environment = self.plane.area(Workspace).environment_name(request.environment_name)
        counts = self.containers.counts()
        response = api_pb2.AppListResponse()
        for app in self._listed():
            if app.environment == environment:
                response.apps.add(
                    app_id=app.app_id,
                    description=app.description,
                    state=app.state,
                    created_at=app.created_at,
                    stopped_at=app.stopped_at,
                    n_running_tasks=counts.get(app.app_id, 0),
                    name=app.name,
                    metadata=self._metadata(app),
                )
        return response

    @unary
    async def AppStop(self, request: api_pb2.AppStopRequest) -> Empty:
        self.stop(self.get(request.app_id), _OWNER)
        return Empty()

    @unary
    async def AppGetLifecycle(
        self, request: api_pb2.AppGetLifecycleRequest
    ) -> api_pb2.AppGetLifecycleResponse:
        app = self.get(request.app_id)
        return api_pb2.AppGetLifecycleResponse(lifecycle=app.lifecycle)

    @unary
    async def AppGetInfo(self, request: api_pb2.AppGetInfoRequest) -> api_pb2.AppGetInfoResponse:
        app = self.get(request.app_id)
        response = api_pb2.AppGetInfoResponse(info=self._metadata(app))
        for function_id in app.function_ids.values():
            summary = self.functions.summary(function_id)
            response.function_info_summaries[function_id].CopyFrom(summary)
        return response

    @unary
    async def AppGetLayout(
        self, request: api_pb2.AppGetLayoutRequest
    ) -> api_pb2.AppGetLayoutResponse:
        app = self.get(request.app_id)
        layout = self.functions.layout(app)
        return api_pb2.AppGetLayoutResponse(app_layout=layout)

    @unary
    async def AppGetObjects(
        self, request: api_pb2.AppGetObjectsRequest
    ) -> api_pb2.AppGetObjectsResponse:
        app = self.get(request.app_id)
        objects = {found.object_id: found for found in self.functions.layout(app).objects}
        response = api_pb2.AppGetObjectsResponse()
        for tag, object_id in {**app.function_ids, **app.class_ids}.items():
            response.items.add(tag=tag, object=objects[object_id])
        return response

    @unary
    async def AppGetTags(self, request: api_pb2.AppGetTagsRequest) -> api_pb2.AppGetTagsResponse:
        app = self.get(request.app_id)
        return api_pb2.AppGetTagsResponse(tags=app.tags)

    @unary
    async def AppSetTags(self, request: api_pb2.AppSetTagsRequest) -> Empty:
        app = self.get(request.app_id)
        app.tags = dict(request.tags)
        self._save(app)
        return Empty()

    @unary
    async def AppDeploymentHistory(
        self, request: api_pb2.AppDeploymentHistoryRequest
    ) -> api_pb2.AppDeploymentHistoryResponse:
        app = self.get(request.app_id)
        response = api_pb2.AppDeploymentHistoryResponse()
        for deployment in reversed(app.deployments):
            response.app_deployment_histories.add(
                app_id=app.app_id,
                version=deployment.version,
                client_version=deployment.client_version,
                deployed_at=deployment.deployed_at,
                deployed_by=_OWNER,
                tag=deployment.tag,
            )
            response.production_app_version = app.deployments[-1].version
        return response

    def _create(self, description: str, environment: str, state: int, tags: dict[str, str]) -> App:
        app = App(
            app_id=new_id("ap"),
            description=description,
            environment=environment or "main",
            state=state or EPHEMERAL,
            created_at=self.plane.now(),
            tags=tags,
        )
        self._apps[app.app_id] = app
        self._heard[app.app_id] = time.monotonic()
        self._save(app)
        return app

    def _live(self, app_id: str) -> App:
        app = self.get(app_id)
        if not app.takes_calls:
            raise GRPCError(Status.FAILED_PRECONDITION, f"App {app_id} is stopped.")
        return app

    def _listed(self) -> Iterable[App]:
        since = self.plane.now() - _LISTED_AFTER_STOP_SECONDS
        return [app for app in self._apps.values() if not app.is_over or app.stopped_at >= since]

    def _metadata(self, app: App) -> api_pb2.AppHandleMetadata:
        return api_pb2.AppHandleMetadata(
            description=app.description,
            app_id=app.app_id,
            environment_name=app.environment,
            lifecycle=app.lifecycle,
            functions=app.function_ids,
        )

    def _leave(self, app: App) -> None:
        """The client is gone, whether it said so or not."""
        self._heard.pop(app.app_id, None)
        after = _WHEN_CLIENT_GOES.get(app.state)  # type: ignore[call-overload]
        if after == STOPPING:
            self.stop(app)
        elif after == DISCONNECTED:
            app.state = DISCONNECTED
            self._save(app)
            self.end_if_idle(app.app_id)

    async def _watch_clients(self) -> None:
        limit = self.plane.settings.attached_expiry_seconds
        while True:
            await asyncio.sleep(min(1.0, limit / 4))
            silent_since = time.monotonic() - limit
            for app_id, heard in list(self._heard.items()):
                if heard < silent_since:
                    self._leave(self.get(app_id))

    def _is_idle(self, app: App) -> bool:
        return (
            app.state == DISCONNECTED and app.has_been_called and not self.calls.is_busy(app.app_id)
        )

    async def _end_if_still_idle(self, app_id: str) -> None:
        await asyncio.sleep(self.plane.settings.detached_linger_seconds)
        app = self.get(app_id)
        if self._is_idle(app):
            self.stop(app)

    async def _end(self, app: App) -> None:
        # The outputs come first: a waiting client hears that the app was stopped, and not how its
        # container died.
        self.calls.terminate_app(app.app_id)
        await self.containers.stop_app(app.app_id)
        app.state, app.stopped_at = STOPPED, self.plane.now()
        self._heard.pop(app.app_id, None)
        self.logs.finish(app.app_id)
        self._save(app)
        self._forget_secrets(app.app_id)

    def _forget_secrets(self, app_id: str) -> None:
        """Those that were made for this app alone."""
        from composer_tui.rehearsal.secrets import Secrets

        self.plane.area(Secrets).forget_app(app_id)

    def _save(self, app: App) -> None:
        write_whole(self.plane.root / "apps" / app.app_id / "app.json", msgspec.json.encode(app))


def _environment(request: Any) -> str:
    return request.environment_name or "main"
