"""A disk that stays full is told, and not every five seconds."""

from composer_engine.complaints import AGAIN_SECONDS, Complaints


def test_a_complaint_is_said_once_and_then_now_and_then_with_a_count() -> None:
    now = 0.0
    complaints = Complaints(lambda: now)
    assert complaints.line("run", "no space") == "no space"
    for _ in range(59):
        now += 5
        assert complaints.line("run", "no space") == ""
    assert complaints.line("another", "no space") == "no space"
    now = AGAIN_SECONDS
    assert complaints.line("run", "no space") == "no space (60 times since)"
    assert complaints.line("run", "no space") == ""
    assert complaints.line("run", "read-only") == "read-only"
