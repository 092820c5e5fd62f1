"""First paint: from exec to a whole dashboard of a run with 2,000 steps, median of 8."""

import re
import tempfile
from pathlib import Path

from tests.bench.harness import Chunk, app, make_run, milliseconds, picture, report

RUNS = 8
FORBIDDEN = ("torch", "transformers", "trl", "numpy", "modal", "pyarrow")


def is_whole(chunks: list[Chunk]) -> bool:
    """The footer is drawn, and a chart."""
    rows = picture(chunks)
    return bool(rows[-1].strip()) and any(re.search("[\u2801-\u28ff]", row) for row in rows)


def first_whole(chunks: list[Chunk]) -> float:
    """When the first whole picture had come."""
    return next(c.at for i, c in enumerate(chunks) if is_whole(chunks[: i + 1]))


def paint_seconds(root: str) -> float:
    with app(["--runs-dir", root, "monitor", "last"]) as running:
        running.read_until("\u28c0".encode()[:2], 20)
        running.drain(1.0)
        return first_whole(running.chunks) - running.started_at


def forbidden_modules(root: str) -> list[str]:
    """What the interpreter's own import log names, of what must not be there."""
    options = ("-X", "importtime")
    with app(["--runs-dir", root, "monitor", "last"], python_options=options) as running:
        running.drain(4.0)
        log = b"".join(chunk.data for chunk in running.chunks).decode("utf-8", "replace")
    imported = set(re.findall(r"\|\s+([A-Za-z_][\w.]*)\r?$", log, re.MULTILINE))
    return [name for name in FORBIDDEN if name in imported]


def main() -> None:
    with tempfile.TemporaryDirectory() as root:
        make_run(Path(root), 2000, finished=True)
        paint_seconds(root)  # compiles what was never compiled
        times = [paint_seconds(root) for _ in range(RUNS)]
        report(
            bench="first_paint",
            milliseconds=milliseconds(times),
            runs=RUNS,
            forbidden_modules=forbidden_modules(root),
            target_median_milliseconds=200,
        )


if __name__ == "__main__":
    main()
