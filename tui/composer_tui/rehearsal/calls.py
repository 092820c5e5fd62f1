"""Calls of functions: inputs on their way to containers, outputs on their way back."""

import asyncio
import time
from collections import OrderedDict
from collections.abc import Iterable
from enum import Enum
from typing import TYPE_CHECKING, Any

from google.protobuf.empty_pb2 import Empty
from grpclib import GRPCError, Status
from modal_proto import api_pb2

from composer_tui.rehearsal.area import task_of
from composer_tui.rehearsal.ids import new_id
from composer_tui.rehearsal.neighbours import NeighbourlyArea
from composer_tui.rehearsal.pulse import Pulse
from composer_tui.rehearsal.rpc import received, unary

if TYPE_CHECKING:
    from composer_tui.rehearsal.containers import Container
    from composer_tui.rehearsal.functions import Function

Result = api_pb2.GenericResult
SUCCESS = Result.GENERIC_STATUS_SUCCESS
TERMINATED = Result.GENERIC_STATUS_TERMINATED
TIMEOUT = Result.GENERIC_STATUS_TIMEOUT
INIT_FAILURE = Result.GENERIC_STATUS_INIT_FAILURE

_POLL_SECONDS = 55.0  # the longest a request for outputs or inputs is held
_LEAST_WAIT_SECONDS = 1.0  # of a container that is kept though it is idle
_PAGE = 200  # outputs in one response
_OUTSTANDING = 1000  # inputs of a map that a client may send ahead


class Stage(Enum):
    """Where an input is."""

    WAITING = "waiting"  # for a container, or for the delay before a retry
    RUNNING = "running"
    DONE = "done"


class Input:
    """One input of a call. Its output, once there, never changes."""

    def __init__(self, call: "Call", idx: int, item: api_pb2.FunctionInput) -> None:
        self.input_id = new_id("in")
        self.call = call
        self.idx = idx
        self.item = item
        self.stage = Stage.WAITING
        self.task_id = ""
        self.retry_count = 0
        self.started_at = 0.0
        self.is_cancelled = False
        self.output: api_pb2.FunctionGetOutputsItem | None = None
        self.timer: asyncio.TimerHandle | None = None  # of the timeout, or of the retry

    def stop_timer(self) -> None:
        if self.timer is not None:
            self.timer.cancel()
            self.timer = None


class Call:
    """One call of a function: one input, or those of a map."""

    def __init__(self, function: "Function", request: api_pb2.FunctionMapRequest) -> None:
        self.call_id = new_id("fc")
        self.function_id = function.function_id
        self.app_id = function.app_id
        self.parent_input_id = request.parent_input_id
        self.invocation_type = request.function_call_invocation_type
        self.created_at = time.time()
        self.inputs: list[Input] = []
        self.finished: list[Input] = []  # in the order in which they ended
        self.data_out: list[api_pb2.DataChunk] = []
        self.pulse = Pulse()

    @property
    def is_done(self) -> bool:
        return len(self.finished) == len(self.inputs)

    def between(self, first: int, last: int) -> list[api_pb2.FunctionGetOutputsItem]:
        """The outputs there are of the inputs from one index to the other, both included."""
        return [
            found.output
            for found in self.finished
            if found.output is not None and first <= found.idx <= last
        ]


class Calls(NeighbourlyArea):
    """Every call of this process. Calls do not outlive it; a restart stops their apps."""

    def __init__(self, plane: Any) -> None:
        super().__init__(plane)
        self._calls: dict[str, Call] = {}
        self._inputs: dict[str, Input] = {}
        self._queues: dict[str, OrderedDict[str, Input]] = {}  # by function, then by input
        self._arrivals: dict[str, Pulse] = {}

    def get(self, call_id: str) -> Call:
        """Raises GRPCError NOT_FOUND."""
        call = self._calls.get(call_id)
        if call is None:
            raise GRPCError(Status.NOT_FOUND, f"Function call {call_id} not found.")
        return call

    def is_busy(self, app_id: str) -> bool:
        """Whether an app has a call without all its outputs."""
        return any(not call.is_done for call in self._calls.values() if call.app_id == app_id)

    def backlog(self, function_id: str) -> int:
        """How many inputs wait for a container."""
        return len(self._queues.get(function_id, ()))

    def arrivals(self, function_id: str) -> Pulse:
        """Beats when there is something new for the containers of a function."""
        return self._arrivals.setdefault(function_id, Pulse())

    def terminate_app(self, app_id: str) -> None:
        """Ends every call of an app."""
        for call in list(self._calls.values()):
            if call.app_id == app_id:
                self._terminate(call.inputs, "The app was stopped.")

    def release(self, container: "Container", failure: Result | None) -> None:
        """A container is gone. What it was at starts anew, or has failed where it is to blame."""
        for found in list(container.running.values()):
            if failure is None:
                self._restart(container, found)
            else:
                self._settle(container, found, failure, api_pb2.DATA_FORMAT_UNSPECIFIED)

    def fail_waiting(self, function_id: str, result: Result) -> None:
        """No container can be made for it: everything that waits has failed."""
        for found in list(self._queues.get(function_id, {}).values()):
            self._finish(found, result, api_pb2.DATA_FORMAT_UNSPECIFIED)

    @unary
    async def FunctionMap(self, request: api_pb2.FunctionMapRequest) -> api_pb2.FunctionMapResponse:
        function = self.functions.get(request.function_id)
        app = self.apps.get(function.app_id)
        if not app.takes_calls:
            raise GRPCError(Status.FAILED_PRECONDITION, f"App {app.app_id} is stopped.")
        if not function.is_created:
            raise GRPCError(Status.FAILED_PRECONDITION, f"{function.name} is not created yet.")
        call = Call(function, request)
        self._calls[call.call_id] = call
        self.apps.note_call(app.app_id)
        added = self._put(call, request.pipelined_inputs)
        return api_pb2.FunctionMapResponse(
            function_call_id=call.call_id,
            pipelined_inputs=added,
            retry_policy=function.spec.retry_policy,
            function_call_jwt=call.call_id,
            sync_client_retries_enabled=False,  # the control plane retries
            max_inputs_outstanding=_OUTSTANDING,
        )

    @unary
    async def FunctionPutInputs(
        self, request: api_pb2.FunctionPutInputsRequest
    ) -> api_pb2.FunctionPutInputsResponse:
        call = self.get(request.function_call_id)
        if not self.apps.get(call.app_id).takes_calls:
            raise GRPCError(Status.FAILED_PRECONDITION, f"App {call.app_id} is stopped.")
        return api_pb2.FunctionPutInputsResponse(inputs=self._put(call, request.inputs))

    @unary
    async def FunctionFinishInputs(self, request: api_pb2.FunctionFinishInputsRequest) -> Empty:
        self.get(request.function_call_id)
        return Empty()

    @unary
    async def FunctionGetOutputs(
        self, request: api_pb2.FunctionGetOutputsRequest
    ) -> api_pb2.FunctionGetOutputsResponse:
        call = self.get(request.function_call_id)
        deadline = time.monotonic() + min(request.timeout, _POLL_SECONDS)
        while True:
            response = _outputs(call, request)
            left = deadline - time.monotonic()
            if response.outputs or left <= 0 or (call.is_done and not _is_map(request)):
                return response
            await call.pulse.wait(left)

    @unary
    async def FunctionCallFromId(
        self, request: api_pb2.FunctionCallFromIdRequest
    ) -> api_pb2.FunctionCallFromIdResponse:
        call = self.get(request.function_call_id)
        return api_pb2.FunctionCallFromIdResponse(
            function_call_id=call.call_id,
            num_inputs=len(call.inputs),
            metadata=api_pb2.FunctionCallHandleMetadata(
                app_id=call.app_id, function_id=call.function_id
            ),
        )

    @unary
    async def FunctionCallGetInfo(
        self, request: api_pb2.FunctionCallGetInfoRequest
    ) -> api_pb2.FunctionCallGetInfoResponse:
        return api_pb2.FunctionCallGetInfoResponse(info=_info(self.get(request.function_call_id)))

    @unary
    async def FunctionCallList(
        self, request: api_pb2.FunctionCallListRequest
    ) -> api_pb2.FunctionCallListResponse:
        found = [call for call in self._calls.values() if call.function_id == request.function_id]
        return api_pb2.FunctionCallListResponse(function_calls=[_info(call) for call in found])

    @unary
    async def FunctionCallCancel(self, request: api_pb2.FunctionCallCancelRequest) -> Empty:
        if request.function_call_id:
            calls = [self.get(request.function_call_id)]
        else:
            calls = [
                call for call in self._calls.values() if call.function_id == request.function_id
            ]
        for call in calls:
            self._cancel(call, at_once=request.terminate_containers)
        return Empty()

    @unary
    async def FunctionGetCallGraph(
        self, request: api_pb2.FunctionGetCallGraphRequest
    ) -> api_pb2.FunctionGetCallGraphResponse:
        response = api_pb2.FunctionGetCallGraphResponse()
        for call in self._family(self.get(request.function_call_id)):
            function = self.functions.get(call.function_id)
            response.function_calls.add(
                function_call_id=call.call_id,
                parent_input_id=call.parent_input_id,
                function_name=function.name,
                module_name=function.data.module_name,
            )
            for found in call.inputs:
                status = found.output.result.status if found.output is not None else 0
                response.inputs.add(
                    input_id=found.input_id,
                    status=status,
                    function_call_id=call.call_id,
                    task_id=found.task_id,
                )
        return response

    @unary
    async def FunctionCallPutDataOut(self, request: api_pb2.FunctionCallPutDataRequest) -> Empty:
        call = self.get(request.function_call_id or request.attempt_token)
        for chunk in request.data_chunks:
            # A generator that starts anew yields again from the beginning: what is known is kept.
            if chunk.index > len(call.data_out):
                call.data_out.append(chunk)
        call.pulse.beat()
        return Empty()

    async def FunctionCallGetDataOut(self, stream: Any) -> None:
        request = await received(stream)
        call = self.get(request.function_call_id or request.attempt_token)
        position = request.last_index
        deadline = time.monotonic() + _POLL_SECONDS
        while (left := deadline - time.monotonic()) > 0:
            while position < len(call.data_out):
                await stream.send_message(call.data_out[position])
                position += 1
            if call.is_done and call.inputs:
                return
            await call.pulse.wait(left)

    async def FunctionGetInputs(self, stream: Any) -> None:
        request = await received(stream)
        container = self.containers.get(task_of(stream) or "")
        self.containers.note_ready(container)
        function = self.functions.get(container.function_id)
        arrivals = self.arrivals(container.function_id)
        deadline = time.monotonic() + _POLL_SECONDS / 2
        while True:
            if container.is_leaving or self.containers.may_leave(container):
                container.is_leaving = True
                response = api_pb2.FunctionGetInputsResponse()
                response.inputs.add(kill_switch=True)
                break
            taken = self._take(container, max(1, request.batch_max_size))
            if taken and request.batch_max_size > len(taken) and request.batch_linger_ms:
                taken += await self._linger(container, request, len(taken))
            response = api_pb2.FunctionGetInputsResponse(
                inputs=[_delivery(found) for found in taken]
            )
            left = deadline - time.monotonic()
            if taken or left <= 0:
                break
            idle_left = self.containers.idle_left_seconds(container, function)
            await arrivals.wait(min(left, max(idle_left, _LEAST_WAIT_SECONDS)))
        await stream.send_message(response)

    async def FunctionPutOutputs(self, stream: Any) -> None:
        request = await received(stream)
        container = self.containers.get(task_of(stream) or "")
        container.flush()  # what was printed before the output comes before it
        for item in request.outputs:
            found = container.running.get(item.input_id)
            if found is not None and found.retry_count == item.retry_count:
                if item.result.exception:
                    self.containers.explain(container, item.result)
                self._settle(container, found, item.result, item.data_format)
        await stream.send_message(Empty())

    def _put(
        self, call: Call, items: Iterable[api_pb2.FunctionPutInputsItem]
    ) -> list[api_pb2.FunctionPutInputsResponseItem]:
        added = []
        for item in items:
            found = Input(call, item.idx, item.input)
            call.inputs.append(found)
            self._inputs[found.input_id] = found
            self._enqueue(found)
            added.append(
                api_pb2.FunctionPutInputsResponseItem(
                    idx=found.idx, input_id=found.input_id, input_jwt=found.input_id
                )
            )
        return added

    def _enqueue(self, found: Input, *, first: bool = False) -> None:
        function_id = found.call.function_id
        found.stage, found.task_id = Stage.WAITING, ""
        queue = self._queues.setdefault(function_id, OrderedDict())
        queue[found.input_id] = found
        queue.move_to_end(found.input_id, last=not first)
        self.arrivals(function_id).beat()
        self.containers.scale(function_id)

    def _take(self, container: "Container", most: int) -> list[Input]:
        """Hands waiting inputs to a container, and starts their clocks."""
        queue = self._queues.get(container.function_id)
        taken: list[Input] = []
        spec = self.functions.get(container.function_id).spec
        while queue and len(taken) < most:
            _, found = queue.popitem(last=False)
            found.stage, found.task_id = Stage.RUNNING, container.task_id
            found.started_at = self.plane.now()
            container.take(found)
            found.timer = asyncio.get_running_loop().call_later(
                spec.timeout_secs, self._time_out, container, found, spec.timeout_secs
            )
            taken.append(found)
        return taken

    async def _linger(
        self, container: "Container", request: api_pb2.FunctionGetInputsRequest, count: int
    ) -> list[Input]:
        """Waits for a batch to fill, as long as the function asked for."""
        more: list[Input] = []
        deadline = time.monotonic() + request.batch_linger_ms / 1000
        while (room := request.batch_max_size - count - len(more)) > 0:
            left = deadline - time.monotonic()
            if left <= 0 or container.is_leaving:
                break
            await self.arrivals(container.function_id).wait(left)
            more += self._take(container, room)
        return more

    def _settle(
        self, container: "Container", found: Input, result: Result, data_format: int
    ) -> None:
        """An attempt has ended: it counts, or there is a retry left."""
        container.drop(found)
        found.stop_timer()
        policy = self.functions.get(found.call.function_id).spec.retry_policy
        has_retry = (
            result.status not in (SUCCESS, TERMINATED)
            and not found.is_cancelled
            and found.retry_count < policy.retries
            and self.apps.get(found.call.app_id).takes_calls
        )
        if not has_retry:
            self._finish(found, result, data_format)
            return
        delay = _retry_delay_seconds(policy, found.retry_count)
        found.retry_count += 1
        found.stage, found.task_id = Stage.WAITING, ""
        found.timer = asyncio.get_running_loop().call_later(delay, self._enqueue, found)

    def _restart(self, container: "Container", found: Input) -> None:
        """Another container takes it from the beginning; that is no retry."""
        container.drop(found)
        found.stop_timer()
        if found.is_cancelled or not self.apps.get(found.call.app_id).takes_calls:
            self._finish(found, _terminated("The input was cancelled."), 0)
        elif found.stage is not Stage.DONE:
            self._enqueue(found, first=True)

    def _finish(self, found: Input, result: Result, data_format: int) -> None:
        if found.stage is Stage.DONE:
            return
        if found.stage is Stage.WAITING and (queue := self._queues.get(found.call.function_id)):
            queue.pop(found.input_id, None)
        found.stop_timer()
        if result.status == TERMINATED and not result.exception:
            result.exception = "The input was cancelled."
        found.stage = Stage.DONE
        found.output = api_pb2.FunctionGetOutputsItem(
            result=result,
            idx=found.idx,
            input_id=found.input_id,
            data_format=data_format,  # type: ignore[arg-type]
            task_id=found.task_id,
            input_started_at=found.started_at,
            output_created_at=self.plane.now(),
            retry_count=found.retry_count,
        )
        call = found.call
        call.finished.append(found)
        call.pulse.beat()
        if call.is_done:
            self.apps.end_if_idle(call.app_id)

    def _time_out(self, container: "Container", found: Input, seconds: int) -> None:
        if container.running.get(found.input_id) is not found:
            return
        words = f"Task's current input {found.input_id} hit its timeout of {seconds}s"
        self.containers.tell(container, words)
        result = Result(status=TIMEOUT, exception=words)
        self._settle(container, found, result, api_pb2.DATA_FORMAT_UNSPECIFIED)
        self.containers.end(container)

    def _terminate(self, inputs: Iterable[Input], words: str) -> None:
        for found in list(inputs):
            if found.stage is not Stage.DONE:
                found.is_cancelled = True
                self._finish(found, _terminated(words), 0)

    def _cancel(self, call: Call, *, at_once: bool) -> None:
        """Cancels what waits; what runs is told to end, or its container is ended."""
        waiting = [found for found in call.inputs if found.stage is Stage.WAITING]
        running = [found for found in call.inputs if found.stage is Stage.RUNNING]
        self._terminate(waiting, "The call was cancelled.")
        for found in running:
            found.is_cancelled = True
        if at_once:
            self._terminate(running, "The call was cancelled.")
        for task_id in {found.task_id for found in running}:
            container = self.containers.get(task_id)
            if at_once:
                self.containers.end(container)
            else:
                ids = [found.input_id for found in running if found.task_id == task_id]
                self.containers.cancel_inputs(container, ids)

    def _family(self, call: Call) -> list[Call]:
        """The call, everything it was called for, and everything called for that."""
        root = call
        while (parent := self._inputs.get(root.parent_input_id)) is not None:
            root = parent.call
        family, todo = [], [root]
        while todo:
            member = todo.pop()
            family.append(member)
            ids = {found.input_id for found in member.inputs}
            todo += [call for call in self._calls.values() if call.parent_input_id in ids]
        return family


def _is_map(request: api_pb2.FunctionGetOutputsRequest) -> bool:
    """Whether the outputs are asked for as they come, and not by their index."""
    return not request.HasField("start_idx")


def _outputs(
    call: Call, request: api_pb2.FunctionGetOutputsRequest
) -> api_pb2.FunctionGetOutputsResponse:
    if _is_map(request):
        position, _, _ = request.last_entry_id.partition("-")
        start = int(position) if position.isdigit() else 0
        page = call.finished[start : start + _PAGE]
        outputs = [found.output for found in page if found.output is not None]
        entry_id = f"{start + len(page)}-0"
    else:
        outputs, entry_id = call.between(request.start_idx, request.end_idx), "0-0"
    return api_pb2.FunctionGetOutputsResponse(
        outputs=outputs,
        idxs=[output.idx for output in outputs],
        last_entry_id=entry_id,
        num_unfinished_inputs=len(call.inputs) - len(call.finished),
    )


def _delivery(found: Input) -> api_pb2.FunctionGetInputsItem:
    return api_pb2.FunctionGetInputsItem(
        input_id=found.input_id,
        input=found.item,
        function_call_id=found.call.call_id,
        function_call_invocation_type=found.call.invocation_type,
        retry_count=found.retry_count,
        function_map_idx=found.idx,
    )


def _retry_delay_seconds(policy: api_pb2.FunctionRetryPolicy, retries_so_far: int) -> float:
    """From the end of an attempt to the start of the next one."""
    factor = (policy.backoff_coefficient or 1.0) ** min(retries_so_far, 64)
    delay_ms: float = policy.initial_delay_ms * factor
    return min(delay_ms, policy.max_delay_ms or 60_000) / 1000


def _terminated(words: str) -> Result:
    return Result(status=TERMINATED, exception=words)


def _info(call: Call) -> api_pb2.FunctionCallInfo:
    totals = dict.fromkeys(("pending", "succeeded", "timeout", "cancelled", "failed"), 0)
    names = {SUCCESS: "succeeded", TIMEOUT: "timeout", TERMINATED: "cancelled"}
    for found in call.inputs:
        status = found.output.result.status if found.output is not None else None
        totals["pending" if status is None else names.get(status, "failed")] += 1
    info = api_pb2.FunctionCallInfo(
        function_call_id=call.call_id,
        created_at=call.created_at,
        scheduled_at=call.created_at,
        total_inputs=len(call.inputs),
    )
    for name, total in totals.items():
        getattr(info, f"{name}_inputs").total = total
    return info
