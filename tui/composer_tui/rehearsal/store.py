"""The database file of dictionaries and queues: what is written outlives this process."""

import sqlite3
from pathlib import Path


def open_store(path: Path, schema: str) -> sqlite3.Connection:
    """Opens or makes the file, mode 0600. Raises `sqlite3.DatabaseError` when it is damaged.

    Every statement is one transaction. It survives the end of the process, not that of the
    machine: a rehearsal ends with it anyway.
    """
    path.touch(mode=0o600)
    store = sqlite3.connect(path, isolation_level=None)
    store.execute("PRAGMA journal_mode=WAL")
    store.execute("PRAGMA synchronous=OFF")
    store.executescript(schema)
    return store
