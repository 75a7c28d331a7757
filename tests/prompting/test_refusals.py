"""What no face shows, names, and other languages are declined in one honest sentence; appearance is left to the LLM."""

import pytest

from fi_jax.errors import UserError
from fi_jax.prompting import refusals
from fi_jax.prompting.descriptions import (
    DESCRIBE_QUESTIONS,
    HAIR_QUESTIONS,
    IDENTITY_QUESTIONS,
    UNSEEN_QUESTIONS,
    WEARING_QUESTIONS,
)
from fi_jax.prompting.refusals import checked_question, is_withheld, refusal


@pytest.mark.parametrize("text", [*IDENTITY_QUESTIONS, "Is this Tom Hanks?", "What's his name?", "Is he a celebrity?"])
def test_nobody_is_identified(text):
    assert refusal(text) == refusals.IDENTITY_REFUSAL


@pytest.mark.parametrize(("text", "reason"), UNSEEN_QUESTIONS)
def test_what_training_declines_is_declined(text, reason):
    assert refusal(text).startswith("I cannot tell that from this picture: ")


@pytest.mark.parametrize(
    "text",
    ["What is the weather like?", "Is it sunny?", "What is his profession?", "Is she a doctor?", "Where is this?",
     "Is she wearing heels?", "Is he rich?", "Is she gay?", "Is he intelligent?", "Tell me a joke.", "What is 2+2?"],
)  # fmt: skip
def test_what_no_face_shows_is_declined(text):
    assert refusal(text).startswith("I cannot tell that from this picture")


@pytest.mark.parametrize(
    "text",
    ["Ist diese Person eine Frau?", "Lächelt diese Person?", "Est-ce que cette personne sourit ?", "¿Lleva gafas?",
     "¿Cuántos años tiene?", "Quanti anni ha questa persona?", "Сколько ему лет?", "这个人在笑吗？", "この人は何歳ですか",
     "Draagt deze persoon een bril?", "Esta pessoa usa óculos?"],
)  # fmt: skip
def test_other_languages_are_declined_in_english(text):
    assert refusal(text) == refusals.LANGUAGE_REFUSAL


@pytest.mark.parametrize("text", ["Is she Chinese?", "Is he Hispanic?", "Is this a black woman?"])
def test_race_is_named_by_the_label_set_alone(text):
    assert refusal(text) == refusals.RACE_REFUSAL


@pytest.mark.parametrize(
    "text",
    [*DESCRIBE_QUESTIONS, *HAIR_QUESTIONS, *WEARING_QUESTIONS, "What colour is her hair?", "Does she have a mole?",
     "Is he wearing a mask?", "Does she have freckles?", "What kind of beard does he have?"],
)  # fmt: skip
def test_appearance_is_left_to_the_model(text):
    assert refusal(text) is None


def test_generated_answers_that_say_too_much():
    assert is_withheld("Aussie Australians.") is False and is_withheld("She is an Asian woman.")
    assert is_withheld(refusals.IDENTITY_REFUSAL) and not is_withheld("She has black hair.")


def test_questions_are_one_line_and_bounded():
    assert checked_question(" Is she\n smiling? ") == "Is she smiling?"
    with pytest.raises(UserError, match="100000 letters; ask in at most 1000"):
        checked_question("x" * 100_000)
    with pytest.raises(UserError, match="write a question"):
        checked_question(" \n ")
