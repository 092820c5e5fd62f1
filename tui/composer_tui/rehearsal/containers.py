"""Containers: how many there should be, their lives, and their deaths."""

import asyncio
import math
import re
import secrets
import shutil
import time
from collections import Counter
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from google.protobuf.empty_pb2 import Empty
from grpclib import GRPCError, Status
from modal_proto import api_pb2

from composer_tui.rehearsal.area import task_of
from composer_tui.rehearsal.calls import INIT_FAILURE, Input
from composer_tui.rehearsal.ids import new_id
from composer_tui.rehearsal.logs import STDERR, STDOUT, SYSTEM
from composer_tui.rehearsal.metering import Usage
from composer_tui.rehearsal.neighbours import NeighbourlyArea
from composer_tui.rehearsal.pulse import Pulse
from composer_tui.rehearsal.rpc import received, unary
from composer_tui.rehearsal.supervised import Ending, Supervised
from composer_tui.rehearsal.workspace import Workspace

if TYPE_CHECKING:
    from composer_tui.rehearsal.apps import App
    from composer_tui.rehearsal.functions import Function

Result = api_pb2.GenericResult
FAILURE = Result.GENERIC_STATUS_FAILURE

_MISSING_MODULE = re.compile(r"No module named \\?['\"]([\w.]+)")
_CANCEL_SECONDS = 10.0  # for the user's code to end after its input was cancelled
_LEAVE_SECONDS = 30.0  # for a container to end by itself, its exit handlers included
_HELD_PART = 0.9  # of a heartbeat's interval: the client gives up soon after the whole
_TICK_SECONDS = 1.0
_LEAST_STARTUP_SECONDS = 60  # a busy machine starts a container more slowly than Modal does


class Container:
    """One container. ``running`` are the inputs it is at; times are Unix seconds, 0 for never."""

    def __init__(self, function: "Function", now: float) -> None:
        self.task_id = new_id("ta")
        self.secret = secrets.token_hex(16)
        self.app_id = function.app_id
        self.function_id = function.function_id
        self.root_function_id = function.root_id
        self.definition_id = function.definition_id
        self.enqueued_at = now
        self.started_at = 0.0
        self.finished_at = 0.0
        self.running: dict[str, Input] = {}
        self.inputs_taken = 0
        self.is_leaving = False  # gets no more inputs
        self.is_ending = False  # is being killed
        self.is_preempted = False
        self.is_gone = False
        self.failure: Result | None = None  # what it said itself, or was found out about it
        self.heard_at = time.monotonic()
        self.idle_since = time.monotonic()
        self.pulse = Pulse()
        self.processes: Supervised | None = None

    @property
    def is_ready(self) -> bool:
        """Whether it has asked for its first input."""
        return self.started_at > 0

    @property
    def cancelled(self) -> list[str]:
        """What it is at in vain."""
        return [input_id for input_id, found in self.running.items() if found.is_cancelled]

    def take(self, found: Input) -> None:
        self.running[found.input_id] = found
        self.inputs_taken += 1

    def drop(self, found: Input) -> None:
        """It is not at that input any more."""
        self.running.pop(found.input_id, None)
        self.idle_since = time.monotonic()

    def flush(self) -> None:
        """Puts what it has printed so far into the logs."""
        if self.processes is not None:
            self.processes.flush()


class Containers(NeighbourlyArea):
    """Every container of this process, those that are gone included."""

    def __init__(self, plane: Any) -> None:
        super().__init__(plane)
        self._containers: dict[str, Container] = {}
        self._ends = Pulse()  # beats when a container is gone
        self._is_closing = False

    async def start(self) -> None:
        folder = self.plane.root / "containers"
        await asyncio.to_thread(shutil.rmtree, folder, ignore_errors=True)  # of an earlier process
        for function in self.functions.all():
            self.scale(function.function_id)  # those that are kept warm
        self.plane.spawn(self._watch())

    async def close(self) -> None:
        self._is_closing = True
        for container in self._live():
            self.end(container, grace_seconds=0.0)
        while any(self._live()):
            await self._ends.wait(_TICK_SECONDS)

    def get(self, task_id: str) -> Container:
        """Raises GRPCError NOT_FOUND."""
        container = self._containers.get(task_id)
        if container is None:
            raise GRPCError(Status.NOT_FOUND, f"Container {task_id!r} not found.")
        return container

    def of_function(self, function_id: str) -> list[Container]:
        """Those of a function that are not gone."""
        return [found for found in self._live() if found.function_id == function_id]

    def counts(self) -> Counter[str]:
        """How many containers each app has."""
        return Counter(container.app_id for container in self._live())

    def usage(self) -> list[Usage]:
        """What a bill is made of. A container is paid for from its start, as on Modal."""
        return [self._usage(found) for found in self._containers.values() if found.is_ready]

    def scale(self, function_id: str) -> None:
        """Starts the containers that a function has work for."""
        function = self.functions.get(function_id)
        has_work = function.is_created and self.apps.get(function.app_id).takes_calls
        if self._is_closing or not has_work:
            return
        present = self.of_function(function_id)
        for _ in range(self._missing(function, present)):
            self._add(function)

    def may_leave(self, container: Container) -> bool:
        """Whether it has been idle for long enough, and is not kept warm."""
        function = self.functions.get(container.function_id)
        if self.idle_left_seconds(container, function) > 0:
            return False
        staying = [found for found in self.of_function(function.function_id) if _stays(found)]
        return len(staying) > function.autoscaler.min_containers

    def idle_left_seconds(self, container: Container, function: "Function") -> float:
        """How long it may still stay without an input."""
        window: int = function.autoscaler.scaledown_window
        if container.running:
            return float(window)
        return container.idle_since + window - time.monotonic()

    def note_ready(self, container: Container) -> None:
        """It asks for an input: its program runs."""
        if not container.is_ready:
            container.started_at = self.plane.now()
            container.heard_at = container.idle_since = time.monotonic()
            self._note_state(container, api_pb2.TASK_STATE_ACTIVE)

    def tell(self, container: Container, words: str) -> None:
        """A line of the control plane's own in a container's log."""
        self.logs.add(
            container.app_id,
            words + "\n",
            SYSTEM,
            container.task_id,
            container.root_function_id,
            *_only_input(container),
        )

    def explain(self, container: Container, failure: Result) -> None:
        """Says whether the image is to blame for a module that is missing, or this machine."""
        found = _MISSING_MODULE.search(failure.exception)
        if found is None:
            return
        from composer_tui.rehearsal.images import Images

        spec = self.functions.get(container.function_id).spec
        package = found[1].partition(".")[0].replace("_", "-").lower()
        if package in self.plane.area(Images).packages(spec.image_id):
            words = f"the image installs {package}, which this machine does not have"
        else:
            words = f"the image does not install {package} by that name either"
        self.tell(container, f"rehearsal: {words}")

    def leave(self, container: Container) -> None:
        """Lets it finish what it is at, and go."""
        if not container.is_leaving:
            container.is_leaving = True
            self.calls.arrivals(container.function_id).beat()

    def end(self, container: Container, grace_seconds: float | None = None) -> None:
        """SIGINT, a grace, SIGKILL to everything of it. What it was at starts anew elsewhere."""
        if container.is_ending or container.is_gone:
            return
        container.is_leaving = container.is_ending = True
        container.pulse.beat()
        self.calls.arrivals(container.function_id).beat()
        grace = self.plane.settings.stop_grace_seconds if grace_seconds is None else grace_seconds
        if container.processes is not None:
            self._kill_after(container, grace)

    def cancel_inputs(self, container: Container, input_ids: list[str]) -> None:
        """Tells its program, with the next heartbeat; ends it when that has no effect."""
        container.pulse.beat()
        asyncio.get_running_loop().call_later(
            _CANCEL_SECONDS, self._end_if_still_at, container, input_ids
        )

    def retire_outdated(self, app_id: str) -> None:
        """A new version is deployed: containers of the old one finish what they are at."""
        for container in self._live():
            if container.app_id == app_id:
                function = self.functions.get(container.function_id)
                if self.functions.get(function.root_id).definition_id != container.definition_id:
                    self.leave(container)

    async def stop_app(self, app_id: str) -> None:
        """Returns when the app has no containers, which takes as long as chaos has it."""
        until = time.monotonic() + self.plane.chaos.spec.stuck_stop_seconds
        had_any = bool(self.counts()[app_id])
        while (left := until - time.monotonic()) > 0:
            if had_any and not self.counts()[app_id]:
                break
            await self._ends.wait(left)
        while mine := [found for found in self._live() if found.app_id == app_id]:
            for container in mine:
                self.end(container)
            await self._ends.wait(_TICK_SECONDS)

    async def ContainerHeartbeat(self, stream: Any) -> None:
        await received(stream)
        container = self.get(task_of(stream) or "")
        container.heard_at = time.monotonic()
        if not container.cancelled and not container.is_ending:
            # Held, so that a cancellation does not wait for the next one.
            held_seconds = self.plane.settings.container_heartbeat_seconds * _HELD_PART
            await container.pulse.wait(held_seconds - self.plane.chaos.spec.slow_seconds)
        container.heard_at = time.monotonic()
        response = api_pb2.ContainerHeartbeatResponse()
        if cancelled := container.cancelled:
            # Told again until it has an effect: the first word may come before the input does.
            response.cancel_input_event.input_ids.extend(cancelled)
        await stream.send_message(response)

    async def TaskResult(self, stream: Any) -> None:
        request = await received(stream)
        container = self.get(task_of(stream) or "")
        container.flush()
        container.failure = request.result
        await stream.send_message(Empty())

    async def TaskCurrentInputs(self, stream: Any) -> None:
        await received(stream)
        container = self.get(task_of(stream) or "")
        response = api_pb2.TaskCurrentInputsResponse(input_ids=list(container.running))
        await stream.send_message(response)

    @unary
    async def ContainerStop(
        self, request: api_pb2.ContainerStopRequest
    ) -> api_pb2.ContainerStopResponse:
        container = self.get(request.task_id)
        if request.graceful:
            self.leave(container)
        else:
            self.end(container)
        return api_pb2.ContainerStopResponse()

    @unary
    async def FunctionGetDynamicConcurrency(
        self, request: api_pb2.FunctionGetDynamicConcurrencyRequest
    ) -> api_pb2.FunctionGetDynamicConcurrencyResponse:
        return api_pb2.FunctionGetDynamicConcurrencyResponse(concurrency=request.target_concurrency)

    @unary
    async def TaskList(self, request: api_pb2.TaskListRequest) -> api_pb2.TaskListResponse:
        if request.environment_name:
            self.plane.area(Workspace).environment_name(request.environment_name)
        response = api_pb2.TaskListResponse()
        for container in self._live():
            app = self.apps.get(container.app_id)
            if request.app_id not in ("", app.app_id):
                continue
            if request.environment_name not in ("", app.environment):
                continue
            response.tasks.add(
                task_id=container.task_id,
                app_id=app.app_id,
                app_description=app.description,
                started_at=container.started_at,
                enqueued_at=container.enqueued_at,
            )
        return response

    @unary
    async def TaskGetInfo(self, request: api_pb2.TaskGetInfoRequest) -> api_pb2.TaskGetInfoResponse:
        container = self.get(request.task_id)
        gpu = self.functions.get(container.function_id).spec.resources.gpu_config
        info = api_pb2.TaskInfo(
            id=container.task_id,
            enqueued_at=container.enqueued_at,
            started_at=container.started_at,
            finished_at=container.finished_at,
            gpu_type=gpu.gpu_type,
            gpu_config=gpu,
            result=container.failure,
        )
        return api_pb2.TaskGetInfoResponse(app_id=container.app_id, info=info)

    def _live(self) -> list[Container]:
        return [container for container in self._containers.values() if not container.is_gone]

    def _missing(self, function: "Function", present: list[Container]) -> int:
        """How many more containers its work wants, as far as it and this machine allow."""
        staying = [found for found in present if _stays(found)]
        free = sum(_free_slots(found, function) for found in staying)
        waiting = self.calls.backlog(function.function_id) - free
        wanted = max(
            math.ceil(waiting / function.slots), function.autoscaler.min_containers - len(staying)
        )
        most = self.plane.settings.most_containers
        allowed = min(function.autoscaler.max_containers or most, most)
        return max(0, min(wanted, allowed - len(present)))

    def _add(self, function: "Function") -> None:
        container = Container(function, self.plane.now())
        self._containers[container.task_id] = container
        self.plane.admit_container(container.task_id, container.secret)
        self._note_state(container, api_pb2.TASK_STATE_QUEUED)
        self.plane.spawn(self._launch(container, function))

    async def _launch(self, container: Container, function: "Function") -> None:
        from composer_tui.rehearsal.launch import Launch

        app = self.apps.get(container.app_id)
        folder = self.plane.root / "containers" / container.task_id
        self._note_state(container, api_pb2.TASK_STATE_LOADING_IMAGE)
        try:
            order = await Launch(self.plane, container, folder).order(
                function,
                self.functions.layout(app),
                app.environment,
                isolated=self.plane.settings.isolated,
            )
            if container.is_ending:
                self._bury(container, Ending(0))
                return
            self._note_state(container, api_pb2.TASK_STATE_CREATING_CONTAINER)
            container.processes = Supervised(
                order,
                lambda source, text: self._print(container, source, text),
                lambda ending: self._bury(container, ending),
            )
        except OSError as error:
            where = f": {error.filename}" if error.filename else ""
            self._bury(container, Ending(None, f"{error.strerror or error}{where}"))
        except GRPCError as error:
            self._bury(container, Ending(None, error.message or error.status.name))
        else:
            seconds = max(function.spec.startup_timeout_secs, _LEAST_STARTUP_SECONDS)
            asyncio.get_running_loop().call_later(seconds, self._end_unready, container, seconds)
        finally:
            if container.processes is None and not container.is_gone:
                self._bury(container, Ending(None, "a fault of the rehearsal: see its own log"))

    def _print(self, container: Container, source: int, text: str) -> None:
        self.logs.add(
            container.app_id,
            text,
            STDOUT if source == 1 else STDERR,
            container.task_id,
            container.root_function_id,
            *_only_input(container),
        )

    def _bury(self, container: Container, ending: Ending) -> None:
        """No process of it is left. Says why, and what becomes of its inputs."""
        container.is_gone = container.is_leaving = True
        container.finished_at = self.plane.now()
        self.plane.dismiss_container(container.task_id)
        failure = self._failure(container, ending)
        if failure is not None:
            container.failure = failure
            self.tell(container, failure.exception or ending.words())
            self.explain(container, failure)
        self.calls.release(container, failure)
        if failure is not None and not container.is_ready:
            self.calls.fail_waiting(container.function_id, failure)
        self._note_state(
            container,
            api_pb2.TASK_STATE_PREEMPTED
            if container.is_preempted
            else api_pb2.TASK_STATE_COMPLETED,
        )
        container.pulse.beat()
        self._ends.beat()
        self.plane.spawn(self._clear_away(container))
        self.scale(container.function_id)

    def _failure(self, container: Container, ending: Ending) -> Result | None:
        """What its death means for what it was at; None where it is not to blame."""
        if container.failure is not None:
            return container.failure
        if container.is_ending:
            return None
        if ending.status == 0 and container.is_ready:
            return None
        status = FAILURE if container.is_ready else INIT_FAILURE
        return Result(status=status, exception=ending.words())

    async def _clear_away(self, container: Container) -> None:
        await self.volumes.drop_mounts(container.task_id)
        folder = self.plane.root / "containers" / container.task_id
        await asyncio.to_thread(shutil.rmtree, folder, ignore_errors=True)

    def _kill_after(self, container: Container, grace_seconds: float) -> None:
        if container.processes is not None:
            if grace_seconds > 0:
                container.processes.interrupt()
                asyncio.get_running_loop().call_later(grace_seconds, container.processes.kill)
            else:
                container.processes.kill()

    def _end_if_still_at(self, container: Container, input_ids: list[str]) -> None:
        if any(input_id in container.running for input_id in input_ids):
            self.end(container)

    def _end_unready(self, container: Container, seconds: int) -> None:
        if not container.is_ready and not container.is_gone and not container.is_ending:
            words = f"the container did not become ready within its startup timeout of {seconds}s"
            container.failure = Result(status=INIT_FAILURE, exception=words)
            self.end(container)

    async def _watch(self) -> None:
        """Once a second: who has fallen silent, who does not go, and whom chaos preempts."""
        while True:
            await asyncio.sleep(_TICK_SECONDS)
            now = time.monotonic()
            for container in self._live():
                silent = now - container.heard_at
                if not container.is_ready or container.is_ending:
                    continue
                if silent > self.plane.settings.container_expiry_seconds:
                    self.tell(container, f"the container has not been heard of for {silent:.0f}s")
                    self.end(container, grace_seconds=0.0)
                elif container.is_leaving and not container.running:
                    if now - container.idle_since > _LEAVE_SECONDS:
                        self.end(container)
                elif self._is_preempted_now(container):
                    self._preempt(container)

    def _is_preempted_now(self, container: Container) -> bool:
        spec = self.functions.get(container.function_id).spec
        return not spec.scheduler_placement.nonpreemptible and self.plane.chaos.happens(
            self.plane.chaos.spec.preempt_per_second
        )

    def _preempt(self, container: Container) -> None:
        container.is_preempted = True
        self.tell(container, "the container is preempted; what it is at starts anew elsewhere")
        self.end(container, self.plane.settings.preempt_grace_seconds)

    def _note_state(self, container: Container, state: int) -> None:
        self.logs.add_state(container.app_id, state, container.task_id, container.root_function_id)

    def _usage(self, container: Container) -> Usage:
        app: App = self.apps.get(container.app_id)
        resources = self.functions.get(container.function_id).spec.resources
        return Usage(
            container.task_id,
            app.app_id,
            app.description,
            app.environment,
            dict(app.tags),
            container.started_at,
            container.finished_at or None,
            resources.gpu_config.gpu_type,
            resources.gpu_config.count,
            max(resources.milli_cpu / 1000, Usage._field_defaults["cpu_cores"]),
            max(resources.memory_mb / 1024, Usage._field_defaults["memory_gib"]),
        )


def _stays(container: Container) -> bool:
    return not container.is_leaving and not container.is_gone


def _free_slots(container: Container, function: "Function") -> int:
    """How many more inputs it will take."""
    if function.spec.single_use_containers:
        return 1 - min(1, container.inputs_taken)
    return max(0, function.slots - len(container.running))


def _only_input(container: Container) -> Iterable[str]:
    """The call and the input that its output belongs to, where it is at one only."""
    if len(container.running) != 1:
        return ("", "")
    only = next(iter(container.running.values()))
    return (only.call.call_id, only.input_id)
