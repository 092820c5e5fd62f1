"""What is typed appears in the order in which it was typed."""

from textual import events
from textual.app import App, ComposeResult

from composer_tui.widgets.text_input import TextInput


class Line(App[None]):
    def compose(self) -> ComposeResult:
        yield TextInput("ab")


async def test_keys_that_arrive_together_are_carried_out_in_their_order() -> None:
    app = Line()
    async with app.run_test() as pilot:
        app.query_one(TextInput).cursor_position = 2
        for key, character in (("backspace", "\x7f"), ("c", "c"), ("left", None), ("d", "d")):
            app.post_message(events.Key(key, character))
        await pilot.pause()
        assert app.query_one(TextInput).value == "adc"
