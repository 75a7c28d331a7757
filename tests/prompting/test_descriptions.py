"""Descriptions say what the labels say, in English, and leave out what they should."""

import re

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fi_jax.labels.registry import vocabulary
from fi_jax.labels.tasks import RACE_LABELS, age_labels
from fi_jax.prompting.descriptions import (
    IDENTITY_REFUSAL,
    answer_from_closed,
    describe,
    describe_answers,
    open_examples,
)

MAN = {"Male": True, "Female": False, "Brown_Hair": True, "Wavy_Hair": True, "Goatee": True, "Mustache": True}


def test_fixed_phrasing():
    assert describe(MAN | {"Smiling": True, "Eyeglasses": True, "Wearing_Hat": True}, 34) == (
        "This is a man about 34 years old with wavy brown hair, a goatee and a mustache. "
        "He is smiling and wears eyeglasses and a hat."
    )
    assert describe({"Male": False, "Young": True, "expression:sad": True}) == "This is a young woman. She looks sad."
    assert describe({"expression:neutral": True}) == "This is a person. They have a neutral expression."
    assert describe({"Wearing_Hat": True, "Smiling": False}) == "This is a person. They wear a hat."
    assert describe({}, 1) == "This is a baby about one year old."
    assert describe({"Female": True, "age:70+": True}) == "This is a woman seventy years old or older."
    assert describe({"Male": True, "Young": False, "Bald": True}) == "This is an older bald man."


@settings(deadline=None, max_examples=80)
@given(st.integers(0, 99999), st.one_of(st.none(), st.floats(0, 110)))
def test_every_description_is_fluent_enough_and_never_says_race(seed, age):
    rng = np.random.default_rng(seed)
    names = vocabulary("all").names
    labels = {name: bool(rng.random() < 0.3) for name in names if rng.random() < 0.5}
    texts = [describe(labels, age, rng)] + [answer for _, answer in open_examples(labels, age, rng)]
    for text in texts:
        assert re.fullmatch(r"[A-Z][^.]*\.( [A-Z][^.]*\.)?", text), text
        assert "  " not in text and "_" not in text and "None" not in text
        assert (
            not re.search(r"\ba [aeiou]", text) and "they is" not in text.lower() and "they wears" not in text.lower()
        )
        words = {word.lower() for word in re.findall(r"[\w]+", text)}
        races = {label.name.removeprefix("race:").lower() for label in RACE_LABELS} - {"black", "white", "others"}
        assert not words & (races | {"asian", "hispanic", "latino", "attractive", "chubby"})
        assert "white" not in words and not re.search(r"black (?!hair)", text)


def test_examples_are_repeatable_and_vary():
    draw = lambda seed: open_examples(MAN, 34, np.random.default_rng(seed))  # noqa: E731
    assert draw(1) == draw(1)
    assert len({tuple(draw(seed)) for seed in range(20)}) > 10
    assert open_examples(MAN, 34)[-1][1] == IDENTITY_REFUSAL


def test_examples_only_answer_what_is_known():
    questions = [q for q, _ in open_examples({})]
    assert len(questions) == 2  # describe, and what no face shows
    known = {"Eyeglasses": False, "Wearing_Hat": False, "expression:happy": True, "Female": True}
    answers = dict(open_examples(known, 25))
    assert answers["What is the person's expression?"] == "She looks happy."
    assert answers["How old is this person?"] == "She looks about 25 years old."
    assert answers["What is this person wearing?"].startswith("No glasses")


def test_from_closed_answers():
    years = [age_labels(34)[f"years:{low}-{low + 4}"] for low in range(0, 95, 5)] + [0.0]
    given = {
        "Male": [0.2, 0.8],
        "gender": [0.9, 0.1],
        "age_years": years,
        "race:utkface": [0.97, 0.01, 0.01, 0.005, 0.005],
        "Smiling": [0.95, 0.05],
        "Eyeglasses": [0.55, 0.45],
        "Wearing_Hat": [0.7, 0.3],
    }
    assert describe_answers(given) == "This is a man about 34 years old. He is smiling and wears a hat."
    assert describe_answers(dict(reversed(given.items()))) == describe_answers(given)


def test_open_questions_that_closed_answers_answer():
    closed = {"gender": [0.1, 0.9], "Wavy_Hair": [0.9, 0.1], "Brown_Hair": [0.8, 0.2], "Eyeglasses": [0.9, 0.1], "Wearing_Hat": [0.1, 0.9]}  # fmt: skip
    assert answer_from_closed("What is her hair like?", closed) == "She has wavy brown hair."
    assert answer_from_closed("What is this person wearing?", closed) == "She wears eyeglasses."
    for text in ("Is her hair dyed?", "What colour are her eyes?", "Is she wearing a scarf?"):
        assert answer_from_closed(text, closed) is None
    assert answer_from_closed("What is the hair like?", {"gender": [0.5, 0.5]}) is None


@pytest.mark.parametrize("age", [0, 0.4, 5, 15, 29.6, 70, 116])
def test_ages_of_all_kinds(age):
    text = describe({"Male": True}, age)
    assert text.endswith(".") and ("years" in text or "year" in text or "baby" in text)
