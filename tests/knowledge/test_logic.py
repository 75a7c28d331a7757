"""L_c: values against brute force, zero exactly when the rules hold, gradients that mean what they should."""

import itertools
import math
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fi_jax.knowledge import logic
from fi_jax.knowledge.logic import LogProbs, broken, compile_rules, log_probs
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


def of(p) -> LogProbs:
    """What probabilities say, as the module takes it."""
    return LogProbs(jnp.log(p), jnp.log1p(-p))


# Of probabilities. Compiled once: op-by-op dispatch is most of the time otherwise.
@partial(jax.jit, static_argnames="categorical")
def violations(p, scope, table, facts=None, categorical=False):
    return logic.violations(of(p), scope, table, facts, categorical)


@partial(jax.jit, static_argnames=("form", "categorical"))
def logic_loss(p, scope, table, form="semantic", alpha=1.0, categorical=False):
    return logic.logic_loss(of(p), scope, table, None, form, alpha, categorical)


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
def test_finite_with_finite_gradients_when_certain(form, categorical):
    def loss(logits):
        every = jnp.ones(logits.shape, bool)
        return logic.logic_loss(log_probs(logits), every, TABLE, None, form, categorical=categorical)[0]

    compiled = jax.jit(jax.value_and_grad(loss))
    for certainty in (0.0, 20.0, 90.0, 1e3, 1e9):
        logits = np.where(ALL, certainty, -certainty).astype(np.float32)
        value, gradient = compiled(logits)
        assert np.isfinite(value) and np.isfinite(gradient).all()


@pytest.mark.parametrize("form", ["semantic", "lcp"])
def test_an_implication_never_denies_its_premise(form):
    table = compile_rules([implies("a", "bc", "test")], VOCAB)

    def loss(logits):
        total, count = logic.logic_loss(log_probs(logits), jnp.ones(logits.shape, bool), table, form=form)
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
    # The four rules are one family: their mean counts once.
    np.testing.assert_allclose(total, want / 4, rtol=1e-5)
    assert count == 1


def test_lcp_skips_rules_without_premise_mass():
    table = compile_rules(RULES[:3], VOCAB)
    total, count = logic_loss(np.zeros((4, N), np.float32), np.ones((4, N), bool), table, "lcp")
    assert total == 0 and count == 0
    every, never = jnp.ones((4, N), bool), jnp.full((4, N), -1e9)
    gradient = jax.grad(lambda s: logic.logic_loss(log_probs(s), every, table, form="lcp")[0])(never)
    assert np.isfinite(gradient).all()


def test_sums_and_counts_add_up_over_micro_batches():
    rng = np.random.default_rng(3)
    p, scope = rng.random((12, N)).astype(np.float32), rng.random((12, N)) < 0.8
    sums = [logic_loss(p[s], scope[s], TABLE) for s in (slice(5), slice(5, 6), slice(6, None))]
    np.testing.assert_allclose(np.sum(sums, 0), logic_loss(p, scope, TABLE), rtol=1e-5)


def test_without_rules_there_is_nothing_to_break():
    """A table of yes/no labels alone has no rule."""
    table, p = compile_rules((), VOCAB), np.full((3, N), 0.5, np.float32)
    assert table.rest.shape == (0, 1, 1)
    for categorical in (False, True):
        total, count = logic_loss(p, np.ones(p.shape, bool), table, categorical=categorical)
        assert total == 0 and count == 0


def test_every_family_has_the_same_say():
    names = ("a", "b", *(f"years:{i}" for i in range(20)), "age:0")
    vocabulary_ = Vocabulary("aged", tuple(Label(name, name) for name in names))
    rules = (excludes("a", ["b"], "test"), *(implies(name, ["age:0"], "test") for name in names[2:22]))
    p = np.random.default_rng(4).random((5, len(names))).astype(np.float32)
    total, count = logic_loss(p, np.ones(p.shape, bool), compile_rules(rules, vocabulary_))
    one = -np.log1p(-p[:, 0] * p[:, 1])
    twenty = -np.log1p(-p[:, 2:22] * (1 - p[:, 22:])).mean(1)
    np.testing.assert_allclose((total, count), ((one + twenty).sum(), 2 * len(p)), rtol=1e-5)


def exact_cost(logits, rule, categorical=False):
    """-log(1 - v) of one rule on each face, v and 1 - v each summed over all outcomes, in the caller's precision.

    With `categorical`, the last three labels are one choice.
    """
    p, q = jax.nn.sigmoid(logits), jax.nn.sigmoid(-logits)
    if categorical:
        choice = jax.nn.softmax(logits[:, 4:])
        p = p.at[:, 4:].set(choice)
        q = q.at[:, 4:].set(choice[:, [1, 2, 0]] + choice[:, [2, 0, 1]])
    at = [VOCAB.index(name) for name in rule.labels]
    chance = [0.0] * (len(at) + 1)
    if categorical and min(at) >= 4:
        chance[0] = sum((p[:, i] for i in range(4, N) if i not in at), jnp.zeros(len(p)))
        chance[1] = sum(p[:, i] for i in at)
    else:
        for bits in itertools.product([0, 1], repeat=len(at)):
            parts = [p[:, i] if bit else q[:, i] for i, bit in zip(at, bits, strict=True)]
            chance[sum(bits)] += math.prod(parts)
    none, one, some, many = chance[0], chance[1], sum(chance[1:]), sum(chance[2:])
    sg = jax.lax.stop_gradient
    if rule.kind == "at_most_one":
        v, kept = many, none + one
    elif rule.kind == "exactly_one":
        v, kept = none + many, one
    else:
        a, not_a = p[:, VOCAB.index(rule.premise)], q[:, VOCAB.index(rule.premise)]
        v, kept = (sg(a) * none, sg(not_a) + sg(a) * some) if rule.kind == "implies" else (a * some, not_a + a * none)
    cost = jnp.where(v < 0.5, -jnp.log1p(-jnp.where(v < 0.5, v, 0)), -jnp.log(kept))
    return 0.5 * (cost + sg(cost)) if rule.kind == "excludes" else cost


CHOICE_RULES = (implies("a", "fg", "test"), excludes("a", "ef", "test"), implies("b", "e", "test"))


def costs_and_slopes(cost, logits):
    """Each face's cost and its gradient."""
    return cost(logits), jax.grad(lambda s: cost(s).sum())(logits)


@pytest.fixture(scope="module")
def compared():
    """`compared(logits)` holds float32 costs and gradients of every rule against float64 ones."""
    cases = [(rule, False) for rule in RULES] + [(rule, True) for rule in CHOICE_RULES]

    def ours(rule, categorical, logits):
        table = compile_rules([rule, RULES[3]] if categorical else [rule], VOCAB)

        def cost(logits):
            said = log_probs(logits)
            if categorical:
                yes = jax.nn.log_softmax(logits[:, 4:])
                rest = jnp.stack([jnp.delete(yes, i, 1, assume_unique_indices=True) for i in range(3)], 1)
                no = jax.nn.logsumexp(rest, -1)
                said = LogProbs(said.yes.at[:, 4:].set(yes), said.no.at[:, 4:].set(no))
            one = lambda yes, no: logic.logic_loss(  # noqa: E731
                LogProbs(yes[None], no[None]), jnp.ones((1, N), bool), table, categorical=categorical
            )
            return jax.vmap(one)(*said)[0]

        return costs_and_slopes(cost, logits)

    def theirs(rule, categorical, logits):
        return costs_and_slopes(lambda s: exact_cost(s, rule, categorical), logits)

    def over_cases(one):
        return jax.jit(lambda logits: [one(rule, categorical, logits) for rule, categorical in cases])

    mine, reference = over_cases(ours), over_cases(theirs)

    def compare(logits):
        logits = np.asarray(logits, np.float32)
        found = mine(logits)
        with jax.enable_x64(True):
            wanted = reference(logits.astype(np.float64))
        for (rule, categorical), got, want in zip(cases, found, wanted, strict=True):
            assert want[0].dtype == np.float64 and got[0].dtype == np.float32
            yield f"{rule}{' of a choice' * categorical}", got, want

    return compare


# Logits of p = 0.5, 1 - 1e-7, 1 - 1e-12, 1 - 1e-13 and their complements.
SATURATED = (0.0, 16.118, -16.118, 27.631, -27.631, 30.0, -30.0)


@settings(deadline=None, max_examples=60)
@given(st.integers(0, 9999), st.sampled_from([1.0, 4.0, 12.0, None]))
def test_costs_and_gradients_are_those_of_float64(compared, seed, scale):
    rng = np.random.default_rng(seed)
    logits = rng.choice(SATURATED, (32, N)) if scale is None else scale * rng.normal(size=(32, N))
    for name, (cost, slope), (true_cost, true_slope) in compared(logits):
        # Relative: a rule broken by 1e-20 costs 1e-20, one kept by 1e-20 costs 46.
        np.testing.assert_allclose(cost, true_cost, rtol=2e-5, atol=1e-37, err_msg=name)
        # Of logits, so at most about one: a few units in the last place of that.
        np.testing.assert_allclose(slope, true_slope, rtol=2e-5, atol=3e-7, err_msg=name)


def test_a_certain_breach_still_pulls():
    """Where sigmoid has rounded to one, the gradient is that of the logits."""
    table = compile_rules(RULES[:1], VOCAB)
    logits = jnp.full((1, N), -30.0).at[0, 0].set(30.0)
    cost, slope = costs_and_slopes(lambda s: logic.logic_loss(log_probs(s), jnp.ones((1, N), bool), table)[0], logits)
    np.testing.assert_allclose(cost, 30 - np.log(3), rtol=1e-6)
    np.testing.assert_allclose(slope[0, :4], [0, -1 / 3, -1 / 3, 0], rtol=1e-5)


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


def test_members_of_two_choices_are_two_choices():
    """One of two alternatives has the sum of their chances; two choices are independent of each other."""
    groups = (Rule("exactly_one", tuple("abc"), "test"), Rule("exactly_one", tuple("def"), "test"))
    table = compile_rules((excludes("g", "abdef"[:4], "test"), implies("g", "abd", "test"), *groups), VOCAB)
    p = np.array([[0.2, 0.3, 0.5, 0.6, 0.1, 0.3, 0.7], [0.0, 1.0, 0.0, 0.5, 0.5, 0.0, 1.0]], np.float32)
    v, mask = violations(p, np.ones(p.shape, bool), table, categorical=True)
    first, second = p[:, 0] + p[:, 1], p[:, 3] + p[:, 4]
    some = 1 - (1 - first) * (1 - second)
    none = (1 - first) * (1 - p[:, 3])
    np.testing.assert_allclose(v[:, 0], p[:, 6] * some, atol=1e-6)
    np.testing.assert_allclose(v[:, 1], p[:, 6] * none, atol=1e-6)
    assert not mask[:, 2:].any()


def test_broken_rules_of_faces():
    hard = np.zeros((4, N), bool)
    hard[:, 6] = True  # g: exactly one of e, f, g holds
    hard[0, 0] = True  # a without b or c
    hard[1, [1, 3]] = True  # b with d
    scope = np.ones((4, N), bool)
    scope[3] = False  # a face that nothing was asked of has no rule in scope
    breaks, mask = broken(hard, scope, TABLE)
    assert breaks.any(-1).tolist() == [True, True, False, False] and mask.any(-1).tolist() == [True] * 3 + [False]


def test_real_vocabularies_compile_and_trace_once():
    vocab = vocabulary("faces")
    table = compile_rules(rules_for(vocab), vocab)
    step = jax.jit(jax.grad(lambda p, s, t: logic_loss(p, s, t)[0]))
    p = jnp.full((2, len(vocab)), 0.3)
    assert np.isfinite(step(p, jnp.ones(p.shape, bool), table)).all()
