"""Secrets: from where nobody looks, to Modal, and nowhere else."""

import json
import os
import subprocess
import sys
import threading
from pathlib import Path

import psutil
import pytest
from hypothesis import given
from hypothesis import strategies as st

from composer_tui.cloud.secrets import BadValue, from_environ, from_text, parse_dotenv
from tests.cloud.storage_fixtures import Shell, written_under
from tests.rehearsal.rehearsal import Rehearsal

VALUE = "s3cret-Vb7Qm2Zx9Lk4"


def kept(plane: Rehearsal) -> dict[str, dict[str, str]]:
    """What the account holds, by the secret's name."""
    path = plane.root / "secrets.json"
    records = json.loads(path.read_bytes()) if path.exists() else []
    return {record["name"]: record["values"] for record in records}


def test_a_value_comes_from_the_environment(shell: Shell, stored: Rehearsal) -> None:
    done = shell("secrets", "create", "hf", "--from-env", "HF_TOKEN", HF_TOKEN=VALUE)
    assert (done.status, done.out) == (0, "secret hf: HF_TOKEN\n")
    done = shell("secrets", "create", "hf2", "--from-env", "HF_TOKEN=MY_TOKEN", MY_TOKEN=VALUE)
    assert done.status == 0, done.err
    assert kept(stored)["hf"] == kept(stored)["hf2"] == {"HF_TOKEN": VALUE}


def test_a_value_comes_from_stdin_without_its_line_end(shell: Shell, stored: Rehearsal) -> None:
    assert shell("secrets", "create", "piped", "--from-stdin", "K", stdin=f"{VALUE}\n").status == 0
    assert kept(stored)["piped"] == {"K": VALUE}


def test_values_come_from_a_dotenv_file(shell: Shell, stored: Rehearsal, tmp_path: Path) -> None:
    file = tmp_path / ".env"
    file.write_text(f"# mine\nexport A={VALUE}\nB='x # y' # why\n\nC=\"a\\nb\"\n")
    assert shell("secrets", "create", "dot", "--from-dotenv", file).status == 0
    assert kept(stored)["dot"] == {"A": VALUE, "B": "x # y", "C": "a\nb"}


def test_keys_are_added_only_when_told(shell: Shell, stored: Rehearsal) -> None:
    shell("secrets", "create", "grown", "--from-env", "A", A="1")
    refused = shell("secrets", "create", "grown", "--from-env", "B", B="2")
    assert refused.status == 2
    assert "--add" in refused.err
    assert shell("secrets", "create", "grown", "--from-env", "B", "--add", B="2").status == 0
    assert kept(stored)["grown"] == {"A": "1", "B": "2"}


def test_a_list_names_them_and_a_deleted_one_is_gone(shell: Shell) -> None:
    shell("secrets", "create", "short-lived", "--from-env", "A", A="1")
    listed = {row["name"]: row for row in shell("secrets", "--json").json}
    assert listed["short-lived"]["created_at"] > 1e9
    assert listed["short-lived"]["last_used_at"] is None
    assert shell("secrets", "delete", "short-lived").status == 2  # nobody to ask
    assert shell("secrets", "delete", "short-lived", "--yes").status == 0
    assert "short-lived" not in shell("secrets", "list").out
    gone = shell("secrets", "delete", "short-lived", "--yes")
    assert gone.status == 2
    assert "there is no secret short-lived" in gone.err


@pytest.mark.parametrize(
    "arguments",
    [
        ("HF_TOKEN=" + VALUE,),
        ("--value=" + VALUE,),
        ("--from-env", "HF_TOKEN=" + VALUE),
        ("--from-env", VALUE.replace("-", "_")),
        ("--from-env", VALUE),
        ("--from-stdin", VALUE),
        ("--from-env", "UNSET_VARIABLE_OF_OURS"),
        ("--from-env", "EMPTY"),
        (),
    ],
)
def test_a_value_on_the_command_line_is_refused_and_not_repeated(
    shell: Shell, stored: Rehearsal, arguments: tuple[str, ...]
) -> None:
    done = shell("secrets", "create", "never", *arguments, EMPTY="")
    assert done.status == 2
    assert len(done.err.splitlines()) == 1
    assert VALUE not in done.err
    assert VALUE.replace("-", "_") not in done.err
    assert "never" not in kept(stored)


def test_a_value_is_in_no_argv_no_output_and_no_file_but_modals(
    stored: Rehearsal, tmp_path: Path
) -> None:
    token = stored.connection.token_secret
    environ = stored.environ(
        HF_TOKEN=VALUE,
        HOME=str(tmp_path),
        XDG_STATE_HOME=str(tmp_path),
        XDG_DATA_HOME=str(tmp_path),
        TMPDIR=str(tmp_path),
    )
    seen: list[str] = []
    over = threading.Event()

    def watch() -> None:
        while not over.wait(0.005):
            for child in psutil.Process().children(recursive=True):
                try:
                    seen.append(" ".join(child.cmdline()))
                except psutil.Error:
                    continue

    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        said = b""
        for arguments in (("create", "quiet", "--from-env", "HF_TOKEN"), ("--json",)):
            done = subprocess.run(
                [sys.executable, "-m", "composer_tui", "secrets", *arguments],
                env=environ,
                capture_output=True,
                check=True,
            )
            said += done.stdout + done.stderr
    finally:
        over.set()
        watcher.join()
    assert any("secret list" in line for line in seen)
    for hidden in (VALUE, token):
        assert not [line for line in seen if hidden in line]
        assert hidden.encode() not in said
        for path, data in written_under(tmp_path, stored.root):
            if hidden.encode() in data:
                assert path.name in ("secrets.json", "connection.json")
                assert path.stat().st_mode & 0o077 == 0
    assert kept(stored)["quiet"] == {"HF_TOKEN": VALUE}


def test_readonly_makes_none(shell: Shell, stored: Rehearsal) -> None:
    done = shell("secrets", "create", "ro", "--from-env", "A", A="1", COMPOSER_READONLY="1")
    assert done.status == 2
    assert "ro" not in kept(stored)


@given(
    st.text(max_size=200) | st.lists(st.sampled_from(list("AB=\"'\\#$ \n\r\texport"))).map("".join)
)
def test_no_text_makes_the_dotenv_reader_raise_anything_else(text: str) -> None:
    try:
        values = parse_dotenv(text)
    except BadValue as error:
        assert str(error).isprintable()
        return
    assert all(key.isidentifier() and value for key, value in values.items())


_QUOTABLE = st.text(st.characters(exclude_categories=("Cs", "Cc")), min_size=1, max_size=30)


@given(_QUOTABLE)
def test_a_quoted_value_comes_out_as_it_was(value: str) -> None:
    escaped = value.replace("\\", "\\\\").replace('"', '\\"')
    assert parse_dotenv(f'export KEY = "{escaped}"  # note') == {"KEY": value}
    if "'" not in value:
        assert parse_dotenv(f"KEY='{value}'") == {"KEY": value}


@pytest.mark.parametrize(
    ("text", "number"),
    [("A=1\nnot a line", 2), ("A='1", 1), ('A="1" 2', 1), ("1A=2", 1), ("=2", 1)],
)
def test_a_bad_line_is_named_by_its_number(text: str, number: int) -> None:
    with pytest.raises(BadValue, match=f"line {number} "):
        parse_dotenv(text)


def test_what_no_variable_can_be_is_refused() -> None:
    with pytest.raises(BadValue, match="letters"):
        from_environ("A-B", {"A-B": "1"})
    with pytest.raises(BadValue, match="zero byte"):
        from_text("A", "x\0y")
    with pytest.raises(BadValue, match="UTF-8"):
        from_environ("A", {"A": os.fsdecode(b"\xff")})
    with pytest.raises(BadValue, match="empty"):
        from_text("A", "\n")
