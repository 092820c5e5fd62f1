"""The workspace: who the token is, the environments, and the bill in play money."""

import datetime as dt
from collections.abc import Callable, Sequence
from decimal import Decimal
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec
from google.protobuf.empty_pb2 import Empty
from grpclib import Status
from grpclib.server import Stream
from modal_proto import api_pb2

from composer_tui.pricing.catalog import catalog
from composer_tui.rehearsal import billing
from composer_tui.rehearsal.area import Area
from composer_tui.rehearsal.digests import id_of
from composer_tui.rehearsal.ids import new_id
from composer_tui.rehearsal.metering import Usage
from composer_tui.rehearsal.rpc import received, refuse, unary
from composer_tui.runs.folder import read_json, write_whole

if TYPE_CHECKING:
    from composer_tui.rehearsal.control_plane import ControlPlane

WORKSPACE = "rehearsal"
DEFAULT_ENVIRONMENT = "main"
IMAGE_BUILDER_VERSION = "2025.06"
_NAME_LENGTH = 64  # characters at most


class Environment(msgspec.Struct, kw_only=True):
    """One environment. ``created_at`` is unix seconds; an empty version is the workspace's."""

    environment_id: str
    name: str
    created_at: float
    web_suffix: str = ""
    image_builder_version: str = ""


class Workspace(Area):
    """Answers for the one workspace there is; the environment ``main`` is always there."""

    def __init__(self, plane: "ControlPlane") -> None:
        super().__init__(plane)
        self._environments: dict[str, Environment] = {}

    def restore(self) -> None:
        if self._path.exists():
            environments = read_json(self._path, list[Environment])
            self._environments = {each.name: each for each in environments}
        if DEFAULT_ENVIRONMENT not in self._environments:
            self._add(DEFAULT_ENVIRONMENT)

    def environment(self, name: str) -> Environment:
        """The environment of that name, or of that id; "" is the default. Raises NOT_FOUND."""
        wanted = name or DEFAULT_ENVIRONMENT
        for environment in self._environments.values():
            if wanted in (environment.name, environment.environment_id):
                break
        else:
            refuse(Status.NOT_FOUND, f"Environment '{name}' not found")
        return environment

    def environment_name(self, name: str) -> str:
        """The name itself once it is known to be one; "" is the default. Raises NOT_FOUND."""
        return self.environment(name).name

    def rates(self) -> billing.Rates:
        """US dollars by key: those that ship with the program, of September 2026.

        ``root/rates.json``, a flat object of decimal strings, overrides them.
        """
        path = self.plane.root / "rates.json"
        overrides = read_json(path, dict[str, Decimal]) if path.exists() else {}
        return {**catalog().rates, **overrides}

    @unary
    async def WorkspaceNameLookup(self, _request: Empty) -> api_pb2.WorkspaceNameLookupResponse:
        return api_pb2.WorkspaceNameLookupResponse(workspace_name=WORKSPACE, username=WORKSPACE)

    @unary
    async def WorkspaceSettings(self, _request: Empty) -> api_pb2.WorkspaceSettingsResponse:
        return api_pb2.WorkspaceSettingsResponse(
            default_environment_name=DEFAULT_ENVIRONMENT,
            image_builder_version=IMAGE_BUILDER_VERSION,
        )

    @unary
    async def TokenInfoGet(
        self, _request: api_pb2.TokenInfoGetRequest
    ) -> api_pb2.TokenInfoGetResponse:
        return api_pb2.TokenInfoGetResponse(
            token_id=self.plane.connection.token_id,
            token_name="rehearsal",  # noqa: S106  # its name, not its secret
            workspace_id=id_of("ac", WORKSPACE),
            workspace_name=WORKSPACE,
            user_identity=api_pb2.UserIdentity(user_id=id_of("us", WORKSPACE), username=WORKSPACE),
        )

    @unary
    async def EnvironmentGetOrCreate(
        self, request: api_pb2.EnvironmentGetOrCreateRequest
    ) -> api_pb2.EnvironmentGetOrCreateResponse:
        name = request.deployment_name
        makes_missing = (
            request.object_creation_type == api_pb2.OBJECT_CREATION_TYPE_CREATE_IF_MISSING
        )
        if name and name not in self._environments and makes_missing:
            self._add(name)
        environment = self.environment(name)
        settings = api_pb2.EnvironmentSettings(
            image_builder_version=environment.image_builder_version or IMAGE_BUILDER_VERSION,
            webhook_suffix=environment.web_suffix,
        )
        return api_pb2.EnvironmentGetOrCreateResponse(
            environment_id=environment.environment_id,
            metadata=api_pb2.EnvironmentMetadata(name=environment.name, settings=settings),
        )

    @unary
    async def EnvironmentCreate(self, request: api_pb2.EnvironmentCreateRequest) -> Empty:
        self._add(request.name)
        return Empty()

    @unary
    async def EnvironmentUpdate(
        self, request: api_pb2.EnvironmentUpdateRequest
    ) -> api_pb2.EnvironmentListItem:
        environment = self.environment(request.current_name)
        if request.HasField("name") and request.name.value != environment.name:
            refuse(Status.UNIMPLEMENTED, "the rehearsal does not rename environments")
        if request.HasField("web_suffix"):
            environment.web_suffix = request.web_suffix.value
        if request.HasField("image_builder_version"):
            environment.image_builder_version = request.image_builder_version
        self._save()
        return _item(environment)

    @unary
    async def EnvironmentDelete(self, request: api_pb2.EnvironmentDeleteRequest) -> Empty:
        environment = self.environment(request.name)
        if environment.name == DEFAULT_ENVIRONMENT:
            refuse(Status.FAILED_PRECONDITION, "the default environment cannot be deleted")
        await self._forget(environment.name)
        del self._environments[environment.name]
        self._save()
        return Empty()

    @unary
    async def EnvironmentList(self, _request: Empty) -> api_pb2.EnvironmentListResponse:
        return api_pb2.EnvironmentListResponse(
            items=[_item(environment) for environment in self._environments.values()]
        )

    @unary
    async def WorkspaceBillingRates(
        self, _request: api_pb2.WorkspaceBillingRatesRequest
    ) -> api_pb2.WorkspaceBillingRatesResponse:
        rates = self.rates()
        return api_pb2.WorkspaceBillingRatesResponse(
            rates={key: str(rate) for key, rate in rates.items()},
            formatted="\n".join(f"{key}: ${rates[key]}" for key in sorted(rates)),
        )

    async def WorkspaceBillingReport(
        self,
        stream: Stream[api_pb2.WorkspaceBillingReportRequest, api_pb2.WorkspaceBillingReportItem],
    ) -> None:
        request = await received(stream)
        interval_seconds = billing.INTERVAL_SECONDS.get(request.resolution or "d")
        if interval_seconds is None:
            refuse(Status.INVALID_ARGUMENT, f"Unknown resolution: {request.resolution!r}")
        environments = {self.environment_name(name) for name in request.environment_ids}
        now = self.plane.now()
        rows = billing.report(
            [
                usage
                for usage in self._usages()
                if _wanted(usage, environments, list(request.app_ids))
            ],
            self.rates(),
            _seconds(request.start_timestamp.ToDatetime(dt.UTC)),
            _seconds(request.end_timestamp.ToDatetime(dt.UTC)),
            interval_seconds,
            now,
        )
        for row in rows:
            await stream.send_message(_report_item(row, list(request.tag_names)))

    @unary
    async def WorkspaceBillingSummary(
        self, request: api_pb2.WorkspaceBillingSummaryRequest
    ) -> api_pb2.WorkspaceBillingSummaryResponse:
        start = request.start_timestamp.ToDatetime(dt.UTC)
        metered = self._metered(start, lambda _: True)
        response = api_pb2.WorkspaceBillingSummaryResponse(
            metered_cost=billing.text(metered),
            billed_cost=billing.text(Decimal(0)),
            metered_cost_breakdown={"Apps": billing.text(metered)},
            adjustments={"Rehearsal": billing.text(-metered)},
        )
        response.start_timestamp.FromDatetime(start)
        response.end_timestamp.FromDatetime(_next_month(start))
        return response

    @unary
    async def EnvironmentBillingSummary(
        self, request: api_pb2.EnvironmentBillingSummaryRequest
    ) -> api_pb2.EnvironmentBillingSummaryResponse:
        environment = self.environment_name(request.environment_id)
        start = request.start_timestamp.ToDatetime(dt.UTC)
        metered = self._metered(start, lambda usage: usage.environment == environment)
        response = api_pb2.EnvironmentBillingSummaryResponse(
            metered_cost=billing.text(metered),
            metered_cost_breakdown={"Apps": billing.text(metered)},
        )
        response.start_timestamp.FromDatetime(start)
        response.end_timestamp.FromDatetime(_next_month(start))
        return response

    def _metered(self, start: dt.datetime, wanted: Callable[[Usage], bool]) -> Decimal:
        return billing.metered(
            filter(wanted, self._usages()),
            self.rates(),
            _seconds(start),
            _seconds(_next_month(start)),
            self.plane.now(),
        )

    def _usages(self) -> list[Usage]:
        from composer_tui.rehearsal.containers import Containers

        return self.plane.area(Containers).usage()

    async def _forget(self, environment: str) -> None:
        from composer_tui.rehearsal.dicts import Dicts
        from composer_tui.rehearsal.queues import Queues
        from composer_tui.rehearsal.secrets import Secrets
        from composer_tui.rehearsal.volumes import Volumes

        await self.plane.area(Volumes).forget_environment(environment)
        self.plane.area(Dicts).forget_environment(environment)
        self.plane.area(Queues).forget_environment(environment)
        self.plane.area(Secrets).forget_environment(environment)

    @property
    def _path(self) -> Path:
        return self.plane.root / "environments.json"

    def _add(self, name: str) -> None:
        """Raises ALREADY_EXISTS or INVALID_ARGUMENT."""
        if name in self._environments:
            refuse(Status.ALREADY_EXISTS, f"Environment '{name}' already exists")
        allowed = all(letter.isascii() and (letter.isalnum() or letter in "-_") for letter in name)
        if not allowed or not 0 < len(name) <= _NAME_LENGTH or not name[0].isalnum():
            refuse(Status.INVALID_ARGUMENT, f"Invalid Environment name: '{name}'.")
        self._environments[name] = Environment(
            environment_id=new_id("en"), name=name, created_at=self.plane.now()
        )
        self._save()

    def _save(self) -> None:
        write_whole(self._path, msgspec.json.encode(list(self._environments.values())))


def _item(environment: Environment) -> api_pb2.EnvironmentListItem:
    item = api_pb2.EnvironmentListItem(
        name=environment.name,
        environment_id=environment.environment_id,
        webhook_suffix=environment.web_suffix,
        created_at=environment.created_at,
        default=environment.name == DEFAULT_ENVIRONMENT,
    )
    if environment.image_builder_version:
        item.image_builder_version = environment.image_builder_version
    return item


def _wanted(usage: Usage, environments: set[str], app_ids: Sequence[str]) -> bool:
    """Whether a report is about it; nothing named means everything."""
    return (not environments or usage.environment in environments) and (
        not app_ids or usage.app_id in app_ids
    )


def _report_item(row: billing.Row, tag_names: list[str]) -> api_pb2.WorkspaceBillingReportItem:
    item = api_pb2.WorkspaceBillingReportItem(
        object_id=row.app_id,
        description=row.description,
        environment_name=row.environment,
        cost=billing.text(row.usd),
        tags={name: tag for name, tag in row.tags.items() if name in tag_names or "*" in tag_names},
        cost_by_resource={name: billing.text(usd) for name, usd in row.usd_by_resource.items()},
    )
    item.interval.FromSeconds(row.interval_start)
    return item


def _seconds(moment: dt.datetime) -> float:
    return moment.timestamp()


def _next_month(moment: dt.datetime) -> dt.datetime:
    return (moment.replace(day=1) + dt.timedelta(days=32)).replace(day=1)
