"""Bridges: how likely a label of one data set is on a face with a label of another, where no release annotates both.

Data sets annotate different things, so their counts never connect. A bridge is declared like a rule, with its source;
rules between sets are bridges too, of near certainty. All of them are ours.
"""

from collections.abc import Iterator
from dataclasses import dataclass

from fi_jax.errors import UserError
from fi_jax.labels.rule_tables import rules_for
from fi_jax.labels.vocabulary import Vocabulary

# What a rule is worth: docs/rules.md measures that real annotations break rules in about one face of a hundred.
_CERTAIN = 0.99


@dataclass(frozen=True)
class Bridge:
    """Of the faces with label `given`, the share `chance` has `label`."""

    given: str
    label: str
    chance: float
    source: str

    def __post_init__(self):
        if not 0 <= self.chance <= 1:
            raise UserError(f"bridge {self.given} → {self.label}: chance {self.chance} is no share in [0, 1]")


_FACS = "Ekman and Friesen's FACS: the prototype of the expression"
_GREYING = "our reading of Panhard et al. 2012: 74 % of people of 45 to 65 years have some grey hair"
_UTKFACE = "UTKFace's own words for Others: Hispanic, Latino, Middle Eastern"
_RACES = "the schemes' own words: one divides a race that the other has whole"

# The labels on the left are known of one set, those on the right of another.
BRIDGES: tuple[Bridge, ...] = (
    Bridge("expression:happy", "Smiling", 0.95, f"{_FACS} (AU 12)"),
    Bridge("expression:neutral", "Smiling", 0.05, f"{_FACS} (no action unit)"),
    Bridge("expression:surprise", "Mouth_Slightly_Open", 0.9, f"{_FACS} (AU 25 to 27)"),
    Bridge("expression:neutral", "Mouth_Slightly_Open", 0.15, f"{_FACS} (no action unit)"),
    Bridge("age:70+", "Gray_Hair", 0.6, _GREYING),
    Bridge("age:60-69", "Gray_Hair", 0.4, _GREYING),
    Bridge("age:20-29", "Gray_Hair", 0.01, _GREYING),
    Bridge("age:20-29", "Young", 0.95, "definition: a young adult"),
    Bridge("age:60-69", "Young", 0.05, "definition: not young"),
    Bridge("age:40-49", "Middle_Aged", 0.9, "definition"),
    Bridge("age:70+", "Senior", 0.95, "definition"),
    Bridge("race:East Asian", "race:Asian", 0.98, _RACES),
    Bridge("race:Southeast Asian", "race:Asian", 0.95, _RACES),
    Bridge("race:Latino_Hispanic", "race:Others", 0.7, _UTKFACE),
    Bridge("race:Middle Eastern", "race:Others", 0.7, _UTKFACE),
    Bridge("race:White", "White", 0.95, _RACES),
    Bridge("race:Black", "Black", 0.95, _RACES),
    Bridge("race:Asian", "Asian", 0.95, _RACES),
    Bridge("race:East Asian", "Asian", 0.95, _RACES),
)


def bridges_for(vocabulary: Vocabulary) -> tuple[Bridge, ...]:
    """Returns the bridges between labels of `vocabulary`: those declared, then those that its rules make."""
    declared = [one for one in BRIDGES if one.given in vocabulary and one.label in vocabulary]
    there = {frozenset((one.given, one.label)) for one in declared}
    made = (one for one in _of_rules(vocabulary) if frozenset((one.given, one.label)) not in there)
    return (*declared, *made)


def _of_rules(vocabulary: Vocabulary) -> Iterator[Bridge]:
    for rule in rules_for(vocabulary):
        if rule.premise is None:
            continue
        if rule.kind == "excludes":
            yield from (Bridge(rule.premise, label, 1 - _CERTAIN, str(rule)) for label in rule.labels)
        elif len(rule.labels) == 1:
            yield Bridge(rule.premise, rule.labels[0], _CERTAIN, str(rule))
