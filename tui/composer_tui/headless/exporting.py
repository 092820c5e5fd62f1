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
    partial = output.with_name(f".{output.name}.{os.getpid()}.part")
    try:
        with partial.open("wb") as file:
            export(folder, kind, file)
        partial.replace(output)
    except OSError as error:
        raise ExportError(f"cannot write {output}: {error.strerror}") from None
    finally:
        with contextlib.suppress(OSError):  # the folder that could not be written to
            partial.unlink(missing_ok=True)
    print(output, file=sys.stderr)
    return 0
