"""The Logical Constraint Module: how far probabilities break the declared rules, as a loss and as a rate.

The paper states that L_c enforces deterministic relations; the formulas are ours (after LCPLoss, whose released
code works on thresholded integers and so gives no gradient).
"""

from collections.abc import Sequence
from typing import Literal, NamedTuple, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from fi_jax.labels.rules import Rule
from fi_jax.labels.vocabulary import Vocabulary

IMPLIES, EXCLUDES, AT_MOST_ONE, EXACTLY_ONE = range(4)
_KINDS = ("implies", "excludes", "at_most_one", "exactly_one")

# -log(1 - v) is taken of v shrunk by this share, so that a rule broken for certain costs 13.8 and has a
# finite gradient, and a rule kept for certain still costs exactly nothing.
_SHRINK = 1e-6


# numpy outside jit, traced jax arrays inside.
NumpyOrJax = np.ndarray | jax.Array
_A = TypeVar("_A", np.ndarray, jax.Array)


class RuleTable(NamedTuple):
    """Rules over a vocabulary as arrays; a pytree, so it passes through jit. `m` pads the members of a rule."""

    # Index into (implies, excludes, at_most_one, exactly_one).
    kind: Int[NumpyOrJax, "r"]
    # Label index of the premise; 0 and unused for groups.
    premise: Int[NumpyOrJax, "r"]
    # Label indices of B (or of the group); 0 where padded.
    members: Int[NumpyOrJax, "r m"]
    valid: Bool[NumpyOrJax, "r m"]
    # Whether all members belong to one exactly-one group of the table.
    exclusive: Bool[NumpyOrJax, "r"]


class LogicPieces(NamedTuple):
    """What both forms of L_c are made of. Every field adds up over micro-batches and hosts."""

    # Σ over faces and rules in scope of -log(1 - v), and how many those are.
    semantic: Float[Array, ""]
    num_terms: Float[Array, ""]
    # Per rule: Σ sg(premise)·(some b holds), and Σ sg(premise). Zero for rules without that part.
    implied: Float[Array, "r"]
    implied_mass: Float[Array, "r"]
    excluded: Float[Array, "r"]
    excluded_mass: Float[Array, "r"]


def compile_rules(rules: Sequence[Rule], vocabulary: Vocabulary) -> RuleTable:
    """Returns `rules` as arrays over `vocabulary`; an unknown label is a `UserError`."""
    width = max((len(rule.labels) for rule in rules), default=1)
    members = np.zeros((len(rules), width), np.int32)
    valid = np.zeros((len(rules), width), bool)
    groups = [frozenset(rule.labels) for rule in rules if rule.kind == "exactly_one"]
    for row, rule in enumerate(rules):
        members[row, : len(rule.labels)] = [vocabulary.index(name) for name in rule.labels]
        valid[row, : len(rule.labels)] = True
    return RuleTable(
        kind=np.array([_KINDS.index(rule.kind) for rule in rules], np.int32),
        premise=np.array([vocabulary.index(rule.premise) if rule.premise else 0 for rule in rules], np.int32),
        members=members,
        valid=valid,
        exclusive=np.array([any(group.issuperset(rule.labels) for group in groups) for rule in rules], bool),
    )


def _scope(in_scope: Bool[_A, "b n"], table: RuleTable) -> tuple[Bool[_A, "b r m"], Bool[_A, "b r"]]:
    """Which members count, and which rules say something, of each face (see `violations`); numpy or jax arrays."""
    xp = in_scope.__array_namespace__()
    member_in = in_scope[:, table.members] & table.valid
    whole = (table.kind == IMPLIES) | (table.kind == EXACTLY_ONE)
    fewest = xp.where(whole, table.valid.sum(-1), xp.where(table.kind == AT_MOST_ONE, 2, 1))
    premise_in = in_scope[:, table.premise] | (table.kind >= AT_MOST_ONE)
    return member_in, premise_in & (member_in.sum(-1) >= fewest)


class _Events(NamedTuple):
    """Probabilities of each rule on each face; all [b, r]."""

    premise: Float[Array, "b r"]
    none: Float[Array, "b r"]
    some: Float[Array, "b r"]
    many: Float[Array, "b r"]


def _events(p: Float[Array, "b r m"], premise: Float[Array, "b r"], exclusive: Bool[Array, "r"]) -> _Events:
    """How many members hold: none, some (at least one), many (at least two), members being independent.

    Sums of products, never one minus something close to one: exact at 0 and 1, finite gradients everywhere.
    Members of a rule marked `exclusive` are alternatives of one choice: their probabilities add up.
    """
    none = jnp.ones(p.shape[:2], p.dtype)
    one = many = jnp.zeros(p.shape[:2], p.dtype)
    for k in range(p.shape[-1]):
        q = p[..., k]
        none, one, many = none * (1 - q), one * (1 - q) + none * q, many + one * q
    total = _at_most_1(p.sum(-1))
    none = jnp.where(exclusive, 1 - total, none)
    some = jnp.where(exclusive, total, one + many)
    return _Events(premise, none, some, jnp.where(exclusive, 0.0, many))


def _at_most_1(x: Float[Array, "..."]) -> Float[Array, "..."]:
    """Cuts what rounding put above 1; at 1 itself the gradient is whole (jnp.clip halves it)."""
    return jnp.where(x > 1, 1.0, x)


class _Judged(NamedTuple):
    """A batch seen through the rules."""

    kind: Int[Array, "r"]
    members: Float[Array, "b r m"]
    events: _Events
    mask: Bool[Array, "b r"]


def _judge(probs: Float[Array, "b n"], in_scope: Bool[Array, "b n"], table: RuleTable, categorical: bool) -> _Judged:
    probs = probs.astype(jnp.float32)
    table = RuleTable(*(jnp.asarray(part) for part in table))
    member_in, mask = _scope(jnp.asarray(in_scope), table)
    members = jnp.where(member_in, probs[:, table.members], 0.0)
    kind, exclusive = jnp.asarray(table.kind), jnp.asarray(table.exclusive) & categorical
    # One choice among the labels of a group: exactly one holds by itself, there is nothing to learn.
    mask &= ~(exclusive & (kind >= AT_MOST_ONE))
    return _Judged(kind, members, _events(members, probs[:, table.premise], exclusive), mask)


def _violations(judged: _Judged) -> Float[Array, "b r"]:
    sg = jax.lax.stop_gradient
    kind, (a, none, q, many) = judged.kind, judged.events
    v = jnp.select(
        [kind == IMPLIES, kind == EXCLUDES, kind == AT_MOST_ONE],
        [sg(a) * none, 0.5 * (sg(a) * q + a * sg(q)), many],
        none + many,
    )
    return jnp.where(judged.mask, _at_most_1(v), 0.0)


def violations(
    probs: Float[Array, "b n"], in_scope: Bool[Array, "b n"], table: RuleTable, categorical: bool = False
) -> tuple[Float[Array, "b r"], Bool[Array, "b r"]]:
    """Returns `(v, mask)`: how far each rule is broken on each face, in [0, 1], and where it is in scope.

    With q_B the probability that some b in B holds and sg a stop-gradient: implies v = sg(p_a)(1 - q_B);
    excludes v = ½[sg(p_a) q_B + p_a sg(q_B)]; at_most_one v = Pr(two or more); exactly_one v = Pr(not one), under
    independence. The stop-gradient keeps an implication from being satisfied by denying its premise.

    `in_scope` says which labels were asked of which face. A rule is in scope when its premise is, with every
    label of an implies or exactly_one; of an excludes or at_most_one the labels out of scope are left out (the
    rule stays true of the others), as long as one, or two, remain. v is 0 where the mask is.

    `categorical`: the labels of each exactly-one group are alternatives of one softmax (the LLM's lettered
    questions), not independent (the alignment head): exactly-one then holds by itself and is masked, and the
    probability of any of several of them is their sum.
    """
    judged = _judge(probs, in_scope, table, categorical)
    return _violations(judged), judged.mask


def logic_pieces(
    probs: Float[Array, "b n"], in_scope: Bool[Array, "b n"], table: RuleTable, categorical: bool = False
) -> LogicPieces:
    """Returns the additive pieces of L_c of a batch (arguments as in `violations`)."""
    judged = _judge(probs, in_scope, table, categorical)
    kind, members, events, mask = judged
    semantic = -jnp.log1p(-_violations(judged) * (1 - _SHRINK))
    sg = jax.lax.stop_gradient
    weight = mask.astype(jnp.float32)

    # Implied: of faces with the premise, how many have some b; an exactly-one group has the premise "a face".
    given = weight * jnp.select(
        [kind == IMPLIES, kind == EXACTLY_ONE], [sg(events.premise), jnp.ones_like(weight)], 0.0
    )
    # Excluded: of faces with the premise, how many have some b; in a group each label excludes the others.
    others, holders = _others(members)
    grouped = kind >= AT_MOST_ONE
    apart = weight * jnp.where(grouped, holders, jnp.where(kind == EXCLUDES, sg(events.premise), 0.0))
    joint = weight * jnp.where(grouped, others, jnp.where(kind == EXCLUDES, sg(events.premise) * events.some, 0.0))
    return LogicPieces(
        semantic=semantic.sum(),
        num_terms=weight.sum(),
        implied=(given * events.some).sum(0),
        implied_mass=given.sum(0),
        excluded=joint.sum(0),
        excluded_mass=apart.sum(0),
    )


def _others(members: Float[Array, "b r m"]) -> tuple[Float[Array, "b r"], Float[Array, "b r"]]:
    """Σ_i sg(p_i)·Pr(some other member holds), and Σ_i sg(p_i)."""
    premise = jax.lax.stop_gradient(members)
    absent = 1 - members
    ones = jnp.ones_like(absent[..., :1])
    # Products of all but the i-th, from the left and from the right: no division, so exact at zero.
    left = jnp.cumprod(jnp.concatenate([ones, absent[..., :-1]], -1), -1)
    right = jnp.cumprod(jnp.concatenate([ones, absent[..., :0:-1]], -1), -1)[..., ::-1]
    return (premise * (1 - left * right)).sum(-1), premise.sum(-1)


def combine(pieces: LogicPieces, form: Literal["semantic", "lcp"], alpha: float) -> tuple[Array, Array]:
    """Returns `(sum, count)` of L_c; the loss is their quotient.

    `semantic`: the sum over faces and rules of -log(1 - v). `lcp`: the sum over rules of
    (1 - P_implied + alpha·P_excluded)², P being soft frequencies over everything the pieces were added up from;
    a part that a rule does not have is 0, and rules with no premise mass are skipped.
    """
    if form == "semantic":
        return pieces.semantic, pieces.num_terms
    has_implied, has_excluded = pieces.implied_mass > 0, pieces.excluded_mass > 0
    missing = 1 - pieces.implied / jnp.where(has_implied, pieces.implied_mass, 1.0)
    broken = pieces.excluded / jnp.where(has_excluded, pieces.excluded_mass, 1.0)
    per_rule = jnp.where(has_implied, missing, 0.0) + alpha * jnp.where(has_excluded, broken, 0.0)
    return jnp.sum(per_rule**2), jnp.sum(has_implied | has_excluded).astype(jnp.float32)


def logic_loss(
    probs: Float[Array, "b n"],
    in_scope: Bool[Array, "b n"],
    table: RuleTable,
    form: Literal["semantic", "lcp"] = "semantic",
    alpha: float = 1.0,
    categorical: bool = False,
) -> tuple[Float[Array, ""], Float[Array, ""]]:
    """Returns `(sum, count)` of L_c on a batch; the loss is their quotient, 0 where the count is.

    `semantic` sums over faces: sums and counts of micro-batches and hosts add up to those of the whole. `lcp`
    squares a frequency: adding up `(sum, count)` gives the mean over micro-batches of each one's own loss; for
    the whole batch's, add up `logic_pieces` and `combine` once. Arrays sharded over hosts are one batch.
    """
    return combine(logic_pieces(probs, in_scope, table, categorical), form, alpha)


def broken(
    hard: Bool[np.ndarray, "b n"], in_scope: Bool[np.ndarray, "b n"], table: RuleTable
) -> tuple[Bool[np.ndarray, "b r"], Bool[np.ndarray, "b r"]]:
    """Returns `(broken, mask)`: which rules each face's yes/no answers break, and which are in scope."""
    hard, in_scope = np.asarray(hard, bool), np.asarray(in_scope, bool)
    member_in, mask = _scope(in_scope, table)
    holds = (member_in & hard[:, table.members]).sum(-1)
    premise = hard[:, table.premise]
    breaks = np.select(
        [table.kind == IMPLIES, table.kind == EXCLUDES, table.kind == AT_MOST_ONE],
        [premise & (holds == 0), premise & (holds > 0), holds > 1],
        holds != 1,
    )
    return breaks & mask, mask


def violation_rate(hard: Bool[np.ndarray, "b n"], in_scope: Bool[np.ndarray, "b n"], table: RuleTable) -> float:
    """Returns the share of faces whose answers break a rule, among faces with a rule in scope (NaN if none)."""
    breaks, mask = broken(hard, in_scope, table)
    judged = mask.any(-1)
    return float(np.mean(breaks[judged].any(-1))) if np.any(judged) else float("nan")
