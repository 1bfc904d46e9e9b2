"""However the partitions of a projection are laid out anew, each event is handled once, and those of a key in order."""

from __future__ import annotations

import hypothesis.strategies as st
from hypothesis import given, settings

from orisun import NOTHING, Position
from orisun.projections import HashPartitions, PartitionStrategy
from orisun.projections.partitions import Layout, relaid, still_needed


class ByLength:
    """Another strategy: by the length of the key."""

    name = "length"

    def partition(self, key: str | None, total: int) -> int:
        return len(key or "") % total


STRATEGIES: dict[str, PartitionStrategy] = {one.name: one for one in (HashPartitions(), ByLength())}
KEYS = st.one_of(st.none(), st.sampled_from(["a", "bb", "ccc", "dddd", "ä", "\ud800"]))


@settings(max_examples=300)
@given(
    keys=st.lists(KEYS, min_size=1, max_size=30),
    phases=st.lists(
        st.tuples(
            st.integers(1, 5), st.sampled_from(sorted(STRATEGIES)), st.lists(st.integers(0, 30), min_size=5, max_size=5)
        ),
        max_size=5,
    ),
)
def test_each_event_once_and_in_order(keys: list[str | None], phases: list[tuple[int, str, list[int]]]) -> None:
    events = [(key, Position(number + 1, number)) for number, key in enumerate(keys)]
    handled: list[tuple[str | None, Position]] = []
    history: tuple[Layout, ...] = ()
    current = Layout("hash", (NOTHING,))
    # at the end one worker finishes what is left
    for total, strategy, steps in [*phases, (1, "hash", [len(events)] * 5)]:
        start, history = relaid(history, current)
        positions = [start] * total
        for partition in range(total):
            # each partition goes on for some events, of which it handles its own
            for key, position in [event for event in events if event[1] > start][: steps[partition]]:
                done = any(layout.covers(key, position, STRATEGIES) for layout in still_needed(history, min(positions)))
                if STRATEGIES[strategy].partition(key, total) == partition and not done:
                    handled.append((key, position))
                positions[partition] = position
        current = Layout(strategy, tuple(positions))
    assert sorted(position for _, position in handled) == [position for _, position in events]
    for key in {key for key, _ in handled}:
        own = [position for other, position in handled if other == key]
        assert own == sorted(own)


@given(key=KEYS, total=st.integers(1, 64))
def test_a_partition_is_one_of_them(key: str | None, total: int) -> None:
    for strategy in STRATEGIES.values():
        assert 0 <= strategy.partition(key, total) < total


def test_hashes_are_the_same_in_every_process_and_release() -> None:
    """Checkpoints rest on them."""
    found = [HashPartitions().partition(key, 16) for key in ("a", "order/1", "account-19", "é")]
    assert found == [15, 15, 14, 15]


def test_layouts_are_kept_as_json() -> None:
    layout = Layout("hash", (NOTHING, Position(7, 6)))
    assert Layout.of_json(layout.as_json()) == layout
