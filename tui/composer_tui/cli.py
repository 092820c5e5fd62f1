"""Arguments to services: every screen's headless twin, and the door to the app.

A mistake of the user's is one line on stderr and exit status 2. What a command needs beyond its
arguments is imported in its body, so that no command waits for what another one uses.
"""

from __future__ import annotations

import math
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from collections.abc import Sequence

    from composer_tui.runners.base import RunHandle
    from composer_tui.runs.folder import RunFolder
    from composer_tui.runs.store import RunStore

USAGE_STATUS = 2
INTERRUPTED_STATUS = 130


class Number(click.FloatRange):
    """A float in a range. Not a number is in none."""

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> float:
        number = float(super().convert(value, param, ctx))
        if math.isnan(number):
            self.fail(f"{value!r} is not a number.", param, ctx)
        return number


class UsageProblem(click.ClickException):
    """Something that the user can mend: one line, exit status 2."""

    exit_code = USAGE_STATUS


def run_command_line(arguments: Sequence[str]) -> int:
    """The exit status of one command line; prints its problems, raises none of the user's."""
    from composer_tui.runs.folder import DamagedFolder

    try:
        status = cli.main(list(arguments), prog_name="composer-tui", standalone_mode=False)
    except click.ClickException as problem:
        line = " ".join(problem.format_message().split())
        click.echo(f"composer-tui: {line}", err=True)
        return problem.exit_code
    except click.Abort:
        return INTERRUPTED_STATUS
    except DamagedFolder as damage:
        click.echo(f"composer-tui: this run's folder is damaged: {damage}", err=True)
        return USAGE_STATUS
    except BrokenPipeError:
        # The reader of our stdout has left; what is still buffered has nowhere to go.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except OSError as error:
        where = f"{error.filename}: " if error.filename else ""
        click.echo(f"composer-tui: {where}{error.strerror or error}", err=True)
        return USAGE_STATUS
    return int(status or 0)


@click.group(
    invoke_without_command=True,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
)
@click.option(
    "--runs-dir",
    type=click.Path(path_type=Path, file_okay=False),
    envvar="COMPOSER_RUNS_DIR",
    help="Where run folders are kept.  [env: COMPOSER_RUNS_DIR]",
)
@click.version_option(package_name="composer-tui", message="%(version)s")
@click.pass_context
def cli(context: click.Context, runs_dir: Path | None) -> int:
    """Launch a three-channel post-training run and watch every step.

    Without a command, opens the app.
    """
    context.obj = runs_dir
    return _open(context, None) if context.invoked_subcommand is None else 0


def _store(context: click.Context) -> RunStore:
    from composer_engine.config_file import expanded
    from composer_tui.runs.store import RunStore, default_runs_dir

    return RunStore(expanded(str(context.obj)) if context.obj else default_runs_dir())


def _find(context: click.Context, text: str) -> RunFolder:
    from composer_tui.runs.store import AmbiguousRun, RunNotFound

    try:
        return _store(context).find(text)
    except (RunNotFound, AmbiguousRun) as problem:
        raise UsageProblem(str(problem)) from None


def _attach(context: click.Context, text: str) -> RunHandle:
    from composer_tui.runners.attach import attach
    from composer_tui.runners.local import LocalRunner

    return attach(LocalRunner(_store(context)), _find(context, text))


def _open(context: click.Context, run: RunFolder | None, speed: float | None = None) -> int:
    from composer_tui.open_app import NoTerminal, open_app

    try:
        return open_app(_store(context).root, run=run, replay_speed=speed)
    except NoTerminal as problem:
        raise UsageProblem(str(problem)) from None


@cli.command()
@click.argument("preset", required=False)
@click.option(
    "--config",
    "config_file",
    type=click.Path(path_type=Path, dir_okay=False),
    help="A TOML, YAML or JSON file, over the preset.",
)
@click.option(
    "--set", "settings", multiple=True, metavar="SECTION.FIELD=VALUE", help="One field, over all."
)
@click.option("--target", type=click.Choice(["local"]), default="local", help="Where to run.")
@click.option("--json", "as_json", is_flag=True, help="Print the events, and nothing else.")
@click.option("--detach", is_flag=True, help="Print the run's id and leave it running.")
@click.option("--dry-run", is_flag=True, help="Print the whole configuration as TOML, run nothing.")
@click.pass_context
def run(
    context: click.Context,
    preset: str | None,
    config_file: Path | None,
    settings: tuple[str, ...],
    target: str,  # noqa: ARG001  one target so far; click checks the name
    as_json: bool,
    detach: bool,
    dry_run: bool,
) -> int:
    """Launch a run and follow it to its end.

    PRESET, then --config, then --set, each over the one before. Ctrl-C saves and stops; a second
    Ctrl-C stops at once. Exit status: 0 finished, 1 failed, 2 cannot be run as asked, 3 stopped by
    an alert.
    """
    from composer_engine.config import ConfigError, build, file_values, setting_values, to_toml
    from composer_tui.headless.launch import launch
    from composer_tui.presets import Presets
    from composer_tui.runners.local import EngineMissing, LaunchFailed, LocalRunner

    if preset is None and config_file is None:
        raise UsageProblem("say what to run: a preset (such as smoke) or --config FILE")
    try:
        under = Presets().values(preset) if preset is not None else []
        over = file_values(config_file) if config_file else []
        config = build([*under, *over, *setting_values(settings)])
        if detach and config.local.on_disconnect == "stop":
            raise UsageProblem(
                "--detach leaves the run, which local.on_disconnect = stop then ends"
            )
        if dry_run:
            click.echo(to_toml(config), nl=False)
            return 0
        handle = LocalRunner(_store(context)).start(config)
    except ConfigError as error:
        raise UsageProblem("; ".join(map(str, error.problems))) from None
    except (EngineMissing, LaunchFailed) as problem:
        raise UsageProblem(str(problem)) from None
    return launch(handle, as_json=as_json, detach=detach)


@cli.command()
@click.argument("run", metavar="RUN")
@click.option("--once", is_flag=True, help="Print where the run stands and leave.")
@click.option("--json", "as_json", is_flag=True, help="Print events (with --once: one object).")
@click.pass_context
def watch(context: click.Context, run: str, once: bool, as_json: bool) -> int:
    """Follow a run to its end, from its first step.

    RUN is an id, the beginning of one, or 'last'. Exit status: 0 finished (or, with --once, still
    going), 1 failed, 3 stopped by an alert.
    """
    from composer_tui.headless.watch import watch_once, watch_to_end

    handle = _attach(context, run)
    return watch_once(handle, as_json=as_json) if once else watch_to_end(handle, as_json=as_json)


@cli.command()
@click.option("--json", "as_json", is_flag=True, help="Print one JSON array.")
@click.pass_context
def runs(context: click.Context, as_json: bool) -> int:
    """List all runs, the newest first."""
    from composer_tui.headless.listing import print_runs

    return print_runs(_store(context), as_json=as_json)


@cli.command()
@click.argument("run", metavar="RUN")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
@click.pass_context
def show(context: click.Context, run: str, as_json: bool) -> int:
    """Show one run: what was asked, where it stands, what it found."""
    from composer_tui.headless.listing import print_run

    return print_run(_find(context, run), as_json=as_json)


@cli.command()
@click.argument("run", metavar="RUN")
@click.option("--now", is_flag=True, help="Do not wait for a checkpoint.")
@click.option("--grace", type=Number(min=0), help="Seconds to save before SIGTERM.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
@click.pass_context
def stop(context: click.Context, run: str, now: bool, grace: float | None, as_json: bool) -> int:
    """End a run, verify that nothing of it is left, and say how it ended.

    Exit status 0 only when every process of the run is gone.
    """
    from composer_tui.headless.stopping import stop_run

    return stop_run(_attach(context, run), "now" if now else "graceful", grace, as_json=as_json)


@cli.command()
@click.argument("run", metavar="RUN")
@click.pass_context
def monitor(context: click.Context, run: str) -> int:
    """Open the app on a run."""
    return _open(context, _find(context, run))


@cli.command()
@click.argument("run", metavar="RUN")
@click.option("--speed", type=Number(min=0, min_open=True), default=10.0, show_default=True)
@click.option("--json", "as_json", is_flag=True, help="Print the events at that pace.")
@click.pass_context
def replay(context: click.Context, run: str, speed: float, as_json: bool) -> int:
    """Play a recorded run again, at any speed ('inf' for at once).

    In a terminal it opens the app; with --json, or without one, it prints.
    """
    from composer_tui.headless.replaying import replay_run

    source = _find(context, run)
    if sys.stdout.isatty() and not as_json:
        return _open(context, source, speed)
    return replay_run(source, speed, as_json=as_json)


@cli.command()
@click.argument("run", metavar="RUN")
@click.option("--format", "kind", type=click.Choice(["csv", "jsonl", "parquet"]), default="csv")
@click.option(
    "-o", "--output", type=click.Path(path_type=Path, dir_okay=False), help="Default: stdout."
)
@click.pass_context
def export(context: click.Context, run: str, kind: Any, output: Path | None) -> int:
    """Write a run's steps as CSV, JSONL or Parquet."""
    from composer_tui.headless.exporting import export_run
    from composer_tui.runs.export import ExportError

    try:
        return export_run(_find(context, run), kind, output)
    except ExportError as problem:
        raise UsageProblem(str(problem)) from None


@cli.command()
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
@click.pass_context
def doctor(context: click.Context, as_json: bool) -> int:
    """Check this machine, and name the command that mends each finding.

    Exit status 1 when something that a local run needs is missing.
    """
    from composer_tui.headless.doctor import print_findings

    return print_findings(_store(context).root, as_json=as_json)
