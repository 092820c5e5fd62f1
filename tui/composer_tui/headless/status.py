"""What a run's end means to the shell that waited for it."""

from composer_tui.runs.state import RunState

FINISHED, FAILED, MISTAKEN, STOPPED_BY_ALERT = 0, 1, 2, 3

# Ends that a guard rail chose, as against ends that something broke.
_GUARD_RAILS = {"non_finite", "budget", "timeout"}


def exit_status(state: RunState) -> int:
    """0: finished, stopped by a person, or not over yet; 1: failed; 2: it cannot be run;
    3: ended by a guard rail.
    """
    if state.failure is None:
        return STOPPED_BY_ALERT if state.guard_rail else FINISHED
    if state.failure.kind == "config":
        return MISTAKEN
    return STOPPED_BY_ALERT if state.failure.kind in _GUARD_RAILS else FAILED
