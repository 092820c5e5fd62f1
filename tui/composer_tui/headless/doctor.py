"""The doctor's findings, as lines and as JSON."""

import sys
from pathlib import Path

import msgspec

from composer_tui.doctor import examine

_GLYPHS = {"ok": "✓", "warning": "!", "problem": "✗"}


def print_findings(runs_dir: Path, *, online: bool = False, as_json: bool) -> int:
    """Print what was found; 1 when there is a problem, else 0."""
    findings = examine(runs_dir, online=online)
    status = int(any(finding.status == "problem" for finding in findings))
    if as_json:
        sys.stdout.buffer.write(msgspec.json.encode({"findings": findings}) + b"\n")
        return status
    width = max(len(finding.name) for finding in findings)
    for finding in findings:
        print(f"{_GLYPHS[finding.status]} {finding.name:<{width}}  {finding.message}")
        if finding.fix:
            print(f"  {'':<{width}}  → {finding.fix}")
    return status
