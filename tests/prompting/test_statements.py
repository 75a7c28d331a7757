"""A text states what its words mean, however they are put, and closed answers deny it or do not."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fi_jax.labels.question_bank import questions_for
from fi_jax.labels.registry import vocabulary
from fi_jax.prompting.descriptions import describe, describe_answers, open_examples
from fi_jax.prompting.statements import ANYWHERE, TABLE, agrees, statements


def stated(text: str) -> dict[str, bool]:
    found = statements(text)
    assert len(dict(found)) == len(found), f"'{text}' contradicts itself: {sorted(found)}"
    return dict(found)


def test_every_label_of_the_table_is_known():
    known = vocabulary("all").names
    assert all(name in known for row in (*ANYWHERE, *TABLE) for name in (*row.affirmed, *row.denied))


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("A bearded gentleman with spectacles.", {"Male": True, "No_Beard": False, "Eyeglasses": True}),
        ("A lady in sunglasses and a beanie.", {"Male": False, "Eyeglasses": True, "Wearing_Hat": True}),
        ("The subject is male.", {"Male": True}),
        ("This female person grins.", {"Male": False, "Smiling": True}),
        ("Someone with long, fair hair.", {"Blond_Hair": True}),
        ("A fair-haired person.", {"Blond_Hair": True}),
        ("A blonde woman.", {"Male": False, "Blond_Hair": True}),
        ("A brunette with a fringe.", {"Brown_Hair": True, "Bangs": True}),
        ("Fair skin and brown hair.", {"Brown_Hair": True}),
        ("Her hair is short and grey.", {"Male": False, "Gray_Hair": True}),
        ("Dark, curly hair.", {"Blond_Hair": False, "Gray_Hair": False, "Straight_Hair": False}),
        ("Dark blond hair.", {"Blond_Hair": True}),
        ("Wavy shoulder-length black hair.", {"Wavy_Hair": True, "Black_Hair": True}),
        ("A black hat and brown hair.", {"Wearing_Hat": True, "Brown_Hair": True}),
        ("Gray eyes, a white shirt.", {}),
        ("A moustache and a five o’clock shadow.", {"Mustache": True, "5_o_Clock_Shadow": True}),
        ("He wears a tie, earrings and a pendant.", dict.fromkeys(("Male", "Wearing_Necktie", "Wearing_Earrings", "Wearing_Necklace"), True)),
        ("The person looks frightened.", {"expression:fear": True}),
        ("Looks unhappy.", {"expression:sad": True}),
        ("Her face is neutral.", {"Male": False, "expression:neutral": True}),
        ("A neutral background.", {}),
    ],
)  # fmt: skip
def test_other_words_are_read(text, wanted):
    assert stated(text) == wanted


CLEAN = {"No_Beard": True, "Goatee": False, "Mustache": False}


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("No beard.", {"No_Beard": True}),
        ("A clean-shaven man.", {"Male": True} | CLEAN),
        ("There is no facial hair.", CLEAN),
        ("He has no facial hair, brown hair and glasses.", {"Male": True, "Brown_Hair": True, "Eyeglasses": True} | CLEAN),
        ("Without glasses.", {"Eyeglasses": False}),
        ("She is without any visible glasses and with a hat.", {"Male": False, "Eyeglasses": False, "Wearing_Hat": True}),
        ("He is not wearing a hat or glasses.", {"Male": True, "Wearing_Hat": False, "Eyeglasses": False}),
        ("No hat, glasses, or earrings, black hair.",
         {"Wearing_Hat": False, "Eyeglasses": False, "Wearing_Earrings": False, "Black_Hair": True}),
        ("A woman with no hat, glasses and earrings.",
         {"Male": False, "Wearing_Hat": False, "Eyeglasses": True, "Wearing_Earrings": True}),
        ("He doesn't smile but wears a cap.", {"Male": True, "Smiling": False, "Wearing_Hat": True}),
        ("Neither a goatee nor sideburns; a mustache.", {"Goatee": False, "Sideburns": False, "Mustache": True}),
        ("Not only glasses but also a hat.", {"Eyeglasses": True, "Wearing_Hat": True}),
        ("Without his glasses.", {"Male": True, "Eyeglasses": False}),
        ("This is not a man but a woman.", {"Male": False}),
        ("A man with no hair.", {"Male": True, "Bald": True}),
        ("No hair on his chin.", {"Male": True}),
        ("Not bald.", {"Bald": False}),
        ("No gray hair.", {"Gray_Hair": False}),
        ("Not curly hair.", {}),
        ("A hatless, unsmiling girl.", {"Male": False, "Wearing_Hat": False, "Smiling": False}),
        ("A non-smiling boy.", {"Male": True, "Smiling": False}),
        ("She is not smiling.", {"Male": False, "Smiling": False}),
    ],
)  # fmt: skip
def test_what_is_said_not_to_be_is_read_so(text, wanted):
    assert stated(text) == wanted


def test_contradictions_are_noticed_however_they_are_put():
    man = {"gender": [0.9, 0.1], "Eyeglasses": [0.1, 0.9], "No_Beard": [0.2, 0.8], "Blond_Hair": [0.1, 0.9]}
    for text in ("A lady.", "He wears glasses.", "A man with spectacles.", "A gentleman, clean-shaven.", "Fair hair."):
        assert not agrees(text, man), text
    for text in ("A bearded man.", "A guy without glasses.", "He has a beard, no eyewear.", "Fair skin.", "Not blond."):
        assert agrees(text, man), text
    assert not agrees("This is a man. She is tall.", man) and not agrees(
        "This is a man. She is tall.", {"gender": [0, 1]}
    )


@settings(max_examples=60)
@given(st.integers(0, 10**6))
def test_what_training_answers_say_is_true(seed):
    rng = np.random.default_rng(seed)
    labels = {name: bool(rng.integers(2)) for name in vocabulary("celeba").names if rng.random() < 0.6}
    for _, answer in open_examples(labels, rng=rng):
        for name, value in statements(answer):
            assert labels.get(name, value) == value, answer


@settings(deadline=None, max_examples=60)
@given(st.integers(0, 10**6))
def test_what_is_stated_is_read_back(seed):
    rng = np.random.default_rng(seed)
    labels = {name: bool(rng.integers(2)) for name in vocabulary("celeba").names if rng.random() < 0.6}
    if rng.random() < 0.5:
        labels |= {f"expression:{name}": name == "sad" for name in ("angry", "happy", "sad", "neutral")}
    found = stated(describe(labels, rng=rng))
    assert all(labels[name] == value for name, value in found.items())
    worn = {"Eyeglasses", "Wearing_Hat", "Wearing_Earrings", "Wearing_Necklace", "Bangs", "Goatee", "Smiling"}
    assert {name for name in worn if labels.get(name)} <= set(found)


@settings(deadline=None, max_examples=60)
@given(st.integers(0, 10**6))
def test_a_description_of_closed_answers_agrees_with_them(seed):
    rng = np.random.default_rng(seed)
    asked = [q for q in questions_for(vocabulary("faces")) if q.family != "race"]
    given = {q.name: rng.dirichlet(np.full(len(q.options), 0.3)) for q in asked}
    assert agrees(describe_answers(given), given)


def test_a_contradiction_is_noticed():
    given = {
        "gender": [0.1, 0.9],
        "Blond_Hair": [0.2, 0.8],
        "Smiling": [0.9, 0.1],
        "expression": [0, 0, 0, 0.8, 0.1, 0.1, 0],
    }
    assert agrees("I see a woman. She is smiling and looks happy.", given)
    assert not agrees("I see a woman with wavy blond hair.", given)
    assert not agrees("This is a man. He is smiling.", given)
    assert not agrees("She is not smiling.", given)
    assert not agrees("She looks sad.", given)


@pytest.mark.parametrize("male, agreed", [(0.95, True), (0.59, False), (0.05, False)])
def test_a_guess_at_the_gender_is_not_stated(male, agreed):
    closed = {"gender": (male, 1 - male), "Male": (male, 1 - male), "Smiling": (0.9, 0.1)}
    assert agrees("A man who is smiling.", closed) == agreed
    assert agrees("Somebody who is smiling.", closed)
    noun = {0.95: "man", 0.59: "person", 0.05: "woman"}[male]
    assert describe_answers(closed).startswith(f"This is a {noun}.")


def test_an_undecided_yes_or_no_is_not_stated():
    assert not agrees("A face with glasses.", {"Eyeglasses": (0.55, 0.45)})
    assert agrees("A face with glasses.", {"Eyeglasses": (0.7, 0.3)})
