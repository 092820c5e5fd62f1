"""`secrets`: which there are on Modal, and how they come to be. No value is ever printed."""

import os
import sys
from collections.abc import Sequence
from pathlib import Path

import msgspec

from composer_tui.cloud.secrets import (
    MOST_BYTES,
    BadValue,
    create,
    delete,
    from_dotenv,
    from_environ,
    from_text,
    list_secrets,
)
from composer_tui.headless.tables import local_time, print_table
from composer_tui.numbers import DASH
from composer_tui.runs.sanitise import clean


def print_secrets(*, as_json: bool) -> int:
    """All secrets of the environment: names and times."""
    rows = list_secrets()
    if as_json:
        sys.stdout.buffer.write(msgspec.json.encode(rows) + b"\n")
        return 0
    if not rows:
        print("no secrets; make one: composer-tui secrets create NAME --from-env VARIABLE")
        return 0
    print_table(
        ("SECRET", "CREATED", "BY", "LAST USED"),
        [
            (
                row.name,
                local_time(row.created_at),
                row.created_by or DASH,
                local_time(row.last_used_at) if row.last_used_at else "never",
            )
            for row in rows
        ],
    )
    return 0


def create_secret(
    name: str, environ_keys: Sequence[str], stdin_key: str | None, dotenv: Path | None, *, add: bool
) -> int:
    """Makes a secret of values from where nobody looks. Raises `BadValue`, OSError."""
    values: dict[str, str] = {}
    if dotenv is not None:
        values |= from_dotenv(dotenv)
    values |= dict(from_environ(wish, os.environ) for wish in environ_keys)
    if stdin_key is not None:
        key, value = from_text(stdin_key, _read_stdin(stdin_key))
        values[key] = value
    if not values:
        raise BadValue("there is no value in it")
    create(name, values, add=add)
    print(f"secret {clean(name)}: {', '.join(values)}")
    print(f"a run gets it with --set modal.secrets={clean(name)}", file=sys.stderr)
    return 0


def delete_secret(name: str) -> int:
    """Deletes it for good."""
    delete(name)
    print(f"deleted the secret {clean(name)}")
    return 0


def _read_stdin(key: str) -> str:
    if sys.stdin.isatty():
        import getpass

        return getpass.getpass(f"{key}: ")
    data = sys.stdin.buffer.read(MOST_BYTES + 2)
    try:
        return data.decode()
    except UnicodeDecodeError:
        raise BadValue("what came on stdin is not UTF-8") from None
