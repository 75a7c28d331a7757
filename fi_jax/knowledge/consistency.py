"""The most probable assignment of labels that breaks no rule, face by face (ours; exact, by scipy's MILP solver)."""

import numpy as np
from jaxtyping import Bool, Float
from scipy.optimize import Bounds, LinearConstraint, milp

from fi_jax.knowledge.logic import EXACTLY_ONE, EXCLUDES, IMPLIES, RuleTable, broken

# Probabilities are kept this far from 0 and 1, so that log-odds are finite.
_EDGE = 1e-7


def decode_consistent(
    probs: Float[np.ndarray, "b n"], in_scope: Bool[np.ndarray, "b n"], table: RuleTable
) -> Bool[np.ndarray, "b n"]:
    """Returns the most probable answers of each face that break no rule in scope; False out of scope.

    Labels of an exactly-one group that is wholly in scope are one categorical variable, its probabilities
    normalised over the group; every other label is a Bernoulli variable. Faces whose likeliest answers break
    nothing are left alone; of the others, only the labels that rules tie to the broken ones are solved for
    again, which is exact, since rules never join the rest. No violation is left, so a violation rate taken
    afterwards is zero by construction: report what the decoding costs in accuracy instead.

    Raises `ValueError` when the rules contradict each other.
    """
    probs, in_scope = np.asarray(probs, np.float64), np.asarray(in_scope, bool)
    answers = np.stack([_likeliest(p, scope, table) for p, scope in zip(probs, in_scope, strict=True)])
    breaks, mask = broken(answers, in_scope, table)
    for face in np.flatnonzero(breaks.any(-1)):
        answers[face] = _repaired(answers[face], probs[face], in_scope[face], breaks[face], mask[face], table)
    return answers


def _groups(in_scope: Bool[np.ndarray, "n"], table: RuleTable) -> list[np.ndarray]:
    """Members of each exactly-one group that is wholly in scope."""
    rows = np.flatnonzero(table.kind == EXACTLY_ONE)
    groups = (np.asarray(table.members[row][table.valid[row]]) for row in rows)
    return [group for group in groups if in_scope[group].all()]


def _likeliest(p: np.ndarray, in_scope: np.ndarray, table: RuleTable) -> np.ndarray:
    answer = (p > 0.5) & in_scope
    for group in _groups(in_scope, table):
        answer[group] = False
        answer[group[np.argmax(p[group])]] = True
    return answer


def _repaired(
    answer: np.ndarray, p: np.ndarray, in_scope: np.ndarray, breaks: np.ndarray, mask: np.ndarray, table: RuleTable
) -> np.ndarray:
    """Returns one face's answers with everything that is tied to a broken rule solved for again."""
    rules = []
    for row in np.flatnonzero(mask):
        members = table.members[row][table.valid[row]]
        rules.append((table.kind[row], table.premise[row], members[in_scope[members]], breaks[row]))
    free = _tied_to_broken(rules, len(p))
    column = np.cumsum(free) - 1
    matrix, lower, upper = [], [], []
    for kind, premise, members, _ in rules:
        if not free[members[0]]:
            continue  # Rules never join free labels and others.
        # Over 0/1 labels: premise <= sum of members; premise + member <= 1 for each; sum <= 1; sum = 1.
        for labels in [[member] for member in members] if kind == EXCLUDES else [members]:
            weights = np.zeros(int(free.sum()))
            weights[column[labels]] = 1
            if kind in (IMPLIES, EXCLUDES):
                weights[column[premise]] = -1 if kind == IMPLIES else 1
            matrix.append(weights)
            lower.append({IMPLIES: 0, EXACTLY_ONE: 1}.get(int(kind), -np.inf))
            upper.append(np.inf if kind == IMPLIES else 1)
    found = milp(
        -_gains(p, in_scope, table)[free],
        integrality=np.ones(int(free.sum())),
        bounds=Bounds(0, 1),
        constraints=LinearConstraint(np.array(matrix), np.array(lower), np.array(upper)),
        options={"mip_rel_gap": 0.0},
    )
    if found.x is None:
        raise ValueError(f"the rules contradict each other: {found.message}")
    repaired = answer.copy()
    repaired[free] = found.x > 0.5
    return repaired


def _gains(p: np.ndarray, in_scope: np.ndarray, table: RuleTable) -> np.ndarray:
    """Returns how much the log-probability of all answers gains when a label's answer is yes."""
    p = np.clip(p, _EDGE, 1 - _EDGE)
    gains = np.log(p) - np.log1p(-p)
    for group in _groups(in_scope, table):
        # One choice: its log-probability; what the others' "no" is worth is already in it.
        gains[group] = np.log(p[group] / p[group].sum())
    return gains


def _tied_to_broken(rules: list[tuple], count: int) -> np.ndarray:
    """Returns which labels a chain of rules ties to a broken rule."""
    sets = [
        np.append(members, premise) if kind in (IMPLIES, EXCLUDES) else members for kind, premise, members, _ in rules
    ]
    tied = np.zeros(count, bool)
    for labels, (*_, is_broken) in zip(sets, rules, strict=True):
        tied[labels] |= is_broken
    while True:
        grown = tied.copy()
        for labels in sets:
            grown[labels] |= grown[labels].any()
        if (grown == tied).all():
            return tied
        tied = grown
