"""Which Python packages a build's commands would install. Nothing is run or fetched."""

import re
import shlex
import tomllib
from collections.abc import Iterator, Mapping
from itertools import dropwhile

from packaging.requirements import InvalidRequirement, Requirement
from packaging.utils import canonicalize_name

_SUBSTITUTION = re.compile(r"\$\([^()]*\)|`[^`]*`")
_SEPARATORS = frozenset({"&&", "||", ";", "|", "&", "\n"})
_LINUX = {"sys_platform": "linux", "platform_system": "Linux", "os_name": "posix"}
_TAKES_VALUE = frozenset(  # options of pip and uv that are followed by a value
    {"-c", "--constraint", "--constraints", "-f", "--find-links", "-i", "--index-url", "-t", "-p"}
    | {"--extra-index-url", "--target", "--python", "--prefix", "--root", "--platform", "--abi"}
    | {"--python-version", "--implementation", "--only-binary", "--no-binary", "--index", "-C"}
    | {"--default-index", "--index-strategy", "--keyring-provider", "--torch-backend", "--src"}
    | {"--prerelease", "--resolution", "--link-mode", "--exclude-newer", "--cache-dir", "--log"}
    | {"--trusted-host", "--proxy", "--timeout", "--retries", "--progress-bar", "-P", "--extra"}
    | {"--config-setting", "--config-settings", "--upgrade-package", "--refresh-package"}
    | {"--reinstall-package", "--no-build-isolation-package", "--overrides", "--group"}
    | {"--build-constraints", "--python-platform"}
)
_PYTHON = re.compile(r"(.*/)?python[0-9.]*")
_PIP = re.compile(r"(.*/)?pip[0-9.]*")
_UV = re.compile(r"(.*/)?uv")
_REQUIREMENTS = frozenset({"-r", "--requirement", "--requirements"})
_EDITABLE = frozenset({"-e", "--editable"})


class Installs:
    """Notes packages by the names that PyPI normalises, and what cannot be read.

    ``files`` are those that the build knows by then: path without a leading slash, content.
    """

    def __init__(self, files: Mapping[str, bytes]) -> None:
        self.packages: set[str] = set()
        self.problems: list[str] = []
        self._files = files

    def run(self, line: str) -> None:
        """Looks at one line of shell. Raises ValueError for a quotation without an end."""
        for command in _shell_commands(line):
            arguments = _install_arguments(command)
            if arguments is not None:
                self._install(arguments)
            elif _UV.fullmatch(command[0]) and command[1:2] == ["sync"]:
                self._project(".uv/pyproject.toml")  # where Image.uv_sync puts it

    def _install(self, arguments: list[str]) -> None:
        words = iter(arguments)
        for word in words:
            option, equals, value = word.partition("=")
            if option in _REQUIREMENTS:
                self._requirements(value if equals else next(words, ""))
            elif option in _EDITABLE or option in _TAKES_VALUE:
                if not equals:
                    next(words, None)
            elif word.startswith("-r") and not word.startswith("--") and len(word) > 2:  # noqa: PLR2004
                self._requirements(word[2:])
            elif not word.startswith("-"):
                self._requirement(word)

    def _requirements(self, path: str) -> None:
        data = self._files.get(path.strip("/"))
        if data is None:
            return  # made by an earlier command of the build: not to be known here
        for line in data.decode(errors="replace").replace("\\\n", " ").splitlines():
            text = re.sub(r"(^|\s)#.*$", "", line).strip()
            if text and not text.startswith("-"):
                self._requirement(re.sub(r"\s+--\S+.*$", "", text))

    def _project(self, path: str) -> None:
        data = self._files.get(path)
        if data is None:
            return
        try:
            project = tomllib.loads(data.decode(errors="replace")).get("project", {})
        except tomllib.TOMLDecodeError as error:
            self.problems.append(f"pyproject.toml: {error}")
            return
        for requirement in project.get("dependencies", []):
            self._requirement(str(requirement))

    def _requirement(self, text: str) -> None:
        """Notes one package, or that it cannot be read. Paths and addresses name no package."""
        if "://" in text and "@" not in text.partition("://")[0]:
            egg = re.search(r"#egg=([\w.-]+)", text)
            if egg:
                self.packages.add(canonicalize_name(egg[1]))
            return
        if text.startswith((".", "/", "$", "~")) or text.endswith((".whl", ".tar.gz")):
            return
        try:
            requirement = Requirement(text)
        except InvalidRequirement as error:
            self.problems.append(f"not a requirement: {text!r}: {str(error).splitlines()[0]}")
            return
        if requirement.marker is None or requirement.marker.evaluate(_LINUX):
            self.packages.add(canonicalize_name(requirement.name))


def _shell_commands(text: str) -> Iterator[list[str]]:
    """The words of each simple command of a shell line. Raises ValueError."""
    lexer = shlex.shlex(
        _SUBSTITUTION.sub("$SUBSTITUTED", text), posix=True, punctuation_chars=";&|"
    )
    lexer.whitespace = " \t\r"
    lexer.whitespace_split = True
    lexer.commenters = ""
    command: list[str] = []
    for word in lexer:
        for part in re.split("(\n)", word) if "\n" in word else [word]:
            if part in _SEPARATORS:
                if command:
                    yield command
                command = []
            elif part:
                command.append(part)
    if command:
        yield command


def _install_arguments(command: list[str]) -> list[str] | None:
    """What comes after ``pip install`` in any of its spellings; None for another command."""
    words = list(dropwhile(_is_prefix, command))
    if words and _PYTHON.fullmatch(words[0]) and words[1:2] == ["-m"]:
        words = words[2:]
    if words and _UV.fullmatch(words[0]):
        words = words[1:]
    if words and _PIP.fullmatch(words[0]) and words[1:2] == ["install"]:
        return words[2:]
    return None


def _is_prefix(word: str) -> bool:
    """A word before a command that leaves it the same: VARIABLE=value, sudo."""
    return word in ("sudo", "exec", "time") or re.fullmatch(r"\w+=.*", word) is not None
