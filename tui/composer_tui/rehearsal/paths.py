"""Paths inside a volume or a mount: relative, plain, and never out of it."""

from pathlib import Path, PurePosixPath

_NAME_BYTES = 255  # what file systems allow


class BadPath(ValueError):  # noqa: N818  # says what the matter is
    """A path that may not be used; the message is one line for a person."""


def inside(path: str) -> PurePosixPath:
    """The path below its top: ``/a//b/./c`` -> ``a/b/c``; the top itself is ``.``.

    Raises `BadPath` for a path that climbs with ``..``, or that no file system could hold.
    """
    if "\0" in path:
        raise BadPath(f"a path may hold no NUL: {path!r}")
    parts = [part for part in path.split("/") if part not in ("", ".")]
    if ".." in parts:
        raise BadPath(f"the path must stay inside, without '..': {path!r}")
    for part in parts:
        try:
            length = len(part.encode())
        except UnicodeEncodeError:
            raise BadPath(f"the path is not Unicode: {path!r}") from None
        if length > _NAME_BYTES:
            raise BadPath(f"a name in the path is longer than {_NAME_BYTES} bytes: {part[:40]!r}…")
    return PurePosixPath(*parts)


def beneath(top: Path, relative: PurePosixPath) -> Path:
    """Where that is on this machine. Raises `BadPath` when links on the way lead elsewhere.

    The last part is not followed: it may be a link itself.
    """
    path = top / relative
    if relative.parts and not path.parent.resolve().is_relative_to(top.resolve()):
        raise BadPath(f"a link on the way leads outside: {str(relative)!r}")
    return path
