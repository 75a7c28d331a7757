"""Sweep expressions: sizes and orders of their combinations, draws that repeat, and what is refused."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fi_jax.errors import UserError
from fi_jax.experiments.expressions import (
    Sweep,
    chain,
    choice,
    grid,
    integers,
    log_uniform,
    random,
    search,
    uniform,
    zipped,
)

values = st.lists(st.integers(), min_size=1, max_size=4)


@given(values, values, values)
def test_sizes(a, b, c):
    left, right = grid({"a": a, "b": b}), grid({"c": c})
    assert len(left) == len(a) * len(b)
    assert len(left * right) == len(left) * len(c)
    assert len(left + right) == len(chain(left, right)) == len(left) + len(c)
    assert (left * right).points == grid({"a": a, "b": b, "c": c}).points


def test_orders():
    assert grid({"a": [1, 2], "b": ["x", "y"]}).points[1] == {"a": 1, "b": "y"}
    assert zipped({"a": [1, 2], "b": [3, 4]}).points == ({"a": 1, "b": 3}, {"a": 2, "b": 4})
    assert grid({"a": np.asarray([1, 2])}).points[0]["a"].__class__ is int


@given(st.integers(0, 1000), st.integers(1, 20))
def test_random_repeats_and_grows(seed, count):
    ranges = {"a": log_uniform(1e-5, 1e-1), "b": integers(1, 9), "c": choice("x", "y"), "d": integers(1, 64, log=True)}
    few, more = random(ranges, count, seed), random(ranges, count + 3, seed)
    assert more.points[:count] == few.points
    for point in more.points:
        assert 1e-5 <= point["a"] <= 1e-1 and 1 <= point["b"] <= 9 and point["c"] in "xy" and 1 <= point["d"] <= 64
        assert isinstance(point["b"], int) and isinstance(point["d"], int)


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda: grid({"a": []}), "no values"),
        (lambda: grid({"a": "xyz"}), "list of values"),
        (lambda: grid({"a": 3}), "list of values"),
        (lambda: zipped({"a": [1], "b": [1, 2]}), "equally many"),
        (lambda: grid({"a": [1]}) * grid({"a": [2]}), "both sides"),
        (lambda: uniform(2, 1), "empty"),
        (lambda: log_uniform(0, 1), "positive"),
        (lambda: random({"a": [1, 2]}, 3), "needs uniform"),
        (lambda: search({"a": uniform(0, 1)}, 0), "at least 1"),
        (lambda: Sweep("tiny", chain()), "no point"),
    ],
)
def test_mistakes(make, says):
    with pytest.raises(UserError, match=says):
        make()
