"""The characters the screens draw with: Unicode, and an ASCII set that any font can show."""

from collections.abc import Mapping
from typing import NamedTuple


class PixelGrid(NamedTuple):
    """How one cell is divided: ``glyphs[mask]`` shows the pixels whose bits are set.

    ``bits[column][row]`` is the bit of one pixel; row 0 is the top. ``band`` shows the pixels of
    what stands behind the line; without dots, it differs from the line in more than its colour.
    """

    columns: int
    rows: int
    bits: tuple[tuple[int, ...], ...]
    glyphs: tuple[str, ...]
    band: tuple[str, ...]


# A plain space for no dots: some fonts draw the empty braille cell as eight hollow rings.
_BRAILLE = (" ", *(chr(0x2800 + mask) for mask in range(1, 256)))
BRAILLE = PixelGrid(2, 4, ((0x01, 0x02, 0x04, 0x40), (0x08, 0x10, 0x20, 0x80)), _BRAILLE, _BRAILLE)
HALVES = PixelGrid(1, 2, ((1, 2),), (" ", "'", ".", ":"), (" ", "|", "|", "|"))


class Glyphs(NamedTuple):
    """One character set. ``box`` is corner, edge, corner, side, corner, corner."""

    pixels: PixelGrid
    box: str
    spark: str
    full: str
    empty: str
    mark: str
    missing: str
    gap: str
    corner: str
    rule: str
    tick: str
    axis: str
    ellipsis: str
    separator: str
    divider: str
    cursor: str
    live: str
    waiting: str
    saving: str
    done: str
    stopped: str
    failed: str
    alert: str
    left: str
    right: str
    changed: str
    dot: str


UNICODE = Glyphs(
    pixels=BRAILLE,
    box="╭─╮│╰╯",
    spark="▁▂▃▄▅▆▇█",
    full="█",
    empty="░",
    mark="┃",
    missing="—",
    gap="✕",
    corner="└",
    rule="─",
    tick="┤",
    axis="│",
    ellipsis="…",
    separator="·",
    divider="▏",
    cursor="▸",
    live="●",
    waiting="◌",
    saving="◍",
    done="✓",
    stopped="■",
    failed="✗",
    alert="⚠",
    left="◂",
    right="▸",
    changed="•",
    dot="○",
)
ASCII = Glyphs(
    pixels=HALVES,
    box="+-+|++",
    spark="_.-:=+*#",
    full="#",
    empty=".",
    mark="|",
    missing="-",
    gap="x",
    corner="+",
    rule="-",
    tick="+",
    axis="|",
    ellipsis="~",
    separator="|",
    divider="|",
    cursor=">",
    live="*",
    waiting="o",
    saving="@",
    done="+",
    stopped="#",
    failed="x",
    alert="!",
    left="<",
    right=">",
    changed="*",
    dot="o",
)


def glyphs_for(environ: Mapping[str, str]) -> Glyphs:
    """ASCII where ``COMPOSER_ASCII`` asks for it; Unicode otherwise."""
    return ASCII if environ.get("COMPOSER_ASCII", "") not in {"", "0"} else UNICODE
