"""Labels of the single-choice tasks (gender, age, race, expression) and the arithmetic of age."""

import math
from collections.abc import Sequence

import numpy as np
from jaxtyping import Float

from fi_jax.errors import UserError, require_choice
from fi_jax.labels.vocabulary import Group, Label

# CelebA's and MAAD-Face's attribute "Male" is this very label.
GENDER_LABELS = (Label("Male", "The face of a man."), Label("Female", "The face of a woman."))

# FairFace's nine groups: (name, first whole year).
_AGE_GROUPS = (
    ("0-2", 0),
    ("3-9", 3),
    ("10-19", 10),
    ("20-29", 20),
    ("30-39", 30),
    ("40-49", 40),
    ("50-59", 50),
    ("60-69", 60),
    ("70+", 70),
)
AGE_GROUP_LABELS = tuple(
    Label(f"age:{name}", f"The face of a person {'70 years or older' if name == '70+' else f'{name} years old'}.")
    for name, _ in _AGE_GROUPS
)

# Twenty bins of five whole years; a bin's centre is the middle one of its five years.
_YEAR_BINS = (*(f"{low}-{low + 4}" for low in range(0, 95, 5)), "95+")
YEAR_LABELS = tuple(
    Label(f"years:{name}", f"A face that looks {'95 years or older' if name == '95+' else f'{name} years old'}.")
    for name in _YEAR_BINS
)
YEAR_CENTRES: tuple[float, ...] = tuple(float(low + 2) for low in range(0, 100, 5))
_BIN_WIDTH = 5.0

_RACE_PROMPTS = {
    "White": "The face of a White person.",
    "Black": "The face of a Black person.",
    "Asian": "The face of an Asian person.",
    "Indian": "The face of an Indian person.",
    "Others": "The face of a person of another race.",
    "East Asian": "The face of an East Asian person.",
    "Southeast Asian": "The face of a Southeast Asian person.",
    "Middle Eastern": "The face of a Middle Eastern person.",
    "Latino_Hispanic": "The face of a Latino or Hispanic person.",
}
RACE_LABELS = tuple(Label(f"race:{name}", prompt) for name, prompt in _RACE_PROMPTS.items())

# Which races a release tells apart, in the order of its own codes (FairFace: of its paper).
# RAF-DB's Caucasian is our White and its African-American our Black.
RACES: dict[str, tuple[str, ...]] = {
    "utkface": ("White", "Black", "Asian", "Indian", "Others"),
    "fairface": (
        "White",
        "Black",
        "Latino_Hispanic",
        "East Asian",
        "Southeast Asian",
        "Indian",
        "Middle Eastern",
    ),
    "raf_db": ("White", "Black", "Asian"),
}

# ExpW's order of codes.
EXPRESSIONS = ("angry", "disgust", "fear", "happy", "sad", "surprise", "neutral")
_EXPRESSION_PROMPTS = (
    "An angry face.",
    "A disgusted face.",
    "A fearful face.",
    "A happy face.",
    "A sad face.",
    "A surprised face.",
    "A neutral face.",
)
EXPRESSION_LABELS = tuple(
    Label(f"expression:{name}", prompt) for name, prompt in zip(EXPRESSIONS, _EXPRESSION_PROMPTS, strict=True)
)


def _names(labels: Sequence[Label]) -> tuple[str, ...]:
    return tuple(label.name for label in labels)


GENDER = Group("gender", _names(GENDER_LABELS), "exactly_one")
AGE_GROUP = Group("age_group", _names(AGE_GROUP_LABELS), "exactly_one")
AGE_YEARS = Group("age_years", _names(YEAR_LABELS), "exactly_one")
EXPRESSION = Group("expression", _names(EXPRESSION_LABELS), "exactly_one")
RACE_GROUPS: dict[str, Group] = {
    scheme: Group(f"race:{scheme}", tuple(f"race:{race}" for race in races), "exactly_one")
    for scheme, races in RACES.items()
}


def race_labels_of(scheme: str) -> tuple[Label, ...]:
    """Returns the race labels that the release `scheme` tells apart, in its order."""
    require_choice("race scheme", scheme, RACES)
    by_name = {label.name: label for label in RACE_LABELS}
    return tuple(by_name[name] for name in RACE_GROUPS[scheme].labels)


def one_of(group: Group, chosen: str) -> dict[str, bool]:
    """Returns the statement that `chosen`, and no other label of `group`, holds of a face."""
    require_choice(f"label of group '{group.name}'", chosen, group.labels)
    return {name: name == chosen for name in group.labels}


def _checked(age: float) -> float:
    if not (math.isfinite(age) and age >= 0):
        raise UserError(f"age {age} is not a number of years; give 0 or more")
    return float(age)


def age_group_of(age: float) -> str:
    """Returns the label of FairFace's nine groups in which `age` (years) falls.

    Groups hold whole years, so 2.9 is still "age:0-2". Negative or non-finite ages are a `UserError`.
    """
    years = math.floor(_checked(age))
    return next(f"age:{name}" for name, first in reversed(_AGE_GROUPS) if years >= first)


def age_labels(age: float) -> dict[str, float]:
    """Returns the targets that an exact `age` (years) sets, all in [0, 1] (ours).

    The nine groups are one-hot. The five-year bins are two-hot by linear interpolation between the
    neighbouring centres (2, 7, ..., 97), so their mean over centres is the age itself; ages beyond the
    end centres clamp to them.
    """
    group = age_group_of(age)
    targets = {label.name: float(label.name == group) for label in AGE_GROUP_LABELS}
    place = (min(max(_checked(age), YEAR_CENTRES[0]), YEAR_CENTRES[-1]) - YEAR_CENTRES[0]) / _BIN_WIDTH
    targets |= {label.name: max(0.0, 1.0 - abs(place - i)) for i, label in enumerate(YEAR_LABELS)}
    return targets


def _normalised(probabilities) -> np.ndarray:
    probabilities = np.asarray(probabilities, np.float64)
    if probabilities.shape[-1] != len(YEAR_LABELS):
        raise ValueError(f"{probabilities.shape[-1]} probabilities; the five-year bins are {len(YEAR_LABELS)}")
    return probabilities / probabilities.sum(-1, keepdims=True)


def expected_age(probabilities: Float[np.ndarray, "... 20"]) -> Float[np.ndarray, "..."]:
    """Returns the mean age in years under the five-year bins (minimises squared error)."""
    return _normalised(probabilities) @ np.asarray(YEAR_CENTRES)


def median_age(probabilities: Float[np.ndarray, "... 20"]) -> Float[np.ndarray, "..."]:
    """Returns the median age in years (minimises absolute error).

    Each bin's mass is spread evenly over its five years, centre - 2.5 to centre + 2.5.
    """
    mass = _normalised(probabilities)
    total = np.cumsum(mass, -1)
    i = np.minimum((total < 0.5).sum(-1), len(YEAR_CENTRES) - 1)
    inside = np.take_along_axis(mass, i[..., None], -1)[..., 0]
    below = np.take_along_axis(total, i[..., None], -1)[..., 0] - inside
    low = np.asarray(YEAR_CENTRES)[i] - _BIN_WIDTH / 2
    return low + _BIN_WIDTH * np.clip((0.5 - below) / np.maximum(inside, 1e-12), 0.0, 1.0)
