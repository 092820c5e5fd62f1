"""The short program that puts a run on Modal: ``python -m composer_tui.cloud.launch_child RUN``.

It reads RUN/spec.json, says each id on stdout as soon as it is known, and ends when the call is
there. The account comes by environment. It writes nothing: what is worth keeping, its parent keeps.
"""

import os
import sys
import threading
import time
import traceback
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

from composer_engine.cloud_spec import CloudSpec
from composer_engine.protocol import FailureKind
from composer_tui.cloud.known_failures import diagnose
from composer_tui.cloud.launch_words import SPEC_FILE, LaunchWord
from composer_tui.cloud.problems import problem_of, redact
from composer_tui.cloud.upload_words import UploadTeller

if TYPE_CHECKING:
    from collections.abc import Callable

_LOOK_SECONDS = 0.02
_NOT_KNOWN = "log.txt says more"


def main() -> int:
    """0 when the call was spawned, 1 when it was not, and then stdout says why."""
    out = os.dup(1)
    os.dup2(2, 1)  # what modal prints while it builds the image goes to the log

    def say(word: LaunchWord) -> None:
        try:
            os.write(out, msgspec.json.encode(word) + b"\n")
        except BrokenPipeError:
            return  # the parent is gone; whoever comes next finds the app by its name

    os.environ.setdefault("MODAL_LOGS_TIMEOUT", "0")  # the log is the follower's
    try:
        spec = msgspec.json.decode((Path(sys.argv[1]) / SPEC_FILE).read_bytes(), type=CloudSpec)
        _launch(spec, say)
    except Exception as error:  # noqa: BLE001  # the border: the parent tells it in one line
        word = _refusal(error)
        say(word)
        if word.hint == _NOT_KNOWN:
            print(redact(traceback.format_exc()), file=sys.stderr)  # noqa: T201  # that is log.txt
        return 1
    return 0


def _launch(spec: CloudSpec, say: "Callable[[LaunchWord], None]") -> None:
    import modal

    from composer_engine.modal_app import build

    built = build(spec)
    threading.Thread(target=_tell_app_id, args=(built.app, say), daemon=True).start()
    environment = spec.config.modal.environment or None
    with (
        UploadTeller(built.inputs, lambda words: say(LaunchWord(note=words))),
        modal.enable_output(),
        built.app.run(detach=True, environment_name=environment) as app,
    ):
        say(LaunchWord(app_id=app.app_id or "", function_id=built.train.object_id))
        null = os.open(os.devnull, os.O_WRONLY)
        os.dup2(null, 1)
        os.dup2(null, 2)  # from here on modal would print what the containers print
        call = built.train.spawn(msgspec.json.encode(spec).decode())
        say(LaunchWord(call_id=call.object_id))


def _tell_app_id(app: Any, say: "Callable[[LaunchWord], None]") -> None:
    """The app exists, and may cost, long before its image is built."""
    while not app.app_id:
        time.sleep(_LOOK_SECONDS)
    say(LaunchWord(app_id=app.app_id))


def _refusal(error: Exception) -> LaunchWord:
    """What went wrong, in one line and what to do about it."""
    text = redact(str(error))
    known = diagnose(f"{type(error).__name__}: {text}")
    found = problem_of(error)
    if known is not None:
        return LaunchWord(kind=known.kind, message=known.what, hint=known.fix)
    if found is not None:
        kind: FailureKind = "config" if found.kind == "refused" else "runner"
        return LaunchWord(kind=kind, message=found.message, hint=found.hint)
    line = " ".join(text.split()) or type(error).__name__
    hint = str(getattr(error, "hint", "")) or _NOT_KNOWN
    is_ours = type(error).__module__.startswith("composer_engine") or isinstance(
        error, ValueError | ImportError | FileNotFoundError
    )
    return LaunchWord(kind="config" if is_ours else "runner", message=line, hint=hint)


if __name__ == "__main__":
    sys.exit(main())
