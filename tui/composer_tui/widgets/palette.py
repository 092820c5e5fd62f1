"""What the styles that rows name look like: one invisible widget a screen, dressed by the sheet.

A widget with thirty component classes costs milliseconds each time its focus changes; one palette
that all widgets of a screen ask costs that once.
"""

from typing import ClassVar

from rich.style import Style
from textual.widget import Widget

_NAMES = (
    "text dim strong title frame focus axis selected good warn bad busy key accent alarm "
    "line trace band average "
    "reward reward-trace reward-band grpo grpo-trace grpo-band sdpo sdpo-trace sdpo-band "
    "replay replay-trace replay-band"
)


class Palette(Widget):
    """Answers styles by the names that spans use."""

    COMPONENT_CLASSES: ClassVar[set[str]] = {f"cell--{name}" for name in _NAMES.split()}

    def ink(self, name: str) -> Style:
        """The colour and attributes of a style, without a background."""
        style = self.get_component_rich_style(f"cell--{name}")
        return Style(
            color=style.color, bold=style.bold, italic=style.italic, underline=style.underline
        )
