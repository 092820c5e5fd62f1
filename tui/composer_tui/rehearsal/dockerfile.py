"""What Modal's image layers say: Dockerfile lines, read for what a rehearsal can use of them.

No image is built. The environment and the working folder are taken over, the Python packages that
would be installed are noted, and what a build would stumble over is told.
"""

import fnmatch
import re
import shlex
from collections.abc import Iterator, Mapping
from typing import NamedTuple

from composer_tui.rehearsal.installs import Installs

_INSTRUCTIONS = frozenset(
    {"ADD", "ARG", "CMD", "COPY", "ENTRYPOINT", "ENV", "EXPOSE", "FROM", "HEALTHCHECK", "LABEL"}
    | {"MAINTAINER", "ONBUILD", "RUN", "SHELL", "STOPSIGNAL", "USER", "VOLUME", "WORKDIR"}
)
_HEREDOC = re.compile(r"<<-?\s*[\"']?(\w+)[\"']?")
_TAG = re.compile(r"[a-z0-9][\w.:/@-]*", re.IGNORECASE)


class Copy(NamedTuple):
    """A COPY of files of the client: which, and where to. Paths have no leading slash."""

    sources: tuple[str, ...]
    target: str
    into_folder: bool

    def place(self, path: str) -> str | None:
        """Where a file of the context goes; None when it is not copied."""
        for source in self.sources:
            if source in ("", "."):
                return self._under(path)
            if path.startswith(source + "/"):
                return self._under(path.removeprefix(source + "/"))
            if path == source or fnmatch.fnmatchcase(path, source):
                return self._under(path.rpartition("/")[2]) if self.into_folder else self.target
        return None

    def _under(self, path: str) -> str:
        return f"{self.target}/{path}" if self.target else path


class Layer(NamedTuple):
    """What one image layer adds. ``problems`` are lines for a person; empty when it would build."""

    environ: Mapping[str, str]  # with that of the layers below
    workdir: str  # "" where nobody set one
    packages: frozenset[str]  # this layer's own, names as PyPI normalises them
    copies: tuple[Copy, ...]
    problems: tuple[str, ...]


def read(
    commands: list[str],
    context: Mapping[str, bytes],
    bases: frozenset[str],
    environ: Mapping[str, str],
    workdir: str,
) -> Layer:
    """Reads a layer.

    ``context`` are the files sent with it, by path; ``bases`` the names of layers below, whose
    ``environ`` and ``workdir`` it starts with.
    """
    reader = _Reader(context, bases, dict(environ), workdir)
    for instruction, argument in _instructions("\n".join(commands)):
        reader.take(instruction, argument)
    return Layer(
        reader.environ,
        reader.workdir,
        frozenset(reader.packages),
        tuple(reader.copies),
        tuple(reader.problems),
    )


def _instructions(text: str) -> Iterator[tuple[str, str]]:
    """Instruction and argument, continued lines joined, comments left out, heredocs attached."""
    lines = iter(text.splitlines())
    for line in lines:
        whole = line.strip()
        while whole.endswith("\\"):
            following = next(lines, None)
            if following is None:
                break
            if not following.lstrip().startswith("#"):
                whole = f"{whole[:-1].rstrip()} {following.strip()}".rstrip()
        if not whole or whole.startswith("#"):
            continue
        instruction, _, argument = whole.partition(" ")
        if instruction.upper() in ("RUN", "COPY", "ADD"):
            for end in _HEREDOC.findall(argument):
                body = []
                for inner in lines:
                    if inner.strip() == end:
                        break
                    body.append(inner)
                argument = "\n".join([argument, *body])
        yield instruction, argument.strip()


class _Reader:
    """Goes through the instructions in order, and notes."""

    def __init__(
        self,
        context: Mapping[str, bytes],
        bases: frozenset[str],
        environ: dict[str, str],
        workdir: str,
    ) -> None:
        self.environ = environ
        self.workdir = workdir
        self.copies: list[Copy] = []
        self._bases = bases
        self._stages: set[str] = set()
        self._files = {path.lstrip("/"): data for path, data in context.items()}
        self._installs = Installs(self._files)
        self.packages = self._installs.packages
        self.problems = self._installs.problems

    def take(self, instruction: str, argument: str) -> None:
        keyword = instruction.upper()
        if keyword not in _INSTRUCTIONS:
            self.problems.append(f"unknown instruction: {instruction}")
            return
        try:
            if keyword == "FROM":
                self._from(argument)
            elif keyword == "ENV":
                self._env(argument)
            elif keyword == "WORKDIR":
                self._workdir(argument)
            elif keyword in ("COPY", "ADD"):
                self._copy(argument)
            elif keyword == "RUN":
                self._run(argument)
        except ValueError as error:  # shlex: a quotation without an end
            self.problems.append(f"{instruction} {argument[:80]}: {error}")

    def _from(self, argument: str) -> None:
        words = [word for word in argument.split() if not word.startswith("--")]
        tag = words[0] if words else ""
        if tag not in self._bases | self._stages and not _TAG.fullmatch(tag):
            self.problems.append(f"FROM: not an image reference: {tag!r}")
        if len(words) == 3 and words[1].upper() == "AS":  # noqa: PLR2004  # FROM tag AS name
            self._stages.add(words[2])

    def _env(self, argument: str) -> None:
        words = _words(argument, self.environ)
        if words and "=" not in words[0]:  # the old form: ENV NAME the whole rest
            name, _, rest = argument.partition(" ")
            words = [f"{name}={' '.join(_words(rest, self.environ))}"] if rest else [argument]
        for word in words:
            name, equals, value = word.partition("=")
            if not name or not equals:
                self.problems.append(f"ENV: not NAME=VALUE: {word!r}")
                continue
            self.environ[name] = value

    def _workdir(self, argument: str) -> None:
        words = _words(argument, self.environ)
        if not words:
            self.problems.append("WORKDIR without a path")
            return
        path = " ".join(words)
        self.workdir = path if path.startswith("/") else f"{self.workdir or '/'}/{path}"
        self.workdir = re.sub("/+", "/", self.workdir)

    def _copy(self, argument: str) -> None:
        words = shlex.split(argument.partition("\n")[0])
        if any(word.startswith("--from") for word in words) or "<<" in argument:
            return  # from another image, or written in place: there is nothing of it here
        paths = [word for word in words if not word.startswith("--")]
        if len(paths) < 2:  # noqa: PLR2004  # a source and a target
            self.problems.append(f"COPY wants a source and a target: {argument[:80]!r}")
            return
        *sources, target = paths
        absolute = target if target.startswith("/") else f"{self.workdir or '/'}/{target}"
        copy = Copy(
            tuple(source.removeprefix("./").strip("/") for source in sources),
            re.sub("/+", "/", absolute).strip("/").removesuffix("/.").removesuffix("."),
            target.endswith(("/", ".")) or len(sources) > 1,
        )
        self.copies.append(copy)
        for path, data in list(self._files.items()):
            if (placed := copy.place(path)) is not None:
                self._files[placed] = data

    def _run(self, argument: str) -> None:
        self._installs.run(re.sub(r"^(--\w+=\S+\s+)+", "", argument))


def _words(text: str, environ: Mapping[str, str]) -> list[str]:
    """Splits as Docker does: quotes keep words together, variables are filled in.

    Not within single quotes. Raises ValueError for a quotation without an end.
    """
    words: list[str] = []
    word, quote, index, inside = "", "", 0, False
    while index < len(text):
        letter = text[index]
        variable = _VARIABLE.match(text, index) if letter == "$" and quote != "'" else None
        if variable is not None:
            word, inside = word + _filled_in(variable, environ), True
            index = variable.end()
            continue
        if letter == "\\" and quote != "'" and index + 1 < len(text):
            word, inside = word + text[index + 1], True
            index += 2
            continue
        if letter == quote:
            quote = ""
        elif letter in "'\"" and not quote:
            quote, inside = letter, True
        elif letter.isspace() and not quote:
            if inside:
                words.append(word)
            word, inside = "", False
        else:
            word, inside = word + letter, True
        index += 1
    if quote:
        raise ValueError("a quotation has no end")
    return [*words, word] if inside else words


_VARIABLE = re.compile(r"\$(?:(\w+)|\{(\w+)(?::([-+])([^}]*))?\})")


def _filled_in(variable: "re.Match[str]", environ: Mapping[str, str]) -> str:
    name, braced, operator, other = variable.groups()
    value = environ.get(name or braced, "")
    if operator == "-":
        return value or other
    if operator == "+":
        return other if value else ""
    return value
