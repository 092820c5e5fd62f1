"""Which account of Modal this machine has, and whether Modal answers it. No token leaves here."""

import os
import time
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from composer_tui.cloud.problems import CloudProblem, problem
from composer_tui.cloud.reach import obstacle, way_to

REACH_SECONDS = 3.0
SERVER_URL = "https://api.modal.com"
_DEFAULT_PROFILE = "default"
_OAUTH = ("oauth_refresh_token", "oauth_client_id")  # what stands for a token, too
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
    in_environ = bool(environ.get("MODAL_TOKEN_ID") and environ.get("MODAL_TOKEN_SECRET")) or all(
        environ.get(f"MODAL_{name.upper()}") for name in _OAUTH
    )
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
    in_file = bool(profile.get("token_id") and profile.get("token_secret")) or all(
        map(profile.get, _OAUTH)
    )
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
    way = way_to(account.server_url)
    if way is None:
        raise CloudProblem(problem("no_network", f"{account.server_url} is no server's address"))
    began = time.monotonic()
    if (found := obstacle(way, seconds)) is not None:
        raise CloudProblem(found)
    if not account.has_token:
        return f"{way.name if way.is_proxy else way.host} can be reached"
    from composer_tui.cloud.modal_api import environment_name
    from composer_tui.cloud.modal_thread import within

    left = max(0.1, seconds - (time.monotonic() - began))
    import_modal()  # not part of the time
    return f"Modal answers; environment {within(left, environment_name()) or 'main'}"


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
