"""The terms of L: against plain formulas, with unknown labels, padding faces and unasked labels out of it."""

from dataclasses import replace
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fi_jax.config import LOSS_TERMS, LossConfig
from fi_jax.knowledge.logic import RuleTable, compile_rules
from fi_jax.labels.rules import Rule, excludes
from fi_jax.labels.vocabulary import Label, Vocabulary
from fi_jax.prompting.probabilities import label_log_probs, label_probabilities, option_probabilities
from fi_jax.training.losses import Answers, loss_terms, total

VOCABULARY = Vocabulary("abcd", tuple(Label(name, name) for name in "abcd"))
RULES: tuple[Rule, ...] = (excludes("a", ("b",), "test"), excludes("c", ("d",), "test"))
TABLE = RuleTable(*map(jnp.asarray, compile_rules(RULES, VOCABULARY)))
B, N, Q, K, M, V = 3, 4, 3, 4, 5, 11


def made(seed: int) -> tuple[Answers, dict[str, np.ndarray]]:
    """Random answers about three faces: a yes/no question, a choice of three, and an empty segment."""
    rng = np.random.default_rng(seed)
    option_tokens = np.tile(np.array([[5, 6, -1, -1], [1, 2, 3, -1], [-1] * 4]), (B, 1, 1))
    option_labels = np.tile(np.array([[0, -1, -1, -1], [1, 2, 3, -1], [-1] * 4]), (B, 1, 1))
    targets = np.zeros((B, Q, K), np.float32)
    targets[0, 0, :2], targets[1, 0, :2] = (1, 0), (0.25, 0.75)
    targets[0, 1, 2] = targets[2, 1, 0] = 1
    batch = {
        "labels": rng.random((B, N)).astype(np.float32),
        "known": rng.random((B, N)) < 0.6,
        "weight": np.array([1, 1, 1], np.float32),
        "option_tokens": option_tokens,
        "option_labels": option_labels,
        "option_targets": targets,
        "lm_targets": rng.integers(0, V, (B, M)),
        "lm_weights": (rng.random((B, M)) < 0.6).astype(np.float32),
    }
    logits = np.where(option_tokens >= 0, rng.normal(size=(B, Q, K)) * 2, -1e9).astype(np.float32)
    scores, tokens = rng.normal(size=(B, N)) * 3, rng.normal(size=(B, M, V))
    return Answers(jnp.asarray(scores, jnp.float32), None, jnp.asarray(logits), jnp.asarray(tokens, jnp.float32)), batch


# The rules of these tests are of one family, and every label is in scope.
EVERYWHERE = LossConfig(logic_scope="vocabulary")


@partial(jax.jit, static_argnums=2)
def terms_of(answers, batch, config):
    """One program for all tests: op by op, most of the time is dispatch."""
    return loss_terms(answers, batch, TABLE, config)


def values(answers, batch, config=EVERYWHERE) -> dict[str, tuple[float, float]]:
    return {name: (float(s), float(c)) for name, (s, c) in terms_of(answers, batch, config).items()}


@settings(max_examples=20)
@given(st.integers(0, 2**32 - 1))
def test_terms_equal_plain_formulas(seed):
    answers, batch = made(seed)
    terms = values(answers, batch)
    assert set(terms) == set(LOSS_TERMS)
    scores = np.asarray(answers.scores, np.float64)
    p = 1 / (1 + np.exp(-scores))
    y, known = batch["labels"], batch["known"]
    bernoulli = -(y * np.log(p) + (1 - y) * np.log(1 - p))
    np.testing.assert_allclose(terms["head_bce"], (bernoulli[known].sum(), known.sum()), rtol=1e-5, atol=1e-5)

    logits = np.asarray(answers.option_logits, np.float64)
    said = np.exp(logits - logits.max(-1, keepdims=True))
    said /= said.sum(-1, keepdims=True)
    targets = batch["option_targets"]
    asked = targets.sum(-1) > 0
    closed = -(targets * np.log(np.maximum(said, 1e-300))).sum(-1)[asked].sum()
    np.testing.assert_allclose(terms["bce"], (closed, asked.sum()), rtol=1e-5, atol=1e-5)

    tokens = np.asarray(answers.answer_logits, np.float64)
    log_p = tokens - np.log(np.exp(tokens).sum(-1, keepdims=True))
    picked = -np.take_along_axis(log_p, batch["lm_targets"][..., None], -1)[..., 0]
    expected = ((picked * batch["lm_weights"]).sum(), batch["lm_weights"].sum())
    np.testing.assert_allclose(terms["lm"], expected, rtol=1e-5, atol=1e-5)

    # Excludes: v = p_a·p_b; c and d are options of one question as far as `rules` know, independent here.
    v = np.stack([p[:, 0] * p[:, 1], p[:, 2] * p[:, 3]])
    np.testing.assert_allclose(terms["head_logic"], (-np.log1p(-v).mean(0).sum(), 3), rtol=1e-4, atol=1e-4)
    v = np.stack([said[:, 0, 0] * said[:, 1, 0], said[:, 1, 1] * said[:, 1, 2]])
    np.testing.assert_allclose(terms["logic"], (-np.log1p(-v).mean(0).sum(), 3), rtol=1e-4, atol=1e-4)


def test_padding_faces_count_for_nothing():
    answers, batch = made(0)
    batch["weight"] = np.array([1, 0, 1], np.float32)
    kept = {key: value[[0, 2]] for key, value in batch.items()}
    two = jax.tree.map(lambda part: part[jnp.array([0, 2])], answers)
    for name, value in values(two, kept).items():
        np.testing.assert_allclose(values(answers, batch)[name], value, rtol=1e-5, err_msg=name)


def test_unknown_labels_are_masked_with_their_gradient():
    answers, batch = made(1)
    batch["known"][0] = [True, False, True, False]

    def loss(scores, labels):
        return terms_of(answers._replace(scores=scores), {**batch, "labels": labels}, EVERYWHERE)["head_bce"][0]

    slopes = np.asarray(jax.grad(loss)(answers.scores, batch["labels"]))
    assert (slopes[~batch["known"]] == 0).all() and (slopes[batch["known"]] != 0).all()
    noise = np.where(batch["known"], batch["labels"], 1 - batch["labels"])
    assert float(loss(answers.scores, noise)) == float(loss(answers.scores, batch["labels"]))


def test_a_weight_of_zero_switches_its_term_off():
    answers, batch = made(2)
    for name in LOSS_TERMS:
        config = replace(EVERYWHERE, **{name: 0.0})
        terms = jax.eval_shape(lambda a, b, config=config: loss_terms(a, b, TABLE, config), answers, batch)
        assert set(terms) == set(LOSS_TERMS) - {name}


def test_a_stage_without_the_llm_has_the_heads_terms_alone():
    answers, batch = made(2)
    assert set(values(Answers(answers.scores), batch)) == {"head_bce", "head_logic"}


def test_labels_asked_twice_get_the_mean_and_unasked_ones_are_out_of_scope():
    labels = np.array([[[0, -1], [2, 0]]])
    tokens = np.array([[[7, 8], [9, 10]]])
    p, asked = label_probabilities(
        jnp.array([[[0.9, 0.1], [0.7, 0.3]]]), {"option_labels": labels, "option_tokens": tokens}, 4
    )
    np.testing.assert_allclose(p, [[0.6, 0, 0.7, 0]], atol=1e-6)
    assert asked.tolist() == [[True, False, True, False]]


@settings(max_examples=20)
@given(st.integers(0, 2**32 - 1), st.sampled_from([1.0, 10.0, 40.0]))
def test_log_probs_are_the_logarithms_of_label_probabilities(seed, scale):
    answers, batch = made(seed)
    logits = np.where(batch["option_tokens"] >= 0, scale * np.asarray(answers.option_logits), -1e9).astype(np.float32)
    # Label 1 is asserted by both questions.
    batch["option_labels"] = np.tile(np.array([[1, -1, -1, -1], [1, 2, 3, -1], [-1] * 4]), (B, 1, 1))
    said_logs, asked = label_log_probs(jnp.asarray(logits), batch, N)
    assert asked.tolist() == [[False, True, True, True]] * B
    said = np.exp(logits.astype(np.float64) - logits.max(-1, keepdims=True))
    said /= said.sum(-1, keepdims=True)
    other = np.stack([np.delete(said, k, -1).sum(-1) for k in range(K)], -1)
    for logs, p in ((said_logs.yes, said), (said_logs.no, other)):
        want = np.log(np.stack([(p[:, 0, 0] + p[:, 1, 0]) / 2, p[:, 1, 1], p[:, 1, 2]], -1))
        np.testing.assert_allclose(logs[:, 1:], want, rtol=1e-5, atol=1e-6)
    p, asked_too = label_probabilities(option_probabilities(jnp.asarray(logits)), batch, N)
    np.testing.assert_array_equal(asked, asked_too)
    np.testing.assert_allclose(np.exp(said_logs.yes[:, 1:]), p[:, 1:], rtol=1e-5, atol=1e-6)


def test_option_probabilities_leave_padding_out():
    answers, _ = made(3)
    p = np.asarray(option_probabilities(answers.option_logits))
    np.testing.assert_allclose(p.sum(-1), 1, atol=1e-6)
    assert (p[:, 0, 2:] == 0).all() and (p[:, 1, 3] == 0).all()


def test_the_total_is_weighted_and_divided_by_the_counts_given():
    terms = {"bce": (jnp.float32(3), jnp.float32(1)), "logic": (jnp.float32(4), jnp.float32(1))}
    assert float(total(terms, {"bce": 6.0, "logic": 2.0}, {"bce": 2.0, "logic": 0.5})) == pytest.approx(
        2 * 3 / 6 + 0.5 * 4 / 2
    )
    # A term of which nothing was counted is zero, not NaN.
    assert float(total({"bce": (jnp.float32(0), jnp.float32(0))}, {"bce": 0.0}, {"bce": 1.0})) == 0


def test_extreme_logits_stay_finite():
    answers, batch = made(4)
    wild = jax.tree.map(lambda part: part * 1e4, answers)
    loss = lambda a: sum(s for s, _ in terms_of(a, batch, LossConfig()).values())  # noqa: E731
    value, slopes = jax.value_and_grad(loss)(wild)
    assert np.isfinite(float(value)) and all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(slopes))


def test_rules_say_nothing_about_a_blend():
    answers, batch = made(0)
    for config in (EVERYWHERE, LossConfig()):
        plain = values(answers, batch, config)["head_logic"]
        np.testing.assert_allclose(plain, values(answers, {**batch, "whole": np.ones(B, bool)}, config)["head_logic"])
        first = values(answers, {**batch, "whole": np.arange(B) == 0}, config)["head_logic"]
        alone = {**batch, "weight": np.where(np.arange(B) == 0, batch["weight"], 0).astype(np.float32)}
        np.testing.assert_allclose(first, values(answers, alone, config)["head_logic"], rtol=1e-6)
        assert first != plain


def test_scores_that_hear_each_other_learn_alone_and_the_graph_from_what_they_are():
    answers, batch = made(0)
    heard = answers.scores + 0.3 * jnp.roll(answers.scores, 1, axis=1)
    alone, both = (
        values(Answers(scores, own), batch)["head_bce"]
        for scores, own in ((answers.scores, None), (heard, answers.scores))
    )
    passed = values(Answers(heard), batch)["head_bce"]
    assert both == pytest.approx((alone[0] + passed[0], alone[1]), rel=1e-5)

    def loss(own, message):
        given = Answers(own + message, own)
        return loss_terms(given, batch, TABLE, EVERYWHERE)["head_bce"][0]

    by_own = jax.grad(loss)(answers.scores, heard - answers.scores)
    np.testing.assert_allclose(
        by_own,
        jax.grad(lambda s: loss_terms(Answers(s), batch, TABLE, EVERYWHERE)["head_bce"][0])(answers.scores),
        atol=1e-6,
    )
