"""Models of the Hugging Face Hub: from its cache, and over the network only when asked to.

The engine is offline. A model that the cache does not hold is the one thing that it fetches: its
safetensors, settings and tokenizer, never code and never a pickle. ``HF_TOKEN``, where it is set,
goes to the Hub and nowhere else; a token that a login left on this machine is not used.
"""

import contextlib
import json
import os
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, Literal

from composer_engine.failures import SetupError

Report = Callable[[str], object]

_TOKEN = "HF_TOKEN"  # noqa: S105  # the name of a variable
_WANTED = ["*.safetensors", "*.json", "*.txt", "*.model", "*.jinja", "*.tiktoken"]
_UNWANTED = ["*/*", "consolidated*"]  # other formats' folders; a second copy of all weights
_TOKENIZERS = ("tokenizer*", "vocab*", "*.model")
_COMMIT_CELLS = 12
_MEGABYTE = 10**6
_GIGABYTE = 10**9
_NO_TOKEN_HINT = f"check the name; a private model needs {_TOKEN} in the environment"


def asked_offline(environ: Mapping[str, str]) -> bool:
    """Whether whoever started this wants nothing fetched, as the Hub's own client would read it."""
    said = environ.get("HF_HUB_OFFLINE") or environ.get("TRANSFORMERS_OFFLINE") or ""
    return said.upper() in {"1", "ON", "YES", "TRUE"}


def hub_model(repo: str, revision: str, report: Report | None) -> Path:
    """The folder in the Hub's cache that holds a model whole.

    A cached one is taken as it is, without asking whether the Hub has a newer. Otherwise it is
    downloaded, and ``report`` told how much; without ``report`` it is not. Raises `SetupError`.
    """
    where = _cached(repo, revision)
    if where is not None:
        if report is not None:
            report(f"model {repo}: commit {where.name[:_COMMIT_CELLS]}, from the cache")
        return where
    if report is None:
        raise SetupError(
            f"model.path: {repo} is neither a folder nor in the Hub's cache, and this is offline",
            f"fetch it first: hf download {repo}" + (f" --revision {revision}" if revision else ""),
        )
    with online(), _told_apart(repo, revision):
        return _download(repo, revision, report)


def _cached(repo: str, revision: str) -> Path | None:
    from huggingface_hub.errors import LocalEntryNotFoundError

    try:
        folder = Path(_snapshot(repo, revision, local_files_only=True))
    except LocalEntryNotFoundError:
        return None
    return folder if _is_whole(folder) else None


def _is_whole(folder: Path) -> bool:
    """Whether a cached snapshot has all that a model needs: another program may have cut it off."""
    index = folder / "model.safetensors.index.json"
    needed = {"config.json", "model.safetensors"}
    if index.is_file():
        try:
            needed = {"config.json", *json.loads(index.read_bytes())["weight_map"].values()}
        except (ValueError, KeyError, TypeError, AttributeError):  # some other JSON
            return False
    has_tokenizer = any(any(folder.glob(pattern)) for pattern in _TOKENIZERS)
    return has_tokenizer and all((folder / name).is_file() for name in needed)


def _download(repo: str, revision: str, report: Report) -> Path:
    sizes = _listing(repo, revision)
    if "config.json" not in sizes:
        raise SetupError(f"model.path: {repo} has no config.json, so it is no transformers model")
    if not any(name.endswith(".safetensors") for name in sizes):
        raise SetupError(
            f"model.path: {repo} has no .safetensors weights",
            "pickled weights can run code and are not read; take a revision with safetensors",
        )
    size = _size(sum(sizes.values()))
    report(f"model {repo}: downloading {len(sizes)} files, {size}")
    began = time.monotonic()
    with telling(lambda: report(f"model {repo}: {_size(stored_bytes(repo))} of {size}")):
        folder = Path(_snapshot(repo, revision))
    seconds = time.monotonic() - began
    report(f"model {repo}: commit {folder.name[:_COMMIT_CELLS]}, {size} in {seconds:.0f} s")
    return folder


@contextlib.contextmanager
def telling(tell: Callable[[], object], every_seconds: float = 30.0) -> Iterator[None]:
    """Tell every so often, from a thread, for as long as this takes."""
    over = threading.Event()

    def work() -> None:
        while not over.wait(every_seconds):
            with contextlib.suppress(OSError):  # a file that was renamed meanwhile
                tell()

    thread = threading.Thread(target=work, name="download", daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()


def stored_bytes(repo: str) -> int:
    """What the cache holds of a model so far, of every revision."""
    from huggingface_hub import constants

    blobs = Path(constants.HF_HUB_CACHE) / f"models--{repo.replace('/', '--')}" / "blobs"
    return sum(file.stat().st_size for file in blobs.glob("*"))


def _listing(repo: str, revision: str) -> dict[str, int]:
    """The files that are wanted, and their bytes."""
    from huggingface_hub import HfApi
    from huggingface_hub.utils import filter_repo_objects  # type: ignore[attr-defined]

    info = HfApi(token=_token()).model_info(repo, revision=revision or None, files_metadata=True)
    sizes = {file.rfilename: file.size or 0 for file in info.siblings or ()}
    kept = filter_repo_objects(sizes, allow_patterns=_WANTED, ignore_patterns=_UNWANTED)
    return {name: sizes[name] for name in kept}


def _token() -> str | Literal[False]:
    return os.environ.get(_TOKEN) or False


def _snapshot(repo: str, revision: str, **how: Any) -> Any:
    from huggingface_hub import snapshot_download
    from huggingface_hub.utils import disable_progress_bars  # type: ignore[attr-defined]

    disable_progress_bars()
    return snapshot_download(
        repo,
        revision=revision or None,
        token=_token(),
        allow_patterns=_WANTED,
        ignore_patterns=_UNWANTED,
        **how,
    )


@contextlib.contextmanager
def online() -> Iterator[None]:
    """Let the Hub's client out, for as long as this takes, from an engine that is offline."""
    from huggingface_hub import constants

    before = constants.HF_HUB_OFFLINE
    constants.HF_HUB_OFFLINE = False
    try:
        yield
    finally:
        constants.HF_HUB_OFFLINE = before


@contextlib.contextmanager
def _told_apart(repo: str, revision: str) -> Iterator[None]:
    """What can go wrong between here and the Hub, as one line each."""
    from huggingface_hub import errors
    from huggingface_hub.errors import HTTPError  # type: ignore[attr-defined]

    try:
        yield
    except errors.GatedRepoError:
        raise SetupError(
            f"model.path: {repo} is gated, and {_TOKEN} does not open it",
            f"accept its licence on its page at the Hub, and set {_TOKEN} to a token of that "
            "account (on Modal: in a secret that modal.secrets names)",
        ) from None
    except errors.RevisionNotFoundError:
        raise SetupError(
            f"model.revision: {repo} has no branch, tag or commit {revision!r}"
        ) from None
    except errors.RepositoryNotFoundError:
        raise SetupError(f"model.path: the Hub shows no model {repo}", _NO_TOKEN_HINT) from None
    except errors.HfHubHTTPError as error:
        status = error.response.status_code
        raise SetupError(f"model.path: the Hub answers {status} for {repo}") from None
    except (OSError, HTTPError) as error:  # no network, or a full disk
        cause = error.__cause__ or error
        raise SetupError(
            f"model.path: cannot fetch {repo}: {type(cause).__name__}: {_first_line(cause)}",
            f"fetch it where there is a network (hf download {repo}), or name a folder",
        ) from None


def _size(size: int) -> str:
    if size >= _GIGABYTE:
        return f"{size / _GIGABYTE:.1f} GB"
    return f"{size / _MEGABYTE:.1f} MB"


def _first_line(error: BaseException) -> str:
    return str(error).strip().partition("\n")[0]
