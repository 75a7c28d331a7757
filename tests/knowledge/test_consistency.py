"""Consistent decoding against brute force, and its speed on the real vocabulary."""

import itertools
import time

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from fi_jax.knowledge import consistency
from fi_jax.knowledge.consistency import log_odds
from fi_jax.knowledge.logic import broken, compile_rules
from fi_jax.labels.registry import vocabulary
from fi_jax.labels.rule_tables import rules_for
from fi_jax.labels.rules import Rule, excludes, implies
from fi_jax.labels.vocabulary import Label, Vocabulary

NAMES = "abcdefgh"
VOCAB = Vocabulary("letters", tuple(Label(c, c) for c in NAMES))
N = len(NAMES)
ALL = np.array(list(itertools.product([False, True], repeat=N)))


def decode_consistent(p, scope, table):
    """Of probabilities of yes."""
    return consistency.decode_consistent(log_odds(np.stack([p, 1 - p], -1))[..., 0], scope, table)


def log_probability(assignments, p, groups):
    """Log-probability up to a constant: Bernoulli labels, and groups as one normalised choice."""
    # A label of two groups is chosen in both.
    grouped = np.zeros(N, bool)
    total = np.zeros(len(assignments))
    for group in groups:
        grouped[group] = True
        total += np.where(assignments[:, group], np.log(p[group] / p[group].sum()), 0).sum(1)
    q = np.where(assignments, p, 1 - p)
    return total + np.log(q[:, ~grouped]).sum(1)


@st.composite
def rule_sets(draw):
    """Random rules, with no exactly-one group, one, or two that share labels."""
    rules = []
    for _ in range(draw(st.integers(1, 5))):
        kind = draw(st.sampled_from(["implies", "excludes", "at_most_one"]))
        labels = draw(st.lists(st.sampled_from(NAMES), min_size=2, max_size=4, unique=True))
        if kind == "at_most_one":
            rules.append(Rule(kind, tuple(labels), "test"))
        else:
            rules.append((implies if kind == "implies" else excludes)(labels[0], labels[1:], "test"))
    groups = draw(st.sampled_from([(), ("fgh",), ("fgh", "efg")]))
    return (*rules, *(Rule("exactly_one", tuple(group), "test") for group in groups))


@settings(deadline=None, max_examples=60)
@given(rule_sets(), st.integers(0, 9999), st.booleans())
def test_brute_force_agrees(rules, seed, whole_scope):
    rng = np.random.default_rng(seed)
    table = compile_rules(rules, VOCAB)
    p = rng.uniform(0.02, 0.98, (2, N))
    scope = np.ones((2, N), bool) if whole_scope else rng.random((2, N)) < 0.8
    legal_of = []
    for asked in scope:
        candidates = ALL[~(ALL & ~asked).any(1)]
        legal_of.append(candidates[~broken(candidates, np.broadcast_to(asked, candidates.shape), table)[0].any(1)])
        assume(len(legal_of[-1]))
    got = decode_consistent(p, scope, table)
    for answer, probability, asked, legal in zip(got, p, scope, legal_of, strict=True):
        every = [np.array([NAMES.index(c) for c in rule.labels]) for rule in rules if rule.kind == "exactly_one"]
        groups = [group for group in every if asked[group].all()]
        best = log_probability(legal, probability, groups).max()
        assert not broken(answer[None], asked[None], table)[0].any()
        np.testing.assert_allclose(log_probability(answer[None], probability, groups)[0], best, rtol=1e-9)


def test_consistent_answers_are_left_alone():
    table = compile_rules([excludes("a", "b", "test"), Rule("exactly_one", ("g", "h"), "test")], VOCAB)
    p = np.array([[0.9, 0.1, 0.7, 0.2, 0.5, 0.6, 0.3, 0.2]])
    scope = np.ones(p.shape, bool)
    # The last two are both below a half, and yet one of them holds.
    np.testing.assert_array_equal(decode_consistent(p, scope, table), [[1, 0, 1, 0, 0, 1, 1, 0]])


def test_the_weaker_side_gives_way_and_the_rest_stays():
    table = compile_rules([excludes("a", "b", "test"), implies("c", "d", "test")], VOCAB)
    p = np.array([[0.95, 0.6, 0.7, 0.8, 0.9, 0.2, 0.2, 0.2]])
    got = decode_consistent(p, np.ones(p.shape, bool), table)
    np.testing.assert_array_equal(got[0], [True, False, True, True, True, False, False, False])


def test_sure_answers_do_not_upset_the_solver():
    table = compile_rules([excludes("a", "b", "test")], VOCAB)
    p = np.array([[1.0, 1.0, 0, 0, 0, 0, 1, 1], [0.0] * N])
    got = decode_consistent(p, np.ones(p.shape, bool), table)
    assert got[0, :2].sum() == 1 and got[0, 6:].all() and not got[1].any()


def test_of_two_sure_answers_the_surer_one_stands():
    """Float32 has both at 1, their other options tell them apart."""
    table = compile_rules([excludes("a", "b", "test")], VOCAB)
    odds = log_odds(np.array([[1.0, 1e-20], [1.0, 1e-12]], np.float32))[:, 0]
    got = consistency.decode_consistent(np.array([[*odds, *[-1.0] * 6]]), np.ones((1, N), bool), table)
    assert got[0, :2].tolist() == [True, False]


def test_contradicting_rules_are_named():
    rules = [
        Rule("exactly_one", ("a", "b"), "t"),
        Rule("exactly_one", ("b", "c"), "t"),
        Rule("exactly_one", ("a", "c"), "t"),
    ]
    with pytest.raises(ValueError, match="contradict"):
        decode_consistent(np.full((1, N), 0.5), np.ones((1, N), bool), compile_rules(rules, VOCAB))


@pytest.mark.parametrize("name", ["faces", "celeba", "maad_face", "all"])
def test_real_vocabularies_always_have_an_answer_in_milliseconds(name):
    vocab = vocabulary(name)
    table = compile_rules(rules_for(vocab), vocab)
    p = np.random.default_rng(0).random((20, len(vocab)))
    scope = np.ones(p.shape, bool)
    start = time.process_time()
    got = decode_consistent(p, scope, table)
    spent = (time.process_time() - start) / len(p)
    assert not broken(got, scope, table)[0].any()
    assert spent < 0.2, f"{spent:.3f} s a face"
    print(f"{name}: {1000 * spent:.1f} ms a face")
