"""Screen 1: choose what to run, see what will happen, launch it."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import ClassVar

from textual import on
from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import Horizontal, Vertical, VerticalScroll
from textual.widget import Widget
from textual.widgets import Button, Label

from composer_engine.config import (
    FIELDS,
    ConfigError,
    ConfigProblem,
    RunConfig,
    field_text,
    get_field,
)
from composer_tui.cloud.wire import Problem
from composer_tui.messages import LaunchAsked
from composer_tui.presets import Presets
from composer_tui.pricing.rates import Rates, snapshot_rates
from composer_tui.runs.sanitise import clean
from composer_tui.screens.base import BaseScreen, Moment
from composer_tui.screens.diff_dialog import DiffDialog
from composer_tui.screens.draft import (
    ADVANCED,
    CLOUD_ESSENTIALS,
    ESSENTIALS,
    TARGETS,
    Draft,
    label,
    sections,
)
from composer_tui.screens.plan import plan_rows, price_words, problem_rows, target_rows, wrapped
from composer_tui.screens.save_dialog import SaveDialog
from composer_tui.widgets.cells import Row, Span
from composer_tui.widgets.choice import Choice
from composer_tui.widgets.field import Field
from composer_tui.widgets.plan_pane import RowsPane

_SLIM = 72  # below it there is no room for the plan beside the form, but for the price


class LaunchScreen(BaseScreen):
    """The form on the left; on the right what it means."""

    mode = "launch"
    first_focus = "#preset"
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("f5", "launch", "Launch", id="launch", tooltip="Launch the run where it says"),
        Binding(
            "f2,a", "advanced", "Advanced", id="launch.advanced", tooltip="Show every other field"
        ),
        Binding("f3,d", "diff", "Diff", id="launch.diff", tooltip="What differs from the preset"),
        Binding("f4,w", "save", "Save", id="launch.save", tooltip="Save the form as a preset"),
        Binding("up", "app.focus_previous", "Previous field", show=False, id="launch.previous"),
        Binding("down,enter", "app.focus_next", "Next field", show=False, id="launch.next"),
    ]

    def __init__(self, presets: Presets, runs_root: Path) -> None:
        super().__init__()
        self._presets = presets
        self._runs_root = runs_root
        self._rates: Rates = snapshot_rates()
        self._readonly = False
        self._token: Problem | None = None  # why Modal would not have us, if it is known
        name = presets.names()[0]
        self._broken = ""
        try:
            base = presets.load(name)
        except ConfigError as error:  # a person's own file of that name
            self._broken, base = str(error), RunConfig()
        self._draft = Draft.of(name, base)
        self._blamed: Mapping[str, str] = {}

    def body(self) -> ComposeResult:
        with Horizontal(id="launch"):
            with Vertical(id="form"):
                with Horizontal(id="choices"):
                    yield Label("preset", classes="choice-label", markup=False)
                    yield Choice(self._presets.names(), self._draft.preset, id="preset")
                    yield Label("where", classes="choice-label", markup=False)
                    yield Choice([*TARGETS], self._draft.target, id="target")
                yield Label("", id="price", markup=False)
                with VerticalScroll(id="fields", can_focus=False):
                    yield from self._fields(CLOUD_ESSENTIALS)
                    yield from self._fields(ESSENTIALS)
                    yield Label("advanced fields: F2", id="more", markup=False)
            with Vertical(id="plan"):
                yield RowsPane("what will happen", id="summary")
                yield RowsPane("cannot launch", style="bad", id="notice")
                yield RowsPane("field", id="about")
                with Horizontal(id="actions"):
                    yield Button("Launch F5", id="launch-now", variant="primary", compact=True)
                    yield Button("Save F4", id="save", compact=True)
                    yield Button("Diff F3", id="diff", compact=True)

    def _fields(self, paths: tuple[str, ...]) -> list[Widget]:
        """The fields under the names of their sections; those of Modal in a box of their own."""
        made: list[Widget] = []
        for section, members in sections(paths):
            head = Label(section, classes="section", markup=False)
            fields = [Field(path, label(path), self._draft.texts[path]) for path in members]
            if section == "modal":
                made.append(Vertical(head, *fields, classes="cloud"))
            else:
                made += [head, *fields]
        return made

    def on_mount(self) -> None:
        self.query_one("#notice").display = False
        self._about("")
        self._judge()
        if self._broken:
            self.refuse(f"preset {self._draft.preset}", self._broken)

    @property
    def draft(self) -> Draft:
        """The form as it stands."""
        return self._draft

    def tick(self, moment: Moment) -> bool:
        more = super().tick(moment)
        rates = moment.rates or self._rates
        problem = moment.apps.problem if moment.apps is not None else None
        token = problem if problem and problem.kind in ("no_token", "wrong_token") else None
        if (rates, moment.readonly, token) != (self._rates, self._readonly, self._token):
            self._rates, self._readonly, self._token = rates, moment.readonly, token
            self._judge()
        return more

    def on_resize(self) -> None:
        if self.is_ready:
            self._judge()

    def _judge(self) -> None:
        """Say of every field, and of the whole, whether it can be launched."""
        draft = self._draft
        checked = draft.checked()
        wrong = any(path.startswith("modal.") for path in checked.errors)
        for box in self.query(".cloud"):
            box.display = draft.target != "local" or wrong
        for field in self.query(Field):
            error = checked.errors.get(field.path) or self._blamed.get(field.path, "")
            field.judge(changed=draft.is_changed(field.path), error=error)
        self._show_price(checked.config)
        self.query_one("#summary", RowsPane).show(
            self._summary(checked.config, len(checked.errors), len(draft.changes()))
        )
        self.query_one("#launch-now", Button).disabled = checked.config is None or self._readonly

    def _show_price(self, config: RunConfig | None) -> None:
        """Where the plan is hidden, its price is not."""
        slim = config is not None and self.app.size.width < _SLIM
        words = price_words(config, self._draft.target, self._rates) if config and slim else ""
        box = self.query_one("#price", Label)
        box.display = bool(words)
        if words:
            box.update(words)

    def _summary(
        self, config: RunConfig | None, errors: int, changes: int
    ) -> Callable[[int], Sequence[Row]]:
        def rows(width: int) -> Sequence[Row]:
            verdict = problem_rows(errors, changes, self._draft.preset, self.app_glyphs)
            if self._token is not None and self._draft.target == "modal" and not errors:
                verdict = [*wrapped(self._token.message, width, "bad"), *verdict[1:]]
                verdict.insert(1, (Span(f"  {self._token.hint}", "dim"),))
            if config is None:
                return [*verdict, (), *self._errors(width)]
            return [
                *verdict,
                (),
                *target_rows(config, self._draft.target, self._rates, width, self.app_glyphs),
                *plan_rows(config, self._runs_root, width, self.app_glyphs),
            ]

        return rows

    def _errors(self, width: int) -> list[Row]:
        """Every problem once more, for those whose field is out of sight."""
        rows: list[Row] = []
        for path, message in self._draft.checked().errors.items():
            rows.append((Span(path or "configuration", "strong"),))
            rows += wrapped(message, width, "bad")
        return rows

    def _about(self, path: str) -> None:
        pane = self.query_one("#about", RowsPane)
        if not path:
            words = "A preset fills every field. Fields that differ from it are marked."
            pane.show(lambda width: wrapped(words, width, "dim"), "preset")
            return
        field = FIELDS[path]
        preset, default = field_text(get_field(self._draft.base, path)), field_text(field.default)
        is_default = preset == default
        beside = "the default" if is_default else f"default {default}"
        pane.show(
            lambda width: [
                *wrapped(field.description, width),
                *wrapped(field.measure, width, "dim"),
                (Span("preset ", "dim"), Span(preset), Span(f" ({beside})", "dim")),
            ],
            path,
        )

    @on(Field.Entered)
    def _entered(self, event: Field.Entered) -> None:
        self._about(event.path)

    @on(Field.Changed)
    def _changed(self, event: Field.Changed) -> None:
        self._draft = self._draft.typed(event.path, event.text)
        self.hide_notice()
        self._judge()

    @on(Choice.Changed, "#preset")
    def _preset_chosen(self, event: Choice.Changed) -> None:
        try:
            base = self._presets.load(event.value)
        except ConfigError as error:
            self.refuse(f"preset {event.value}", str(error))
            return
        self.hide_notice()
        self._take(Draft.of(event.value, base, self._draft.target))

    @on(Choice.Changed, "#target")
    def _target_chosen(self, event: Choice.Changed) -> None:
        self._draft = self._draft.to(TARGETS[event.value])
        self.hide_notice()
        self._judge()

    def _take(self, draft: Draft) -> None:
        self._draft = draft
        for field in self.query(Field):
            field.set_text(draft.texts[field.path])
        self._about("")
        self._judge()

    def refuse(self, title: str, words: str) -> None:
        """Say why nothing was launched, where the person looks."""
        notice = self.query_one("#notice", RowsPane)
        notice.display = True
        notice.show(lambda width: wrapped(words, width, "bad"), title)

    def hide_notice(self) -> None:
        """The reason is out of date."""
        self.query_one("#notice").display = False
        self._blamed = {}

    def blame(self, problems: Sequence[ConfigProblem]) -> None:
        """Mark the fields for which a launch was refused, until anything is changed."""
        self._blamed = {problem.field: clean(problem.message) for problem in problems}
        self._judge()
        for field in self.query(Field):
            if field.path in self._blamed:
                field.control.focus()
                return

    async def action_advanced(self) -> None:
        """Show the fields that few launches change, or hide them."""
        more = self.query("#advanced")
        if more:
            more.first().display = not more.first().display
        else:
            box = Vertical(*self._fields(ADVANCED), id="advanced")
            await self.query_one("#fields").mount(box)
            self._judge()
        shown = self.query_one("#advanced").display
        self.query_one("#more", Label).update(
            "advanced fields, F2 hides them" if shown else "advanced fields: F2"
        )
        if shown:
            control = self.query_one("#advanced").query(Field).first().control
            control.focus()
            self.call_after_refresh(control.scroll_visible)

    def action_diff(self) -> None:
        """Show what differs from the preset."""
        self.app.push_screen(DiffDialog(self._draft.preset, self._draft.changes()))

    def action_save(self) -> None:
        """Ask for a name and save the form as a preset."""
        config = self._draft.checked().config
        if config is None:
            self.refuse("not saved", "A preset has to be right: mend the marked fields first.")
            return

        def save(name: str | None) -> None:
            if name:
                self._save(name, config)

        dialog = SaveDialog(self._presets.folder, config.name, self._presets.own_names())
        self.app.push_screen(dialog, save)

    def _save(self, name: str, config: RunConfig) -> None:
        try:
            path = self._presets.save(name, config)
        except ConfigError as error:
            self.refuse("not saved", str(error))
            return
        self.query_one("#preset", Choice).set_options(self._presets.names(), name)
        self._take(Draft.of(name, config, self._draft.target))
        self.notify(f"saved {path}", markup=False)

    def action_launch(self) -> None:
        """Launch, or go to the first field that is wrong."""
        config = self._draft.checked().config
        if config is not None:
            self.hide_notice()
            self.post_message(LaunchAsked(config, self._draft.target))
            return
        for field in self.query(Field):
            if field.error:
                field.control.focus()
                return
        self.refuse("cannot launch", "A field under advanced needs another value: F2.")

    @on(Button.Pressed)
    async def _pressed(self, event: Button.Pressed) -> None:
        event.stop()
        actions = {"launch-now": self.action_launch, "save": self.action_save}
        actions.get(event.button.id or "", self.action_diff)()
