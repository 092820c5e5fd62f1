"""Whose account Modal is asked in, as a person and as another program would name it. No token."""

import os
from collections.abc import Mapping

from composer_tui.cloud.account_check import SERVER_URL, BadAccount, read_account
from composer_tui.cloud.ledger import CloudRef
from composer_tui.cloud.modal_thread import within
from composer_tui.cloud.problems import CloudProblem

WORKSPACE_SECONDS = 5.0


def account_words(environ: Mapping[str, str] = os.environ) -> str:
    """The profile, and the server where that is not Modal's own; "" when they cannot be read."""
    try:
        account = read_account(environ)
    except BadAccount:
        return ""
    who = f"profile {account.profile}" if account.profile else "the environment's token"
    return who if account.server_url == SERVER_URL else f"{who}, {account.server_url}"


def workspace() -> str:
    """The workspace, and the server where that is not Modal's own. Raises `CloudProblem`."""
    try:
        server = read_account().server_url
    except BadAccount:
        server = SERVER_URL
    name = within(WORKSPACE_SECONDS, _workspace_name(), "the workspace's name")
    return name if not name or server == SERVER_URL else f"{name}, {server}"


def is_another(ref: CloudRef) -> bool:
    """The run was launched in another account than Modal is asked in now, as far as is known.

    Raises `CloudProblem`.
    """
    if ref.workspace:
        return workspace() != ref.workspace
    return bool(ref.account) and account_words() != ref.account


def own_words(ref: CloudRef) -> str:
    """How to ask for the account that the run is in; "" when that is not known."""
    parts = [ref.account, f"workspace {ref.workspace}" if ref.workspace else ""]
    return ", ".join(part for part in parts if part)


async def _workspace_name() -> str:
    import modal

    found = modal.Workspace.from_context()
    await found.hydrate.aio()
    return str(found.name or "")


def note_workspace(ref: CloudRef) -> str:
    """The workspace of an app that was found just now; what is known of it if nobody says."""
    try:
        return ref.workspace or workspace()
    except CloudProblem:
        return ""
