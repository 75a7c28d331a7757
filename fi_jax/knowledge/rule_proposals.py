"""Rules that annotations suggest: implications and exclusions that almost always hold, ranked. Ours.

A proposal is no rule: correlation and habits of annotators look the same. A person decides.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import permutations

import numpy as np
from jaxtyping import Bool, Float
from scipy.stats import binomtest

from fi_jax.labels.rules import Rule, RuleKind, excludes, implies


@dataclass(frozen=True)
class Proposal:
    """A rule with how often it could be broken, and how often it is."""

    rule: Rule
    # Faces on which the premise holds and the other label is known.
    support: int
    violations: int
    # 95 % interval of the violation rate (Clopper–Pearson, exact).
    interval: tuple[float, float]
    # Violations to be expected if the labels had nothing to do with each other.
    expected: float

    @property
    def rate(self) -> float:
        """Share of the supporting faces that break the rule."""
        return self.violations / self.support

    @property
    def of_chance(self) -> float:
        """The most that the violation rate may be (its interval's end), as a share of what chance would give."""
        return self.interval[1] * self.support / self.expected


def propose_rules(
    labels: Float[np.ndarray, "f n"],
    known: Bool[np.ndarray, "f n"],
    names: Sequence[str],
    *,
    groups: Sequence[Sequence[str]] = (),
    most_rate: float = 0.01,
    least_support: int = 30,
) -> list[Proposal]:
    """Proposes `a implies b` and `a excludes b` for pairs of labels; first those that break surely more rarely than by chance.

    Of CelebA's faces, that puts rules by definition before correlations; the number of faces explained did not.

    Kept are pairs whose violation rate is surely (its interval) below a third of what independence would give, and at
    most `most_rate`. Left out: pairs inside one of `groups` (exactly-one groups say that already), an exclusion's
    mirror image, and an implication that follows from two others.
    """
    true = (labels >= 0.5) & known
    both = true.T.astype(np.int64) @ true
    supports = true.T.astype(np.int64) @ known
    marginal = true.sum(0) / np.maximum(known.sum(0), 1)
    together = {frozenset((a, b)) for group in groups for a in group for b in group if a != b}
    found: list[Proposal] = []
    for i, j in permutations(range(len(names)), 2):
        support = int(supports[i, j])
        if support < least_support or frozenset((names[i], names[j])) in together:
            continue
        holds = int(both[i, j])
        for make, violations, rate in (
            (implies, support - holds, 1 - marginal[j]),
            (excludes, holds, marginal[j]),
        ):
            # Most pairs end here; an interval costs more than a division.
            if violations > most_rate * support:
                continue
            low, high = exact_interval(violations, support)
            if high < rate / 3:
                rule = make(names[i], (names[j],), "proposed from the annotations")
                found.append(Proposal(rule, support, violations, (low, high), rate * support))
    ranked = sorted(_without_redundant(found), key=lambda one: one.of_chance)
    # An exclusion says the same both ways round.
    return list({_meaning(one.rule): one for one in reversed(ranked)}.values())[::-1]


def _meaning(rule: Rule) -> tuple:
    labels = (str(rule.premise), *rule.labels)
    return (rule.kind, frozenset(labels) if rule.kind == "excludes" else labels)


def _without_redundant(found: Sequence[Proposal]) -> list[Proposal]:
    """Drops `a implies c` where `a implies b` and `b implies c` stand, and `a excludes c` likewise, either way round."""
    implied: dict[str, set[str]] = {}
    for one in found:
        if one.rule.kind == "implies":
            implied.setdefault(str(one.rule.premise), set()).add(one.rule.labels[0])
    stand = {_meaning(one.rule) for one in found}

    def follows(kind: RuleKind, a: str, c: str) -> bool:
        # Labels that imply each other are one; neither makes the other's rules redundant.
        through = (b for b in implied.get(a, ()) if b != c and a not in implied.get(b, ()))
        return any(_meaning(Rule(kind, (c,), "", b)) in stand for b in through)

    def is_redundant(rule: Rule) -> bool:
        a, c = str(rule.premise), rule.labels[0]
        return follows(rule.kind, a, c) or (rule.kind == "excludes" and follows("excludes", c, a))

    return [one for one in found if not is_redundant(one.rule)]


def exact_interval(count: int, of: int, level: float = 0.95) -> tuple[float, float]:
    """Returns the exact interval of a share (Clopper and Pearson 1934); of none it is not [0, 0]."""
    found = binomtest(count, of).proportion_ci(level, method="exact")
    return float(found.low), float(found.high)
