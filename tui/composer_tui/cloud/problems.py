"""Why Modal could not be reached or refused: foreign errors become one line each, here.

Nothing that looks like a token leaves this module. It imports no modal: an error of modal's is
known by the name of its class, a failure of its command line by what it printed.
"""

import errno
import os
import re
import socket
import ssl
import subprocess

from composer_tui.cloud.wire import Problem, ProblemKind
from composer_tui.runs.sanitise import clean

_MOST_CHARACTERS = 240

# Modal's token ids and secrets, Hugging Face's, GitHub's, and what an Authorization header carries.
_TOKEN = re.compile(
    r"\b(?:ak|as|wk|ws)-[A-Za-z0-9_-]{8,}|\b(?:hf|ghp|gho|sk)[_-][A-Za-z0-9_-]{16,}"
    r"|(?i:\bbearer\s+)[A-Za-z0-9._~+/=-]{8,}"
)
_TOKEN_VARIABLES = (
    "MODAL_TOKEN_ID",
    "MODAL_TOKEN_SECRET",
    "MODAL_OAUTH_CLIENT_SECRET",
    "MODAL_OAUTH_REFRESH_TOKEN",
    "HF_TOKEN",
)
_SHORTEST_TOKEN = 6  # a shorter value would also be found in ordinary words

_WORDS: dict[ProblemKind, tuple[str, str]] = {  # what it is, what to do
    "no_token": ("this machine has no Modal token", "modal token new"),
    "wrong_token": ("Modal refused the token: it is wrong, or has expired", "modal token new"),
    "no_network": ("Modal cannot be reached", "check the network, a proxy, or status.modal.com"),
    "timeout": ("Modal did not answer in time", "check the network, a proxy, or status.modal.com"),
    "server": ("Modal answered with an error of its own", "try again; see status.modal.com"),
    "rate_limit": ("Modal limits how often it may be asked", "wait a minute, then try again"),
    "clock": (
        "this machine's clock is wrong: Modal's certificate or token is not valid at its time",
        "set the clock: timedatectl set-ntp true",
    ),
    "refused": ("Modal refused", ""),
}

_KIND_OF_CLASS: dict[str, ProblemKind] = {  # modal.exception, grpclib and h2
    "ResourceExhaustedError": "rate_limit",
    "ServiceError": "server",
    "InternalError": "server",
    "InternalFailure": "server",
    "DataLossError": "server",
    "ConnectionError": "no_network",
    "StreamTerminatedError": "no_network",
    "ProtocolError": "no_network",
    "ClientClosed": "no_network",
    "TimeoutError": "timeout",
    "AuthError": "wrong_token",
    "PermissionDeniedError": "refused",
    "UnimplementedError": "refused",
    "NotFoundError": "refused",
    "AlreadyExistsError": "refused",
    "InvalidError": "refused",
    "ConflictError": "refused",
    "VersionError": "refused",
    "RemoteError": "server",
    "Error": "refused",
}
_KIND_OF_STATUS: dict[str, ProblemKind] = {  # of a bare grpclib.GRPCError
    "UNAUTHENTICATED": "wrong_token",
    "RESOURCE_EXHAUSTED": "rate_limit",
    "DEADLINE_EXCEEDED": "timeout",
    "CANCELLED": "server",
    "UNKNOWN": "server",
    "INTERNAL": "server",
    "UNAVAILABLE": "server",
    "DATA_LOSS": "server",
}
_FOREIGN = frozenset({"modal", "grpclib", "h2", "synchronicity"})
_NETWORK_ERRNOS = frozenset(
    {
        errno.ECONNREFUSED,
        errno.ECONNRESET,
        errno.ECONNABORTED,
        errno.EHOSTUNREACH,
        errno.EHOSTDOWN,
        errno.ENETUNREACH,
        errno.ENETDOWN,
        errno.EADDRNOTAVAIL,
        errno.EPIPE,
    }
)


def _words(kind: ProblemKind, *patterns: str) -> tuple[ProblemKind, re.Pattern[str]]:
    return kind, re.compile("|".join(patterns), re.IGNORECASE)


# What the words of an error say, whoever spoke them; the first that matches.
_KIND_OF_WORDS = (
    _words(
        "clock",
        r"certificate (?:is not yet valid|has expired)",
        r"clock skew|clock is (?:off|wrong)",
        r"token (?:used before issued|is not yet valid)",
        r"timestamp .{0,40}(?:skew|too (?:old|far))",
    ),
    _words("no_token", r"token missing|no token", r"profile '[^']{0,100}' was not found"),
    _words(
        "wrong_token",
        r"token validation failed|unauthenticated|could not authenticate",
        r"(?:invalid|malformed) token|token .{0,40}(?:expired|revoked|invalid)",
    ),
    _words("rate_limit", r"rate.?limit|too many requests|resource.?exhausted|\b429\b"),
    _words("timeout", r"timed out|deadline.?exceeded|timeout"),
    _words(
        "no_network",
        r"could not connect|connect call failed",
        r"connection (?:refused|reset|lost|closed|aborted)",
        r"name or service not known|temporary failure in name resolution|getaddrinfo",
        r"network is unreachable|no route to host|nodename nor servname",
    ),
    _words(
        "server",
        r"\b50[0234]\b|bad gateway|unavailable|internal (?:server )?error",
        r"no module named|traceback \(most recent call last\)",
    ),
)
_SURE_OF_TEXT = frozenset({"clock", "no_token"})  # whatever class of error says so


class CloudProblem(RuntimeError):  # noqa: N818  # carries a `Problem`
    """Something could not be had from Modal; ``problem`` says why, in one line without a token."""

    def __init__(self, problem: Problem) -> None:
        super().__init__(problem.message)
        self.problem = problem


def redact(text: str) -> str:
    """The text without anything that is, or looks like, a token."""
    for name in _TOKEN_VARIABLES:
        value = os.environ.get(name, "")
        if len(value) >= _SHORTEST_TOKEN:
            text = text.replace(value, "[token]")
    return _TOKEN.sub("[token]", text)


def problem_of(error: BaseException) -> Problem | None:
    """What a foreign error means; None for one that is not about Modal or the way to it."""
    if isinstance(error, CloudProblem):
        return error.problem
    kind = _kind_of(error)
    return None if kind is None else _problem(kind, str(error))


def problem_of_text(text: str) -> Problem:
    """What the modal command line said on its stderr before it left with an error."""
    return _problem(_kind_of_text(text) or "refused", text)


def problem(kind: ProblemKind, message: str = "", hint: str = "") -> Problem:
    """A problem in our own words, or with the usual ones of its kind."""
    usual, remedy = _WORDS[kind]
    return Problem(kind=kind, message=_line(message) or usual, hint=hint or remedy)


def _kind_of(error: BaseException) -> ProblemKind | None:
    if isinstance(error, BrokenPipeError):
        return None  # our own output's: a socket's comes as a lost connection
    if isinstance(error, TimeoutError | subprocess.TimeoutExpired):
        return "timeout"
    if isinstance(error, ssl.SSLError):
        return _kind_of_text(str(error)) or "no_network"
    if isinstance(error, ConnectionError | socket.gaierror):
        return "no_network"
    if isinstance(error, OSError):
        return "no_network" if error.errno in _NETWORK_ERRNOS else None
    return _kind_of_foreign(error)


def _kind_of_foreign(error: BaseException) -> ProblemKind | None:
    classes = [
        kind.__name__ for kind in type(error).__mro__ if kind.__module__.split(".")[0] in _FOREIGN
    ]
    if not classes:
        return None
    said = _kind_of_text(str(error))
    if said in _SURE_OF_TEXT:
        return said
    if classes == ["GRPCError"]:
        status = getattr(getattr(error, "status", None), "name", "")
        return _KIND_OF_STATUS.get(status, "refused")
    return next((_KIND_OF_CLASS[name] for name in classes if name in _KIND_OF_CLASS), "server")


def _kind_of_text(text: str) -> ProblemKind | None:
    return next((kind for kind, pattern in _KIND_OF_WORDS if pattern.search(text)), None)


def _problem(kind: ProblemKind, said: str) -> Problem:
    """Only what Modal refused or failed at needs its own words: the rest is the same each time."""
    if kind not in ("refused", "server"):
        return problem(kind)
    line = _line(said)
    usual, hint = _WORDS[kind]
    return Problem(kind=kind, message=f"{usual}: {line}" if line else usual, hint=hint)


def _line(text: str) -> str:
    """The last line that says something, clean, without tokens, cut to a length."""
    lines = [line for line in map(str.strip, redact(text).splitlines()) if line]
    if not lines:
        return ""
    errors = [line for line in lines if line.startswith("Error")]
    line = clean((errors or lines)[-1]).removeprefix("Error:").strip()
    return line if len(line) <= _MOST_CHARACTERS else line[: _MOST_CHARACTERS - 1] + "…"
