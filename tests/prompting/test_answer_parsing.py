"""Generated text back to options."""

import pytest

from fi_jax.labels.question_bank import question, questions_for
from fi_jax.labels.registry import vocabulary
from fi_jax.prompting.answer_parsing import parse_answer


@pytest.mark.parametrize("asked", questions_for(vocabulary("all")), ids=lambda q: q.name)
def test_every_answer_and_option_is_understood(asked):
    for index, (answer, option) in enumerate(zip(asked.answers, asked.options, strict=True)):
        for text in (
            answer,
            answer + ".",
            f" {answer}\n",
            f"({answer})",
            option,
            f"{answer} {option}",
            f"The answer is {answer}.",
        ):
            assert parse_answer(asked, text) == index, text


@pytest.mark.parametrize(
    ("name", "text", "option"),
    [
        ("Smiling", "Yes, he is smiling.", "Yes"),
        ("Smiling", "no", "No"),
        ("Smiling", "The person is not smiling.", "No"),
        ("Smiling", "I think so, yes.", "Yes"),
        ("Smiling", "Perhaps.", None),
        ("Smiling", "", None),
        ("gender", "A woman.", "female"),
        ("gender", "A female person", "female"),
        ("gender", "female", "female"),
        ("gender", "It is not a woman but a man.", "male"),
        ("gender", "A man and a woman.", None),
        ("race:fairface", "East Asian", "East Asian"),
        ("race:fairface", "Southeast Asian", "Southeast Asian"),
        ("race:fairface", "Hispanic", "Latino or Hispanic"),
        ("race:utkface", "Caucasian", "White"),
        ("age_group", "About 34 years old.", "30-39"),
        ("age_group", "She is in her thirties.", "30-39"),
        ("age_group", "20 to 29", "20-29"),
        ("age_group", "over 70", "70+"),
        ("age_group", "between 25 and 35", None),
        ("age_years", "He looks 34.", "30-34"),
        ("age_years", "102", "95+"),
        ("expression", "She looks happy and surprised.", None),
        ("expression", "unhappy", "sad"),
        ("expression", "F: surprise", "surprise"),
        ("expression", "I cannot say", None),
    ],
)
def test_free_forms(name, text, option):
    asked = question(name)
    index = parse_answer(asked, text)
    assert (None if index is None else asked.options[index]) == option
