"""A line of text to type into, in the order in which it was typed."""

from textual import events
from textual.binding import BindingsMap
from textual.widgets import Input

_EDITING = BindingsMap(Input.BINDINGS)


class TextInput(Input):
    """An Input whose editing keys act at once.

    Textual runs a binding only after its key has bubbled up to the app, and inserts a letter when
    the key arrives. Keys that arrive together, as they do over ssh, would then be carried out in
    another order than they were typed in: a backspace would delete the letter after it.
    """

    async def _on_key(self, event: events.Key) -> None:
        binding = next(iter(_EDITING.key_to_bindings.get(event.key, ())), None)
        if binding is None or binding.action == "submit":
            return  # Textual calls Input's own handler next
        event.stop()
        event.prevent_default()
        self._restart_blink()
        await self.run_action(binding.action)
