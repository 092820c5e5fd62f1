"""Modal secrets: list, create, add to, delete. A value is never printed, logged or in an argv.

Values come from the environment, from stdin or from a .env file, and go to Modal and nowhere else.
"""

import re
from collections.abc import Mapping
from pathlib import Path

import msgspec

from composer_tui.cloud.modal_cli import ModalCli, unix_seconds
from composer_tui.cloud.modal_thread import within
from composer_tui.cloud.problems import CloudProblem, problem, problem_of_text

CALL_SECONDS = 15.0
MOST_BYTES = 1 << 16  # of one value, and of a .env file's lines together
_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]{0,254}\Z")
_SURELY_A_NAME = re.compile(r"[A-Z_][A-Z0-9_]{0,40}\Z")
_LINE = re.compile(r"\s*(?:export\s+)?(?P<name>[^=\s]+)\s*=(?P<value>.*)", re.DOTALL)
_ESCAPES = {"n": "\n", "r": "\r", "t": "\t", '"': '"', "\\": "\\", "$": "$"}


class SecretRow(msgspec.Struct, frozen=True, kw_only=True):
    """One secret: never what is in it. ``last_used_at`` is None for one that was not used yet."""

    name: str
    created_at: float
    created_by: str = ""
    last_used_at: float | None = None


class BadValue(ValueError):  # noqa: N818  # says what it is
    """Values that cannot be had as asked. The message holds none of them."""


class _Row(msgspec.Struct, frozen=True, kw_only=True):
    name: str
    created_at: str | None = None
    created_by: str | None = None
    last_used_at: str | None = None


def from_environ(wish: str, environ: Mapping[str, str]) -> tuple[str, str]:
    """``KEY`` or ``KEY=VARIABLE``: the key and that variable's value. Raises `BadValue`."""
    key, _, variable = wish.partition("=")
    variable = variable or key
    _require_key(key)
    value = environ.get(variable)
    if value is None:
        if not _SURELY_A_NAME.match(variable):
            raise BadValue("--from-env takes the name of a variable that holds the value")
        raise BadValue(f"--from-env: the variable {variable} is not set here")
    return key, _usable(key, value)


def from_text(key: str, text: str) -> tuple[str, str]:
    """The key and the text without the line end that a pipe adds. Raises `BadValue`."""
    _require_key(key)
    return key, _usable(key, text.removesuffix("\n").removesuffix("\r"))


def from_dotenv(path: Path) -> dict[str, str]:
    """The assignments of a .env file. Raises `BadValue`, with the line's number, and OSError.

    A line is ``KEY=VALUE``, ``export KEY=VALUE``, empty, or a comment. Single quotes keep all as it
    is, double quotes know backslashes; without quotes a value ends at `` #``. Nothing is expanded,
    and a value is one line.
    """
    with path.open("rb") as file:
        raw = file.read(MOST_BYTES + 1)
    if len(raw) > MOST_BYTES:
        raise BadValue(f"{path} is larger than {MOST_BYTES} bytes: hardly a .env file")
    try:
        return parse_dotenv(raw.decode())
    except UnicodeDecodeError:
        raise BadValue(f"{path} is not UTF-8") from None
    except BadValue as error:
        raise BadValue(f"{path}: {error}") from None


def parse_dotenv(text: str) -> dict[str, str]:
    """The assignments of such a text, the later ones winning. Raises `BadValue`."""
    values: dict[str, str] = {}
    for number, line in enumerate(re.split(r"\r?\n", text.removeprefix("\ufeff")), 1):
        if not line.strip() or line.lstrip().startswith("#"):
            continue
        match = _LINE.match(line)
        if match is None or not _NAME.match(match["name"]):
            raise BadValue(f"line {number} is not KEY=VALUE")
        values[match["name"]] = _unquoted(match["value"].strip(), number)
    for key, value in values.items():
        _usable(key, value)
    return values


def list_secrets() -> list[SecretRow]:
    """All secrets of the environment, the newest first. Raises `CloudProblem`."""
    # The command line knows when one was last used; the library's list does not.
    done = ModalCli().run("secret", "list", "--json")
    if done.status:
        raise CloudProblem(problem_of_text(done.said))
    try:
        rows = msgspec.json.decode(done.output, type=list[_Row])
    except msgspec.DecodeError as error:
        message = f"`modal secret list` answered what this program cannot read: {error}"
        raise CloudProblem(problem("server", message)) from None
    return [
        SecretRow(
            name=row.name,
            created_at=unix_seconds(row.created_at) or 0.0,
            created_by=row.created_by or "",
            last_used_at=unix_seconds(row.last_used_at),
        )
        for row in rows
    ]


def create(name: str, values: Mapping[str, str], *, add: bool = False) -> None:
    """Makes a secret. With ``add`` one that is there gets these keys, and keeps its others.

    Raises `CloudProblem`; its message holds no value.
    """

    async def ask() -> None:
        import modal

        try:
            await modal.Secret.objects.create.aio(name, dict(values))
        except modal.exception.AlreadyExistsError:
            if not add:
                hint = "--add puts these keys into it; composer-tui secrets delete removes it"
                raise CloudProblem(
                    problem("refused", f"there is a secret {name} already", hint)
                ) from None
            secret = modal.Secret.from_name(name)
            await secret.hydrate.aio()
            await secret.update.aio(dict(values))

    try:
        within(CALL_SECONDS, ask(), "creating the secret")
    except CloudProblem as error:
        message = error.problem.message
        for value in values.values():
            message = message.replace(value, "[value]")
        raise CloudProblem(msgspec.structs.replace(error.problem, message=message)) from None


def delete(name: str) -> None:
    """Deletes a secret for good. Raises `CloudProblem`."""

    async def ask() -> None:
        import modal

        try:
            await modal.Secret.objects.delete.aio(name)
        except modal.exception.NotFoundError:
            hint = "composer-tui secrets lists those that are there"
            raise CloudProblem(problem("refused", f"there is no secret {name}", hint)) from None

    within(CALL_SECONDS, ask(), "deleting the secret")


def _require_key(key: str) -> None:
    if not _NAME.match(key):
        raise BadValue(f"{_shown(key)} cannot be a variable's name: letters, digits and _ only")


def _shown(word: str) -> str:
    """The word, unless it may be a value that was put where a name belongs."""
    return word if _SURELY_A_NAME.match(word) else "what stands there"


def _usable(key: str, value: str) -> str:
    if not value:
        raise BadValue(f"the value of {_shown(key)} is empty")
    if "\0" in value or len(value.encode("utf-8", "surrogateescape")) > MOST_BYTES:
        raise BadValue(f"the value of {_shown(key)} has a zero byte or is too long")
    if any("\ud800" <= character <= "\udfff" for character in value):
        raise BadValue(f"the value of {_shown(key)} is not UTF-8")
    return value


def _unquoted(text: str, number: int) -> str:
    quote = text[:1]
    if quote not in ("'", '"'):
        return re.split(r"(?:^|\s)#", text, maxsplit=1)[0].rstrip()
    end = 1
    while end < len(text) and text[end] != quote:
        end += 2 if quote == '"' and text[end] == "\\" else 1
    rest = text[end + 1 :].strip()
    if end >= len(text) or (rest and not rest.startswith("#")):
        raise BadValue(f"line {number} has a quote that does not end")
    inside = text[1:end]
    if quote == "'":
        return inside
    return re.sub(r"\\(.)", lambda match: _ESCAPES.get(match[1], match[0]), inside)
