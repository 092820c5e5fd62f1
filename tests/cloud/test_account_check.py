"""What the doctor says of the account on Modal, and of what a local run's log shows."""

import json
import os
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from composer_tui import doctor
from composer_tui.cloud.account_check import Account, BadAccount, reach, read_account
from composer_tui.cloud.problems import CloudProblem
from composer_tui.cloud.reach import Way, way_to
from composer_tui.runners.last_word import Death, last_word
from tests.rehearsal.rehearsal import Rehearsal

HIDDEN = "as-Qw3rTy8uIoP5aSdF"
FILE = f"""
[first]
token_id = "ak-1234567890"
token_secret = "{HIDDEN}"

[second]
token_id = "ak-1234567890"
token_secret = "{HIDDEN}"
environment = "dev"
active = true

[empty]
"""


@pytest.fixture
def config(tmp_path: Path) -> Path:
    path = tmp_path / "modal.toml"
    path.write_text(FILE)
    path.chmod(0o600)
    return path


def test_the_active_profile_of_the_file_is_the_account(config: Path) -> None:
    account = read_account({"MODAL_CONFIG_PATH": str(config)})
    assert (account.profile, account.environment, account.has_token) == ("second", "dev", True)
    assert HIDDEN not in repr(account)
    account = read_account({"MODAL_CONFIG_PATH": str(config), "MODAL_PROFILE": "first"})
    assert (account.profile, account.environment) == ("first", "")


def test_variables_win_over_the_file(config: Path) -> None:
    token = {"MODAL_TOKEN_ID": "ak-1", "MODAL_TOKEN_SECRET": HIDDEN, "MODAL_ENVIRONMENT": "e"}
    account = read_account({"MODAL_CONFIG_PATH": str(config), **token})
    assert (account.source, account.profile, account.environment) == ("the environment", "", "e")
    assert not read_account({"MODAL_CONFIG_PATH": str(config), "MODAL_PROFILE": "empty"}).has_token
    assert not read_account({"MODAL_CONFIG_PATH": "/nonexistent/file"}).has_token


def test_settings_that_cannot_be_used_name_what_mends_them(config: Path) -> None:
    with pytest.raises(BadAccount, match="'gone'") as missing:
        read_account({"MODAL_CONFIG_PATH": str(config), "MODAL_PROFILE": "gone"})
    assert missing.value.fix == "modal profile list"
    config.write_text(f'[a]\ntoken_secret = "{HIDDEN}\n')
    with pytest.raises(BadAccount, match="not TOML") as broken:
        read_account({"MODAL_CONFIG_PATH": str(config)})
    assert HIDDEN not in str(broken.value)


def test_a_file_that_others_can_read_is_found(
    config: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config.chmod(0o644)
    for name in ("MODAL_TOKEN_ID", "MODAL_TOKEN_SECRET", "MODAL_PROFILE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("MODAL_CONFIG_PATH", str(config))
    findings = list(doctor._modal_account(online=False))
    assert [finding.fix for finding in findings] == ["", f"chmod 600 {config}"]
    assert HIDDEN not in repr(findings)


def test_another_version_of_modal_than_wanted_is_a_problem(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    assert doctor._modal_version().status == "ok"
    monkeypatch.setattr(doctor, "version", lambda _: "1.7.0")
    finding = doctor._modal_version()
    assert finding.status == "problem"
    assert finding.fix.startswith('pip install "modal')


def test_a_machine_without_namespaces_is_told_what_allows_them(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(doctor, "is_available", lambda: False)
    assert "sysctl" in doctor._rehearsal().fix


def run_doctor(runs: Path, *arguments: str, **environ: str) -> dict[str, dict[str, str]]:
    done = subprocess.run(
        [
            sys.executable,
            "-m",
            "composer_tui",
            "--runs-dir",
            str(runs),
            "doctor",
            *arguments,
            "--json",
        ],
        env=os.environ | environ,
        capture_output=True,
        check=False,
        timeout=60,
    )
    assert HIDDEN.encode() not in done.stdout + done.stderr
    return {one["name"]: one for one in json.loads(done.stdout)["findings"]}


def test_online_says_whether_modal_takes_the_token(stored: Rehearsal, tmp_path: Path) -> None:
    findings = run_doctor(tmp_path, "--online", **stored.connection.environ())
    assert findings["modal online"]["status"] == "ok"
    wrong = stored.connection.environ() | {"MODAL_TOKEN_SECRET": HIDDEN}
    findings = run_doctor(tmp_path, "--online", **wrong)
    assert findings["modal online"]["status"] == "warning"
    assert findings["modal online"]["fix"] == "modal token new"


def test_nothing_is_asked_of_the_network_unless_told(stored: Rehearsal, tmp_path: Path) -> None:
    assert "modal online" not in run_doctor(tmp_path, **stored.connection.environ())


def test_a_server_that_does_not_answer_costs_no_more_than_the_limit() -> None:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{listener.getsockname()[1]}"  # bound, and not listening
        account = Account("x", "", "", url, has_token=False)
        started = time.monotonic()
        with pytest.raises(CloudProblem) as refused:
            reach(account, 1.0)
        assert time.monotonic() - started < 2
        assert refused.value.problem.kind == "no_network"
        listener.listen()
        assert "127.0.0.1" in reach(account, 1.0)


@pytest.mark.parametrize(
    ("url", "environ", "way"),
    [
        ("https://api.modal.com", {}, Way("api.modal.com", 443)),
        ("http://127.0.0.1:8000", {}, Way("127.0.0.1", 8000)),
        (
            "https://api.modal.com",
            {"HTTPS_PROXY": "http://me:secret@proxy:3128"},
            Way("proxy", 3128, is_proxy=True),
        ),
        ("https://api.modal.com", {"all_proxy": "socks5://p"}, Way("p", 1080, is_proxy=True)),
        ("https://api.modal.com", {"http_proxy": "http://p:1"}, Way("api.modal.com", 443)),
        (
            "https://api.modal.com",
            {"https_proxy": "http://p:1", "no_proxy": "modal.com"},
            Way("api.modal.com", 443),
        ),
        (
            "https://api.modal.com",
            {"https_proxy": "http://p:1", "MODAL_DISABLE_API_PROXY": "1"},
            Way("api.modal.com", 443),
        ),
        ("unix:///run/modal", {}, None),
        ("https://x:notaport", {}, None),
    ],
)
def test_the_way_to_modal_is_the_one_its_client_goes(
    url: str, environ: dict[str, str], way: Way | None
) -> None:
    assert way_to(url, environ) == way


def test_what_stands_for_a_token_is_one() -> None:
    environ = {
        "MODAL_OAUTH_REFRESH_TOKEN": HIDDEN,
        "MODAL_OAUTH_CLIENT_ID": "x",
        "MODAL_CONFIG_PATH": "/nonexistent/modal.toml",
    }
    assert read_account(environ).has_token


def test_an_engine_that_died_over_something_known_is_answered() -> None:
    log = ["loading", "ModuleNotFoundError: No module named 'flash_attn'"]
    word = last_word(Death(1), log)
    assert "flash_attn" in word.hint
    assert "modal." not in word.hint
    assert "log.txt" in last_word(Death(1), ["something else"]).hint
    assert "checkpoint" in last_word(Death(None), log).hint
