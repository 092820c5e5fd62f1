"""The colours, dark and light. The style sheet says where each one goes."""

from textual.theme import Theme

_DARK_CHARTS = {
    "chart-green": "#7ccf8a",
    "chart-blue": "#62b6e7",
    "chart-violet": "#b392f0",
    "chart-teal": "#4fc7b4",
    "chart-orange": "#e8a35c",
    "chart-average": "#f6d47a",
    "edge": "#33404d",
    "quiet": "#7d8b99",
}
_LIGHT_CHARTS = {
    "chart-green": "#217a3c",
    "chart-blue": "#1668a8",
    "chart-violet": "#6a3fb5",
    "chart-teal": "#0b7a6b",
    "chart-orange": "#a8590b",
    "chart-average": "#8a5a00",
    "edge": "#c3ccd5",
    "quiet": "#5d6b79",
}

DARK = Theme(
    name="composer-dark",
    primary="#62b6e7",
    secondary="#b392f0",
    accent="#f2b866",
    success="#7ccf8a",
    warning="#f0c35e",
    error="#f2777f",
    foreground="#dce3ea",
    background="#0e1217",
    surface="#141a21",
    panel="#1c242d",
    dark=True,
    variables={
        **_DARK_CHARTS,
        "block-cursor-text-style": "none",
        "input-selection-background": "#62b6e7 35%",
    },
)
LIGHT = Theme(
    name="composer-light",
    primary="#1668a8",
    secondary="#6a3fb5",
    accent="#9a5b00",
    success="#217a3c",
    warning="#8f6400",
    error="#b3261e",
    foreground="#1d252d",
    background="#f7f9fb",
    surface="#eef2f6",
    panel="#e2e8ee",
    dark=False,
    variables=_LIGHT_CHARTS,
)


def chart_colours(*, dark: bool) -> dict[str, str]:
    """What the style sheet needs beyond what every theme has."""
    return _DARK_CHARTS if dark else _LIGHT_CHARTS
