"""Whether there is a way to Modal at all, known in a moment.

Modal's client, and its command line, go on trying for long where a connection is refused at once.
What is tried here is the first step of theirs: a connection to the server, or to the proxy before
it. That it succeeds says nothing more. Imports no modal.
"""

import errno
import os
import socket
import threading
from collections.abc import Mapping
from typing import NamedTuple
from urllib.parse import urlsplit

from composer_tui.cloud.problems import problem
from composer_tui.cloud.wire import Problem

CONNECT_SECONDS = 8.0  # two lost packets are no reason to call a network dead
_DEFAULT_PORTS = {"https": 443, "http": 80, "socks5": 1080, "socks5h": 1080, "socks4": 1080}


class Way(NamedTuple):
    """Where a connection to Modal goes first; ``is_proxy`` when that is not Modal itself."""

    host: str
    port: int
    is_proxy: bool = False

    @property
    def name(self) -> str:
        return f"{'the proxy ' if self.is_proxy else ''}{self.host}:{self.port}"


def way_to(server_url: str, environ: Mapping[str, str] = os.environ) -> Way | None:
    """As Modal's client would go; None where that cannot be told from the settings."""
    server = _place(server_url)
    if server is None:
        return None
    proxy = _proxy(server.host, urlsplit(server_url).scheme, environ)
    return server if not proxy else _place(proxy, is_proxy=True)


def obstacle(way: Way, seconds: float = CONNECT_SECONDS) -> Problem | None:
    """What is in the way, after at most so long; None when a connection was made."""
    outcome: list[OSError | None] = []
    # A name server that does not answer knows no time limit: it is asked by a thread that is left.
    asking = threading.Thread(target=_connect, args=(way, seconds, outcome), daemon=True)
    asking.start()
    asking.join(seconds)
    if not outcome or isinstance(outcome[0], TimeoutError):
        return problem("timeout", f"{way.name} did not answer within {seconds:g} s")
    error = outcome[0]
    return None if error is None else problem("no_network", _words(way, error))


def _words(way: Way, error: OSError) -> str:
    if error.errno == errno.ECONNREFUSED:
        return f"Modal cannot be reached: {way.name} refused the connection"
    if isinstance(error, socket.gaierror):
        return f"Modal cannot be reached: the name {way.host} cannot be looked up"
    return f"Modal cannot be reached: {way.name}: {error.strerror or error}"


def _connect(way: Way, seconds: float, outcome: list[OSError | None]) -> None:
    try:
        with socket.create_connection((way.host, way.port), timeout=seconds):
            outcome.append(None)
    except OSError as error:
        outcome.append(error)


def _place(url: str, *, is_proxy: bool = False) -> Way | None:
    try:
        parts = urlsplit(url if "://" in url else f"http://{url}")
        host, port = parts.hostname, parts.port or _DEFAULT_PORTS.get(parts.scheme, 0)
    except ValueError:
        return None
    return Way(host, port, is_proxy) if host and port else None


def _proxy(host: str, scheme: str, environ: Mapping[str, str]) -> str:
    """The proxy's address, "" where none is used."""
    if environ.get("MODAL_DISABLE_API_PROXY", "") not in ("", "0", "false", "False"):
        return ""
    named = {name.lower(): value for name, value in environ.items() if value}
    proxy = named.get(f"{scheme}_proxy") or named.get("all_proxy") or ""
    if not proxy:
        return ""
    passed_by = (part.strip().lstrip("*.") for part in named.get("no_proxy", "").split(","))
    passes = any(part and f".{host}".endswith(f".{part}") for part in passed_by)
    return "" if passes or named.get("no_proxy") == "*" else proxy
