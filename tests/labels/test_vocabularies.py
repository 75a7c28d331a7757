"""The released vocabularies: names, order, groups, and the questions asked about them."""

import pytest

from fi_jax.errors import UserError
from fi_jax.labels import celeba, maad_face
from fi_jax.labels.question_bank import question, questions_for
from fi_jax.labels.registry import VOCABULARY_NAMES, vocabulary


def test_celeba_order_is_the_released_files():
    names = vocabulary("celeba").names
    assert len(names) == 40
    assert names == tuple(sorted(names, key=str.lower))  # the release sorts its columns
    assert names[20] == "Male" and names[31] == "Smiling"


def test_maad_face_order_and_shared_words():
    names = vocabulary("maad_face").names
    assert len(names) == 47
    assert (names[0], names[4], names[46]) == ("Male", "Asian", "Attractive")
    assert len(set(names) & set(vocabulary("celeba").names)) == 47 - 13
    shared = [label for label in maad_face.LABELS if label.name in celeba.QUESTIONS]
    assert all(label in celeba.LABELS for label in shared)


@pytest.mark.parametrize("name", VOCABULARY_NAMES)
def test_questions_of_every_vocabulary(name):
    vocab = vocabulary(name)
    questions = questions_for(vocab)
    assert len({q.name for q in questions}) == len({q.text for q in questions}) == len(questions)
    asked = {label for q in questions for label in q.labels if label}
    assert asked == set(vocab.names)
    for q in questions:
        assert len(q.options) == len(q.answers) == len(q.labels)
        if q.is_binary:
            assert len(q.text.split()) <= 8 and q.name != "Female"
    assert len({label.prompt for label in vocab.labels}) == len(vocab)


def test_exactly_one_groups_are_asked_as_one_question():
    vocab = vocabulary("faces")
    choices = {frozenset(q.labels) for q in questions_for(vocab) if not q.is_binary}
    assert choices == {frozenset(g.labels) for g in vocab.groups if g.kind == "exactly_one"}


def test_sizes():
    assert {name: len(vocabulary(name)) for name in VOCABULARY_NAMES} == {
        "faces": 40 + 1 + 9 + 20 + 5 + 7,
        "celeba": 40,
        "maad_face": 47,
        "fairface": 2 + 9 + 7,
        "utkface": 2 + 9 + 20 + 5,
        "expw": 7,
        "raf_db": 7 + 2 + 3,
        "all": 40 + 13 + 1 + 9 + 20 + 9 + 7,
    }


def test_questions_of_choices():
    assert question("race:fairface").options[2] == "Latino or Hispanic"
    years = question("age_years")
    assert years.answers[0] == "A" and years.answers[-1] == "T" and years.options[-1] == "95+"


@pytest.mark.parametrize("ask", [vocabulary, question])
def test_unknown_names_are_user_errors(ask):
    with pytest.raises(UserError, match="did you mean"):
        ask("utkfacee" if ask is not question else "genderr")
