"""Which account of Modal this machine has, and whether Modal answers it. No token leaves here."""

import os
import socket
import threading
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import SplitResult, urlsplit

from composer_tui.cloud.problems import CloudProblem, problem, problem_of

REACH_SECONDS = 3.0
SERVER_URL = "https://api.modal.com"
_DEFAULT_PROFILE = "default"
_DEFAULT_PORTS = {"https": 443, "http": 80}
_OPEN_TO_OTHERS = 0o077


class Account(NamedTuple):
    """What Modal's client would use. Of a token only that it is there.

    ``source`` is "the environment" or the file's path; ``profile`` is "" for the environment's,
    ``environment`` "" for the workspace's usual one.
    """

    source: str
    profile: str
    environment: str
    server_url: str
    has_token: bool
    is_open_to_others: bool = False


class BadAccount(ValueError):  # noqa: N818  # says what it is
    """The settings cannot be used; ``fix`` is the command that mends them."""

    def __init__(self, message: str, fix: str) -> None:
        super().__init__(message)
        self.fix = fix


def read_account(environ: Mapping[str, str] = os.environ) -> Account:
    """As Modal's client would find it: variables win over the file. Raises `BadAccount`."""
    path = Path(environ.get("MODAL_CONFIG_PATH") or Path.home() / ".modal.toml")
    in_environ = bool(environ.get("MODAL_TOKEN_ID") and environ.get("MODAL_TOKEN_SECRET"))
    try:
        profiles = _profiles(path)
    except BadAccount:
        if not in_environ:
            raise
        profiles = {}
    wanted = environ.get("MODAL_PROFILE", "")
    if wanted and wanted not in profiles and not in_environ:
        raise BadAccount(f"there is no profile {wanted!r} in {path}", "modal profile list")
    name = wanted or next((n for n, p in profiles.items() if p.get("active")), _DEFAULT_PROFILE)
    profile = profiles.get(name, {})
    in_file = bool(profile.get("token_id") and profile.get("token_secret"))
    return Account(
        source="the environment" if in_environ else str(path),
        profile="" if in_environ else name,
        environment=environ.get("MODAL_ENVIRONMENT") or str(profile.get("environment", "")),
        server_url=environ.get("MODAL_SERVER_URL") or str(profile.get("server_url", SERVER_URL)),
        has_token=in_environ or in_file,
        is_open_to_others=in_file and bool(path.stat().st_mode & _OPEN_TO_OTHERS),
    )


def reach(account: Account, seconds: float = REACH_SECONDS) -> str:
    """What answered, in a few words. Raises `CloudProblem` after at most so long.

    With a token Modal is asked for the environment, which shows that the token is good, too.
    """
    if account.has_token:
        from composer_tui.cloud.modal_api import environment_name
        from composer_tui.cloud.modal_thread import within

        import_modal()  # not part of the time
        return f"Modal answers; environment {within(seconds, environment_name()) or 'main'}"
    url = urlsplit(account.server_url)
    outcome: list[Exception | None] = []
    # A name server that does not answer knows no time limit: it is asked by a thread that is left.
    asking = threading.Thread(target=_connect, args=(url, seconds, outcome), daemon=True)
    asking.start()
    asking.join(seconds)
    if not outcome:
        raise CloudProblem(problem("timeout", f"{url.hostname} did not answer in {seconds:g} s"))
    if (error := outcome[0]) is not None:
        raise CloudProblem(problem_of(error) or problem("no_network")) from None
    return f"{url.hostname} can be reached"


def _connect(url: SplitResult, seconds: float, outcome: list[Exception | None]) -> None:
    try:
        port = url.port or _DEFAULT_PORTS.get(url.scheme, 0)
        with socket.create_connection((url.hostname or "", port), timeout=seconds):
            outcome.append(None)
    except (OSError, ValueError) as error:
        outcome.append(error)


def import_modal() -> None:
    """Raises ImportError."""
    import modal  # noqa: F401


def _profiles(path: Path) -> dict[str, dict[str, Any]]:
    try:
        tables = tomllib.loads(path.read_text("utf-8"))
    except FileNotFoundError:
        return {}
    except OSError as error:
        raise BadAccount(f"{path}: {error.strerror}", f"chmod u+r {path}") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError):
        # What the parser says may quote the line, and the line may be a token's.
        raise BadAccount(f"{path} is not TOML", "modal token new") from None
    return {name: table for name, table in tables.items() if isinstance(table, dict)}
