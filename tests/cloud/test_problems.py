"""Every foreign error becomes one line that says what to do, and never shows a token."""

import errno
import os
import socket
import ssl
import subprocess
from collections.abc import Callable

import grpclib
import modal.exception
import pytest
from hypothesis import given
from hypothesis import strategies as st
from modal._grpc_client import grpc_error_to_modal_exception

from composer_tui.cloud.modal_cli import ModalCli
from composer_tui.cloud.problems import CloudProblem, problem, problem_of, problem_of_text, redact
from composer_tui.cloud.wire import ProblemKind
from tests.cloud.apps_fixtures import nowhere

_SECRET = "as-abcDEF123456abcDEF123456"  # noqa: S105  # shaped as Modal's


def _status(name: str) -> Exception:
    """As modal's client raises what the server answered."""
    error = grpclib.GRPCError(grpclib.Status[name], f"{name} {_SECRET}")
    return grpc_error_to_modal_exception(error)


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        (modal.exception.AuthError("Token missing. Could not authenticate client."), "no_token"),
        (modal.exception.AuthError("Modal profile 'x' was not found in y."), "no_token"),
        (modal.exception.AuthError("Token validation failed"), "wrong_token"),
        (_status("UNAUTHENTICATED"), "wrong_token"),
        (_status("UNAVAILABLE"), "server"),
        (_status("INTERNAL"), "server"),
        (_status("RESOURCE_EXHAUSTED"), "rate_limit"),
        (_status("NOT_FOUND"), "refused"),
        (_status("PERMISSION_DENIED"), "refused"),
        (_status("UNIMPLEMENTED"), "refused"),
        (grpclib.GRPCError(grpclib.Status.UNAVAILABLE, "no"), "server"),
        (grpclib.exceptions.StreamTerminatedError("Connection lost"), "no_network"),
        (modal.exception.ConnectionError("Could not connect to the Modal server."), "no_network"),
        (modal.exception.TimeoutError("slow"), "timeout"),
        (modal.exception.AuthError("token used before issued"), "clock"),
        (ssl.SSLCertVerificationError("certificate is not yet valid"), "clock"),
        (ssl.SSLError("handshake failure"), "no_network"),
        (socket.gaierror(-3, "Temporary failure in name resolution"), "no_network"),
        (ConnectionRefusedError(errno.ECONNREFUSED, "Connect call failed"), "no_network"),
        (OSError(errno.ENETUNREACH, "Network is unreachable"), "no_network"),
        (TimeoutError(), "timeout"),
        (subprocess.TimeoutExpired("modal", 3), "timeout"),
    ],
)
def test_an_error_says_what_is_wrong_and_what_to_do(error: Exception, kind: ProblemKind) -> None:
    found = problem_of(error)
    assert found is not None
    assert found.kind == kind
    assert "\n" not in found.message
    assert found.message
    assert found.hint or kind == "refused"
    assert _SECRET not in found.message + found.hint


@pytest.mark.parametrize(
    "error",
    [
        ValueError("no"),
        OSError(errno.ENOSPC, "No space left on device"),
        BrokenPipeError(errno.EPIPE, "the reader of our output has left"),
        KeyError(9),
    ],
)
def test_what_is_not_about_modal_is_left_alone(error: Exception) -> None:
    assert problem_of(error) is None


def test_a_problem_is_itself() -> None:
    found = problem("clock", "it is early")
    assert problem_of(CloudProblem(found)) is found


@pytest.mark.parametrize(
    ("text", "kind"),
    [
        ("Error: Token missing. Could not authenticate client. If you …", "no_token"),
        ("Error: Could not connect to the Modal server.", "no_network"),
        ("Error: [Errno 111] Connect call failed ('127.0.0.1', 9)", "no_network"),
        ("Error: Token validation failed: this is not the token", "wrong_token"),
        ("Error: rate limit exceeded", "rate_limit"),
        ("Traceback (most recent call last):\n  File …\nImportError: no", "server"),
        ("Error: App 'x' not found", "refused"),
        ("", "refused"),
    ],
)
def test_what_the_command_line_said_is_understood(text: str, kind: ProblemKind) -> None:
    assert problem_of_text(text).kind == kind


@given(
    st.sampled_from(["ak-", "as-"]),
    st.from_regex(r"[A-Za-z0-9]{10,40}", fullmatch=True),
    st.text(max_size=50),
    st.sampled_from(["server", "refused", "wrong_token"]),
)
def test_no_token_is_ever_shown(prefix: str, rest: str, around: str, kind: ProblemKind) -> None:
    token = prefix + rest
    assert token not in redact(f"{around} {token} {around}")
    assert token not in problem(kind, f"Error {token}: {around}").message
    assert token not in problem_of_text(f"{around}\nError: {token}").message


def test_a_token_without_a_telling_shape_is_known_from_the_environment(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(os.environ, "MODAL_TOKEN_SECRET", "plain-looking")
    assert "plain-looking" not in redact("the secret plain-looking was refused")


@pytest.mark.parametrize("text", ["as-is, ap-1234567890 and ta-1234567890", "ask as-of now"])
def test_ids_and_words_are_no_tokens(text: str) -> None:
    assert redact(text) == text


@pytest.mark.parametrize(
    ("ask", "variables", "kind"),
    [
        (ModalCli.app_list, {}, "timeout"),
        (ModalCli.container_list, {"MODAL_TOKEN_ID": "", "MODAL_TOKEN_SECRET": ""}, "no_token"),
    ],
)
def test_the_command_line_fails_in_time(
    ask: Callable[[ModalCli], object], variables: dict[str, str], kind: ProblemKind
) -> None:
    cli = ModalCli({**nowhere(), **variables}, call_seconds=10.0 if kind == "no_token" else 2.0)
    with pytest.raises(CloudProblem) as raised:
        ask(cli)
    assert raised.value.problem.kind == kind
