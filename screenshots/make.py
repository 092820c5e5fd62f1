"""Makes the pictures in this folder: the real app, driven by keys, over a recorded smoke run.

    uv run --group screenshots python screenshots/make.py

SVG is the app's own, with braille drawn as dots, because most fixed-width fonts have none; PNG is
made from it with cairo and the DejaVu Sans Mono font. What is live on Modal is made up in
`cloud_scene`, at the prices that the program ships; the clock starts at the same moment each time.
"""

import asyncio
import html
import os
import re
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import NamedTuple

import cairosvg
import msgspec
import psutil
from cloud_scene import alarm, live_apps, make_cloud_run, save_preset
from textual.message import Message
from textual.pilot import Pilot

from composer_engine.config import load
from composer_engine.protocol import (
    Event,
    RunFinished,
    StepCompleted,
    Unrecognized,
    decode,
    encode,
)
from composer_tui.app import ComposerApp
from composer_tui.cloud.notebook import only_follower
from composer_tui.runners.last_word import Death, last_word
from composer_tui.runners.local import LocalRunner
from composer_tui.runs.folder import RunFolder
from composer_tui.runs.store import RunStore

HERE = Path(__file__).parent
WIDE, SMALL = (120, 40), (80, 24)
LIVE_AT_STEP = 112
DAY_SECONDS = 86_400.0
STARTS_AT = 1_795_183_920.0  # 2026-11-20 14:12 UTC

News = Callable[[float], Sequence[Message]]


def nothing(_: float) -> Sequence[Message]:
    """No account."""
    return ()


class Shot(NamedTuple):
    """One picture: which keys lead to it from the monitor of the newest run, and at what size.

    ``news`` is what the app hears of Modal before them; with ``cloud`` the newest run is there.
    """

    name: str
    keys: Sequence[str]
    size: tuple[int, int]
    news: News = nothing
    cloud: bool = False


SHOTS = [
    Shot("monitor-120x40", ["tab", "tab", "s", "s"], WIDE),
    Shot("monitor-80x24", [], SMALL),
    Shot("launch-120x40", ["1"], WIDE),
    Shot("launch-80x24", ["1"], SMALL),
    Shot("runs-120x40", ["3"], WIDE),
    Shot("runs-80x24", ["3"], SMALL),
    Shot("stop-80x24", ["K"], SMALL),
    Shot("failed-80x24", ["3", "down", "enter"], SMALL),
    Shot("help-120x40", ["question_mark"], WIDE),
    Shot("apps-80x24", ["4", "down"], SMALL, live_apps),
    Shot("apps-120x40", ["4", "down"], WIDE, live_apps),
    Shot("apps-kill-120x40", ["4", "space", "space", "K"], WIDE, live_apps),
    Shot("launch-modal-120x40", ["1", "space", "tab", "space"], WIDE, live_apps),
    Shot("launch-modal-80x24", ["1", "space", "tab", "space"], SMALL, live_apps),
    Shot("monitor-cloud-120x40", ["tab", "tab", "s", "s"], WIDE, live_apps, cloud=True),
    Shot("alarm-80x24", [], SMALL, alarm),
]


def recorded() -> list[Event]:
    """The events of a real smoke run on a laptop-sized CPU."""
    lines = (HERE / "recorded" / "smoke.jsonl").read_bytes().splitlines()
    events = [decode(line) for line in lines]
    return [event for event in events if not isinstance(event, Unrecognized)]


def up_to(events: list[Event], step: int) -> list[Event]:
    """The run as it was just after a step."""
    places = [i for i, e in enumerate(events) if isinstance(e, StepCompleted) and e.step == step]
    return events[: places[0] + 1]


def ended_with(events: list[Event], last: Event) -> list[Event]:
    """The run as if it had ended so."""
    return [*events, msgspec.structs.replace(last, seq=len(events), time=events[-1].time + 1)]


def make_run(store: RunStore, events: list[Event], ended_at: float, *settings: str) -> RunFolder:
    """A run folder with these events, moved in time so that the last one is at ``ended_at``."""
    config = load("smoke", settings=settings)
    shift = ended_at - events[-1].time
    folder = store.create(config, "local", events[0].time + shift)
    moved = [msgspec.structs.replace(event, time=event.time + shift) for event in events]
    folder.events_path.write_bytes(b"".join(map(encode, moved)))
    return folder


def make_runs(store: RunStore, *, cloud: bool) -> RunFolder:
    """A history, all of it from one recording: finished, stopped, killed, live. The live one."""
    events, now = recorded(), time.time()
    make_run(store, events, now - 2 * DAY_SECONDS, "name=grpo-only", "loss.sdpo_weight=0")
    make_run(store, events, now - DAY_SECONDS, "name=smoke")
    stopped = RunFinished(steps=90, stopped_early=True, reason="asked by SIGINT")
    make_run(store, ended_with(up_to(events, 90), stopped), now - 9000, "name=sdpo-half")
    killed = last_word(Death(status=-signal.SIGKILL), [])
    make_run(store, ended_with(up_to(events, 64), killed), now - 1500, "name=bigger-batch")
    going = up_to(events, LIVE_AT_STEP)
    if cloud:
        return make_cloud_run(store, going, now)
    live = make_run(store, going, now, "name=smoke")
    me = psutil.Process()
    who = {"pid": me.pid, "start_time": me.create_time(), "pgid": os.getpgid(0)}
    live.process_path.write_bytes(msgspec.json.encode(who))
    return live


async def take(shot: Shot, root: Path) -> str:
    """The SVG of one shot, from a fresh start of the app."""
    store = RunStore(root / "runs")
    live = make_runs(store, cloud=shot.cloud)
    presets = root / "presets"
    if shot.news is live_apps:
        save_preset(presets)
    app = ComposerApp(store, runner=LocalRunner(store), presets_dir=presets, environ={})
    with ExitStack() as held:
        if shot.cloud:
            held.enter_context(only_follower(live))  # nobody has to ask Modal for it
        return await _take(app, shot)


async def _take(app: ComposerApp, shot: Shot) -> str:
    async with app.run_test(size=shot.size) as pilot:
        await settled(app, pilot)
        for message in shot.news(time.time()):
            app.post_message(message)
        await settled(app, pilot)
        for key in shot.keys:
            await pilot.press(key)
            await settled(app, pilot)
        return app.export_screenshot(title="composer-tui")


async def settled(app: ComposerApp, pilot: Pilot[None]) -> None:
    """Until the app has read everything, and a second for drawing it."""
    while app.watched is not None and not app.watched.feed.caught_up:
        await pilot.pause(0.1)
    await pilot.pause(1.0)


CELL_WIDTH, CELL_HEIGHT, BASELINE = 12.2, 24.4, 18.5  # of Textual's SVG
FONT_SIZE = CELL_WIDTH / 0.60205  # the advance of DejaVu Sans Mono, in ems
DOTS = ((0, 0), (0, 1), (0, 2), (1, 0), (1, 1), (1, 2), (0, 3), (1, 3))  # braille's bits in order
TEXT = re.compile(r'<text class="([^"]+)" x="([\d.]+)" y="([\d.]+)"([^>]*)>([^<]*)</text>')
PIECE = 4  # characters
BRAILLE = re.compile("[\u2800-\u28ff]")


def portable(svg: str) -> str:
    """The picture without fonts from the network, and the same wherever it is looked at."""
    svg = re.sub(r"@font-face\s*{.*?}\s*", "", svg, flags=re.DOTALL)
    svg = svg.replace("Fira Code", "DejaVu Sans Mono")
    svg = svg.replace("font-size: 20px", f"font-size: {FONT_SIZE:.3f}px")
    return TEXT.sub(_with_dots, svg)


def placed(svg: str) -> str:
    """The same with every few characters put in their place: cairo rounds a font's advance."""
    return TEXT.sub(_in_pieces, svg)


def _in_pieces(found: re.Match[str]) -> str:
    style, x, y, rest, escaped = found.groups()
    if "textLength" not in rest:
        return found[0]
    text, rest = html.unescape(escaped), re.sub(r' textLength="[^"]*"', "", rest)
    return "".join(
        f'<text class="{style}" x="{float(x) + start * CELL_WIDTH:.2f}" y="{y}"{rest}>'
        f"{html.escape(text[start : start + PIECE])}</text>"
        for start in range(0, len(text), PIECE)
    )


def _with_dots(found: re.Match[str]) -> str:
    style, x, y, rest, escaped = found.groups()
    text = html.unescape(escaped)
    if not BRAILLE.search(text):
        return found[0]
    dots = [
        f'<circle class="{style}" cx="{cx:.2f}" cy="{cy:.2f}" r="2"/>'
        for place, character in enumerate(text)
        if BRAILLE.match(character)
        for cx, cy in _dots(ord(character) - 0x2800, float(x) + place * CELL_WIDTH, float(y))
    ]
    left = html.escape(BRAILLE.sub("\u00a0", text))
    return "".join(dots) + f'<text class="{style}" x="{x}" y="{y}"{rest}>{left}</text>'


def _dots(mask: int, left: float, baseline: float) -> list[tuple[float, float]]:
    top = baseline - BASELINE
    return [
        (left + (column + 0.5) * CELL_WIDTH / 2, top + (row + 0.5) * CELL_HEIGHT / 4)
        for bit, (column, row) in enumerate(DOTS)
        if mask >> bit & 1
    ]


def start_clock() -> None:
    """The time of day is the same in each picture, and goes on."""
    os.environ["TZ"] = "UTC"
    time.tzset()
    began = time.monotonic()
    time.time = lambda: STARTS_AT + time.monotonic() - began


def main(names: Sequence[str]) -> None:
    """Makes these pictures, or all."""
    for shot in (shot for shot in SHOTS if not names or shot.name in names):
        start_clock()
        with tempfile.TemporaryDirectory() as root:
            os.environ["HOME"] = root  # which the app writes as ~
            os.environ.pop("XDG_CACHE_HOME", None)
            svg = portable(asyncio.run(take(shot, Path(root))))
        (HERE / f"{shot.name}.svg").write_text(svg, "utf-8")
        png = HERE / f"{shot.name}.png"
        cairosvg.svg2png(placed(svg).encode(), write_to=str(png), scale=1.2)
        print(shot.name)


if __name__ == "__main__":
    main(sys.argv[1:])
