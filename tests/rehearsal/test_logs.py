"""Logs: complete, in order, and still there later."""

import time
from datetime import UTC, datetime, timedelta

import pytest
from grpclib import GRPCError
from modal_proto import api_pb2

from tests.rehearsal.conftest import Script
from tests.rehearsal.rehearsal import Rehearsal, wait_until


def test_logs_are_complete_and_in_order_up_to_a_death(plane: Rehearsal, script: Script) -> None:
    body = """
for number in range(3000):
    print("line", number)
print("no newline", end="", flush=True)
os.kill(os.getpid(), signal.SIGKILL)
"""
    app_id, _ = script.spawn(plane, body)
    wait_until(lambda: "terminated by signal 9" in plane.text(app_id), "the container is dead")
    lines = [line[1] for line in plane.log_lines(app_id) if line[2] == 1]
    assert "".join(lines) == "".join(f"line {n}\n" for n in range(3000)) + "no newline"


def test_the_states_of_a_container_are_in_the_logs(plane: Rehearsal, script: Script) -> None:
    app_id, _ = script.spawn(plane, "print('x')")
    wait_until(lambda: plane.app(app_id).app_state == api_pb2.APP_STATE_STOPPED, "it has ended")
    assert plane.states(app_id) == [
        api_pb2.TASK_STATE_QUEUED,
        api_pb2.TASK_STATE_LOADING_IMAGE,
        api_pb2.TASK_STATE_CREATING_CONTAINER,
        api_pb2.TASK_STATE_ACTIVE,
        api_pb2.TASK_STATE_COMPLETED,
    ]


def test_the_command_line_reads_and_follows_logs(plane: Rehearsal, script: Script) -> None:
    body = """
for number in range(5):
    print("out", number, flush=True)
    print("err", number, file=sys.stderr, flush=True)
    time.sleep(0.1)
"""
    app_id, call_id = script.spawn(plane, body)
    followed = plane.modal("app", "logs", "-f", app_id)  # ends with the app
    assert [line for line in followed.stdout.splitlines() if "out" in line] == [
        f"out {number}" for number in range(5)
    ]
    tail = plane.modal("app", "logs", app_id, "--tail", "2", "-s", "stderr")
    assert tail.stdout.splitlines() == ["err 3", "err 4"]
    options = ("--since", "1h", "--search", "out 2", "--function-call", call_id)
    found = plane.modal("app", "logs", app_id, *options)
    assert found.stdout.splitlines() == ["out 2"]


def test_the_library_fetches_what_lies_between_two_times(plane: Rehearsal, script: Script) -> None:
    body = "print('early', flush=True)\ntime.sleep(1.5)\nprint('late', flush=True)"
    app_id, _ = script.spawn(plane, body)
    wait_until(lambda: "late" in plane.text(app_id), "it has printed")
    early, late = (line[0] / 1e9 for line in plane.log_lines(app_id) if line[2] == 1)
    middle = datetime.fromtimestamp((early + late) / 2, UTC)
    text = f"""
import modal
from datetime import datetime, timedelta
middle = datetime.fromisoformat("{middle.isoformat()}")
hour = timedelta(hours=1)
logs = modal.App.lookup("{app_id}").logs
for since, until in ((middle - hour, middle), (middle, middle + hour)):
    found = logs.fetch(since=since, until=until, source="stdout")
    print([entry.message for entry in found])
print([(entry.source, entry.context_ids[-1][:3]) for entry in logs.stream(timeout=1)][0])
"""
    first, second, third = plane.script(script(text)).splitlines()
    assert first == "['early\\n']"
    assert second == "['late\\n']"
    assert third == "('stdout', 'ta-')"


def test_a_stream_goes_on_after_the_entry_it_is_given(plane: Rehearsal, script: Script) -> None:
    app_id, _ = script.spawn(plane, "print('one')\nprint('two')")
    wait_until(lambda: plane.app(app_id).app_state == api_pb2.APP_STATE_STOPPED, "it has ended")
    text = """
import asyncio, sys
from grpclib.client import Channel
from modal_proto import api_grpc, api_pb2
import os

async def main():
    host, port = os.environ["MODAL_SERVER_URL"].removeprefix("http://").split(":")
    headers = {
        "x-modal-token-id": os.environ["MODAL_TOKEN_ID"],
        "x-modal-token-secret": os.environ["MODAL_TOKEN_SECRET"],
    }
    async with Channel(host, int(port)) as channel:
        async def read(entry_id):
            request = api_pb2.AppGetLogsRequest(
                app_id=sys.argv[1], timeout=5, last_entry_id=entry_id, file_descriptor=1
            )
            return await api_grpc.ModalClientStub(channel).AppGetLogs(request, metadata=headers)
        whole = await read("")
        print([item.data for batch in whole for item in batch.items], whole[-1].app_done)
        rest = await read(whole[0].entry_id)
        print([item.data for batch in rest for item in batch.items], rest[-1].app_done)

asyncio.run(main())
"""
    first, second = plane.script(script(text, "read.py"), app_id).splitlines()
    assert first == "['one\\n', 'two\\n'] True"
    assert second == "[] True"


def test_too_long_a_time_is_refused(plane: Rehearsal) -> None:
    app_id = plane.call(
        "AppCreate", api_pb2.AppCreateRequest(app_state=api_pb2.APP_STATE_DETACHED)
    ).app_id
    request = api_pb2.AppFetchLogsRequest(app_id=app_id)
    request.since.FromDatetime(datetime.now(UTC) - timedelta(days=36))
    request.until.FromSeconds(int(time.time()))
    with pytest.raises(GRPCError, match="35 days"):
        plane.call("AppFetchLogs", request)
