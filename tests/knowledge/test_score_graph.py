"""Messages between scores: what counts say, facts that move what goes with them, labels that were never counted."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from fi_jax.config import KnowledgeConfig
from fi_jax.knowledge import correlation
from fi_jax.knowledge.choices import head_groups
from fi_jax.knowledge.logic import Facts
from fi_jax.knowledge.score_graph import (
    Relations,
    ScoreGraph,
    count_relations,
    extended_relations,
    revealed,
    with_facts,
)
from fi_jax.labels.vocabulary import Group, Label, Vocabulary

VOCAB = Vocabulary("five", tuple(Label(c, c) for c in "abcde"), (Group("choice", ("d", "e"), "exactly_one"),))
GROUPS = head_groups(KnowledgeConfig(), VOCAB)
CONFIG = KnowledgeConfig(score_graph="lift", score_strength=1.0, score_rank=2)


def faces(rng: np.random.Generator, count: int) -> np.ndarray:
    """b mostly follows a, c shuns a, e is what d is not and d goes with c."""
    a = rng.random(count) < 0.5
    b, c = np.where(a, rng.random(count) < 0.9, rng.random(count) < 0.2), ~a & (rng.random(count) < 0.8)
    d = np.where(c, rng.random(count) < 0.9, rng.random(count) < 0.3)
    return np.stack([a, b, c, d, ~d], 1)


def counts_of(labels: np.ndarray, known: np.ndarray | None = None) -> correlation.Counts:
    known = np.ones(labels.shape, bool) if known is None else known
    return correlation.update(correlation.empty(labels.shape[1]), labels, known)


def test_log_lift_is_signed_symmetric_and_nothing_where_nothing_is_known():
    labels = faces(np.random.default_rng(0), 20000)
    known = np.ones(labels.shape, bool)
    known[:10000, 2], known[10000:, 1] = False, False  # b and c are never annotated together
    logs = correlation.log_lift(counts_of(labels, known))
    both = labels[:10000]
    want = np.log(both[both[:, 0], 1].mean() / both[:, 1].mean())
    assert logs[0, 1] == pytest.approx(want, abs=0.01) and want > 0.3
    assert logs[0, 2] < -2 and logs[1, 2] == logs[2, 1] == 0 and (logs.diagonal() == 0).all()
    np.testing.assert_array_equal(logs, logs.T)
    np.testing.assert_allclose(correlation.prior(counts_of(labels, known))[:2], [labels[:, 0].mean(), 0.55], atol=0.02)


def test_a_pair_seen_once_says_little():
    labels = np.zeros((1000, 2), bool)
    labels[0] = True
    assert 0 < correlation.log_lift(counts_of(labels))[0, 1] < 0.1


def apply(params, scores, relations, facts=None, prompts=None):
    prompts = jnp.eye(5) if prompts is None else prompts
    return ScoreGraph(CONFIG).apply({"params": params}, scores, prompts, relations, GROUPS, facts)


def start(relations):
    return ScoreGraph(CONFIG).init(jax.random.key(0), jnp.zeros((1, 5)), jnp.eye(5), relations, GROUPS)["params"]


def test_one_step_is_the_formula():
    rng = np.random.default_rng(1)
    relations = count_relations(counts_of(faces(rng, 5000)), CONFIG)
    params = start(relations)
    params["hear"]["kernel"] = jnp.asarray(rng.normal(size=(5, 2)), jnp.float32)
    scores = rng.normal(size=(4, 5)).astype(np.float32)
    q = 1 / (1 + np.exp(-scores))
    q[:, 3:] = np.exp(scores[:, 3:]) / np.exp(scores[:, 3:]).sum(1, keepdims=True)
    known = rng.random((4, 5)) < 0.4
    labels = (rng.random((4, 5)) < 0.5).astype(np.float32)
    edges = relations.lift + np.asarray(params["speak"]["kernel"] @ params["hear"]["kernel"].T)
    edges[np.eye(5, dtype=bool)] = edges[3, 4] = edges[4, 3] = 0
    want = scores + (np.where(known, labels, q) - relations.prior) @ edges
    np.testing.assert_allclose(apply(params, scores, relations, Facts(labels, known)), want, atol=1e-5)
    # Edges learnt from words start at zero.
    assert (start(relations)["hear"]["kernel"] == 0).all()


def test_a_stated_fact_moves_what_goes_with_it_both_ways():
    relations = count_relations(counts_of(faces(np.random.default_rng(2), 5000)), CONFIG)
    params, scores = start(relations), jnp.zeros((1, 5))
    known = np.arange(5)[None] == 0
    moved = [
        np.asarray(
            apply(params, scores, relations, Facts(jnp.full((1, 5), truth), known)) - apply(params, scores, relations)
        )
        for truth in (1.0, 0.0)
    ]
    (_, b, c, *_), (_, not_b, not_c, *_) = moved[0][0], moved[1][0]
    assert b > 0.1 and c < -0.1 and not_b < -0.1 and not_c > 0.1
    # A label does not speak to itself.
    assert moved[0][0, 0] == 0
    np.testing.assert_allclose(with_facts(jnp.full((1, 5), 0.3), Facts(jnp.ones((1, 5)), known)), [[1, *[0.3] * 4]])


def test_shuffled_columns_have_the_same_weights_elsewhere():
    counts = counts_of(faces(np.random.default_rng(3), 2000))
    true, other = (count_relations(counts, KnowledgeConfig(score_graph=kind)) for kind in ("lift", "shuffled"))
    assert count_relations(counts, KnowledgeConfig()) is None
    assert (true.lift != other.lift).any() and (other.lift.diagonal() == 0).all()
    np.testing.assert_array_equal(true.prior, other.prior)


def test_what_is_revealed_is_known_and_choices_are_revealed_whole():
    known = np.random.default_rng(4).random((4000, 5)) < 0.7
    known[:, 4] = known[:, 3]
    told = np.asarray(revealed(jax.random.key(0), known, GROUPS))
    assert not told[~known].any() and (told[:, 3] == told[:, 4]).all()
    nothing = (~told.any(1)).mean()
    assert 0.5 < nothing < 0.75 and told[known].mean() == pytest.approx(0.25, abs=0.03)


def test_a_larger_vocabulary_keeps_what_is_known_of_pairs_never_seen_again():
    old = Relations(np.full((2, 2), 0.5, np.float32), np.array([0.1, 0.2], np.float32))
    new = Relations(np.full((3, 3), 2.0, np.float32), np.full(3, 0.7, np.float32))
    seen = np.array([[1, 0, 1], [0, 0, 0], [1, 0, 1]], bool)
    lift, priors = extended_relations(old, ["b", "a"], new, ["a", "b", "new"], seen)
    np.testing.assert_allclose(lift, [[2, 0.5, 2], [0.5, 0.5, 0], [2, 0, 2]])
    np.testing.assert_allclose(priors, [0.7, 0.1, 0.7])


def test_training_with_labels_revealed_makes_facts_count_and_words_reach_labels_never_counted():
    """b's picture says nothing: told a, the graph knows b. f, never counted, has b's words: told a, it follows too."""
    rng = np.random.default_rng(5)
    labels = faces(rng, 3000).astype(np.float32)
    # f goes wherever b goes, but no count has it.
    labels = np.concatenate([labels, labels[:, 1:2]], 1)
    counts = counts_of(labels, np.arange(6)[None] < np.full((3000, 1), 5))
    relations = count_relations(counts, CONFIG)
    prompts = np.eye(6, dtype=np.float32)
    prompts[5] = prompts[1] + 0.1 * prompts[5]
    groups = np.array([[False] * 3 + [True, True, False]])
    config = KnowledgeConfig(score_graph="lift", score_rank=4)
    graph = ScoreGraph(config)
    params = graph.init(jax.random.key(0), jnp.zeros((1, 6)), prompts, relations, groups)["params"]
    seen = jnp.asarray(labels) + rng.normal(size=labels.shape) * 2
    scores = jnp.where(jnp.isin(jnp.arange(6), jnp.array([1, 5])), 0.0, seen - 0.5)
    known = np.ones((3000, 6), bool)
    known[:, 5] = False  # nobody annotates f

    def loss(params, key):
        told = Facts(labels, revealed(key, known, groups))
        out = graph.apply({"params": params}, scores, prompts, relations, groups, told)
        return (optax.sigmoid_binary_cross_entropy(out, labels) * known).sum() / known.sum()

    optimiser = optax.adam(0.02)

    @jax.jit
    def run(params):
        def step(carry, key):
            params, state = carry
            updates, state = optimiser.update(jax.grad(loss)(params, key), state)
            return (optax.apply_updates(params, updates), state), None

        return jax.lax.scan(step, (params, optimiser.init(params)), jax.random.split(jax.random.key(1), 300))[0][0]

    trained = run(params)
    told = Facts(labels, np.arange(6)[None] == np.zeros((3000, 1)))
    out = np.asarray(graph.apply({"params": trained}, scores, prompts, relations, groups, told))
    right = ((out > 0) == (labels > 0.5)).mean(0)
    assert right[1] > 0.8, right
    assert np.corrcoef(out[:, 5], labels[:, 5])[0, 1] > 0.5
