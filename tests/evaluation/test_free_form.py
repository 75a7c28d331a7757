"""Reading generated texts as answers, and counting those that cannot be read."""

import pytest

from fi_jax.evaluation.free_form import read_answer
from fi_jax.evaluation.predictions import Prediction
from fi_jax.evaluation.results import cells_of
from fi_jax.evaluation.results_tables import notes_below, results_table
from fi_jax.evaluation.summarise import summarise
from fi_jax.labels.question_bank import question


@pytest.mark.parametrize(
    ("name", "text", "answer"),
    [
        ("Smiling", "Yes, she is smiling.", "Yes"),
        ("Smiling", "a cat", None),
        ("race:utkface", "D", "Indian"),
        ("race:utkface", "She looks Black or Indian.", None),
        ("expression", "The answer is (d).", "happy"),
        ("age_group", "He is in his thirties.", "30-39"),
        ("age_years", "34", 34.0),
        ("age_years", "About 34 years old.", 34.0),
        ("age_years", "She is a 61-year-old.", 61.0),
        ("age_years", "B", 7.0),
        ("age_years", "25-29", 27.0),
        ("age_years", "95+", 97.0),
        ("age_years", "rather old", None),
    ],
)
def test_texts_are_read_as_answers(name, text, answer):
    assert read_answer(question(name), text) == answer


def test_what_cannot_be_read_counts_as_wrong_and_is_told():
    asked = question("gender")
    said = ["male", "no idea", "male", "..."]
    lines = [
        Prediction(
            f"{i}.jpg", "utkface", "gender", "gender", "male", read_answer(asked, text), source="free", text=text
        )
        for i, text in enumerate(said)
    ]
    summary = summarise(lines, resamples=20)
    (entry,) = summary["entries"]
    assert entry["tasks"]["gender"]["unreadable"] == 2
    assert entry["tasks"]["gender"]["metrics"]["accuracy"]["value"] == 0.5
    line = notes_below(summary)[0]
    assert "gender 2 of 4" in line and "UTKFace, training-free" in line
    assert "LLM, free-form" in results_table(cells_of(summary)).to_markdown()
