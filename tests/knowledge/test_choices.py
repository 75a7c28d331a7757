"""The head's choices: a softmax among the options of a group, in value and cost, against sums in float64."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fi_jax.config import Experiment, KnowledgeConfig
from fi_jax.config_tree import from_dict, to_dict
from fi_jax.knowledge.choices import head_groups, score_cross_entropy, score_log_probs
from fi_jax.labels.registry import vocabulary
from fi_jax.labels.tasks import age_labels
from fi_jax.labels.vocabulary import Group, Label, Vocabulary

VOCAB = Vocabulary(
    "letters",
    tuple(Label(c, c) for c in "abcdefg"),
    (Group("first", ("b", "c", "d"), "exactly_one"), Group("second", ("d", "e", "f"), "exactly_one")),
)
# d is an option of both.
GROUPS = head_groups(KnowledgeConfig(), VOCAB)
MEMBERS = ([1, 2, 3], [3, 4, 5])
N = len(VOCAB)
COST = jax.jit(score_cross_entropy)


def softmax(x):
    x = np.exp(x - x.max())
    return x / x.sum()


@settings(deadline=None, max_examples=30)
@given(st.integers(0, 9999), st.sampled_from([1.0, 10.0, 60.0]))
def test_probabilities_of_yes_and_no(seed, scale):
    scores = scale * np.random.default_rng(seed).normal(size=(3, N)).astype(np.float32)
    said = score_log_probs(jnp.asarray(scores), GROUPS)
    for row, (yes, no) in enumerate(zip(said.yes, said.no, strict=True)):
        s = scores[row].astype(np.float64)
        p, q = 1 / (1 + np.exp(-s)), 1 / (1 + np.exp(s))
        options = {(g, i): v for g, at in enumerate(MEMBERS) for i, v in zip(at, softmax(s[at]), strict=True)}
        for i in range(1, 6):
            own = [options[g, i] for g, at in enumerate(MEMBERS) if i in at]
            rest = [sum(options[g, j] for j in at if j != i) for g, at in enumerate(MEMBERS) if i in at]
            p[i], q[i] = np.mean(own), np.mean(rest)
        np.testing.assert_allclose(yes, np.log(p), rtol=2e-5, atol=2e-5)
        np.testing.assert_allclose(no, np.log(q), rtol=2e-5, atol=2e-5)


def test_a_bernoulli_head_is_sigmoids():
    bernoulli = KnowledgeConfig(head="bernoulli")
    assert head_groups(bernoulli, vocabulary("faces")) is None
    scores = jnp.asarray(np.random.default_rng(0).normal(size=(2, N)), jnp.float32)
    np.testing.assert_array_equal(score_log_probs(scores, None).yes, jax.nn.log_sigmoid(scores))


@settings(deadline=None, max_examples=30)
@given(st.integers(0, 9999))
def test_cross_entropy_of_what_is_annotated(seed):
    """A choice costs what its annotated part says: of options that are not annotated, their sum."""
    rng = np.random.default_rng(seed)
    scores = 3 * rng.normal(size=(4, N)).astype(np.float32)
    labels = np.zeros((4, N), np.float32)
    labels[:, [0, 6]] = rng.random((4, 2))
    # d never holds, so that both choices are free of each other; years have two-hot targets.
    share = rng.random(4).astype(np.float32)
    labels[:, 1], labels[:, 2] = share, 1 - share
    labels[np.arange(4), rng.integers(4, 6, 4)] = 1
    known = rng.random((4, N)) < 0.6
    total, count = 0.0, 0
    for s, y, k in zip(scores.astype(np.float64), labels.astype(np.float64), known, strict=True):
        for i in (0, 6):
            total += k[i] * (np.log1p(np.exp(-s[i])) * y[i] + np.log1p(np.exp(s[i])) * (1 - y[i]))
            count += k[i]
        for at in MEMBERS:
            p, told = softmax(s[at]), k[at]
            mass = (y[at] * told).sum()
            left = 1 - mass if not told.all() else 0.0
            if not told.any() or mass + left < 1e-9:
                continue
            total -= (y[at] * told * np.log(p)).sum() + (left * np.log(p[~told].sum()) if not told.all() else 0.0)
            count += 1
    np.testing.assert_allclose(COST(scores, labels, known, GROUPS), (total, count), rtol=1e-4, atol=1e-4)


def test_a_perfect_two_hot_answer_costs_its_entropy_and_has_no_slope():
    """The Bernoulli head counted evidence twice: at this very answer it was pushed away."""
    vocab = vocabulary("faces")
    groups = head_groups(KnowledgeConfig(), vocab)
    targets = {name: value for name, value in age_labels(31.0).items() if name.startswith("years:")}
    at = [vocab.index(name) for name in targets]
    y = np.array(list(targets.values()))
    assert sorted(y)[-2:] == pytest.approx([0.2, 0.8])
    labels, known = np.zeros((1, len(vocab)), np.float32), np.zeros((1, len(vocab)), bool)
    labels[0, at], known[0, at] = y, True
    scores = np.zeros((1, len(vocab)), np.float32)
    scores[0, at] = np.where(y > 0, np.log(np.maximum(y, 1e-9)), -40.0) + 5.0
    (cost, count), slope = COST(scores, labels, known, groups), jax.grad(lambda s: COST(s, labels, known, groups)[0])
    assert float(cost) == pytest.approx(-(y[y > 0] * np.log(y[y > 0])).sum(), abs=1e-4) and float(count) == 1
    np.testing.assert_allclose(slope(jnp.asarray(scores)), 0, atol=1e-5)


def test_a_weight_between_0_and_1_scales_a_choice():
    """Blended faces: an option that only one of the two faces annotates counts by that face's share."""
    scores, labels = np.zeros((1, N), np.float32), np.zeros((1, N), np.float32)
    labels[0, 1] = 1
    known = np.zeros((1, N), np.float32)
    known[0, 1:4] = 0.25
    np.testing.assert_allclose(COST(scores, labels, known, GROUPS), (0.25 * np.log(3) * 1 + 0.25 * np.log(1.5), 0.5))


def test_configs_written_before_have_a_bernoulli_head():
    old = to_dict(Experiment())
    del old["model"]["knowledge"]["head"]
    assert from_dict(Experiment, old).model.knowledge.head == "bernoulli"
    assert from_dict(Experiment, to_dict(Experiment())) == Experiment()
