"""The most probable assignment of labels that breaks no rule, face by face (ours; exact, by scipy's MILP solver)."""

import numpy as np
from jaxtyping import Bool, Float
from scipy.optimize import Bounds, LinearConstraint, milp

from fi_jax.knowledge.logic import EXACTLY_ONE, EXCLUDES, IMPLIES, RuleTable, broken

# Log-odds beyond this are as sure as any: the solver takes finite numbers.
_SURE = 100.0
_LEAST = 1e-40


def log_odds(probs: Float[np.ndarray, "... k"]) -> Float[np.ndarray, "... k"]:
    """Log-odds of each option of a question against its others, exact also where float32 rounds an option to 1."""
    probs = np.asarray(probs, np.float64)
    others = probs.sum(-1, keepdims=True) - probs
    return np.log(np.maximum(probs, _LEAST)) - np.log(np.maximum(others, _LEAST))


def decode_consistent(
    odds: Float[np.ndarray, "b n"], in_scope: Bool[np.ndarray, "b n"], table: RuleTable
) -> Bool[np.ndarray, "b n"]:
    """Returns the most probable answers of each face that break no rule in scope; False out of scope.

    `odds` are log-odds, which keep apart what probabilities near 1 no longer do. Labels of an exactly-one group that
    is wholly in scope are one categorical variable, its probabilities normalised over the group; a label of two groups
    takes part in both; every other label is a Bernoulli variable. Faces whose likeliest answers break
    nothing are left alone; of the others, only the labels that rules tie to the broken ones are solved for
    again, which is exact, since rules never join the rest. No violation is left, so a violation rate taken
    afterwards is zero by construction: report what the decoding costs in accuracy instead.

    Raises `ValueError` when the rules contradict each other.
    """
    odds, in_scope = np.clip(np.asarray(odds, np.float64), -_SURE, _SURE), np.asarray(in_scope, bool)
    answers = np.stack([_likeliest(face, scope, table) for face, scope in zip(odds, in_scope, strict=True)])
    breaks, mask = broken(answers, in_scope, table)
    for face in np.flatnonzero(breaks.any(-1)):
        answers[face] = _repaired(answers[face], odds[face], in_scope[face], breaks[face], mask[face], table)
    return answers


def _groups(in_scope: Bool[np.ndarray, "n"], table: RuleTable) -> list[np.ndarray]:
    """Members of each exactly-one group that is wholly in scope."""
    rows = np.flatnonzero(table.kind == EXACTLY_ONE)
    groups = (np.asarray(table.members[row][table.valid[row]]) for row in rows)
    return [group for group in groups if in_scope[group].all()]


def _likeliest(odds: np.ndarray, in_scope: np.ndarray, table: RuleTable) -> np.ndarray:
    answer = (odds > 0) & in_scope
    for group in _groups(in_scope, table):
        answer[group] = False
        answer[group[np.argmax(odds[group])]] = True
    return answer


def _repaired(
    answer: np.ndarray, odds: np.ndarray, in_scope: np.ndarray, breaks: np.ndarray, mask: np.ndarray, table: RuleTable
) -> np.ndarray:
    """Returns one face's answers with everything that is tied to a broken rule solved for again."""
    rules = []
    for row in np.flatnonzero(mask):
        members = table.members[row][table.valid[row]]
        rules.append((table.kind[row], table.premise[row], members[in_scope[members]], breaks[row]))
    free = _tied_to_broken(rules, len(odds))
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
        -_gains(odds, in_scope, table)[free],
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


def _gains(odds: np.ndarray, in_scope: np.ndarray, table: RuleTable) -> np.ndarray:
    """Returns how much the log-probability of all answers gains when a label's answer is yes."""
    gains, groups = odds.copy(), _groups(in_scope, table)
    for group in groups:
        gains[group] = 0.0
    for group in groups:
        # One choice: its log-probability; what the others' "no" is worth is already in it.
        chosen = -np.logaddexp(0.0, -odds[group])
        gains[group] += chosen - np.logaddexp.reduce(chosen)
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
