"""Whether this program may change anything: runs, apps, what lies on Modal."""

from collections.abc import Mapping

READONLY_VARIABLE = "COMPOSER_READONLY"


def is_readonly(environ: Mapping[str, str]) -> bool:
    """True when the variable is set, and not to 0."""
    return environ.get(READONLY_VARIABLE, "") not in ("", "0")
