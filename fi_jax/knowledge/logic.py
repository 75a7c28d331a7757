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
    # Rules of one family are about the same kinds of labels; L_c is a mean over families.
    family: Int[NumpyOrJax, "r"]
    # Label index of the premise; 0 and unused for groups.
    premise: Int[NumpyOrJax, "r"]
    # Label indices of B (or of the group); 0 where padded.
    members: Int[NumpyOrJax, "r m"]
    valid: Bool[NumpyOrJax, "r m"]
    # Two or more members from one exactly-one group are alternatives of one choice: its number; −1 for the others.
    choice: Int[NumpyOrJax, "r m"]
    # Whether all members are one choice.
    exclusive: Bool[NumpyOrJax, "r"]
    # The labels that a choice's group has besides; 0 where padded, none where groups overlap.
    rest: Int[NumpyOrJax, "r c k"]
    rest_valid: Bool[NumpyOrJax, "r c k"]


class Facts(NamedTuple):
    """What is annotated of each face: targets in [0, 1] and where they are known."""

    labels: Float[Array, "b n"]
    known: Bool[Array, "b n"]


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


def softmax_log_probs(logits: Float[Array, "*b k"]) -> LogProbs:
    """Returns what a choice says of each option, exact wherever the probability is.

    The likeliest option leaves what the others have; of the rest each is at most a half, and 1 - p is exact.
    """
    yes = jax.nn.log_softmax(logits.astype(jnp.float32), axis=-1)
    likeliest = jax.nn.one_hot(jnp.argmax(yes, -1), yes.shape[-1], dtype=bool)
    left = jax.nn.logsumexp(jnp.where(likeliest, -jnp.inf, yes), axis=-1, keepdims=True)
    return LogProbs(yes, jnp.where(likeliest, left, jnp.log1p(-jnp.exp(jnp.where(likeliest, -1.0, yes)))))


def compile_rules(rules: Sequence[Rule], vocabulary: Vocabulary) -> RuleTable:
    """Returns `rules` as arrays over `vocabulary`; an unknown label is a `UserError`."""
    groups = [frozenset(rule.labels) for rule in rules if rule.kind == "exactly_one"]
    choices = [_choices_among(rule.labels, groups) for rule in rules]
    families = [rule.family for rule in rules]
    members, valid = _padded([rule.labels for rule in rules], vocabulary)
    choice = np.full(members.shape, -1, np.int32)
    for row, (rule, found) in enumerate(zip(rules, choices, strict=True)):
        for number, names in enumerate(found):
            choice[row, [rule.labels.index(name) for name in names]] = number
    width = max(map(len, choices), default=1) or 1
    rest = [_rest(names, groups, vocabulary) for found in choices for names in (found + [[]] * width)[:width]]
    rest_members, rest_valid = (part.reshape(len(rules), width, part.shape[-1]) for part in _padded(rest, vocabulary))
    return RuleTable(
        kind=np.array([_KINDS.index(rule.kind) for rule in rules], np.int32),
        family=np.array([families.index(family) for family in families], np.int32),
        premise=np.array([vocabulary.index(rule.premise) if rule.premise else 0 for rule in rules], np.int32),
        members=members,
        valid=valid,
        choice=choice,
        exclusive=((choice == 0) == valid).all(-1),
        rest=rest_members,
        rest_valid=rest_valid,
    )


def _choices_among(labels: Sequence[str], groups: Sequence[frozenset[str]]) -> list[list[str]]:
    """Sorts two or more labels of one group into a choice, the group that holds most of what is left first."""
    left, found = list(labels), []
    while held := max((group.intersection(left) for group in groups), key=len, default=frozenset()):
        if len(held) < 2:
            break
        found.append([name for name in left if name in held])
        left = [name for name in left if name not in held]
    return found


def _rest(names: Sequence[str], groups: Sequence[frozenset[str]], vocabulary: Vocabulary) -> list[str]:
    """The labels that the group of a choice has besides it; none where several groups have its labels."""
    around = [group for group in groups if group.issuperset(names)] if names else []
    return [name for name in vocabulary.names if name in around[0].difference(names)] if len(around) == 1 else []


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


def _choices(
    members: LogProbs, rest: Float[Array, "b r c"], whole: Bool[NumpyOrJax, "b r c"], table: RuleTable
) -> LogProbs:
    """Whether any label of each choice holds: their probabilities add up, and `rest` is what is left (if `whole`)."""
    numbers = jnp.arange(table.rest.shape[1])[:, None]
    held = (table.choice[:, None] == numbers) & table.valid[:, None]
    yes = jnp.where(held, members.yes[:, :, None], _NEVER)
    no = jnp.where(held, members.no[:, :, None], 0.0)
    # Else from what the likeliest leaves, less the others.
    likeliest = jax.nn.one_hot(jnp.argmax(yes, -1), yes.shape[-1], dtype=bool)
    left = jnp.where(likeliest, no, 0.0).sum(-1)
    others = _log_sum(jnp.where(likeliest, _NEVER, yes))
    some = _at_most_0(_log_sum(yes))
    none = jnp.where(whole, rest, left + _log_complement(others - left))
    return _each_from_the_small(some, none)


def _each_from_the_small(yes: Float[Array, "*b m"], no: Float[Array, "*b m"]) -> LogProbs:
    """What is unlikely is exact, its complement a sum of much else: that of a softmax is as exact as its largest part."""
    unlikely = yes < -_LOG_2
    return LogProbs(yes, jnp.where(unlikely, _log_complement(jnp.where(unlikely, yes, -1.0)), no))


def _elsewhere(no: Float[Array, "b r m"]) -> tuple[Float[Array, "b r m"], Float[Array, "b r m"]]:
    """Σ of `no` over the members before, and after, each one: no difference, so exact where one is certain."""
    zeros = jnp.zeros_like(no[..., :1])
    before = jnp.cumsum(jnp.concatenate([zeros, no[..., :-1]], -1), -1)
    after = jnp.cumsum(jnp.concatenate([zeros, no[..., :0:-1]], -1), -1)[..., ::-1]
    return before, after


def _log_sum(x: Float[Array, "*b m"]) -> Float[Array, "*b"]:
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

    kind: Int[NumpyOrJax, "r"]
    premise: LogProbs
    members: LogProbs
    events: _Events
    mask: Bool[Array, "b r"]
    # Whether the premise, and all members that count, are facts.
    premise_given: Bool[Array, "b r"]
    members_given: Bool[Array, "b r"]


class _Anchored(NamedTuple):
    """Which labels enter each rule as facts, which members count, and which rules say something."""

    premise_given: Bool[Array, "b r"]
    member_given: Bool[Array, "b r m"]
    member_in: Bool[Array, "b r m"]
    mask: Bool[Array, "b r"]


def _anchored(said: Bool[Array, "b n"], facts: Facts, table: RuleTable) -> _Anchored:
    """The scope of rules on faces of which something is known (see `violations`)."""
    grouped = table.kind >= AT_MOST_ONE
    known, said_member = facts.known[:, table.members] & table.valid, said[:, table.members]
    premise_known = facts.known[:, table.premise] & ~grouped
    complete = (known == table.valid).all(-1) & (premise_known | grouped)
    premise_given = premise_known & ~(complete & said[:, table.premise])
    member_given = known & ~(complete[..., None] & said_member)
    # Labels exclude each other in pairs: of a pair, one must be known; where the premise is, all are.
    pairs_known = complete | (table.kind != EXCLUDES) | premise_known
    member_in = (known | (said_member & table.valid)) & (pairs_known[..., None] | known)
    some_holds = (known & (facts.labels[:, table.members] >= 0.5)).any(-1)
    fewest = jnp.where(table.kind == AT_MOST_ONE, 2, jnp.where(table.kind == EXCLUDES, 1, table.valid.sum(-1)))
    mask = (premise_known | known.any(-1)) & (member_in.sum(-1) >= fewest)
    mask &= (table.kind != AT_MOST_ONE) | complete | some_holds
    mask &= premise_known | said[:, table.premise] | grouped
    # Nothing can be learnt of facts alone.
    free = (~premise_given & ~grouped) | (member_in & ~member_given).any(-1)
    # Nor where the annotations break the rule themselves: whatever the other labels are, it stays broken.
    true = (member_given & (facts.labels[:, table.members] > 0.5)).sum(-1)
    excluded = (table.kind == EXCLUDES) & premise_given & (facts.labels[:, table.premise] > 0.5) & (true >= 1)
    return _Anchored(premise_given, member_given, member_in, mask & free & ~excluded & ~(grouped & (true >= 2)))


def _rule_inputs(
    probs: LogProbs, said: Bool[Array, "b n"], table: RuleTable, facts: Facts | None, categorical: bool
) -> _RuleInputs:
    probs = LogProbs(*(jnp.maximum(part.astype(jnp.float32), _NEVER) for part in probs))
    table, said = jax.tree.map(jnp.asarray, table), jnp.asarray(said)
    premise = LogProbs(*(part[:, table.premise] for part in probs))
    yes, no = (part[:, table.members] for part in probs)
    if facts is None:
        member_in, mask = _scope(said, table)
        premise_given, member_given = jnp.zeros_like(mask), jnp.zeros_like(member_in)
    else:
        facts = Facts(*map(jnp.asarray, facts))
        premise_given, member_given, member_in, mask = _anchored(said, facts, table)
        given = LogProbs(_log(facts.labels), _log(1 - facts.labels))
        premise = LogProbs(
            *(jnp.where(premise_given, a[:, table.premise], b) for a, b in zip(given, premise, strict=True))
        )
        yes, no = (jnp.where(member_given, a[:, table.members], b) for a, b in zip(given, (yes, no), strict=True))
    members = LogProbs(jnp.where(member_in, yes, _NEVER), jnp.where(member_in, no, 0.0))
    kind, parts = table.kind, members
    if categorical:
        rest_in = said[:, table.rest] & table.rest_valid
        rest = _log_sum(jnp.where(rest_in, probs.yes[:, table.rest], _NEVER))
        whole = table.rest_valid.any(-1) & (rest_in == table.rest_valid).all(-1)
        whole &= ((member_in & ~member_given) == table.valid).all(-1)[..., None]
        alone = _each_from_the_small(jnp.where(table.choice < 0, members.yes, _NEVER), members.no)
        choices = _choices(members, rest, whole, table)
        parts = LogProbs(*(jnp.concatenate(pair, -1) for pair in zip(alone, choices, strict=True)))
        # One choice among the labels of a group: exactly one holds by itself, there is nothing to learn.
        mask &= ~(table.exclusive & (kind >= AT_MOST_ONE))
    members_given = (member_given | ~member_in).all(-1)
    return _RuleInputs(kind, premise, members, _events(parts), mask, premise_given, members_given)


def _log(p: Float[Array, "b n"]) -> Float[Array, "b n"]:
    return jnp.where(p > 0, jnp.log(jnp.where(p > 0, p, 1.0)), _NEVER)


def _broken_and_kept(inputs: _RuleInputs) -> tuple[Float[Array, "b r"], Float[Array, "b r"]]:
    """Logarithms of v and of 1 - v, each a sum of its own: whichever is small is exact. Zero and one out of scope."""
    kind, premise, (none, one, some, many) = inputs.kind, inputs.premise, inputs.events
    sg = jax.lax.stop_gradient
    # A conclusion that is a fact cannot give way: there the premise is what learns.
    a, not_a = (jnp.where(inputs.members_given, part, sg(part)) for part in premise)
    kinds = [kind == IMPLIES, kind == EXCLUDES, kind == AT_MOST_ONE]
    v = jnp.select(kinds, [a + none, premise.yes + some, many], jnp.logaddexp(none, many))
    kept = jnp.select(
        kinds,
        [
            jnp.logaddexp(not_a, a + some),
            jnp.logaddexp(premise.no, premise.yes + none),
            jnp.logaddexp(none, one),
        ],
        one,
    )
    return jnp.where(inputs.mask, _at_most_0(v), _NEVER), jnp.where(inputs.mask, _at_most_0(kept), 0.0)


def _evenly(x: Float[Array, "b r"], inputs: _RuleInputs) -> Float[Array, "b r"]:
    """`x` with half the gradient for exclusions, ½[sg(p_a) q_B + p_a sg(q_B)], unless one side is a fact."""
    both = (inputs.kind == EXCLUDES) & ~inputs.premise_given & ~inputs.members_given
    return jnp.where(both, 0.5 * (x + jax.lax.stop_gradient(x)), x)


def violations(
    probs: LogProbs,
    said: Bool[Array, "b n"],
    table: RuleTable,
    facts: Facts | None = None,
    categorical: bool = False,
) -> tuple[Float[Array, "b r"], Bool[Array, "b r"]]:
    """Returns `(v, mask)`: how far each rule is broken on each face, in [0, 1], and where it is in scope.

    With q_B the probability that some b in B holds and sg a stop-gradient: implies v = sg(p_a)(1 - q_B);
    excludes v = ½[sg(p_a) q_B + p_a sg(q_B)]; at_most_one v = Pr(two or more); exactly_one v = Pr(not one), under
    independence. The stop-gradient keeps an implication from being satisfied by denying its premise. v is 0 where
    the mask is.

    `said` tells which labels the model speaks of on each face. Without `facts`, a rule is in scope when its premise
    is said, with every label of an implies or exactly_one; of an excludes or at_most_one the labels that are not said
    are left out (the rule stays true of the others), as long as one, or two, remain.

    With `facts` the rules are anchored (ours): denying everything, which satisfies exclusions, must not pay where
    nothing is annotated to pull back. Where all labels of a rule are annotated, what the model says enters, since the
    annotations hold it. Where some are, they enter as the facts that they are and the others learn from them: an
    exclusion acts between a fact and a label, never between two labels that nobody knows, an at_most_one where a known
    member holds, and an implies whose conclusion is known teaches its premise. Of nothing known, nothing is said, nor
    where what enters as facts breaks a rule (1 % of CelebA's hair colours, where the model was asked about some of them):
    it is broken whatever is said. Where all that the annotations break is said too, the rule counts like any other.

    `categorical`: the labels of each exactly-one group are alternatives of one softmax, not independent: exactly-one
    then holds by itself and is masked, and the probability of any of several of them is their sum; members from two
    groups are two such choices.
    """
    inputs = _rule_inputs(probs, said, table, facts, categorical)
    v, _ = _broken_and_kept(inputs)
    return _evenly(jnp.exp(v), inputs), inputs.mask


def logic_loss(
    probs: LogProbs,
    said: Bool[Array, "b n"],
    table: RuleTable,
    facts: Facts | None = None,
    form: Literal["semantic", "lcp"] = "semantic",
    alpha: float = 1.0,
    categorical: bool = False,
) -> tuple[Float[Array, ""], Float[Array, ""]]:
    """Returns `(sum, count)` of L_c on a batch; the loss is their quotient, 0 where the count is.

    `semantic`: -log(1 - v), averaged over the rules of a family on each face, then over families and faces; sums and
    counts of micro-batches and hosts add up to those of the whole. `lcp`: (1 - P_implied + alpha·P_excluded)² of each
    rule, P being soft frequencies over the batch, averaged over families; a part that a rule does not have is 0, and
    rules with no premise mass are skipped. Adding up its `(sum, count)` gives the mean over micro-batches of each
    one's own loss. Arrays sharded over hosts are one batch. Other arguments: see `violations`.
    """
    inputs = _rule_inputs(probs, said, table, facts, categorical)
    if form == "semantic":
        weight = _family_weights(inputs.mask, table)
        return (weight * _cost(inputs)).sum(), weight.sum()
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
    shares = _family_weights(has_implied | has_excluded, table)
    return jnp.sum(shares * per_rule**2), shares.sum()


def _family_weights(mask: Bool[Array, "*b r"], table: RuleTable) -> Float[Array, "*b r"]:
    """One for each family, shared evenly by its rules in scope: twenty rules of arithmetic do not drown the others."""
    inside = mask.astype(jnp.float32)
    family = jnp.asarray(table.family)
    size = inside @ (family[:, None] == family).astype(jnp.float32)
    return inside / jnp.maximum(size, 1.0)


def _frequency(part: Float[Array, "b r"], whole: Float[Array, "b r"]) -> tuple[Float[Array, "r"], Bool[Array, "r"]]:
    """Returns each rule's Σ part / Σ whole over the batch, and whether there is any of the whole."""
    mass = whole.sum(0)
    return part.sum(0) / jnp.where(mass > 0, mass, 1.0), mass > 0


def _cost(inputs: _RuleInputs) -> Float[Array, "b r"]:
    """-log(1 - v): from v where the rule is likely kept, else from 1 - v itself."""
    v, kept = _broken_and_kept(inputs)
    likely = v < -_LOG_2
    return _evenly(jnp.where(likely, -jnp.log1p(-jnp.exp(jnp.where(likely, v, _NEVER))), -kept), inputs)


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
