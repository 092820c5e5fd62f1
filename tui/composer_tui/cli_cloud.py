"""Commands for what lies on Modal beside runs: volumes, secrets, containers, logs.

Each imports what it needs in its body; modal itself is imported by no command before it runs.
"""

from __future__ import annotations

import functools
import os
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, ParamSpec

import click

from composer_tui.readonly import READONLY_VARIABLE, is_readonly

if TYPE_CHECKING:
    from collections.abc import Callable

    from composer_tui.runs.store import RunStore

_P = ParamSpec("_P")
_DECLINED = 1
_ENVIRONMENT = "composer_tui.environment"
_VERIFIED = (
    "Modal gives no checksum of a file. Each block is checked against the digest that comes with "
    "it, and each file against its size; --verify reads it a second time and compares sha256."
)


class _Refused(click.ClickException):
    """Something that the user can mend: one line, exit status 2."""

    exit_code = 2


def plainly(command: Callable[_P, int]) -> Callable[_P, int]:
    """What a person can mend is one line, and none of it a token or a value."""

    @functools.wraps(command)
    def wrapped(*args: _P.args, **kwargs: _P.kwargs) -> int:
        from composer_tui.cloud.problems import CloudProblem
        from composer_tui.headless.troubles import print_failure

        try:
            return command(*args, **kwargs)
        except CloudProblem as error:
            return print_failure(error.problem, as_json=bool(kwargs.get("as_json")))

    return wrapped


def _changing(command: Callable[_P, int]) -> Callable[_P, int]:
    """Refused where nothing may be changed."""

    @functools.wraps(command)
    def wrapped(*args: _P.args, **kwargs: _P.kwargs) -> int:
        if is_readonly(os.environ):
            raise click.UsageError(f"refused: --readonly or {READONLY_VARIABLE} is set")
        return command(*args, **kwargs)

    return wrapped


def store_of(context: click.Context) -> RunStore:
    """The runs that a command is about."""
    from composer_engine.config_file import expanded
    from composer_tui.runs.store import RunStore, default_runs_dir

    return RunStore(expanded(str(context.obj)) if context.obj else default_runs_dir())


def _use_environment(context: click.Context, _option: click.Parameter, name: str | None) -> None:
    if name:
        os.environ["MODAL_ENVIRONMENT"] = name  # modal's own way of naming it
        context.meta[_ENVIRONMENT] = name


def in_environment(command: Callable[_P, int]) -> Callable[_P, int]:
    """With ``-e``: an environment that the account does not have is refused."""

    @functools.wraps(command)
    def wrapped(*args: _P.args, **kwargs: _P.kwargs) -> int:
        name = click.get_current_context().meta.get(_ENVIRONMENT)
        if name:
            from composer_tui.headless.troubles import check_environment

            check_environment(name)
        return command(*args, **kwargs)

    return click.option(
        "-e",
        "--environment",
        expose_value=False,
        callback=_use_environment,
        help="A Modal environment other than the usual one.",
    )(plainly(wrapped))


_json = click.option("--json", "as_json", is_flag=True, help="Print JSON.")
_yes = click.option("-y", "--yes", is_flag=True, help="Do not ask.")
_force = click.option("--force", is_flag=True, help="Replace what is there and differs.")
_verify = click.option(
    "--verify", is_flag=True, help="Read it from the volume again and compare sha256."
)


def _confirmed(question: str, *, yes: bool) -> bool:
    if yes:
        return True
    if not sys.stdin.isatty():
        raise click.UsageError(f"{question} There is nobody to ask: say --yes.")
    return click.confirm(question, err=True)


@click.group(invoke_without_command=True)
@click.option("--sizes", is_flag=True, help="Add up the files of each, and what that costs.")
@_json
@in_environment
@click.pass_context
@plainly
def volumes(context: click.Context, sizes: bool, as_json: bool) -> int:
    """List Modal volumes, browse them, move files to and from them."""
    from composer_tui.headless.troubles import asking_modal
    from composer_tui.headless.volumes import print_volumes

    if context.invoked_subcommand is not None:
        return 0
    with asking_modal(quietly=as_json):
        return print_volumes(sizes=sizes, as_json=as_json)


@volumes.command("list")
@click.option("--sizes", is_flag=True, help="Add up the files of each, and what that costs.")
@_json
@in_environment
@plainly
def list_volumes(sizes: bool, as_json: bool) -> int:
    """List Modal volumes, as without a command."""
    from composer_tui.headless.troubles import asking_modal
    from composer_tui.headless.volumes import print_volumes

    with asking_modal(quietly=as_json):
        return print_volumes(sizes=sizes, as_json=as_json)


@volumes.command("ls")
@click.argument("volume")
@click.argument("path", default="/")
@click.option("-R", "--recursive", is_flag=True, help="Folders within folders, too.")
@_json
@in_environment
@plainly
def list_path(volume: str, path: str, recursive: bool, as_json: bool) -> int:
    """List what lies at PATH of a volume: type, size, time, path."""
    from composer_tui.cloud.volumes import path_on
    from composer_tui.headless.volumes import print_entries

    return print_entries(volume, path_on(volume, path), recursive=recursive, as_json=as_json)


@volumes.command("put")
@click.argument("volume")
@click.argument("local", type=click.Path(path_type=Path, exists=True))
@click.argument("remote", default="/")
@click.option("--create", is_flag=True, help="Make the volume if it is not there.")
@_force
@_verify
@_json
@in_environment
@_changing
@plainly
def put_path(
    volume: str,
    local: Path,
    remote: str,
    create: bool,
    force: bool,
    verify: bool,
    as_json: bool,
) -> int:
    """Send a file, or what a folder holds, to REMOTE of a volume.

    Says the path as a container will see it. Modal is told each file's sha256 and stores what has
    it, and is not sent what it has already: after an interruption say it again, with --force.
    --verify reads all back and compares. Exit status 1 when something was left out.
    """
    from composer_tui.cloud.uploads import plan_put
    from composer_tui.cloud.volumes import path_on
    from composer_tui.headless.troubles import check_way
    from composer_tui.headless.volumes import put_files

    try:
        plan = plan_put(local, path_on(volume, remote))
    except ValueError as error:
        raise click.UsageError(str(error)) from None
    check_way()
    return put_files(
        volume, local, plan, create=create, force=force, verify=verify, as_json=as_json
    )


@volumes.command(
    "get",
    help=f"""Fetch a file, or what a folder holds, from a volume.

    LOCAL is the file, or the folder that becomes the one on the volume; without it the name is kept
    and lies here. {_VERIFIED} Files come under a temporary name and are renamed when whole. After
    an interruption say it again: files with the volume's size and time are kept, the others fetched
    from their beginning. Exit status 1 when something was left out.
    """,
)
@click.argument("volume")
@click.argument("remote")
@click.argument("local", type=click.Path(path_type=Path), required=False)
@_force
@_verify
@_json
@in_environment
@plainly
def get_path(
    volume: str, remote: str, local: Path | None, force: bool, verify: bool, as_json: bool
) -> int:
    from composer_tui.cloud.volumes import path_on
    from composer_tui.headless.troubles import check_way
    from composer_tui.headless.volumes import get_files

    check_way()
    return get_files(
        volume, path_on(volume, remote), local, force=force, verify=verify, as_json=as_json
    )


@volumes.command("rm")
@click.argument("volume")
@click.argument("path")
@click.option("-r", "--recursive", is_flag=True, help="A folder, and all in it.")
@_yes
@in_environment
@_changing
@plainly
def remove_path(volume: str, path: str, recursive: bool, yes: bool) -> int:
    """Remove a file or a folder from a volume, for good."""
    from composer_tui.cloud.volumes import path_on
    from composer_tui.headless.troubles import check_way
    from composer_tui.headless.volumes import describe, remove_path
    from composer_tui.runs.sanitise import clean

    check_way()
    path = path_on(volume, path)
    words, is_folder = describe(volume, path)
    if is_folder and not recursive:
        raise click.UsageError(f"{clean(words)}; --recursive removes a folder")
    if not _confirmed(f"Remove {clean(words)}?", yes=yes):
        return _DECLINED
    return remove_path(volume, path, recursive=recursive)


@click.group(invoke_without_command=True)
@_json
@in_environment
@click.pass_context
@plainly
def secrets(context: click.Context, as_json: bool) -> int:
    """List Modal secrets, make them, delete them. Never shows a value."""
    from composer_tui.headless.secrets import print_secrets
    from composer_tui.headless.troubles import asking_modal

    if context.invoked_subcommand is not None:
        return 0
    with asking_modal(quietly=as_json):
        return print_secrets(as_json=as_json)


@secrets.command("list")
@_json
@in_environment
@plainly
def list_secrets(as_json: bool) -> int:
    """List Modal secrets, as without a command."""
    from composer_tui.headless.secrets import print_secrets

    return print_secrets(as_json=as_json)


@secrets.command("create", context_settings={"ignore_unknown_options": True})
@click.argument("name")
@click.argument("values", nargs=-1, type=click.UNPROCESSED, metavar="")
@click.option(
    "--from-env",
    "environ_keys",
    multiple=True,
    metavar="KEY[=VARIABLE]",
    help="The value of a variable of this environment. Can be given again.",
)
@click.option("--from-stdin", "stdin_key", metavar="KEY", help="What comes on stdin, or is typed.")
@click.option(
    "--from-dotenv",
    "dotenv",
    type=click.Path(path_type=Path, exists=True, dir_okay=False),
    help="All of a .env file.",
)
@click.option("--add", is_flag=True, help="Put the keys into a secret that is there already.")
@in_environment
@_changing
@plainly
def create_secret(
    name: str,
    values: tuple[str, ...],
    environ_keys: tuple[str, ...],
    stdin_key: str | None,
    dotenv: Path | None,
    add: bool,
) -> int:
    """Make a secret. Its values come from where nobody else can read them.

    There is no way to write one on the command line: that is kept in the shell's history, and shown
    to everybody on this machine by ps.
    """
    from composer_tui.cloud.secrets import BadValue
    from composer_tui.headless.secrets import create_secret
    from composer_tui.headless.troubles import check_way

    if values:
        raise click.UsageError(
            "a value on the command line is kept in the shell's history and shown by ps;"
            " use --from-env, --from-stdin or --from-dotenv"
        )
    if not environ_keys and stdin_key is None and dotenv is None:
        raise click.UsageError("say where the value is: --from-env, --from-stdin or --from-dotenv")
    try:
        check_way()
        return create_secret(name, environ_keys, stdin_key, dotenv, add=add)
    except BadValue as error:
        raise click.UsageError(str(error)) from None


@secrets.command("delete")
@click.argument("name")
@_yes
@in_environment
@_changing
@plainly
def delete_secret(name: str, yes: bool) -> int:
    """Delete a secret, for good. Runs that name it will not start."""
    from composer_tui.headless.secrets import delete_secret
    from composer_tui.headless.troubles import check_way

    check_way()
    if not _confirmed(f"Delete the secret {name!r}?", yes=yes):
        return _DECLINED
    return delete_secret(name)


@click.command()
@click.argument("app", metavar="[APP|RUN]", default="")
@_json
@in_environment
@click.pass_context
@plainly
def containers(context: click.Context, app: str, as_json: bool) -> int:
    """List the containers of an app, and how busy its functions are; without APP, all containers.

    APP is an id (ap-...) or a name; RUN is an id, the beginning of one, or 'last'.
    """
    from composer_tui.headless.containers import print_containers

    return print_containers(store_of(context), app, as_json=as_json)


@click.command()
@click.argument("which", metavar="APP|RUN|CONTAINER")
@click.option("-f", "--follow", is_flag=True, help="Go on with what comes, until it is over.")
@click.option("--since", metavar="TIME", help="30m, 2h, 1d, or 2026-03-01T12:00.")
@click.option("--tail", type=click.IntRange(1, 20_000), help="So many entries.  [default: 100]")
@click.option("--timestamps", is_flag=True, help="Begin each line with its time.")
@_json
@in_environment
@click.pass_context
@plainly
def logs(
    context: click.Context,
    which: str,
    follow: bool,
    since: str | None,
    tail: int | None,
    timestamps: bool,
    as_json: bool,
) -> int:
    """Print what an app or a container printed; a known failure in it is answered on stderr.

    APP is an id (ap-...) or a name; RUN is an id, the beginning of one, or 'last'; CONTAINER is an
    id (ta-...).
    """
    from composer_tui.cloud.app_logs import parse_since
    from composer_tui.headless.containers import print_logs

    if since and (follow or tail):
        raise click.UsageError("--since goes with neither --follow nor --tail")
    try:
        moment = parse_since(since, time.time()) if since else None
    except ValueError as error:
        raise click.UsageError(f"--since: {error}") from None
    return print_logs(
        store_of(context),
        which,
        follow=follow,
        since=moment,
        tail=tail or 100,
        timestamps=timestamps,
        as_json=as_json,
    )


@click.group()
def rehearsal() -> None:
    """Modal, played on this machine: the real client, your functions, $0.

    `run --target rehearsal` needs none of these; they are for your own programs.
    """


_CHAOS = click.option(
    "--chaos",
    default="",
    metavar="SPEC",
    help="What is to go wrong: preempt=0.1,drop-logs=0.2,stuck-stop=30,list-fails=0.3,slow=0.5,...",
)


@rehearsal.command("serve")
@click.option(
    "--root",
    type=click.Path(path_type=Path, file_okay=False),
    help="Where volumes, secrets and logs are kept.  [default: this program's data folder]",
)
@_CHAOS
@click.option("--json", "as_json", is_flag=True, help="Print the variables as one JSON object.")
def rehearsal_serve(root: Path | None, chaos: str, as_json: bool) -> int:
    """Serve until ctrl+c; prints the environment with which any Modal program uses it.

    What is printed is a token for this machine alone: it ends with the rehearsal.
    """
    from composer_tui.headless.rehearsing import default_root, serve
    from composer_tui.rehearsal.process import RehearsalFailed

    try:
        return serve((root or default_root()).absolute(), chaos, as_json=as_json)
    except RehearsalFailed as problem:
        raise _Refused(str(problem)) from None


@rehearsal.command("exec", context_settings={"ignore_unknown_options": True})
@click.option(
    "--root",
    type=click.Path(path_type=Path, file_okay=False),
    help="Keep volumes, secrets and logs here.  [default: nothing is kept]",
)
@_CHAOS
@click.argument("command", nargs=-1, required=True, type=click.UNPROCESSED)
def rehearsal_exec(root: Path | None, chaos: str, command: tuple[str, ...]) -> int:
    """Run one COMMAND, such as `modal run yours.py`, against a rehearsal of its own."""
    from composer_tui.headless.rehearsing import execute
    from composer_tui.rehearsal.process import RehearsalFailed

    try:
        return execute(root.absolute() if root else None, chaos, command)
    except RehearsalFailed as problem:
        raise _Refused(str(problem)) from None
