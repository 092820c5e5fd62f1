"""Functions and classes: what was asked for, checked as Modal checks it, and their variants."""

import hashlib
from typing import TYPE_CHECKING, Any

import msgspec
from grpclib import GRPCError, Status
from modal_proto import api_pb2

from composer_tui.rehearsal.ids import new_id
from composer_tui.rehearsal.journal import write_whole
from composer_tui.rehearsal.limits import ignored, not_imitated, objections
from composer_tui.rehearsal.neighbours import NeighbourlyArea
from composer_tui.rehearsal.rpc import unary

if TYPE_CHECKING:
    from composer_tui.rehearsal.apps import App

_DEFAULT_SCALEDOWN_SECONDS = 60


class _Stored(msgspec.Struct):
    """A function as it is kept in its app's folder."""

    function_id: str
    app_id: str
    data: bytes
    definition_id: str
    root_id: str = ""
    params: bytes = b""


class Function:
    """One function, or one variant of it (a class's parameters, ``with_options``).

    ``root_id`` is the function a variant was made of, or its own id. A new ``definition_id`` means
    new code or settings: containers of an older one are retired.
    """

    def __init__(self, stored: _Stored) -> None:
        self.function_id = stored.function_id
        self.app_id = stored.app_id
        self.definition_id = stored.definition_id
        self.root_id = stored.root_id or stored.function_id
        self.params = stored.params
        self.data = api_pb2.FunctionData.FromString(stored.data)
        self.autoscaler = _autoscaler(self.spec)
        self.is_created = False  # a function has an id before it has a definition

    @property
    def spec(self) -> api_pb2.Function:
        """The definition that containers run: of a list of GPUs, the one asked for first."""
        if not self.data.ranked_functions:
            return api_pb2.Function(function_name=self.data.function_name)
        spec: api_pb2.Function = self.data.ranked_functions[0].function
        return spec

    @property
    def slots(self) -> int:
        """How many inputs one container runs at once."""
        return max(1, self.spec.target_concurrent_inputs or self.spec.max_concurrent_inputs)

    @property
    def name(self) -> str:
        return str(self.data.function_name)

    def stored(self) -> _Stored:
        return _Stored(
            self.function_id,
            self.app_id,
            self.data.SerializeToString(),
            self.definition_id,
            self.root_id,
            self.params,
        )

    def handle(self) -> api_pb2.FunctionHandleMetadata:
        """What a client needs in order to call it."""
        data = self.data
        metadata = api_pb2.FunctionHandleMetadata(
            function_name=data.function_name,
            function_type=data.function_type,
            is_method=data.is_method,
            definition_id=self.definition_id,
            class_parameter_info=data.class_parameter_info,
            function_schema=data.function_schema,
            supported_input_formats=data.supported_input_formats,
            supported_output_formats=data.supported_output_formats,
            app_id=self.app_id,
            base_function_id=self.root_id,
        )
        for name, method in data.method_definitions.items():
            metadata.method_handle_metadata[name].CopyFrom(
                api_pb2.FunctionHandleMetadata(
                    function_name=method.function_name,
                    function_type=method.function_type,
                    is_method=True,
                    use_method_name=name,
                    definition_id=self.definition_id,
                    function_schema=method.function_schema,
                    supported_input_formats=method.supported_input_formats,
                    supported_output_formats=method.supported_output_formats,
                    app_id=self.app_id,
                )
            )
        return metadata


class Functions(NeighbourlyArea):
    """Every function, variant and class of every app that is still known."""

    def __init__(self, plane: Any) -> None:
        super().__init__(plane)
        self._functions: dict[str, Function] = {}
        self._variants: dict[str, str] = {}
        self._classes: dict[str, str] = {}  # class id -> app id

    def restore(self) -> None:
        for path in sorted((self.plane.root / "apps").glob("*/functions/*.json")):
            function = Function(msgspec.json.decode(path.read_bytes(), type=_Stored))
            function.is_created = True
            self._functions[function.function_id] = function

    def get(self, function_id: str) -> Function:
        """Raises GRPCError NOT_FOUND."""
        function = self._functions.get(function_id)
        if function is None:
            raise GRPCError(Status.NOT_FOUND, f"Function {function_id} not found.")
        return function

    def all(self) -> list[Function]:
        return list(self._functions.values())

    def of_app(self, app_id: str) -> list[Function]:
        """Its functions and their variants."""
        return [function for function in self._functions.values() if function.app_id == app_id]

    def summary(self, function_id: str) -> api_pb2.AppGetInfoResponse.FunctionInfoSummary:
        """What ``modal app info`` tells of it."""
        data = self.get(function_id).data
        summary = api_pb2.AppGetInfoResponse.FunctionInfoSummary()
        for ranked in data.ranked_functions:
            if ranked.function.resources.gpu_config.count:
                summary.gpu_config.append(ranked.function.resources.gpu_config)
        if data.HasField("schedule"):
            summary.schedule.CopyFrom(data.schedule)
        return summary

    def layout(self, app: "App") -> api_pb2.AppLayout:
        """Everything of an app that a container or a new client can refer to."""
        layout = api_pb2.AppLayout(function_ids=app.function_ids, class_ids=app.class_ids)
        seen: set[str] = set()
        for function in self.of_app(app.app_id):
            layout.objects.add(
                object_id=function.function_id, function_handle_metadata=function.handle()
            )
            seen.add(function.function_id)
        for name, class_id in app.class_ids.items():
            metadata = api_pb2.ClassHandleMetadata()
            if (function_id := app.function_ids.get(f"{name}.*")) is not None:
                metadata.class_function_id = function_id
                metadata.class_function_metadata.CopyFrom(self.get(function_id).handle())
            layout.objects.add(object_id=class_id, class_handle_metadata=metadata)
            seen.add(class_id)
        for function in self.of_app(app.app_id):
            for dependency in function.spec.object_dependencies:
                if dependency.object_id not in seen:
                    seen.add(dependency.object_id)
                    layout.objects.append(self._object(dependency.object_id))
        return layout

    @unary
    async def FunctionPrecreate(
        self, request: api_pb2.FunctionPrecreateRequest
    ) -> api_pb2.FunctionPrecreateResponse:
        self._require_live(request.app_id)
        function = self._functions.get(request.existing_function_id)
        if function is None:
            data = api_pb2.FunctionData(
                function_name=request.function_name,
                function_type=request.function_type,
                webhook_config=request.webhook_config,
                method_definitions=request.method_definitions,
                function_schema=request.function_schema,
                supported_input_formats=request.supported_input_formats,
                supported_output_formats=request.supported_output_formats,
            )
            function = self._add(_Stored(new_id("fu"), request.app_id, b"", new_id("de")), data)
        return api_pb2.FunctionPrecreateResponse(
            function_id=function.function_id, handle_metadata=function.handle()
        )

    @unary
    async def FunctionCreate(
        self, request: api_pb2.FunctionCreateRequest
    ) -> api_pb2.FunctionCreateResponse:
        self._require_live(request.app_id)
        data = _function_data(request)
        for ranked in data.ranked_functions:
            _refuse_bad(data.function_name, ranked.function)
        function_id = request.existing_function_id or new_id("fu")
        stored = _Stored(function_id, request.app_id, b"", new_id("de"))
        function = self._add(stored, data)
        function.is_created = True
        self._save(function)
        for words in ignored(function.spec):
            self.logs.add(
                function.app_id,
                f"rehearsal: {function.name}: {words}: taken note of, without effect here\n",
                function_id=function.function_id,
            )
        return api_pb2.FunctionCreateResponse(
            function_id=function.function_id,
            function=function.spec,
            handle_metadata=function.handle(),
            function_data=function.data,
        )

    @unary
    async def FunctionGet(self, request: api_pb2.FunctionGetRequest) -> api_pb2.FunctionGetResponse:
        app = self._deployed(request)
        function_id = app.function_ids.get(request.object_tag)
        if function_id is None:
            raise GRPCError(
                Status.NOT_FOUND, f"App '{app.name}' has no function '{request.object_tag}'"
            )
        function = self.get(function_id)
        return api_pb2.FunctionGetResponse(
            function_id=function.function_id,
            handle_metadata=function.handle(),
            function=function.data,
        )

    @unary
    async def FunctionGetById(
        self, request: api_pb2.FunctionGetByIdRequest
    ) -> api_pb2.FunctionGetByIdResponse:
        function = self.get(request.function_id)
        return api_pb2.FunctionGetByIdResponse(
            function=function.data, handle_metadata=function.handle()
        )

    @unary
    async def FunctionGetSerialized(
        self, request: api_pb2.FunctionGetSerializedRequest
    ) -> api_pb2.FunctionGetSerializedResponse:
        spec = self.get(request.function_id).spec
        return api_pb2.FunctionGetSerializedResponse(
            function_serialized=spec.function_serialized, class_serialized=spec.class_serialized
        )

    @unary
    async def FunctionBindParams(
        self, request: api_pb2.FunctionBindParamsRequest
    ) -> api_pb2.FunctionBindParamsResponse:
        base = self.get(request.function_id)
        self._require_live(base.app_id)
        key = hashlib.sha256(
            base.definition_id.encode() + request.SerializeToString(deterministic=True)
        ).hexdigest()
        variant = self._functions.get(self._variants.get(key, ""))
        if variant is None:
            variant = self._bind(base, request)
            self._variants[key] = variant.function_id
        return api_pb2.FunctionBindParamsResponse(
            bound_function_id=variant.function_id, handle_metadata=variant.handle()
        )

    @unary
    async def FunctionGetCurrentStats(
        self, request: api_pb2.FunctionGetCurrentStatsRequest
    ) -> api_pb2.FunctionStats:
        function = self.get(request.function_id)
        containers = self.containers.of_function(function.function_id)
        running = sum(len(container.running) for container in containers)
        return api_pb2.FunctionStats(
            backlog=self.calls.backlog(function.function_id),
            num_total_tasks=len(containers),
            num_running_inputs=running,
            input_headroom=max(0, len(containers) * function.slots - running),
        )

    @unary
    async def FunctionGetSchedulingParams(
        self, request: api_pb2.FunctionGetSchedulingParamsRequest
    ) -> api_pb2.FunctionGetSchedulingParamsResponse:
        function = self.get(request.function_id)
        configuration = api_pb2.AutoscalerConfiguration(
            settings=function.autoscaler, static_settings=_autoscaler(function.spec)
        )
        return api_pb2.FunctionGetSchedulingParamsResponse(autoscaler_configuration=configuration)

    @unary
    async def FunctionUpdateSchedulingParams(
        self, request: api_pb2.FunctionUpdateSchedulingParamsRequest
    ) -> api_pb2.FunctionUpdateSchedulingParamsResponse:
        function = self.get(request.function_id)
        function.autoscaler.MergeFrom(request.settings)
        self.containers.scale(function.function_id)
        return api_pb2.FunctionUpdateSchedulingParamsResponse(current_settings=function.autoscaler)

    @unary
    async def ClassCreate(self, request: api_pb2.ClassCreateRequest) -> api_pb2.ClassCreateResponse:
        self._require_live(request.app_id)
        class_id = request.existing_class_id or new_id("cs")
        self._classes[class_id] = request.app_id
        metadata = api_pb2.ClassHandleMetadata(methods=request.methods)
        return api_pb2.ClassCreateResponse(class_id=class_id, handle_metadata=metadata)

    @unary
    async def ClassGet(self, request: api_pb2.ClassGetRequest) -> api_pb2.ClassGetResponse:
        app = self._deployed(request)
        class_id = app.class_ids.get(request.object_tag)
        if class_id is None:
            raise GRPCError(
                Status.NOT_FOUND, f"App '{app.name}' has no class '{request.object_tag}'"
            )
        found = next(item for item in self.layout(app).objects if item.object_id == class_id)
        return api_pb2.ClassGetResponse(
            class_id=class_id, handle_metadata=found.class_handle_metadata
        )

    def _add(self, stored: _Stored, data: api_pb2.FunctionData) -> Function:
        stored.data = data.SerializeToString()
        function = self._functions[stored.function_id] = Function(stored)
        return function

    def _save(self, function: Function) -> None:
        folder = self.plane.root / "apps" / function.app_id / "functions"
        data = msgspec.json.encode(function.stored())
        write_whole(folder / f"{function.function_id}.json", data)

    def _bind(self, base: Function, request: api_pb2.FunctionBindParamsRequest) -> Function:
        data = api_pb2.FunctionData()
        data.CopyFrom(base.data)
        if request.HasField("function_options"):
            for ranked in data.ranked_functions:
                _apply(request.function_options, ranked.function)
                _refuse_bad(data.function_name, ranked.function)
            if request.function_options.HasField("resources"):
                del data.ranked_functions[1:]  # one GPU asked for replaces a list
            data.timeout_secs = data.ranked_functions[0].function.timeout_secs
        stored = _Stored(
            new_id("fu"),
            base.app_id,
            b"",
            base.definition_id,
            base.root_id,
            request.serialized_params,
        )
        function = self._add(stored, data)
        function.is_created = True
        self._save(function)
        return function

    def _object(self, object_id: str) -> api_pb2.Object:
        """A thing that a function refers to. Volumes and mounts tell more than their id."""
        found = api_pb2.Object(object_id=object_id)
        if object_id in self._functions:
            found.function_handle_metadata.CopyFrom(self._functions[object_id].handle())
        elif object_id.startswith("vo-"):
            from composer_tui.rehearsal.volumes import Volumes

            found.volume_metadata.CopyFrom(self.plane.area(Volumes).metadata(object_id))
        elif object_id.startswith("mo-"):
            from composer_tui.rehearsal.mounts import Mounts

            found.mount_handle_metadata.CopyFrom(self.plane.area(Mounts).metadata(object_id))
        return found

    def _require_live(self, app_id: str) -> None:
        if not self.apps.get(app_id).takes_calls:
            raise GRPCError(Status.FAILED_PRECONDITION, f"App {app_id} is stopped.")

    def _deployed(self, request: Any) -> "App":
        app = self.apps.deployed(request.app_name, request.environment_name or "main")
        if app is None:
            raise GRPCError(Status.NOT_FOUND, f"App '{request.app_name}' is not deployed")
        newest = app.deployments[-1].version if app.deployments else 0
        if request.app_version not in (0, newest):
            raise GRPCError(
                Status.UNIMPLEMENTED, "the rehearsal keeps only the newest version of an app"
            )
        return app


def _function_data(request: api_pb2.FunctionCreateRequest) -> api_pb2.FunctionData:
    """The request as FunctionData: a plain function becomes the only one of a ranked list."""
    if request.HasField("function_data") and request.function_data.ranked_functions:
        return request.function_data
    spec = request.function
    data = api_pb2.FunctionData(
        module_name=spec.module_name,
        function_name=spec.function_name,
        implementation_name=spec.implementation_name,
        function_type=spec.function_type,
        autoscaler_settings=spec.autoscaler_settings,
        timeout_secs=spec.timeout_secs,
        startup_timeout_secs=spec.startup_timeout_secs,
        webhook_config=spec.webhook_config,
        is_class=spec.is_class,
        class_parameter_info=spec.class_parameter_info,
        is_method=spec.is_method,
        method_definitions=spec.method_definitions,
        method_definitions_set=spec.method_definitions_set,
        function_schema=spec.function_schema,
        untrusted=spec.untrusted,
        supported_input_formats=spec.supported_input_formats,
        supported_output_formats=spec.supported_output_formats,
        is_server=spec.is_server,
    )
    if spec.HasField("schedule"):
        data.schedule.CopyFrom(spec.schedule)
    data.ranked_functions.add(rank=0, function=spec)
    return data


def _refuse_bad(name: str, spec: api_pb2.Function) -> None:
    if lines := not_imitated(spec):
        raise GRPCError(
            Status.UNIMPLEMENTED, f"{name}: the rehearsal does not imitate {', '.join(lines)}"
        )
    if lines := objections(spec):
        raise GRPCError(Status.INVALID_ARGUMENT, f"{name}: {'; '.join(lines)}")


def _autoscaler(spec: api_pb2.Function) -> api_pb2.AutoscalerSettings:
    settings = api_pb2.AutoscalerSettings(
        min_containers=0,
        max_containers=0,
        buffer_containers=0,
        scaledown_window=_DEFAULT_SCALEDOWN_SECONDS,
    )
    settings.MergeFrom(spec.autoscaler_settings)
    return settings


def _apply(options: api_pb2.FunctionOptions, spec: api_pb2.Function) -> None:
    """Lays the options of ``with_options`` over a definition."""
    if options.replace_secret_ids:
        del spec.secret_ids[:]
    spec.secret_ids.extend(options.secret_ids)
    if options.replace_volume_mounts:
        del spec.volume_mounts[:]
    spec.volume_mounts.extend(options.volume_mounts)
    spec.mount_ids.extend(options.mount_ids)
    spec.cloud_bucket_mounts.extend(options.cloud_bucket_mounts)
    if options.HasField("resources"):
        spec.resources.MergeFrom(options.resources)
    for name in ("retry_policy", "scheduler_placement"):
        if options.HasField(name):
            getattr(spec, name).CopyFrom(getattr(options, name))
    for name in (
        "timeout_secs",
        "target_concurrent_inputs",
        "max_concurrent_inputs",
        "batch_max_size",
        "batch_linger_ms",
        "cloud_provider_str",
    ):
        if options.HasField(name):  # type: ignore[arg-type]
            setattr(spec, name, getattr(options, name))
    for name, setting in (
        ("concurrency_limit", "max_containers"),
        ("warm_pool_size", "min_containers"),
        ("buffer_containers", "buffer_containers"),
        ("task_idle_timeout_secs", "scaledown_window"),
    ):
        if options.HasField(name):  # type: ignore[arg-type]
            setattr(spec.autoscaler_settings, setting, getattr(options, name))
