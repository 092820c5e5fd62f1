"""First paint: from exec to a whole dashboard of a live run with 2,000 steps, median of 8.

Beside it, in turn with it, the least that Textual can do: an app with one line of text. On
another machine the ratio holds, the milliseconds do not.
"""

import re
import statistics
import tempfile
from pathlib import Path

from tests.bench.harness import Chunk, TerminalApp, make_run, milliseconds, picture, report

RUNS = 8
FORBIDDEN = ("torch", "transformers", "trl", "numpy", "modal", "pyarrow")
OURS = ["-m", "composer_tui"]
BARE_APP = (
    "from textual.app import App\n"
    "from textual.widgets import Static\n"
    "class Bare(App):\n"
    "    def compose(self):\n"
    "        yield Static('\\u28ff bare')\n"
    "Bare().run()"
)
BRAILLE = b"\xe2\xa3"  # how the UTF-8 of most of the patterns begins


def is_whole(chunks: list[Chunk]) -> bool:
    """The keys are drawn, and a chart."""
    rows = picture(chunks)
    return bool(rows[-1].strip()) and any(re.search("[\u2801-\u28ff]", row) for row in rows)


def dashboard_seconds(root: str) -> float:
    running = TerminalApp(OURS, COMPOSER_RUNS_DIR=root)
    try:
        running.read_until(BRAILLE, 20)
        running.drain(1.0)
        chunks = running.chunks
        whole = next(chunk.at for i, chunk in enumerate(chunks) if is_whole(chunks[: i + 1]))
        return whole - running.started_at
    finally:
        running.close()


def bare_seconds() -> float:
    running = TerminalApp(["-c", BARE_APP])
    try:
        return running.read_until(BRAILLE, 20) - running.started_at
    finally:
        running.close()


def forbidden_modules(root: str) -> list[str]:
    """What the interpreter's own import log names, of what must not be there."""
    running = TerminalApp(["-X", "importtime", *OURS], COMPOSER_RUNS_DIR=root)
    try:
        running.drain(4.0)
        log = b"".join(chunk.data for chunk in running.chunks).decode("utf-8", "replace")
    finally:
        running.close()
    imported = set(re.findall(r"\|\s+([A-Za-z_][\w.]*)\r?$", log, re.MULTILINE))
    assert "textual.app" in imported
    return [name for name in FORBIDDEN if name in imported]


def main() -> None:
    with tempfile.TemporaryDirectory() as root:
        make_run(Path(root), 2000, finished=False)
        dashboard_seconds(root)  # compiles what was never compiled
        pairs = [(dashboard_seconds(root), bare_seconds()) for _ in range(RUNS)]
        report(
            bench="first_paint",
            milliseconds=milliseconds([ours for ours, _ in pairs]),
            bare_textual_milliseconds=milliseconds([bare for _, bare in pairs]),
            median_ratio=round(statistics.median(ours / bare for ours, bare in pairs), 2),
            runs=RUNS,
            forbidden_modules=forbidden_modules(root),
            target_median_milliseconds=200,
        )


if __name__ == "__main__":
    main()
