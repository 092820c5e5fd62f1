"""Widgets made of rows on the Line API that repaint only the cells that changed."""

from collections.abc import Sequence
from typing import ClassVar

from rich.segment import Segment
from rich.style import Style
from textual.geometry import Region
from textual.strip import Strip
from textual.widget import Widget

from composer_tui.runs.sanitise import clean
from composer_tui.widgets.cells import Row, Span, changed_cells, fit_row, framed
from composer_tui.widgets.glyphs import UNICODE, Glyphs
from composer_tui.widgets.palette import Palette


class CellWidget(Widget):
    """Shows the rows that `build` answers. A redraw repaints what differs from the last one."""

    ALLOW_SELECT = False

    def __init__(self, *, id: str | None = None, classes: str | None = None) -> None:  # noqa: A002
        super().__init__(id=id, classes=classes, markup=False)
        self._rows: list[Row] = []
        self._strips: list[Strip] = []
        self._painted_width = 0
        self._inks: dict[str, Style] = {}

    @property
    def glyphs(self) -> Glyphs:
        """The character set of the app that the widget is in."""
        glyphs: Glyphs = getattr(self.app, "glyphs", UNICODE)
        return glyphs

    def build(self, width: int, height: int) -> Sequence[Row]:
        """At most ``height`` rows of at most ``width`` cells, from what the widget was shown."""
        raise NotImplementedError

    def redraw(self) -> None:
        """Build the rows again and repaint the spans that changed."""
        width, height = self.content_size
        if width <= 0 or height <= 0 or not self.is_attached:
            return
        built = self.build(width, height)[:height]
        rows = [fit_row(row, width, self.glyphs.ellipsis) for row in built]
        if len(rows) != len(self._rows) or width != self._painted_width:
            self._rows, self._painted_width = rows, width
            self._strips = [self._strip(row, width) for row in rows]
            self.refresh()
            return
        regions: list[Region] = []
        for y, (old, new) in enumerate(zip(self._rows, rows, strict=True)):
            cells = changed_cells(old, new)
            if cells is not None:
                self._strips[y] = self._strip(new, width)
                regions.append(Region(cells[0], y, cells[1] - cells[0], 1))
        self._rows = rows
        if regions:
            self.refresh(*regions)

    @property
    def text(self) -> str:
        """What is on show, without styles."""
        return "\n".join("".join(span.text for span in row) for row in self._rows)

    def _strip(self, row: Row, width: int) -> Strip:
        # What a feed gives is clean. A folder's name and a record come past it, so the one door
        # to the terminal asks again; for text that prints, the question costs next to nothing.
        segments = [
            Segment(text if text.isprintable() else clean(text), self._style(name))
            for text, name in row
            if text
        ]
        return Strip(segments).adjust_cell_length(width)

    def _style(self, name: str) -> Style:
        style = self._inks.get(name)
        if style is None:
            ink = self.screen.query_one(Palette).ink(name)
            style = self._inks[name] = Style(bgcolor=self.rich_style.bgcolor) + ink
        return style

    def repaint(self) -> None:
        """Look the styles up again and paint everything."""
        self._inks.clear()
        self._rows = []
        self.redraw()

    def notify_style_update(self) -> None:
        super().notify_style_update()
        # It is called for every change of focus anywhere; mostly nothing looks different.
        background = self.rich_style.bgcolor
        if any(ink.bgcolor != background for ink in self._inks.values()):
            self.repaint()

    def on_mount(self) -> None:
        self.app.theme_changed_signal.subscribe(self, self._theme_changed)

    def _theme_changed(self, _: object) -> None:
        self.call_after_refresh(self.repaint)

    def on_resize(self) -> None:
        self.repaint()

    def render_line(self, y: int) -> Strip:
        if y < len(self._strips) and self._painted_width == self.content_size.width:
            return self._strips[y]
        return Strip.blank(self.content_size.width, self._style("text"))


class Pane(CellWidget, can_focus=True):
    """A box with a title that can be focused and maximised. ``help_text`` is for ``?``."""

    title: ClassVar[str] = ""
    help_text: ClassVar[str] = ""
    frame_style: str = ""  # empty: by the focus

    def content(self, width: int, height: int) -> Sequence[Row]:
        """The rows inside the box."""
        raise NotImplementedError

    def heading(self) -> Row:
        """The words in the upper edge, on the left."""
        return (Span(self.title, "title"),)

    def heading_right(self) -> Row:
        """The words in the upper edge, on the right; left out where they do not fit."""
        return ()

    def note(self) -> Row:
        """The words in the lower edge."""
        return ()

    def build(self, width: int, height: int) -> Sequence[Row]:
        if width < 4 or height < 3:  # noqa: PLR2004 - no room for a box
            return []
        rows = self.content(width - 2, height - 2)
        return framed(
            rows,
            width,
            height,
            self.glyphs,
            title=self.heading(),
            right=self.heading_right(),
            note=self.note(),
            style=self.frame_style or ("focus" if self.has_focus else "frame"),
        )

    def watch_has_focus(self, _has_focus: bool) -> None:
        # Not on_focus, which comes before this is known.
        super().watch_has_focus(_has_focus)
        self.redraw()
