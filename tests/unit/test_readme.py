"""What the README says of the configuration is what the configuration is.

Written anew with: python tests/unit/test_readme.py
"""

import re
from pathlib import Path

from composer_engine.config import FIELDS, field_text

README = Path(__file__).parents[2] / "README.md"
_TABLE = re.compile(r"(?<=<!-- fields -->\n).*?(?=<!-- /fields -->)", re.DOTALL)


def table() -> str:
    rows = ["| field | default | | unit | range | source |", "|---|---|---|---|---|---|"]
    for field in FIELDS.values():
        text = field_text(field.default)
        default = f"`{text}`" if text else ""
        limits = f"`{field.range}`" if "[" in field.range else field.range
        cells = (f"`{field.path}`", default, field.description, field.unit, limits)
        rows.append(f"| {' | '.join(cells)} | {field.source} |")
    return "\n".join(rows) + "\n"


def test_the_readme_lists_every_field_with_its_default_and_meaning() -> None:
    found = _TABLE.search(README.read_text("utf-8"))
    assert found is not None
    assert found[0] == table()


if __name__ == "__main__":
    README.write_text(_TABLE.sub(lambda _: table(), README.read_text("utf-8")), "utf-8")
