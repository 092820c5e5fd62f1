"""What the program that launches a run tells the one that started it: a JSON object a line."""

import msgspec

from composer_engine.protocol import FailureKind

SPEC_FILE = "spec.json"
"""In the run's folder: the `CloudSpec` that is launched, with names of secrets and no value."""


class LaunchWord(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """Ids as they become known, or with a ``message`` why there is no call.

    With a ``note``: nothing but a line for people.
    """

    app_id: str = ""
    function_id: str = ""
    call_id: str = ""
    kind: FailureKind = "runner"
    message: str = ""
    hint: str = ""
    note: str = ""
