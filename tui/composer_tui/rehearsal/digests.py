"""Ids of what is the same whenever its content is the same."""

import hashlib


def id_of(prefix: str, content: str | bytes) -> str:
    """An id of the usual shape that is a function of the content."""
    data = content.encode() if isinstance(content, str) else content
    return f"{prefix}-{hashlib.sha256(data).hexdigest()[:22]}"
