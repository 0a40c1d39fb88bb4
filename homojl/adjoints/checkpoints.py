"""States of a known sequence of steps in reverse order, of which few are kept at a time: binomial checkpointing."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import TypeVar

State = TypeVar("State")


def states_backwards(
    advance: Callable[[State, int, int], State], start: State, steps: int, max_states: int
) -> Iterator[tuple[int, State]]:
    """The states at which the steps start, with their numbers, the last step's first.

    No schedule with as few kept states takes fewer steps again; see `steps_again`.

    Args:
        advance: (state, i, j) -> the state at which step j starts, from that of step i < j.
        start: the state of step 0, which is always there.
        steps: how many there are.
        max_states: most states to keep beside `start` and the one just yielded or advanced.

    References: Griewank, Walther (2000), ACM Trans. Math. Softw. 26(1), algorithm 799.
    """
    kept = [(0, start)]
    stop = steps
    while stop > 0:
        first, state = kept[-1]
        if first == stop - 1:
            kept.pop()
            yield first, state
            stop -= 1
        elif len(kept) > max_states:
            yield stop - 1, advance(state, first, stop - 1)
            stop -= 1
        else:
            middle = first + _first_part(stop - first, max_states + 2 - len(kept))
            kept.append((middle, advance(state, first, middle)))


def steps_again(steps: int, max_states: int) -> int:
    """How many steps `states_backwards` takes: r n - C(c + 1 + r, r - 1), where C(c + 1 + r, r) is the first >= n."""
    repeats = _repeats(steps, max_states + 1)
    return repeats * steps - (math.comb(max_states + 1 + repeats, repeats - 1) if repeats else 0)


def _repeats(steps: int, slots: int) -> int:
    """The smallest r such that with so many slots no step has to be taken more than r times."""
    repeats = 0
    while math.comb(slots + repeats, slots) < steps:
        repeats += 1
    return repeats


def _first_part(steps: int, slots: int) -> int:
    """How many of the steps to take before the next state is kept, one slot holding the first; slots > 1."""
    repeats = _repeats(steps, slots)
    most = math.comb(slots + repeats - 1, slots)
    return min(most, steps - math.comb(slots + repeats - 2, slots - 1))
