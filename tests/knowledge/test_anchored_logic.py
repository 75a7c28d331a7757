"""The anchored scope of L_c: what is annotated enters as fact, what nobody knows is left alone, nothing collapses."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fi_jax.knowledge.logic import Facts, LogProbs, compile_rules, log_probs, logic_loss, violations
from fi_jax.labels.rules import Rule, excludes, implies
from fi_jax.labels.vocabulary import Label, Vocabulary

VOCAB = Vocabulary("letters", tuple(Label(c, c) for c in "abcdef"))
RULES = (
    implies("a", "bc", "test"),
    excludes("b", "de", "test"),
    Rule("at_most_one", ("c", "d", "e"), "test"),
    Rule("exactly_one", ("d", "e", "f"), "test"),
)
TABLE = compile_rules(RULES, VOCAB)
N = len(VOCAB)


@jax.jit
def anchored(p, said, labels, known):
    return violations(LogProbs(jnp.log(p), jnp.log1p(-p)), said, TABLE, Facts(labels, known))


def broken(rule: Rule, holds: dict[str, bool]) -> bool:
    count = sum(holds[name] for name in rule.labels)
    return {
        "implies": bool(rule.premise and holds[rule.premise] and count == 0),
        "excludes": bool(rule.premise and holds[rule.premise] and count > 0),
        "at_most_one": count > 1,
        "exactly_one": count != 1,
    }[rule.kind]


def by_enumeration(p, labels, known, rule) -> float | None:
    """Chance in float64 that a rule is broken, facts taking the place of what is said; None out of scope.

    Exclusions count pairs of which one is known; where all labels are annotated, what is said counts. What the
    annotations break themselves is out of scope.
    """
    premise = [rule.premise] if rule.premise else []
    at = {name: VOCAB.index(name) for name in (*premise, *rule.labels)}
    complete = all(known[i] for i in at.values())
    facts = {} if complete else {name: bool(labels[i]) for name, i in at.items() if known[i]}
    if not complete and not facts:
        return None
    held = [name for name in rule.labels if facts.get(name)]
    if len(held) >= 2 and rule.kind in ("at_most_one", "exactly_one"):
        return None
    if held and rule.kind == "excludes" and facts.get(rule.premise):
        return None
    pairs = []
    if rule.kind == "excludes":
        pairs = [(rule.premise, name) for name in rule.labels]
    elif rule.kind == "at_most_one":
        pairs = list(itertools.combinations(rule.labels, 2))
    if pairs and not complete:
        pairs = [pair for pair in pairs if facts.keys() & set(pair)]
        if rule.kind == "at_most_one" and not any(facts.get(name) for name in rule.labels):
            return None
    free = [name for name in at if name not in facts]
    chance = 0.0
    for bits in itertools.product([False, True], repeat=len(free)):
        holds = facts | dict(zip(free, bits, strict=True))
        weight = np.prod([p[at[n]] if bit else 1 - p[at[n]] for n, bit in zip(free, bits, strict=True)])
        bad = any(holds[a] and holds[b] for a, b in pairs) if pairs else broken(rule, holds)
        chance += weight * bad
    return chance


@settings(deadline=None, max_examples=60)
@given(st.integers(0, 9999), st.floats(0, 1))
def test_values_and_scope_equal_enumeration(seed, share):
    rng = np.random.default_rng(seed)
    p, labels = rng.random((8, N)), rng.random((8, N)) < 0.5
    known = rng.random((8, N)) < share
    v, mask = anchored(p.astype(np.float32), np.ones((8, N), bool), labels.astype(np.float32), known)
    for row, rule in itertools.product(range(8), range(len(RULES))):
        want = by_enumeration(p[row], labels[row], known[row], RULES[rule])
        assert mask[row, rule] == (want is not None), (RULES[rule], known[row], labels[row])
        np.testing.assert_allclose(v[row, rule], want or 0.0, atol=1e-6)


def test_what_was_not_asked_enters_as_fact_or_not_at_all():
    """The LLM speaks of the labels it was asked about alone."""
    said = np.array([[name in "ad" for name in VOCAB.names]] * 2)
    known = np.array([[name in "bc" for name in VOCAB.names], [name == "b" for name in VOCAB.names]])
    labels = np.zeros((2, N), np.float32)
    labels[1, 1] = 1
    p = np.full((2, N), 0.25, np.float32)
    v, mask = anchored(p, said, labels, known)
    # Nobody knows c of the second face, so nothing follows from a; b is known to hold, so d must not.
    np.testing.assert_array_equal(mask, [[True, True, False, False], [False, True, False, False]])
    np.testing.assert_allclose(v[:, :2], [[0.25, 0.0], [0.0, 0.25]], atol=1e-6)


# One program for all rules of these tests, whose arrays have the same shapes.
@jax.jit
@jax.grad
def slopes(logits, table, labels, known):
    return logic_loss(log_probs(logits), jnp.ones((1, N), bool), table, Facts(labels, known))[0]


def slope(rule: Rule, p: list[float], labels: list[float], known: list[bool]) -> np.ndarray:
    # A rule of two labels beside it, out of scope, makes all tables as wide.
    table = compile_rules([rule, implies("f", "de", "test")], VOCAB)
    assert not (known[3] or known[4] or known[5])
    q = np.array([p])
    logits = np.log(q / (1 - q)).astype(np.float32)
    return np.asarray(slopes(logits, table, np.array([labels], np.float32), np.array([known])))[0]


def test_a_known_conclusion_teaches_the_premise():
    """A goatee on a face that is known to be no man's is denied; where the conclusion is open, it is what moves."""
    p, no = [0.4, 0.3, 0.2, 0.1, 0.1, 0.1], [0.0] * N
    taught = slope(implies("a", "bc", "test"), p, no, [False, True, True, False, False, False])
    assert taught[0] == pytest.approx(0.4) and (taught[1:] == 0).all()
    moved = slope(implies("a", "bc", "test"), p, [1.0, *no[1:]], [True] + [False] * 5)
    assert moved[0] == 0 and (moved[1:3] < 0).all()


def test_an_exclusion_by_a_fact_pushes_with_its_whole_weight():
    p, yes = [0.9, 0.4, 0.2, 0.1, 0.1, 0.1], [1.0] + [0.0] * 5
    assert slope(excludes("a", "b", "test"), p, yes, [True] + [False] * 5)[1] == pytest.approx(0.4)
    assert slope(excludes("b", "a", "test"), p, yes, [True] + [False] * 5)[1] == pytest.approx(0.4)
    # Neither side known: left alone.
    assert (slope(excludes("a", "b", "test"), p, yes, [False] * N) == 0).all()


# Faces of two sets: one annotates hair and beards but no ages, the other ages alone. Two fifths are children.
NAMES = ("age:child", "age:adult", "black", "blond", "gray", "goatee", "mustache", "shaved", "young", "bald")
FACES = Vocabulary("drawn", tuple(Label(name, name) for name in NAMES))
FACE_RULES = (
    excludes("age:child", ("goatee", "mustache", "gray"), "drawn"),
    implies("age:child", ("young",), "drawn"),
    implies("age:child", ("shaved",), "drawn"),
    Rule("at_most_one", ("black", "blond", "gray"), "drawn"),
    excludes("shaved", ("goatee", "mustache"), "drawn"),
    excludes("bald", ("black", "blond", "gray"), "drawn"),
    excludes("young", ("gray",), "drawn"),
)
AGES, RULED = [0, 1], [FACES.index(name) for name in ("black", "blond", "gray", "goatee", "mustache")]


def drawn(rng: np.random.Generator, count: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """`(features, labels, known)` of faces: noisy measurements of every label, and which of the two sets it is of."""
    child = rng.random(count) < 0.4
    hair = rng.choice(4, count, p=[0.3, 0.3, 0.25, 0.15])
    young = child | (rng.random(count) < 0.4)
    gray, bald = (hair == 2) & ~young, (hair == 3) & ~child
    goatee, mustache = (~child & (rng.random(count) < 0.45) for _ in range(2))
    labels = np.stack(
        [child, ~child, hair == 0, hair == 1, gray, goatee, mustache, ~goatee & ~mustache, young, bald], 1
    )
    half = count // 2
    seen = labels + 0.9 * rng.normal(size=labels.shape)
    seen[half:, AGES] = labels[half:, AGES] + 0.3 * rng.normal(size=(count - half, 2))
    withheld = np.arange(count)[:, None] >= half
    # Its photographs look otherwise, so that nothing generalises by itself.
    features = np.concatenate([seen, 4.0 * withheld], 1)
    known = withheld == np.isin(np.arange(len(NAMES)), AGES)
    return features.astype(np.float32), labels.astype(np.float32), known


def trained(scope: str, data) -> np.ndarray:
    """Probabilities of a small network trained with L_bce, and L_c of some scope, on everything that is annotated."""
    features, labels, known = data
    table = compile_rules(FACE_RULES, FACES)
    rng = np.random.default_rng(1)
    shapes = ((features.shape[1], 96), (96,), (96, len(FACES)))
    params = [rng.normal(size=shape).astype(np.float32) * 0.3 for shape in shapes]
    optimiser = optax.adam(0.01)

    def logits(params):
        return jax.nn.relu(features @ params[0] + params[1]) @ params[2]

    def loss(params):
        scores = logits(params)
        bce = (optax.sigmoid_binary_cross_entropy(scores, labels) * known).sum() / known.sum()
        if scope == "off":
            return bce
        facts = Facts(labels, known) if scope == "anchored" else None
        total, count = logic_loss(log_probs(scores), jnp.ones(scores.shape, bool), table, facts)
        return bce + total / count

    @jax.jit
    def run(params):
        def step(carry, _):
            params, state = carry
            updates, state = optimiser.update(jax.grad(loss)(params), state)
            return (optax.apply_updates(params, updates), state), None

        return jax.lax.scan(step, (params, optimiser.init(params)), None, length=1000)[0][0]

    return np.asarray(jax.nn.sigmoid(logits(run(params))))


def test_withheld_labels_keep_their_mass_and_stop_contradicting_what_is_known():
    """Hair and beards where no set annotates them: the old scope erases them; without L_c, children have beards."""
    data = drawn(np.random.default_rng(0), 600)
    _, labels, known = data
    withheld = slice(300, None)
    child, young = labels[withheld, 0] > 0, FACES.index("young")
    assert not known[withheld][:, RULED].any() and known[withheld][:, AGES].all()
    mass, contradictions = {}, {}
    for scope in ("off", "vocabulary", "anchored"):
        p = trained(scope, data)[withheld]
        mass[scope] = p[:, RULED].sum() / labels[withheld][:, RULED].sum()
        # A child with gray hair or a beard, or one that is not young.
        contradictions[scope] = ((p[child][:, RULED[2:]] > 0.5).any(1) | (p[child, young] < 0.5)).mean()
    assert mass["anchored"] >= 0.6 and mass["vocabulary"] < 0.2, (mass, contradictions)
    assert contradictions["off"] > 0.1 and contradictions["off"] >= 5 * contradictions["anchored"], contradictions
