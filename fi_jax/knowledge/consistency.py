"""The most probable assignment of labels that breaks no rule, face by face (ours; exact, by scipy's MILP solver)."""

from dataclasses import dataclass
from functools import cached_property

import numpy as np
import scipy.sparse as sparse
from jaxtyping import Bool, Float
from scipy.optimize import Bounds, LinearConstraint, milp

from fi_jax.knowledge.logic import AT_MOST_ONE, EXACTLY_ONE, EXCLUDES, IMPLIES, RuleTable, broken

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
        problem = _Problem(probs[face], in_scope[face], table, mask[face])
        answers[face] = problem.repair(answers[face], breaks[face])
    return answers


def likeliest(
    probs: Float[np.ndarray, "b n"], in_scope: Bool[np.ndarray, "b n"], table: RuleTable
) -> Bool[np.ndarray, "b n"]:
    """Returns the most probable answers without regard to rules, but one to each exactly-one group."""
    pairs = zip(np.asarray(probs, np.float64), np.asarray(in_scope, bool), strict=True)
    return np.stack([_likeliest(p, scope, table) for p, scope in pairs])


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


@dataclass(frozen=True)
class _Problem:
    """One face: gains (log-odds) of saying yes, and the rules in scope as linear constraints over 0/1."""

    probs: np.ndarray
    in_scope: np.ndarray
    table: RuleTable
    mask: np.ndarray

    @cached_property
    def gains(self) -> np.ndarray:
        p = np.clip(self.probs, _EDGE, 1 - _EDGE)
        gains = np.log(p) - np.log1p(-p)
        for group in _groups(self.in_scope, self.table):
            # One choice: its log-probability; what the others' "no" is worth is already in it.
            gains[group] = np.log(p[group] / p[group].sum())
        return gains

    @cached_property
    def members(self) -> list[np.ndarray]:
        """Members in scope of every rule."""
        table = self.table
        valid = table.valid & self.in_scope[table.members]
        return [row[keep] for row, keep in zip(table.members, valid, strict=True)]

    def tied(self, breaks: np.ndarray) -> np.ndarray:
        """Labels that a chain of rules in scope ties to a broken rule."""
        touched = np.zeros(len(self.probs), bool)
        rules = [self._labels(row) for row in np.flatnonzero(self.mask)]
        for row in np.flatnonzero(breaks):
            touched[self._labels(row)] = True
        while True:
            grown = touched.copy()
            for labels in rules:
                grown[labels] |= grown[labels].any()
            if (grown == touched).all():
                return touched
            touched = grown

    def _labels(self, row: int | np.integer) -> np.ndarray:
        if self.table.kind[row] in (IMPLIES, EXCLUDES):
            return np.append(self.members[row], self.table.premise[row])
        return self.members[row]

    def constraints(self, free: np.ndarray) -> LinearConstraint:
        """Rules over the `free` labels, as lower <= A x <= upper."""
        column = np.cumsum(free) - 1
        rows: list[int] = []
        columns: list[int] = []
        values: list[float] = []
        lower: list[float] = []
        upper: list[float] = []

        def add(plus, minus, low, high):
            for labels, value in ((plus, 1.0), (minus, -1.0)):
                rows.extend([len(lower)] * len(labels))
                columns.extend(column[labels])
                values.extend([value] * len(labels))
            lower.append(low)
            upper.append(high)

        for row in np.flatnonzero(self.mask):
            members, kind, premise = self.members[row], self.table.kind[row], self.table.premise[[row]]
            if not free[members[0]]:
                continue  # Rules never join free labels and others.
            if kind == IMPLIES:
                add(members, premise, 0, np.inf)
            elif kind == EXCLUDES:
                for member in members:
                    add(np.append(premise, member), premise[:0], -np.inf, 1)
            elif kind == AT_MOST_ONE:
                add(members, premise[:0], -np.inf, 1)
            else:
                add(members, premise[:0], 1, 1)
        matrix = sparse.csr_array((values, (rows, columns)), shape=(len(lower), int(free.sum())))
        return LinearConstraint(matrix, np.array(lower), np.array(upper))

    def repair(self, answer: np.ndarray, breaks: np.ndarray) -> np.ndarray:
        """Returns the face's answers with everything tied to a broken rule solved for again."""
        free = self.tied(breaks)
        size = int(free.sum())
        result = milp(
            -self.gains[free],
            integrality=np.ones(size),
            bounds=Bounds(0, 1),
            constraints=self.constraints(free),
            options={"mip_rel_gap": 0.0},
        )
        if result.x is None:
            raise ValueError(f"the rules contradict each other: {result.message}")
        repaired = answer.copy()
        repaired[free] = result.x > 0.5
        return repaired
