"""How a stop went, in words: "ended" is said of what was verified, and of nothing else."""

from composer_tui.numbers import duration
from composer_tui.runners.base import StopReport


def stop_words(report: StopReport) -> str:
    """A stop that ended its run."""
    return f"ended: {report.how}, in {duration(report.seconds)}; no process is left"


def alarm_words(run_id: str, report: StopReport) -> str:
    """A stop that did not."""
    if report.left:
        pids = " ".join(map(str, report.left))
        return f"{run_id} has NOT ended after {duration(report.seconds)}: pid {pids}; K tries again"
    return f"{run_id} was asked to stop and has not ended yet: it is not this program's to end"
