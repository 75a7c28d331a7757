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

# Logarithm of what never happens: its exp is 0, and sums of it stay finite, as their gradients do.
_NEVER = -1e4
_LOG_2 = 0.6931472
# Nearer to 0, float32 is no longer exact.
_TINY = 1e-37


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
    # The labels that such a group has besides two or more members; 0 where padded, none where groups overlap.
    rest: Int[NumpyOrJax, "r k"]
    rest_valid: Bool[NumpyOrJax, "r k"]


class LogProbs(NamedTuple):
    """Probabilities of labels as logarithms, of yes and of no.

    Both, since float32 has lost 1 - p where p is near 1, and that is all that a rule broken for certain goes by.
    """

    yes: Float[Array, "b n"]
    no: Float[Array, "b n"]


def log_probs(logits: Float[Array, "b n"]) -> LogProbs:
    """Returns what independent yes/no logits say of each label."""
    logits = logits.astype(jnp.float32)
    return LogProbs(jax.nn.log_sigmoid(logits), jax.nn.log_sigmoid(-logits))


def compile_rules(rules: Sequence[Rule], vocabulary: Vocabulary) -> RuleTable:
    """Returns `rules` as arrays over `vocabulary`; an unknown label is a `UserError`."""
    groups = [frozenset(rule.labels) for rule in rules if rule.kind == "exactly_one"]
    around = [[group for group in groups if group.issuperset(rule.labels)] for rule in rules]
    rest = [
        [name for name in vocabulary.names if name in held[0].difference(rule.labels)]
        if len(held) == 1 and len(rule.labels) > 1
        else []
        for rule, held in zip(rules, around, strict=True)
    ]
    members, valid = _padded([rule.labels for rule in rules], vocabulary)
    rest_members, rest_valid = _padded(rest, vocabulary)
    return RuleTable(
        kind=np.array([_KINDS.index(rule.kind) for rule in rules], np.int32),
        premise=np.array([vocabulary.index(rule.premise) if rule.premise else 0 for rule in rules], np.int32),
        members=members,
        valid=valid,
        exclusive=np.array([bool(held) for held in around], bool),
        rest=rest_members,
        rest_valid=rest_valid,
    )


def _padded(names: Sequence[Sequence[str]], vocabulary: Vocabulary) -> tuple[np.ndarray, np.ndarray]:
    """Indices of the labels of each row, filled up with 0, and which of them are real."""
    width = max((len(row) for row in names), default=1) or 1
    at, real = np.zeros((len(names), width), np.int32), np.zeros((len(names), width), bool)
    for i, row in enumerate(names):
        at[i, : len(row)] = [vocabulary.index(name) for name in row]
        real[i, : len(row)] = True
    return at, real


def _scope(in_scope: Bool[_A, "b n"], table: RuleTable) -> tuple[Bool[_A, "b r m"], Bool[_A, "b r"]]:
    """Which members count, and which rules say something, of each face (see `violations`); numpy or jax arrays."""
    xp = in_scope.__array_namespace__()
    member_in = in_scope[:, table.members] & table.valid
    whole = (table.kind == IMPLIES) | (table.kind == EXACTLY_ONE)
    fewest = xp.where(whole, table.valid.sum(-1), xp.where(table.kind == AT_MOST_ONE, 2, 1))
    premise_in = in_scope[:, table.premise] | (table.kind >= AT_MOST_ONE)
    return member_in, premise_in & (member_in.sum(-1) >= fewest)


class _Events(NamedTuple):
    """Logarithms of how likely no, one, some (at least one) and many (at least two) members of a rule hold."""

    none: Float[Array, "b r"]
    one: Float[Array, "b r"]
    some: Float[Array, "b r"]
    many: Float[Array, "b r"]


def _events(members: LogProbs) -> _Events:
    """The events of independent members (`b r m`): sums of products of what they give, no differences."""
    yes, no = members
    before, after = _elsewhere(no)
    none = no.sum(-1)
    # Many: the first that holds, and any after it.
    many = _log_sum(yes + before + _log_complement(after))
    return _Events(none, _log_sum(yes + before + after), _log_complement(none), many)


def _choice_events(members: LogProbs, rest: Float[Array, "b r"], whole: Bool[NumpyOrJax, "b r"]) -> _Events:
    """The events of alternatives of one choice: their probabilities add up, and `rest` is what is left (if `whole`)."""
    yes, no = members
    # Else from what the likeliest leaves, less the others.
    likeliest = jax.nn.one_hot(jnp.argmax(yes, -1), yes.shape[-1], dtype=bool)
    left = jnp.where(likeliest, no, 0.0).sum(-1)
    others = _log_sum(jnp.where(likeliest, _NEVER, yes))
    none = jnp.where(whole, rest, left + _log_complement(others - left))
    total = _at_most_0(_log_sum(yes))
    return _Events(none, total, total, jnp.full_like(total, _NEVER))


def _elsewhere(no: Float[Array, "b r m"]) -> tuple[Float[Array, "b r m"], Float[Array, "b r m"]]:
    """Σ of `no` over the members before, and after, each one: no difference, so exact where one is certain."""
    zeros = jnp.zeros_like(no[..., :1])
    before = jnp.cumsum(jnp.concatenate([zeros, no[..., :-1]], -1), -1)
    after = jnp.cumsum(jnp.concatenate([zeros, no[..., :0:-1]], -1), -1)[..., ::-1]
    return before, after


def _log_sum(x: Float[Array, "b r m"]) -> Float[Array, "b r"]:
    return jax.nn.logsumexp(x, axis=-1)


def _log_complement(x: Float[Array, "..."]) -> Float[Array, "..."]:
    """log(1 - exp(x)) of x <= 0, to float32 accuracy near 0 too; `_NEVER` where x is 0 (or above, by rounding)."""
    below = x < -_TINY
    x = jnp.where(below, x, -1.0)
    near = x > -_LOG_2
    # Each branch sees only what it can take: the gradient of the other must be finite too.
    small, large = jnp.where(near, x, -_LOG_2), jnp.where(near, -1.0, x)
    return jnp.where(below, jnp.where(near, jnp.log(-jnp.expm1(small)), jnp.log1p(-jnp.exp(large))), _NEVER)


def _at_most_0(x: Float[Array, "..."]) -> Float[Array, "..."]:
    """Cuts what rounding put above 0; at 0 itself the gradient is whole (jnp.minimum halves it)."""
    return jnp.where(x > 0, 0.0, x)


class _RuleInputs(NamedTuple):
    """What rules need of a batch."""

    kind: Int[Array, "r"]
    premise: LogProbs
    members: LogProbs
    events: _Events
    mask: Bool[Array, "b r"]


def _rule_inputs(probs: LogProbs, in_scope: Bool[Array, "b n"], table: RuleTable, categorical: bool) -> _RuleInputs:
    probs = LogProbs(*(jnp.maximum(part.astype(jnp.float32), _NEVER) for part in probs))
    table = RuleTable(*(jnp.asarray(part) for part in table))
    in_scope = jnp.asarray(in_scope)
    member_in, mask = _scope(in_scope, table)
    premise = LogProbs(*(part[:, table.premise] for part in probs))
    yes, no = (part[:, table.members] for part in probs)
    members = LogProbs(jnp.where(member_in, yes, _NEVER), jnp.where(member_in, no, 0.0))
    kind, events = jnp.asarray(table.kind), _events(members)
    if categorical:
        rest_in = in_scope[:, table.rest] & table.rest_valid
        rest = _log_sum(jnp.where(rest_in, probs.yes[:, table.rest], _NEVER))
        whole = table.rest_valid.any(-1) & (rest_in == table.rest_valid).all(-1) & (member_in == table.valid).all(-1)
        choice = _choice_events(members, rest, whole)
        events = _Events(*(jnp.where(table.exclusive, a, b) for a, b in zip(choice, events, strict=True)))
        # One choice among the labels of a group: exactly one holds by itself, there is nothing to learn.
        mask &= ~(table.exclusive & (kind >= AT_MOST_ONE))
    return _RuleInputs(kind, premise, members, events, mask)


def _broken_and_kept(inputs: _RuleInputs) -> tuple[Float[Array, "b r"], Float[Array, "b r"]]:
    """Logarithms of v and of 1 - v, each a sum of its own: whichever is small is exact. Zero and one out of scope."""
    kind, premise, _, (none, one, some, many), mask = inputs
    sg = jax.lax.stop_gradient
    v = jnp.select(
        [kind == IMPLIES, kind == EXCLUDES, kind == AT_MOST_ONE],
        [sg(premise.yes) + none, premise.yes + some, many],
        jnp.logaddexp(none, many),
    )
    kept = jnp.select(
        [kind == IMPLIES, kind == EXCLUDES, kind == AT_MOST_ONE],
        [
            jnp.logaddexp(sg(premise.no), sg(premise.yes) + some),
            jnp.logaddexp(premise.no, premise.yes + none),
            jnp.logaddexp(none, one),
        ],
        one,
    )
    return jnp.where(mask, _at_most_0(v), _NEVER), jnp.where(mask, _at_most_0(kept), 0.0)


def _evenly(x: Float[Array, "b r"], kind: Int[Array, "r"]) -> Float[Array, "b r"]:
    """`x` with half the gradient for exclusions: ½[sg(p_a) q_B + p_a sg(q_B)], pushing either side half."""
    return jnp.where(kind == EXCLUDES, 0.5 * (x + jax.lax.stop_gradient(x)), x)


def violations(
    probs: LogProbs, in_scope: Bool[Array, "b n"], table: RuleTable, categorical: bool = False
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
    inputs = _rule_inputs(probs, in_scope, table, categorical)
    v, _ = _broken_and_kept(inputs)
    return _evenly(jnp.exp(v), inputs.kind), inputs.mask


def logic_loss(
    probs: LogProbs,
    in_scope: Bool[Array, "b n"],
    table: RuleTable,
    form: Literal["semantic", "lcp"] = "semantic",
    alpha: float = 1.0,
    categorical: bool = False,
) -> tuple[Float[Array, ""], Float[Array, ""]]:
    """Returns `(sum, count)` of L_c on a batch; the loss is their quotient, 0 where the count is.

    `semantic`: the sum over faces and rules of -log(1 - v); sums and counts of micro-batches and hosts add up to those
    of the whole. `lcp`: the sum over rules of (1 - P_implied + alpha·P_excluded)², P being soft frequencies over the
    batch; a part that a rule does not have is 0, and rules with no premise mass are skipped. Adding up its `(sum,
    count)` gives the mean over micro-batches of each one's own loss. Arrays sharded over hosts are one batch.
    """
    inputs = _rule_inputs(probs, in_scope, table, categorical)
    if form == "semantic":
        return _cost(inputs).sum(), inputs.mask.sum().astype(jnp.float32)
    kind, weight = inputs.kind, inputs.mask.astype(jnp.float32)
    premise, some = jnp.exp(jax.lax.stop_gradient(inputs.premise.yes)), jnp.exp(inputs.events.some)
    # Implied: of faces with the premise, how many have some b; an exactly-one group has the premise "a face".
    given = weight * jnp.select([kind == IMPLIES, kind == EXACTLY_ONE], [premise, jnp.ones_like(weight)], 0.0)
    implied, has_implied = _frequency(given * some, given)
    # Excluded: of faces with the premise, how many have some b; in a group each label excludes the others.
    others, holders = _others(inputs.members)
    grouped = kind >= AT_MOST_ONE
    apart = weight * jnp.where(grouped, holders, jnp.where(kind == EXCLUDES, premise, 0.0))
    joint = weight * jnp.where(grouped, others, jnp.where(kind == EXCLUDES, premise * some, 0.0))
    excluded, has_excluded = _frequency(joint, apart)
    per_rule = jnp.where(has_implied, 1 - implied, 0.0) + alpha * jnp.where(has_excluded, excluded, 0.0)
    return jnp.sum(per_rule**2), jnp.sum(has_implied | has_excluded).astype(jnp.float32)


def _frequency(part: Float[Array, "b r"], whole: Float[Array, "b r"]) -> tuple[Float[Array, "r"], Bool[Array, "r"]]:
    """Returns each rule's Σ part / Σ whole over the batch, and whether there is any of the whole."""
    mass = whole.sum(0)
    return part.sum(0) / jnp.where(mass > 0, mass, 1.0), mass > 0


def _cost(inputs: _RuleInputs) -> Float[Array, "b r"]:
    """-log(1 - v): from v where the rule is likely kept, else from 1 - v itself."""
    v, kept = _broken_and_kept(inputs)
    likely = v < -_LOG_2
    return _evenly(jnp.where(likely, -jnp.log1p(-jnp.exp(jnp.where(likely, v, _NEVER))), -kept), inputs.kind)


def _others(members: LogProbs) -> tuple[Float[Array, "b r"], Float[Array, "b r"]]:
    """Σ_i sg(p_i)·Pr(some other member holds), and Σ_i sg(p_i)."""
    premise = jnp.exp(jax.lax.stop_gradient(members.yes))
    before, after = _elsewhere(members.no)
    return (premise * -jnp.expm1(before + after)).sum(-1), premise.sum(-1)


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
