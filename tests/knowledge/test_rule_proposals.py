"""Rules proposed from annotations: planted ones are found, ranked and said once; chance is not."""

import numpy as np
import pytest

from fi_jax.knowledge.rule_proposals import exact_interval, propose_rules

NAMES = ("a", "b", "c", "d", "e")


def planted(faces: int = 4000, noise: float = 0.002) -> tuple[np.ndarray, np.ndarray]:
    """a implies b, b implies c, d excludes a; e is independent of all. A few faces break each."""
    rng = np.random.default_rng(0)
    a = rng.random(faces) < 0.2
    b = a | (rng.random(faces) < 0.2)
    c = b | (rng.random(faces) < 0.2)
    d = ~a & (rng.random(faces) < 0.3)
    e = rng.random(faces) < 0.5
    labels = np.stack([a, b, c, d, e], 1).astype(np.float32)
    flipped = rng.random(labels.shape) < noise
    return np.where(flipped, 1 - labels, labels), np.ones(labels.shape, bool)


def test_planted_rules_are_found_and_only_they():
    found = propose_rules(*planted(), NAMES)
    said = [str(one.rule) for one in found]
    assert set(said) == {"a implies b", "b implies c", "d excludes a"} or set(said) == {
        "a implies b",
        "b implies c",
        "a excludes d",
    }
    assert all(one.rate <= 0.01 and one.interval[0] <= one.rate <= one.interval[1] for one in found)
    assert [one.of_chance for one in found] == sorted(one.of_chance for one in found)


def test_an_exclusion_that_follows_is_left_out_either_way_round():
    # A tie is worn by men and lipstick by women alone, so nobody wears both.
    rng = np.random.default_rng(0)
    man = rng.random(4000) < 0.5
    tie, lipstick = man & (rng.random(4000) < 0.3), ~man & (rng.random(4000) < 0.6)
    labels = np.stack([lipstick, man, tie], 1).astype(np.float32)
    said = {str(one.rule) for one in propose_rules(labels, np.ones(labels.shape, bool), ("lipstick", "man", "tie"))}
    assert said in ({"tie implies man", "man excludes lipstick"}, {"tie implies man", "lipstick excludes man"})


def test_unknown_labels_neither_support_nor_break():
    labels, known = planted()
    known[:, 1] = False
    assert not any("b" in str(one.rule) for one in propose_rules(labels, known, NAMES))


def test_few_faces_support_nothing():
    labels, known = planted(20)
    assert propose_rules(labels, known, NAMES) == []


@pytest.mark.parametrize(
    ("violations", "support", "low", "high"), [(0, 100, 0.0, 0.0362), (100, 100, 0.9638, 1.0), (5, 100, 0.0164, 0.1128)]
)
def test_intervals_are_exact(violations, support, low, high):
    assert exact_interval(violations, support) == pytest.approx((low, high), abs=1e-4)
