"""Hypothesis strategies for what crosses the protocol."""

from hypothesis import strategies as st

from composer_engine.protocol import EVENT_TYPES, Event

_INTEGERS = st.integers(min_value=-(2**63), max_value=2**64 - 1)
_FINITE = st.floats(allow_nan=False, allow_infinity=False)

st.register_type_strategy(int, _INTEGERS)
st.register_type_strategy(float, _FINITE)
st.register_type_strategy(str, st.text(st.characters(exclude_categories=["Cs"])))


def events(seq: st.SearchStrategy[int] | None = None) -> st.SearchStrategy[Event]:
    """Any event with finite numbers, already numbered as the emitter would."""
    numbers = st.integers(0, 2**53) if seq is None else seq
    return st.one_of([st.builds(kind, seq=numbers) for kind in EVENT_TYPES])
