"""L_c: values against brute force, zero exactly when the rules hold, gradients that mean what they should."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fi_jax.knowledge import logic
from fi_jax.knowledge.logic import LogicPieces, broken, compile_rules, violation_rate
from fi_jax.labels.registry import vocabulary
from fi_jax.labels.rule_tables import rules_for
from fi_jax.labels.rules import Rule, excludes, implies
from fi_jax.labels.vocabulary import Label, Vocabulary

VOCAB = Vocabulary("letters", tuple(Label(c, c) for c in "abcdefg"))
RULES = (
    implies("a", "bc", "test"),
    excludes("b", "de", "test"),
    Rule("at_most_one", ("c", "d", "e"), "test"),
    Rule("exactly_one", ("e", "f", "g"), "test"),
)
TABLE = compile_rules(RULES, VOCAB)
N = len(VOCAB)
# Compiled once: op-by-op dispatch is most of the time otherwise.
violations = jax.jit(logic.violations, static_argnames="categorical")
logic_pieces = jax.jit(logic.logic_pieces, static_argnames="categorical")
logic_loss = jax.jit(logic.logic_loss, static_argnames=("form", "categorical"))
combine = jax.jit(logic.combine, static_argnames="form")
ALL = np.array(list(itertools.product([False, True], repeat=N)))


def in_words(face, rule) -> bool:
    """Whether `face` (label -> bool) breaks `rule`, straight from the rule's meaning."""
    holding = sum(face[name] for name in rule.labels)
    return {
        "implies": rule.premise and face.get(rule.premise) and holding == 0,
        "excludes": rule.premise and face.get(rule.premise) and holding > 0,
        "at_most_one": holding > 1,
        "exactly_one": holding != 1,
    }[rule.kind]


def expected_violation(p, rule) -> float:
    """The design's formulas with probabilities by enumeration."""
    p = dict(zip(VOCAB.names, p, strict=True))
    chance = {}
    for bits in itertools.product([0, 1], repeat=len(rule.labels)):
        weight = np.prod([p[name] if bit else 1 - p[name] for name, bit in zip(rule.labels, bits, strict=True)])
        chance[sum(bits)] = chance.get(sum(bits), 0) + weight
    if rule.kind == "implies":
        return p[rule.premise] * chance[0]
    if rule.kind == "excludes":
        return p[rule.premise] * (1 - chance[0])
    return 1 - chance[1] - (chance[0] if rule.kind == "at_most_one" else 0)


def test_values_equal_enumeration():
    p = np.random.default_rng(0).random((16, N))
    v, mask = violations(p, np.ones(p.shape, bool), TABLE)
    want = [[expected_violation(row, rule) for rule in RULES] for row in p]
    np.testing.assert_allclose(v, want, atol=1e-6)
    assert mask.all()


def test_hard_answers_agree_with_the_rules_in_words():
    every = np.ones(ALL.shape, bool)
    want = np.array([[bool(in_words(dict(zip(VOCAB.names, row, strict=True)), r)) for r in RULES] for row in ALL])
    v, mask = violations(ALL.astype(np.float32), every, TABLE)
    np.testing.assert_array_equal(v, want)
    np.testing.assert_array_equal(broken(ALL, every, TABLE)[0], want)
    np.testing.assert_array_equal(broken(ALL, every, TABLE)[1], mask)


@pytest.mark.parametrize("form", ["semantic", "lcp"])
def test_zero_exactly_when_every_rule_holds(form):
    for row in ALL:
        total, count = logic_loss(row[None].astype(np.float32), np.ones((1, N), bool), TABLE, form)
        breaks = broken(row[None], np.ones((1, N), bool), TABLE)[0].any()
        assert (total > 0) == breaks and np.isfinite(total) and count > 0


@pytest.mark.parametrize("form", ["semantic", "lcp"])
@pytest.mark.parametrize("categorical", [False, True])
def test_finite_with_finite_gradients_at_0_and_1(form, categorical):
    def loss(p):
        return logic_loss(p, jnp.ones(p.shape, bool), TABLE, form, categorical=categorical)[0]

    for p in (ALL.astype(np.float32), np.full((2, N), 0.5, np.float32)):
        value, gradient = jax.jit(jax.value_and_grad(loss))(p)
        assert np.isfinite(value) and np.isfinite(gradient).all()


@pytest.mark.parametrize("form", ["semantic", "lcp"])
def test_an_implication_never_denies_its_premise(form):
    table = compile_rules([implies("a", "bc", "test")], VOCAB)

    def loss(logits):
        p = jax.nn.sigmoid(logits)
        total, count = logic_loss(p, jnp.ones(p.shape, bool), table, form)
        return total / count

    logits = jnp.zeros((3, N)).at[:, 0].set(1.0)
    start, slope = loss(logits), jax.jit(jax.grad(loss))
    for _ in range(100):
        gradient = slope(logits)
        np.testing.assert_array_equal(gradient[:, 0], 0)
        logits -= 1.0 * gradient
    assert (logits[:, 0] == 1.0).all()
    assert (logits[:, 1:3] > 0.5).all() and loss(logits) < 0.5 * start
    np.testing.assert_array_equal(logits[:, 3:], 0)


def test_an_exclusion_pushes_both_sides_evenly():
    table = compile_rules([excludes("a", "b", "test")], VOCAB)

    def v(p):
        return violations(p, jnp.ones(p.shape, bool), table)[0].sum()

    p = jnp.zeros((1, N)).at[0, 0].set(0.9).at[0, 1].set(0.4)
    np.testing.assert_allclose(jax.grad(v)(p)[0, :2], [0.2, 0.45], atol=1e-6)


def test_lcp_against_numpy():
    p = np.random.default_rng(2).random((9, N)).astype(np.float32)
    a, b, c, d, e, f, g = p.T
    some = lambda *q: 1 - np.prod(1 - np.array(q), 0)  # noqa: E731
    p_implied = (a * some(b, c)).sum() / a.sum()
    p_excluded = (b * some(d, e)).sum() / b.sum()
    apart = (c * some(d, e) + d * some(c, e) + e * some(c, d)).sum() / (c + d + e).sum()
    one = some(e, f, g).mean()
    clash = (e * some(f, g) + f * some(e, g) + g * some(e, f)).sum() / (e + f + g).sum()
    alpha = 0.7
    want = (1 - p_implied) ** 2 + (alpha * p_excluded) ** 2 + (alpha * apart) ** 2 + (1 - one + alpha * clash) ** 2
    total, count = logic_loss(p, np.ones(p.shape, bool), TABLE, "lcp", alpha)
    np.testing.assert_allclose(total, want, rtol=1e-5)
    assert count == 4


def test_lcp_skips_rules_without_premise_mass():
    table = compile_rules(RULES[:3], VOCAB)
    total, count = logic_loss(np.zeros((4, N), np.float32), np.ones((4, N), bool), table, "lcp")
    assert total == 0 and count == 0
    gradient = jax.grad(lambda p: logic_loss(p, jnp.ones(p.shape, bool), table, "lcp")[0])(jnp.zeros((4, N)))
    assert np.isfinite(gradient).all()


@pytest.mark.parametrize("form", ["semantic", "lcp"])
def test_pieces_add_up_over_micro_batches(form):
    rng = np.random.default_rng(3)
    p, scope = rng.random((12, N)).astype(np.float32), rng.random((12, N)) < 0.8
    whole = logic_loss(p, scope, TABLE, form)
    parts = [logic_pieces(p[s], scope[s], TABLE) for s in (slice(5), slice(5, 6), slice(6, None))]
    np.testing.assert_allclose(combine(LogicPieces(*map(sum, zip(*parts, strict=True))), form, 1.0), whole, rtol=1e-5)
    if form == "semantic":
        sums = [logic_loss(p[s], scope[s], TABLE, form) for s in (slice(5), slice(5, 6), slice(6, None))]
        np.testing.assert_allclose(np.sum(sums, 0), whole, rtol=1e-5)


@settings(deadline=None, max_examples=40)
@given(st.integers(0, 9999))
def test_out_of_scope_labels_have_no_say(seed):
    rng = np.random.default_rng(seed)
    p, other = rng.random((2, 5, N)).astype(np.float32)
    scope = rng.random((5, N)) < 0.6
    v, mask = violations(p, scope, TABLE)
    v2, mask2 = violations(np.where(scope, p, other), scope, TABLE)
    np.testing.assert_array_equal(mask, mask2)
    np.testing.assert_array_equal(v, v2)
    assert (np.asarray(v)[~np.asarray(mask)] == 0).all()
    np.testing.assert_array_equal(mask, broken(p > 0.5, scope, TABLE)[1])
    # A rule broken by what was asked is broken whatever the rest may be.
    hard = p > 0.5
    completions = np.where(scope[:, None], hard[:, None], ALL[None])
    surely = np.stack([broken(c, np.ones(c.shape, bool), TABLE)[0].all(0) for c in completions])
    assert (broken(hard, scope, TABLE)[0] <= surely).all()


def test_scope_of_each_kind():
    scope = np.array([[name in asked for name in "abcdefg"] for asked in ("ab", "bd", "b", "cd", "efg", "ef")])
    _, mask = violations(np.ones(scope.shape, np.float32), scope, TABLE)
    # implies needs b and c; excludes and at_most_one make do with what is there; exactly_one needs all.
    assert [list(np.flatnonzero(row)) for row in np.asarray(mask)] == [[], [1], [], [2], [3], []]


def test_one_choice_is_not_asked_to_be_sure():
    """A softmax over e, f, g holds exactly one by itself: undecided answers must not cost anything."""
    p = np.array([[0.5, 0.5, 0.5, 0.0, 0.2, 0.3, 0.5]], np.float32)
    scope = np.ones((1, N), bool)
    rules = (*RULES, implies("a", "fg", "test"), excludes("a", "ef", "test"))
    table = compile_rules(rules, VOCAB)
    v, mask = violations(p, scope, table, categorical=True)
    assert list(mask[0]) == [True, True, True, False, True, True]
    np.testing.assert_allclose(v[0, 4:], [0.5 * 0.2, 0.5 * 0.5], atol=1e-6)
    independent, mask = violations(p, scope, table)
    assert mask.all() and independent[0, 3] > 0.5
    gradient = jax.grad(lambda p: logic_loss(p, scope, table, categorical=True)[0])(jnp.asarray(p))
    assert gradient[0, 4] > gradient[0, 6]  # f is both wanted and unwanted; only e is purely unwanted


def test_violation_rate_counts_faces():
    hard = np.zeros((4, N), bool)
    hard[:, 6] = True  # g: exactly one of e, f, g holds
    hard[0, 0] = True  # a without b or c
    hard[1, [1, 3]] = True  # b with d
    scope = np.ones((4, N), bool)
    assert violation_rate(hard, scope, TABLE) == 0.5
    scope[3] = False  # a face that nothing was asked of is not counted
    assert violation_rate(hard, scope, TABLE) == pytest.approx(2 / 3)
    assert np.isnan(violation_rate(hard, np.zeros_like(scope), TABLE))


def test_real_vocabularies_compile_and_trace_once():
    vocab = vocabulary("faces")
    table = compile_rules(rules_for(vocab), vocab)
    step = jax.jit(jax.grad(lambda p, s, t: logic_loss(p, s, t)[0]))
    p = jnp.full((2, len(vocab)), 0.3)
    assert np.isfinite(step(p, jnp.ones(p.shape, bool), table)).all()
