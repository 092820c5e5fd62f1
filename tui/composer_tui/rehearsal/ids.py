"""Names of things, shaped as Modal shapes them: a prefix, a dash and 22 letters and digits."""

import secrets
import string

_ALPHABET = string.ascii_letters + string.digits
_LENGTH = 22  # the command line tells an id from a name by this length


def new_id(prefix: str) -> str:
    """An id nobody can guess: ``new_id("ap")`` -> ``ap-`` and 22 letters or digits."""
    return f"{prefix}-" + "".join(secrets.choice(_ALPHABET) for _ in range(_LENGTH))
