"""`export`: a run's steps to a file, or to stdout."""

import contextlib
import os
import sys
from pathlib import Path

from composer_tui.runs.export import ExportError, ExportFormat, export
from composer_tui.runs.folder import RunFolder


def export_run(folder: RunFolder, kind: ExportFormat, output: Path | None) -> int:
    """0 when all is written. A file appears whole or not at all. Raises `ExportError`."""
    if output is None:
        if kind == "parquet" and sys.stdout.isatty():
            raise ExportError("Parquet is not for a terminal: name a file with -o")
        export(folder, kind, sys.stdout.buffer)
        return 0
    if not output.name or output.is_dir():
        raise ExportError("-o needs the name of a file")
    try:
        target = output.resolve()  # of a link: what it points to is written, the link stays
        if target.exists() and not target.is_file():
            with target.open("wb") as stream:  # a pipe or a device is written to, not replaced
                export(folder, kind, stream)
        else:
            _export_whole(folder, kind, target)
    except (OSError, RuntimeError) as error:
        reason = error.strerror if isinstance(error, OSError) else str(error)
        raise ExportError(f"cannot write {output}: {reason}") from None
    print(output, file=sys.stderr)
    return 0


def _export_whole(folder: RunFolder, kind: ExportFormat, target: Path) -> None:
    partial = target.with_name(f".{target.name}.{os.getpid()}.part")
    try:
        with partial.open("wb") as file:
            export(folder, kind, file)
        partial.replace(target)
    finally:
        with contextlib.suppress(OSError):  # the folder that could not be written to
            partial.unlink(missing_ok=True)
