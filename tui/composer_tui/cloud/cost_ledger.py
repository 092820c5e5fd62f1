"""What a follower writes down of a run's containers: RUN/cost.jsonl, as it becomes known.

A container's own book on the volume is the word on its times, for it was there. Before that is
read, and for a container that kept none, the log tells: it lived from its first line to its last.
"""

import msgspec

from composer_engine.cloud_spec import ContainerTime
from composer_engine.protocol import Device, Event, RunFailed, RunFinished, RunStarted
from composer_tui.cloud.ledger import CloudRef
from composer_tui.runs.cost import AttemptCost, append_costs, paid_gpu, priced, read_costs
from composer_tui.runs.folder import DamagedFolder, RunFolder
from composer_tui.runs.state import STOPPED_BY_YOU, RunState

NEAR_SECONDS = 30.0  # so old a last sign of life may be for the end that we see to be its end

_book = msgspec.json.Decoder(tuple[ContainerTime, ...])


class CostLedger:
    """The attempts of one run. Times are unix seconds. Every writing method raises OSError."""

    def __init__(self, folder: RunFolder, ref: CloudRef) -> None:
        """Goes on from what is written there."""
        self._folder, self._ref = folder, ref
        try:
            self._gpu = "/".join(folder.read_record().config.modal.gpu)
        except DamagedFolder:
            self._gpu = ""
        self._known = {one.container_id: one for one in read_costs(folder)}
        self._written = dict(self._known)

    @property
    def failed_attempts(self) -> int:
        """How many of them have ended, other than by being taken away."""
        return sum(one.outcome not in ("", "preempted") for one in self._known.values())

    def saw(self, container_id: str, moment: float) -> None:
        """The first that a container said, or what it says after that."""
        known = self._known.get(container_id)
        if known is None:
            self._known[container_id] = self._new(container_id, moment)
            self.write()
        elif known.ended_at is None and moment > known.seen_at:
            self._known[container_id] = msgspec.structs.replace(known, seen_at=moment)

    def heard(self, container_id: str, event: Event) -> None:
        """What its engine says of where it runs, and of how it ended."""
        known = self._known.get(container_id)
        if known is None:
            return
        if known.ended_at is None and event.time > known.seen_at:
            known = msgspec.structs.replace(known, seen_at=event.time)
        if isinstance(event, RunStarted):
            known = self._on(known, event.device)
        elif isinstance(event, RunFinished | RunFailed) and known.device and not known.outcome:
            # Without a device it is the word of the container before, which had none left.
            known = _ended_as(known, event)
        self._known[container_id] = known

    def take_book(self, text: bytes) -> None:
        """The volume's book, whole; one that cannot be read says nothing."""
        try:
            book = _book.decode(text)
        except (msgspec.DecodeError, UnicodeDecodeError):
            return
        for time in book:
            if time.container_id:
                known = self._known.get(time.container_id)
                self._known[time.container_id] = _by_book(
                    known or self._new(time.container_id, time.started_at), time
                )
        self.write()

    def over(self, state: RunState, now: float, heard_at: float = 0.0) -> None:
        """The run is over, and none of its containers is left.

        The end of one that did not tell it is now, if it was heard of a moment ago, and else it is
        not known. ``heard_at`` is the time of the engine's newest event.
        """
        last = max(self._known.values(), key=lambda one: one.started_at, default=None)
        if last is not None:
            if last.ended_at is None and heard_at > last.seen_at:
                last = msgspec.structs.replace(last, seen_at=heard_at)
            self._known[last.container_id] = _last(last, state, now)
        self.write()

    def write(self) -> None:
        """What is not written as it is known; attempts are numbered by their starts."""
        ordered = sorted(self._known.values(), key=lambda one: one.started_at)
        for number, one in enumerate(ordered, 1):
            self._known[one.container_id] = priced(msgspec.structs.replace(one, attempt=number))
        news = [one for key, one in self._known.items() if self._written.get(key) != one]
        append_costs(self._folder, news)
        self._written = dict(self._known)

    def _new(self, container_id: str, started_at: float) -> AttemptCost:
        return AttemptCost(
            attempt=len(self._known) + 1,
            container_id=container_id,
            gpu=self._gpu,
            gpus=paid_gpu(self._gpu, "").gpus,
            started_at=started_at,
            seen_at=started_at,
            usd_per_hour=self._ref.usd_per_hour,
            rates_source=self._ref.rates_source,
            rates_as_of=self._ref.rates_as_of,
        )

    def _on(self, known: AttemptCost, device: Device) -> AttemptCost:
        gpus = paid_gpu(self._gpu, device.name).gpus
        return msgspec.structs.replace(known, device=device.name, gpus=gpus)


def _by_book(known: AttemptCost, time: ContainerTime) -> AttemptCost:
    """The container's own clock and price; of one without an end the log may have heard more."""
    seen_at = time.seen_at if time.ended_at is not None else max(time.seen_at, known.seen_at)
    return msgspec.structs.replace(
        known,
        started_at=time.started_at,
        ended_at=known.ended_at if time.ended_at is None else time.ended_at,
        seen_at=seen_at,
        usd_per_hour=time.usd_per_hour,
        outcome=time.outcome or known.outcome,
        reason=time.reason if time.outcome else known.reason,
        worth_retrying=time.worth_retrying,
    )


def _ended_as(known: AttemptCost, word: RunFinished | RunFailed) -> AttemptCost:
    if isinstance(word, RunFailed):
        outcome, reason = str(word.kind), word.message
    else:
        outcome, reason = "stopped" if word.stopped_early else "finished", word.reason
    return msgspec.structs.replace(known, outcome=outcome, reason=reason)


def _last(last: AttemptCost, state: RunState, now: float) -> AttemptCost:
    word = state.finish or state.failure
    if word is not None and (not last.outcome or state.life == "stopped"):
        last = _ended_as(last, word)
    elif state.life == "stopped":
        last = msgspec.structs.replace(last, outcome="stopped", reason=STOPPED_BY_YOU)
    if last.outcome == "preempted":
        # Modal starts it again by itself; that nothing followed is a person's doing.
        last = msgspec.structs.replace(last, worth_retrying=False)
    if last.ended_at is None and 0 <= now - last.seen_at <= NEAR_SECONDS:
        last = msgspec.structs.replace(last, ended_at=now, seen_at=now)
    return last
