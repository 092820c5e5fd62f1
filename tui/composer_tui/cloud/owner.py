"""Who launched a run, as a tag on Modal spells it."""

import re

from composer_tui.cloud.audit import who_am_i

_FORBIDDEN = re.compile(r"[^A-Za-z0-9._-]+")
_MOST_CHARACTERS = 63


def owner_tag() -> str:
    """``user-at-host``, in the characters that a tag may have."""
    user, host = who_am_i()
    return _FORBIDDEN.sub("-", f"{user}-at-{host}")[:_MOST_CHARACTERS]
