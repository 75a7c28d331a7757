"""Words about a face: descriptions made of labels, and open questions with their answers for training.

A description holds what the labels state and a stranger would mind least: age, gender word, hair, beard, what is
worn, expression. Race, body weight, skin and attractiveness are never put into a description, and nobody is named.
"""

import re
from collections.abc import Mapping, Sequence
from typing import TypeVar

import numpy as np

from fi_jax.labels import tasks
from fi_jax.prompting.question_matching import load_phrases
from fi_jax.prompting.refusals import IDENTITY_REFUSAL, cannot_tell
from fi_jax.prompting.statements import decided

_QUESTIONS = load_phrases()["open_questions"]
DESCRIBE_QUESTIONS, EXPRESSION_QUESTIONS, AGE_QUESTIONS, HAIR_QUESTIONS, WEARING_QUESTIONS, IDENTITY_QUESTIONS = (
    tuple(_QUESTIONS[name]) for name in ("describe", "expression", "age", "hair", "wearing", "identity")
)
# What no face shows, with the reason that the answer gives.
UNSEEN_QUESTIONS: tuple[tuple[str, str], ...] = tuple((text, reason) for text, reason in _QUESTIONS["unseen"])

_WORN = {
    "Eyeglasses": "eyeglasses",
    "Wearing_Hat": "a hat",
    "Wearing_Earrings": "earrings",
    "Wearing_Necklace": "a necklace",
    "Wearing_Necktie": "a necktie",
    "Wearing_Lipstick": "lipstick",
    "Heavy_Makeup": "heavy makeup",
}
_BEARD = {"Goatee": "a goatee", "Mustache": "a mustache", "5_o_Clock_Shadow": "stubble", "Sideburns": "sideburns"}
_COLOURS = {"Black_Hair": "black", "Blond_Hair": "blond", "Brown_Hair": "brown", "Gray_Hair": "gray"}
_SHAPES = {"Straight_Hair": "straight", "Wavy_Hair": "wavy"}
_FEELINGS = {
    "angry": "looks angry",
    "disgust": "looks disgusted",
    "fear": "looks afraid",
    "happy": "looks happy",
    "sad": "looks sad",
    "surprise": "looks surprised",
    "neutral": "has a neutral expression",
}
_DECADES = {20: "twenties", 30: "thirties", 40: "forties", 50: "fifties", 60: "sixties"}
_GROUP_WORDS = {
    "age:0-2": "up to two years old",
    "age:3-9": "three to nine years old",
    "age:10-19": "ten to nineteen years old",
    "age:70+": "seventy years old or older",
}

T = TypeVar("T")


def _pick(rng: np.random.Generator | None, choices: Sequence[T]) -> T:
    """Returns one of `choices`; the first without `rng`."""
    return choices[0] if rng is None else choices[int(rng.integers(len(choices)))]


def _join(parts: Sequence[str]) -> str:
    """Returns "a", "a and b" or "a, b and c"."""
    return parts[0] if len(parts) == 1 else f"{', '.join(parts[:-1])} and {parts[-1]}"


def _sentence(text: str) -> str:
    return text[0].upper() + text[1:] + "."


def _true(labels: Mapping[str, bool], words: Mapping[str, str]) -> list[str]:
    return [word for name, word in words.items() if labels.get(name)]


def _gender(labels: Mapping[str, bool]) -> str | None:
    if labels.get("Male") is None and labels.get("Female") is None:
        return None
    male = labels["Male"] if labels.get("Male") is not None else not labels["Female"]
    return "male" if male else "female"


def _age_group(labels: Mapping[str, bool], age: float | None) -> str | None:
    if age is not None:
        return tasks.age_group_of(age)
    return next((label for label in tasks.AGE_GROUP.labels if labels.get(label)), None)


def _noun(gender: str | None, group: str | None) -> str:
    if group == "age:0-2":
        return {"male": "baby boy", "female": "baby girl", None: "baby"}[gender]
    if group == "age:3-9":
        return {"male": "boy", "female": "girl", None: "child"}[gender]
    if group == "age:10-19":
        return {"male": "young man", "female": "young woman", None: "young person"}[gender]
    return {"male": "man", "female": "woman", None: "person"}[gender]


def _age_words(group: str | None, age: float | None, gender: str | None, rng: np.random.Generator | None) -> str | None:
    if group is None:
        return None
    first = int(group.removeprefix("age:").split("-")[0].rstrip("+"))
    own = {"male": "his", "female": "her", None: "their"}[gender]
    if age is not None and round(age) >= 1:
        exact = "about one year old" if round(age) == 1 else f"about {round(age)} years old"
        return _pick(rng, (exact, f"in {own} {_DECADES[first]}")) if first in _DECADES else exact
    if first in _DECADES:
        return f"in {own} {_DECADES[first]}"
    return _GROUP_WORDS[group]


def _hair(labels: Mapping[str, bool]) -> str | None:
    words = _true(labels, _SHAPES)[:1] + _true(labels, _COLOURS)[:1]
    return f"{' '.join(words)} hair" if words else None


def _expression(labels: Mapping[str, bool]) -> str | None:
    return next((name for name in tasks.EXPRESSIONS if labels.get(f"expression:{name}")), None)


def _person(labels: Mapping[str, bool], age: float | None, rng: np.random.Generator | None) -> str:
    """Returns the noun phrase: "a bald man about 34 years old with a goatee and a mustache"."""
    gender, group = _gender(labels), _age_group(labels, age)
    adjectives = []
    if group is None and labels.get("Young") is not None:
        adjectives.append("young" if labels["Young"] else "older")
    if labels.get("Bald"):
        adjectives.append("bald")
    words = [*adjectives, _noun(gender, group)]
    phrase = " ".join(["an" if words[0][0] in "aeiou" else "a", *words])
    age_words = _age_words(group, age, gender, rng)
    # "a baby boy up to two years old" says it twice.
    if age_words and not (group == "age:0-2" and age is None):
        phrase += f" {age_words}"
    features = [hair] if (hair := _hair(labels)) else []
    features += ["bangs"] if labels.get("Bangs") else []
    features += ["a receding hairline"] if labels.get("Receding_Hairline") and not labels.get("Bald") else []
    features += _true(labels, _BEARD)
    return phrase + (f" with {_join(features)}" if features else "")


def _doing(labels: Mapping[str, bool], rng: np.random.Generator | None) -> list[str]:
    """Returns what the person does, as verbs in the third person: ["is smiling", "wears a hat"]."""
    verbs = []
    expression = _expression(labels)
    if labels.get("Smiling"):
        verbs.append("is smiling")
    # A smile already says "happy", and a neutral face that smiles is best called smiling.
    if expression and not (labels.get("Smiling") and expression in ("happy", "neutral")):
        verbs.append(_FEELINGS[expression])
    if worn := _true(labels, _WORN):
        verbs.append(f"{_pick(rng, ('wears', 'is wearing'))} {_join(worn)}")
    return verbs


def _plural(verb: str) -> str:
    """Returns "he wears" as it stands after "they"."""
    first, _, rest = verb.partition(" ")
    return f"{ {'is': 'are', 'has': 'have', 'wears': 'wear', 'looks': 'look'}[first] } {rest}"


def describe(labels: Mapping[str, bool], age: float | None = None, rng: np.random.Generator | None = None) -> str:
    """Returns one or two English sentences about a face.

    `labels` holds what is known (a missing label is unknown), `age` the years where they are known. With `rng`
    the phrasing varies (training data); without, it is always the same.
    """
    person, doing, gender = _person(labels, age, rng), _doing(labels, rng), _gender(labels)
    openings = ("This is {}", "The picture shows {}", "Here is {}", "I see {}", "{}")
    first = _sentence(_pick(rng, openings).format(person))
    if not doing:
        return first
    subject = {"male": "he", "female": "she", None: "they"}[gender]
    verbs = doing if gender else [_plural(verb) for verb in doing]
    return f"{first} {_sentence(f'{subject} {_join(verbs)}')}"


def describe_answers(probabilities: Mapping[str, Sequence[float]]) -> str:
    """Returns a description made of closed answers: question name -> probabilities of its options.

    What they are not sure of (`statements.decided`) is left unsaid. The age is the mean of "age_years" where it was asked.
    """
    age = float(tasks.expected_age(np.asarray(probabilities["age_years"]))) if "age_years" in probabilities else None
    return describe({label: value for label, value in decided(probabilities).items() if value is not None}, age)


def answer_from_closed(text: str, probabilities: Mapping[str, Sequence[float]]) -> str | None:
    """Returns what closed answers say to an open question about the hair or what is worn; None to other questions."""
    labels = {label: value for label, value in decided(probabilities).items() if value is not None}
    answers = dict(open_examples(labels))
    if re.match(r"(what|describe|tell|how)\b.*\bhair\b", text.lower()):
        return answers.get(HAIR_QUESTIONS[0])
    worn = re.match(r"(what|which|describe|tell)\b.*\b(wear(s|ing)?|worn|accessories)\b", text.lower())
    return answers.get(WEARING_QUESTIONS[0]) if worn else None


def open_examples(
    labels: Mapping[str, bool], age: float | None = None, rng: np.random.Generator | None = None
) -> list[tuple[str, str]]:
    """Returns open questions about one face with their answers, each only if the labels know the answer.

    The last one has no answer in the face: a question about what cannot be seen, or about who this is.
    """
    pairs = [(_pick(rng, DESCRIBE_QUESTIONS), describe(labels, age, rng))]
    gender, group = _gender(labels), _age_group(labels, age)
    subject = {"male": "he", "female": "she", None: "they"}[gender]

    def says(verb: str) -> str:
        return _sentence(f"{subject} {verb if gender else _plural(verb)}")

    if (expression := _expression(labels)) is not None:
        pairs.append((_pick(rng, EXPRESSION_QUESTIONS), says(_FEELINGS[expression])))
    elif labels.get("Smiling") is not None:
        answer = says("is smiling") if labels["Smiling"] else says("is not smiling")
        pairs.append((EXPRESSION_QUESTIONS[0], answer))
    if age_words := _age_words(group, age, gender, rng):
        pairs.append((_pick(rng, AGE_QUESTIONS), says(f"looks {age_words}")))
    if labels.get("Bald"):
        pairs.append((_pick(rng, HAIR_QUESTIONS), says("is bald")))
    elif hair := _hair(labels):
        extra = ["bangs"] if labels.get("Bangs") else []
        pairs.append((_pick(rng, HAIR_QUESTIONS), says(f"has {_join([hair, *extra])}")))
    if all(labels.get(name) is not None for name in ("Eyeglasses", "Wearing_Hat")):
        worn = _true(labels, _WORN)
        answer = says(f"wears {_join(worn)}") if worn else "No glasses, no hat and nothing else that I can name."
        pairs.append((_pick(rng, WEARING_QUESTIONS), answer))
    unseen = [(text, cannot_tell(reason)) for text, reason in UNSEEN_QUESTIONS]
    who = [(text, IDENTITY_REFUSAL) for text in IDENTITY_QUESTIONS]
    pairs.append(_pick(rng, _pick(rng, (who, unseen))))
    return pairs
