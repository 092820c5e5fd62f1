"""Where a rehearsal listens and the token it wants. Imports nothing heavy."""

import os
from typing import NamedTuple

_UNSET = (  # the user's own settings must not reach into a rehearsal
    "MODAL_PROFILE",
    "MODAL_OVERRIDE_HEADERS",
    "MODAL_OAUTH_CLIENT_ID",
    "MODAL_OAUTH_CLIENT_SECRET",
    "MODAL_OAUTH_JWT_KEY",
    "MODAL_OAUTH_REFRESH_TOKEN",
)


class Connection(NamedTuple):
    """What a Modal client needs in order to reach a rehearsal. ``token_secret`` is a secret."""

    url: str
    token_id: str
    token_secret: str

    def __repr__(self) -> str:
        return f"Connection(url={self.url!r}, token_id={self.token_id!r})"

    def environ(self) -> dict[str, str]:
        """Variables to lay over the environment of a client, so that it sees only the rehearsal.

        ``MODAL_CONFIG_PATH`` names a file that does not exist: the user's own token is never read.
        A variable that must not be there is given as an empty string, which Modal takes for unset.
        """
        return dict.fromkeys(_UNSET, "") | {
            "MODAL_SERVER_URL": self.url,
            "MODAL_TOKEN_ID": self.token_id,
            "MODAL_TOKEN_SECRET": self.token_secret,
            "MODAL_ENVIRONMENT": "main",
            "MODAL_CONFIG_PATH": os.path.join(os.sep, "nonexistent", "composer-tui", "modal.toml"),  # noqa: PTH118
            "MODAL_DISABLE_API_PROXY": "1",
        }
