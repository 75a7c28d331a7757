"""Rules about which labels go together: four kinds, as plain data."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

from fi_jax.errors import UserError
from fi_jax.labels.vocabulary import Vocabulary

RuleKind = Literal["implies", "excludes", "at_most_one", "exactly_one"]


@dataclass(frozen=True)
class Rule:
    """One logical relation between labels of one face.

    `implies`: the premise needs any of `labels`. `excludes`: the premise allows none of them.
    `at_most_one`, `exactly_one`: about `labels` as a group, without a premise.
    """

    kind: RuleKind
    labels: tuple[str, ...]
    # Why the rule holds, in words (definition, physiology, the release's annotation, ...).
    source: str
    premise: str | None = None

    def __post_init__(self):
        if (self.premise is None) != (self.kind in ("at_most_one", "exactly_one")):
            raise UserError(f"rule {self.kind} of {self.labels}: a premise belongs to 'implies' and 'excludes' only")
        if not self.labels or (self.premise is None and len(self.labels) < 2):
            raise UserError(f"rule {self.kind} of {self.labels}: too few labels to say anything")
        if self.premise in self.labels or len(set(self.labels)) != len(self.labels):
            raise UserError(f"rule {self.kind} of {self.labels}: a label stands twice")

    @property
    def family(self) -> tuple[str, ...]:
        """The kinds of labels that it is about: ("age", "years"), ("age", "attribute"), ("attribute",), …"""
        names = (*self.labels, *([self.premise] if self.premise else []))
        return tuple(sorted({name.partition(":")[0] if ":" in name else "attribute" for name in names}))

    def __str__(self) -> str:
        if self.kind == "implies":
            return f"{self.premise} implies {' or '.join(self.labels)}"
        if self.kind == "excludes":
            return f"{self.premise} excludes {', '.join(self.labels)}"
        return f"{'at most' if self.kind == 'at_most_one' else 'exactly'} one of {', '.join(self.labels)}"


def implies(premise: str, labels: Iterable[str], source: str) -> Rule:
    """Makes the rule that a face with `premise` has at least one of `labels`."""
    return Rule("implies", tuple(labels), source, premise)


def excludes(premise: str, labels: Iterable[str], source: str) -> Rule:
    """Makes the rule that a face with `premise` has none of `labels`."""
    return Rule("excludes", tuple(labels), source, premise)


def restrict(rule: Rule, vocabulary: Vocabulary) -> Rule | None:
    """Returns what `rule` says about the labels of `vocabulary`, or None when that is nothing.

    Exclusions and at-most-one stay true of fewer labels; an implication or an exactly-one does not, so it
    is kept whole or dropped.
    """
    if rule.premise is not None and rule.premise not in vocabulary:
        return None
    present = tuple(name for name in rule.labels if name in vocabulary)
    if rule.kind in ("implies", "exactly_one"):
        return rule if present == rule.labels else None
    fewest = 2 if rule.kind == "at_most_one" else 1
    if len(present) < fewest:
        return None
    return rule if present == rule.labels else Rule(rule.kind, present, rule.source, rule.premise)
