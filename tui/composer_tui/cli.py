"""Arguments to services: every screen's headless twin, and the door to the app.

A mistake of the user's is one line on stderr and exit status 2. What a command needs beyond its
arguments is imported in its body, so that no command waits for what another one uses.
"""

from __future__ import annotations

import math
import os
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TextIO

import click

from composer_tui.cli_cloud import (
    containers,
    in_environment,
    logs,
    plainly,
    rehearsal,
    secrets,
    store_of,
    volumes,
)
from composer_tui.readonly import READONLY_VARIABLE, is_readonly

if TYPE_CHECKING:
    from collections.abc import Sequence

    from composer_tui.runners.base import RunHandle, Runner
    from composer_tui.runs.folder import RunFolder

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
    """Something that the user can mend: a line for each problem, exit status 2."""

    exit_code = USAGE_STATUS


def run_command_line(arguments: Sequence[str]) -> int:
    """The exit status of one command line; prints its problems, raises none of the user's."""
    from composer_tui.runs.folder import DamagedFolder

    stdout = sys.stdout
    try:
        status = cli.main(list(arguments), prog_name="composer-tui", standalone_mode=False)
        sys.stdout.flush()  # here, where it is known what it means that nobody reads it
    except click.ClickException as problem:
        for line in problem.format_message().splitlines():
            click.echo(f"composer-tui: {' '.join(line.split())}", err=True)
        return problem.exit_code
    except click.Abort:
        return INTERRUPTED_STATUS
    except DamagedFolder as damage:
        click.echo(f"composer-tui: this run's folder is damaged: {damage}", err=True)
        return USAGE_STATUS
    except BrokenPipeError:
        return _unread(stdout)
    except SystemExit as leaving:
        # The ways of click (it wraps stdout) and rich with it, both with the status of a failure.
        if sys.stdout is stdout and not isinstance(leaving.__context__, BrokenPipeError):
            raise
        return _unread(stdout)
    except OSError as error:
        where = f"{error.filename}: " if error.filename else ""
        click.echo(f"composer-tui: {where}{error.strerror or error}", err=True)
        return USAGE_STATUS
    return int(status or 0)


def _unread(stdout: TextIO) -> int:
    """The reader of our stdout has what it wanted; what is still buffered has nowhere to go."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), stdout.fileno())
    return 0


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
@click.option(
    "--readonly",
    is_flag=True,
    help="Look, and change nothing: no run, no stop, no gc, no lease.  [env: COMPOSER_READONLY=1]",
)
@click.version_option(package_name="composer-tui", message="%(version)s")
@click.pass_context
def cli(context: click.Context, runs_dir: Path | None, readonly: bool) -> int:
    """Launch a three-channel post-training run and watch every step.

    Without a command, opens the app.
    """
    context.obj = runs_dir
    if readonly:
        os.environ[READONLY_VARIABLE] = "1"  # the app looks there, too
    return _open(context, None) if context.invoked_subcommand is None else 0


def _refuse_if_readonly(context: click.Context) -> None:
    if is_readonly(os.environ):
        raise UsageProblem(
            f"{context.info_name} is refused: --readonly or {READONLY_VARIABLE} is set"
        )


def _refused(words: str, *, as_json: bool) -> int:
    """As a `UsageProblem`, and for a program that reads JSON in its way, too."""
    from composer_tui.cloud.problems import problem
    from composer_tui.headless.troubles import print_failure

    return print_failure(problem("refused", words), as_json=as_json)


def _find(context: click.Context, text: str) -> RunFolder:
    from composer_tui.runs.store import AmbiguousRun, RunNotFound

    try:
        return store_of(context).find(text)
    except (RunNotFound, AmbiguousRun) as problem:
        raise UsageProblem(str(problem)) from None


def _attach(context: click.Context, folder: RunFolder, *, only_look: bool = False) -> RunHandle:
    from composer_tui.cloud.accounts import for_commands
    from composer_tui.runners.attach import attach
    from composer_tui.runners.local import LocalRunner

    store = store_of(context)
    if only_look:
        return attach(LocalRunner(store), folder)
    accounts = for_commands(store)
    context.call_on_close(accounts.close)
    return attach(LocalRunner(store), folder, accounts)


def _runner(
    context: click.Context, target: Literal["local", "modal", "rehearsal"], chaos: str
) -> Runner:
    store = store_of(context)
    if target == "local":
        from composer_tui.runners.local import LocalRunner

        return LocalRunner(store)
    from composer_tui.cloud.accounts import for_commands
    from composer_tui.runners.cloud import CloudRunner

    accounts = for_commands(store)
    context.call_on_close(accounts.close)
    return CloudRunner(store, target, accounts, chaos=chaos)


def _check_chaos(chaos: str) -> None:
    from composer_tui.rehearsal.chaos import BadSpec, parse

    try:
        parse(chaos)
    except BadSpec as problem:
        raise UsageProblem(f"--{problem}") from None


def _open(context: click.Context, run: RunFolder | None, speed: float | None = None) -> int:
    from composer_tui.open_app import NoTerminal, open_app

    try:
        return open_app(store_of(context).root, run=run, replay_speed=speed)
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
@click.option(
    "--target",
    type=click.Choice(["local", "modal", "rehearsal"]),
    default="local",
    help="Where to run. A rehearsal is Modal played on this machine: it costs nothing.",
)
@click.option("--chaos", default="", metavar="SPEC", help="What is to go wrong in a rehearsal.")
@click.option("--json", "as_json", is_flag=True, help="Print the events, and nothing else.")
@click.option("--detach", is_flag=True, help="Print the run's id and leave it running.")
@click.option("--dry-run", is_flag=True, help="Print the whole configuration as TOML, run nothing.")
@click.pass_context
def run(
    context: click.Context,
    preset: str | None,
    config_file: Path | None,
    settings: tuple[str, ...],
    target: Literal["local", "modal", "rehearsal"],
    chaos: str,
    as_json: bool,
    detach: bool,
    dry_run: bool,
) -> int:
    """Launch a run and follow it to its end.

    PRESET, then --config, then --set, each over the one before. Ctrl-C saves and stops; a second
    Ctrl-C stops at once. A run on Modal goes on when this program is killed.

    Exit status: 0 finished, 1 failed, 2 cannot be run as asked, 3 stopped by an alert.
    """
    from composer_engine.config import ConfigError, build, file_values, setting_values, to_toml
    from composer_tui.cloud.problems import CloudProblem
    from composer_tui.headless.launch import launch
    from composer_tui.headless.troubles import asking_modal, check_token, print_failure
    from composer_tui.presets import Presets
    from composer_tui.runners.local import EngineMissing, LaunchFailed

    if not dry_run:
        _refuse_if_readonly(context)
    if preset is None and config_file is None:
        raise UsageProblem("say what to run: a preset (such as smoke) or --config FILE")
    if chaos and target != "rehearsal":
        raise UsageProblem("--chaos is for --target rehearsal")
    if chaos:
        _check_chaos(chaos)
    try:
        under = Presets().values(preset) if preset is not None else []
        over = file_values(config_file) if config_file else []
        config = build([*under, *over, *setting_values(settings)])
        if target == "local" and detach and config.local.on_disconnect == "stop":
            raise UsageProblem(
                "--detach leaves the run, which local.on_disconnect = stop then ends"
            )
        if dry_run:
            click.echo(to_toml(config), nl=False)
            return 0
        if target == "modal":
            with asking_modal(quietly=as_json):
                check_token()  # before there is a folder that would only say that it failed
        handle = _runner(context, target, chaos).start(config)
    except ConfigError as error:
        raise UsageProblem(str(error)) from None
    except CloudProblem as error:
        return print_failure(error.problem, as_json=False)
    except (EngineMissing, LaunchFailed) as problem:
        raise UsageProblem(str(problem)) from None
    return launch(handle, as_json=as_json, detach=detach)


@cli.command()
@click.argument("run", metavar="RUN")
@click.option(
    "--set",
    "settings",
    multiple=True,
    metavar="SECTION.FIELD=VALUE",
    help="A field that may change, such as optimizer.steps or model.gradient_checkpointing.",
)
@click.option("--json", "as_json", is_flag=True, help="Print the new events, and nothing else.")
@click.option("--detach", is_flag=True, help="Print the run's id and leave it running.")
@click.pass_context
def resume(
    context: click.Context, run: str, settings: tuple[str, ...], as_json: bool, detach: bool
) -> int:
    """Go on with a run of this machine that was stopped, failed or was killed.

    In the same folder, from its newest whole checkpoint, as if it had never ended. A run on Modal
    does so by itself. RUN is an id, the beginning of one, or 'last'.

    Exit status: as of run; 2 also for a run that is alive, finished, or has no checkpoint.
    """
    from composer_engine.config import ConfigError
    from composer_tui.headless.launch import launch
    from composer_tui.runners.local import (
        CannotResume,
        EngineMissing,
        LaunchFailed,
        LocalRunner,
    )
    from composer_tui.runners.resuming import resumable
    from composer_tui.runs.journal import read_end

    _refuse_if_readonly(context)
    folder = _find(context, run)
    try:
        config = resumable(folder, settings)
        if detach and config.local.on_disconnect == "stop":
            raise UsageProblem(
                "--detach leaves the run, which local.on_disconnect = stop then ends"
            )
        since_seq = read_end(folder.events_path).next_seq
        handle = LocalRunner(store_of(context)).resume(folder, config)
    except ConfigError as error:
        raise UsageProblem("; ".join(map(str, error.problems))) from None
    except (CannotResume, EngineMissing, LaunchFailed) as problem:
        raise UsageProblem(str(problem)) from None
    return launch(handle, as_json=as_json, detach=detach, since_seq=since_seq)


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

    handle = _attach(context, _find(context, run), only_look=once)
    return watch_once(handle, as_json=as_json) if once else watch_to_end(handle, as_json=as_json)


@cli.command()
@click.argument("app", metavar="APP|RUN")
@click.option("--detach", is_flag=True, help="Make the run's folder, and leave.")
@click.option("--environment", default="", help="Modal environment.  [default: the account's]")
@click.option("--volume", default="", help="The volume that keeps runs.  [default: composer-runs]")
@click.option("--json", "as_json", is_flag=True, help="Print the events, and nothing else.")
@click.pass_context
def attach(
    context: click.Context, app: str, detach: bool, environment: str, volume: str, as_json: bool
) -> int:
    """Follow a run that another machine launched on Modal, live or ended.

    APP is an app's id or name, or a run's id as another machine has it. Its folder is made here, as
    if it had been launched here. A RUN that is known here is followed.
    """
    from composer_tui.cloud.problems import CloudProblem
    from composer_tui.headless.attaching import attach_run
    from composer_tui.headless.troubles import print_failure
    from composer_tui.headless.watch import watch_to_end

    try:
        folder = attach_run(
            store_of(context), app, environment=environment, volume=volume, quietly=as_json
        )
    except CloudProblem as error:
        return print_failure(error.problem, as_json=False)
    if detach:
        click.echo(folder.run_id)
        return 0
    return watch_to_end(_attach(context, folder), as_json=as_json)


@cli.command()
@click.option("--json", "as_json", is_flag=True, help="Print one JSON array.")
@click.pass_context
def runs(context: click.Context, as_json: bool) -> int:
    """List all runs, the newest first."""
    from composer_tui.headless.listing import print_runs

    return print_runs(store_of(context), as_json=as_json)


@cli.command()
@click.argument("run", metavar="RUN")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
@click.pass_context
def show(context: click.Context, run: str, as_json: bool) -> int:
    """Show one run: what was asked, where it stands, what it found."""
    from composer_tui.headless.listing import print_run

    return print_run(_find(context, run), as_json=as_json)


@cli.command()
@click.option(
    "--since",
    default="30d",
    show_default=True,
    metavar="WHEN",
    help="7d or 12h ago, or a date such as 2026-11-01; from the beginning of that hour.",
)
@click.option("--by", type=click.Choice(["run", "gpu"]), default="run", show_default=True)
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
@click.pass_context
def cost(context: click.Context, since: str, by: Literal["run", "gpu"], as_json: bool) -> int:
    """Show what this machine's runs cost on Modal, by our own meter and by Modal's bill.

    Modal bills whole hours, some time after they have closed: until then there is a dash.
    """
    from composer_tui.headless.costs import BadPeriod, print_cost

    try:
        return print_cost(store_of(context), since, by, as_json=as_json, now=time.time())
    except BadPeriod as problem:
        raise UsageProblem(str(problem)) from None


@cli.command()
@click.argument("names", metavar="[RUN|APP]...", nargs=-1)
@click.option("--orphans", is_flag=True, help="All apps on Modal that nobody watches.")
@click.option("--all", "every", is_flag=True, help="All live apps of the Modal environment.")
@click.option("--now", is_flag=True, help="Do not wait for a checkpoint.")
@click.option(
    "--graceful",
    "--grace",
    "grace",
    type=Number(min=0, max=86400),
    metavar="SECONDS",
    help="How long it may save before it is ended (default: as its configuration says).",
)
@click.option("--yes", is_flag=True, help="Do not ask.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
@in_environment
@click.pass_context
def stop(
    context: click.Context,
    names: tuple[str, ...],
    orphans: bool,
    every: bool,
    now: bool,
    grace: float | None,
    yes: bool,
    as_json: bool,
) -> int:
    """End runs and apps, here and on Modal, verify that nothing is left, and say how they ended.

    A RUN that runs on this machine is ended without asking. What runs on Modal is ended there: of
    that, and of several, a terminal asks first, and without one --yes is needed. Exit status: 0
    only when every process and container is gone, 2 when the token or what was said is wrong.
    """
    from composer_tui.headless.stop_targets import CannotStop, Request
    from composer_tui.headless.stopping import stop_all

    _refuse_if_readonly(context)
    if bool(names) + orphans + every != 1:
        raise UsageProblem("say what to stop: RUN or APP names, or --orphans, or --all")
    if now and grace is not None:
        raise UsageProblem("--now does not wait, and --graceful does: choose one")
    request = Request(
        names, orphans, every, "now" if now else "graceful", grace, yes=yes, as_json=as_json
    )
    try:
        return stop_all(store_of(context), request)
    except CannotStop as problem:
        return _refused(str(problem), as_json=as_json)


@cli.command()
@click.option("--all", "every", is_flag=True, help="Also what is not ours and spends nothing.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
@in_environment
@click.pass_context
def apps(context: click.Context, every: bool, as_json: bool) -> int:
    """List the live apps of a Modal environment: their cost, and which of them nobody watches."""
    from composer_tui.headless.apps import print_apps

    return print_apps(store_of(context), as_json=as_json, every=every)


@cli.command()
@click.option("--yes", is_flag=True, help="Do not ask.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
@in_environment
@click.pass_context
def gc(context: click.Context, yes: bool, as_json: bool) -> int:
    """Stop apps on Modal whose lease has ended, and what is left there of runs that are over.

    It looks at one Modal environment, and at nothing that runs on this machine. Reads again until
    none is left; silent when there is none. Made for cron, with --yes.
    """
    from composer_tui.headless.leases import collect
    from composer_tui.headless.stop_targets import CannotStop

    _refuse_if_readonly(context)
    try:
        return collect(store_of(context), yes=yes, as_json=as_json)
    except CannotStop as problem:
        return _refused(str(problem), as_json=as_json)


@cli.command()
@click.argument("app", metavar="APP|RUN")
@click.option("--minutes", type=Number(min=0, min_open=True), required=True)
@in_environment
@click.pass_context
@plainly
def lease(context: click.Context, app: str, minutes: float) -> int:
    """Extend a run's lease on Modal by so many minutes.

    APP is an id (ap-...) or a name; RUN is an id, the beginning of one, or 'last'.
    """
    from composer_tui.headless.leases import extend_lease

    _refuse_if_readonly(context)
    return extend_lease(store_of(context), app, minutes)


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
    "-o",
    "--output",
    type=click.Path(path_type=Path, dir_okay=False, allow_dash=True),
    help="A file, or - for stdout, which is the default.",
)
@click.pass_context
def export(context: click.Context, run: str, kind: Any, output: Path | None) -> int:
    """Write a run's steps as CSV, JSONL or Parquet."""
    from composer_tui.headless.exporting import export_run
    from composer_tui.runs.export import ExportError

    try:
        return export_run(_find(context, run), kind, None if output == Path("-") else output)
    except ExportError as problem:
        raise UsageProblem(str(problem)) from None


@cli.command("export-app")
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
@click.option("--secret", "secrets", multiple=True, help="A Modal secret that the run needs.")
@click.option(
    "-o",
    "--output",
    type=click.Path(path_type=Path, file_okay=False),
    required=True,
    help="A folder that is not there yet, or empty.",
)
def export_app(
    preset: str | None,
    config_file: Path | None,
    settings: tuple[str, ...],
    secrets: tuple[str, ...],
    output: Path,
) -> int:
    """Write a run as a folder that needs composer-tui no more.

    It holds modal_app.py (modal run modal_app.py), train_local.py (the same run on this machine),
    the engine, the configuration and the data.
    """
    from composer_engine.config import ConfigError, build, file_values, setting_values
    from composer_tui.cloud.export_app import ExportRefused
    from composer_tui.headless.exporting_app import export_run_app
    from composer_tui.presets import Presets
    from composer_tui.pricing.catalog import UnknownGpu

    if preset is None and config_file is None:
        raise UsageProblem("say what to export: a preset (such as smoke) or --config FILE")
    try:
        under = Presets().values(preset) if preset is not None else []
        over = file_values(config_file) if config_file else []
        config = build([*under, *over, *setting_values(settings)])
        return export_run_app(config, output, secrets)
    except ConfigError as error:
        raise UsageProblem(str(error)) from None
    except (ExportRefused, UnknownGpu) as problem:
        raise UsageProblem(str(problem)) from None


@cli.command()
@click.option("--online", is_flag=True, help="Ask Modal, too; 3 seconds at most.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
@click.pass_context
def doctor(context: click.Context, online: bool, as_json: bool) -> int:
    """Check this machine, and name the command that mends each finding.

    Exit status 1 when something that a local run needs is missing.
    """
    from composer_tui.headless.doctor import print_findings

    return print_findings(store_of(context).root, online=online, as_json=as_json)


def _use_runs_dir(context: click.Context, _option: click.Parameter, path: Path | None) -> None:
    if path is not None:
        context.obj = path


for _command in (containers, logs, rehearsal, secrets, volumes):
    cli.add_command(_command)
for _command in cli.commands.values():  # also after the command's name, where people look for it
    _command.params.append(
        click.Option(
            ["--runs-dir"],
            type=click.Path(path_type=Path, file_okay=False),
            hidden=True,
            expose_value=False,
            callback=_use_runs_dir,
        )
    )
