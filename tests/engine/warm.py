"""What the fork server imports before it forks engines: all that an engine imports, once."""

import gc

gc.disable()
import composer_engine.__main__  # noqa: E402
import composer_engine.run  # noqa: E402, F401  # with torch, transformers and trl

gc.freeze()  # or each engine's collections would walk, and so copy, all of it
gc.enable()
