"""Secrets: what containers get, and what nobody else may see."""

import json
import logging
from collections.abc import Iterator
from pathlib import Path

import modal
import pytest
from grpclib import GRPCError, Status
from modal_proto import api_pb2

from composer_tui.rehearsal.secrets import Secrets
from tests.rehearsal.planes import RunningPlane, running

VALUE = "hf_very-secret-value"


@pytest.fixture(scope="module")
def plane(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningPlane]:
    with running(tmp_path_factory.mktemp("rehearsal")) as plane:
        yield plane


@pytest.fixture(scope="module")
def client(plane: RunningPlane) -> Iterator[modal.Client]:
    with plane.client() as client:
        yield client


def environ(plane: RunningPlane, *secret_ids: str) -> dict[str, str]:
    return plane.get(plane.plane.area(Secrets).environ, secret_ids)


def test_the_command_line_makes_and_lists_secrets(plane: RunningPlane) -> None:
    done = plane.cli("secret", "create", "hub", f"HF_TOKEN={VALUE}", "OTHER=x=y")
    assert done.returncode == 0, done.stderr
    listed = plane.cli("secret", "list", "--json")
    assert [each["name"] for each in json.loads(listed.stdout)] == ["hub"]
    assert VALUE not in listed.stdout + listed.stderr
    again = plane.cli("secret", "create", "hub", "HF_TOKEN=new")
    assert again.returncode == 1
    assert "Secret 'hub' already exists in environment 'main'" in again.stderr
    assert plane.cli("secret", "create", "hub", "HF_TOKEN=new", "--force").returncode == 0
    with plane.client() as client:
        secret = modal.Secret.from_name("hub", client=client).hydrate()
    assert environ(plane, secret.object_id) == {"HF_TOKEN": "new"}


def test_required_keys_are_checked_in_modals_own_words(
    plane: RunningPlane, client: modal.Client
) -> None:
    modal.Secret.objects.create("keys", {"A": "1"}, client=client)
    modal.Secret.from_name("keys", required_keys=["A"], client=client).hydrate()
    short = modal.Secret.from_name("keys", required_keys=["A", "B", "C"], client=client)
    with pytest.raises(modal.exception.NotFoundError, match=r"^Secret is missing key\(s\): B, C$"):
        short.hydrate()
    missing = modal.Secret.from_name("nobody", client=client)
    with pytest.raises(modal.exception.NotFoundError) as caught:
        missing.hydrate()
    assert str(caught.value) == "Secret 'nobody' not found in environment 'main'"


def test_secrets_are_merged_the_later_over_the_earlier(
    plane: RunningPlane, client: modal.Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LOCAL", "from here")
    modal.Secret.objects.create("base", {"A": "1", "B": "1"}, client=client)
    named = modal.Secret.from_name("base", client=client).hydrate()
    literal = modal.Secret.from_dict({"B": "2", "EMPTY": ""}).hydrate(client)
    local = modal.Secret.from_local_environ(["LOCAL"]).hydrate(client)
    ids = [secret.object_id for secret in (named, literal, local)]
    assert environ(plane, *ids) == {"A": "1", "B": "2", "EMPTY": "", "LOCAL": "from here"}
    assert environ(plane, *reversed(ids))["B"] == "1"
    with pytest.raises(GRPCError) as caught:
        environ(plane, "st-" + "x" * 22)
    assert caught.value.status is Status.NOT_FOUND


def test_a_secret_is_updated_and_tells_its_keys_only(
    plane: RunningPlane, client: modal.Client
) -> None:
    modal.Secret.objects.create("changing", {"A": "1", "B": "1"}, client=client)
    secret = modal.Secret.from_name("changing", client=client)
    secret.update({"B": "2", "C": "3"})
    assert environ(plane, secret.object_id) == {"A": "1", "B": "2", "C": "3"}
    info = plane.rpc("SecretGetInfo", api_pb2.SecretGetInfoRequest(secret_id=secret.object_id))
    assert list(info.metadata.keys) == ["A", "B", "C"]
    assert secret.info(refresh=True).last_used is not None
    modal.Secret.objects.delete("changing", client=client)
    with pytest.raises(GRPCError):
        environ(plane, secret.object_id)


@pytest.mark.parametrize("key", ["", "A=B", "A\0B"])
def test_what_no_process_could_get_is_refused(plane: RunningPlane, key: str) -> None:
    request = api_pb2.SecretGetOrCreateRequest(
        object_creation_type=api_pb2.OBJECT_CREATION_TYPE_EPHEMERAL, env_dict={key: VALUE}
    )
    with pytest.raises(GRPCError) as caught:
        plane.rpc("SecretGetOrCreate", request)
    assert caught.value.status is Status.INVALID_ARGUMENT
    request.env_dict.clear()
    request.env_dict["KEY"] = f"{VALUE}\0"
    with pytest.raises(GRPCError) as caught:
        plane.rpc("SecretGetOrCreate", request)
    assert VALUE not in str(caught.value)


def test_values_are_only_in_a_file_for_its_owner(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    with running(tmp_path) as plane, plane.client() as client:
        modal.Secret.objects.create("kept", {"A": f"{VALUE}-kept"}, client=client)
        modal.Secret.from_dict({"A": f"{VALUE}-ephemeral"}).hydrate(client)
        with pytest.raises(modal.exception.NotFoundError) as caught:
            modal.Secret.from_name("kept", required_keys=["B"], client=client).hydrate()
    holders = {path for path in tmp_path.rglob("*") if path.is_file() and has(path, VALUE)}
    assert holders == {tmp_path / "secrets.json"}
    assert (tmp_path / "secrets.json").stat().st_mode & 0o777 == 0o600
    assert not has(tmp_path / "secrets.json", f"{VALUE}-ephemeral")
    rehearsals = [record for record in caplog.records if "composer" in record.name]
    assert not any(VALUE in record.getMessage() for record in rehearsals)
    assert VALUE not in str(caught.value)


def has(path: Path, text: str) -> bool:
    return text.encode() in path.read_bytes()


def test_a_secret_outlives_a_restart(tmp_path: Path) -> None:
    with running(tmp_path) as plane, plane.client() as client:
        modal.Secret.objects.create("kept", {"A": VALUE}, client=client)
        secret = modal.Secret.from_name("kept", client=client).hydrate()
    with running(tmp_path) as plane:
        assert environ(plane, secret.object_id) == {"A": VALUE}
        assert VALUE not in repr(plane.plane.area(Secrets)._registry.get(secret.object_id))


def test_a_secret_of_an_app_that_is_gone_is_forgotten(tmp_path: Path) -> None:
    request = api_pb2.SecretGetOrCreateRequest(
        object_creation_type=api_pb2.OBJECT_CREATION_TYPE_ANONYMOUS_OWNED_BY_APP,
        env_dict={"A": VALUE},
    )
    with running(tmp_path) as plane:
        app = api_pb2.AppCreateRequest(app_state=api_pb2.APP_STATE_EPHEMERAL)
        request.app_id = plane.rpc("AppCreate", app).app_id
        secret_id = plane.rpc("SecretGetOrCreate", request).secret_id
        assert environ(plane, secret_id) == {"A": VALUE}
        left = (tmp_path / "secrets.json").read_bytes()
    (tmp_path / "secrets.json").write_bytes(left)  # as a killed process would have left it
    with running(tmp_path):
        assert not has(tmp_path / "secrets.json", VALUE)
