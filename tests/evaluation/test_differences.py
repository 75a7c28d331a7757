"""Differences of two models: paired, by people, and a table of them."""

from dataclasses import replace

import numpy as np
import pytest

from fi_jax.evaluation.differences import differences
from fi_jax.evaluation.predictions import Prediction
from fi_jax.evaluation.report.tables import difference_table

YES = {"Yes": 0.9, "No": 0.1}
NO = {"Yes": 0.1, "No": 0.9}


def answers(right: np.ndarray, people: list[str | None]) -> list[Prediction]:
    """One answer about Smiling a face, whose truth is Yes."""
    return [
        Prediction(
            f"{i}.jpg", "celeba", "attribute", "Smiling", "Yes", "Yes" if ok else "No", YES if ok else NO, person=who
        )
        for i, (ok, who) in enumerate(zip(right, people, strict=True))
    ]


def of(found, metric="mean_accuracy"):
    return next(one for one in found if one.metric == metric)


def test_a_difference_is_paired_and_people_are_the_unit():
    rng = np.random.default_rng(0)
    first = rng.random(400) < 0.6
    second = first | (rng.random(400) < 0.2)
    nobody, few = [None] * 400, [str(i // 100) for i in range(400)]
    one = of(differences(answers(first, nobody), answers(second, nobody)))
    assert (one.first, one.second) == (first.mean(), second.mean()) and one.people == one.faces == 400
    gain = second.mean() - first.mean()
    error = np.std(second.astype(float) - first) / 20
    assert (one.low, one.high) == pytest.approx((gain - 1.96 * error, gain + 1.96 * error), abs=0.006)
    # Unpaired, the interval would be three times as wide.
    assert one.high - one.low < 0.6 * 2 * 1.96 * np.sqrt(first.var() / 400 + second.var() / 400)
    grouped = of(differences(answers(first, few), answers(second, few)))
    assert grouped.people == 4 and grouped.first == one.first


def test_faces_and_questions_that_only_one_answered_take_no_part():
    every = np.array([True, False, True, True])
    first, second = answers(every, [None] * 4), answers(every, [None] * 4)[1:]
    extra = [replace(p, question="Male", label="No", answer="No", probabilities=NO) for p in second]
    found = differences(first, [*second[::-1], *extra])
    assert {one.faces for one in found} == {3} and of(found).first == of(found).second == pytest.approx(2 / 3)
    assert differences(first, [replace(p, dataset="celebamask_hq") for p in second]) == []


def test_a_number_of_ones_own_is_compared_by_its_error_beside_its_bins():
    bins = ("below 10", "10 to 20", "20 or more")

    def lines(said: tuple[float, float, float]) -> list[Prediction]:
        probabilities, answer = dict(zip(bins, said, strict=True)), bins[int(np.argmax(said))]
        common = {"task": "number:height", "question": "height", "label": "10 to 20", "number": 12.0}
        return [Prediction(f"{i}", "own", answer=answer, probabilities=probabilities, **common) for i in range(20)]

    found = differences(lines((0.0, 1.0, 0.0)), lines((0.4, 0.6, 0.0)))
    error, accuracy = of(found, "mae"), of(found, "accuracy")
    # The middles are 5, 15 and 25.
    assert (error.first, error.second) == pytest.approx((3, 1)) and (accuracy.first, accuracy.second) == (1, 1)


def test_years_and_rules_are_compared_and_the_table_says_the_interval():
    def lines(years: float, bald: str) -> list[Prediction]:
        common = {"dataset": "utkface", "source": "head"}
        return [
            line
            for i in range(20)
            for line in (
                Prediction(f"{i}", task="age_years", question="age_years", label=30.0, answer=years + i % 3, **common),
                Prediction(f"{i}", task="attribute", question="Bald", label=None, answer=bald, **common),
                Prediction(f"{i}", task="attribute", question="Bangs", label=None, answer="Yes", **common),
            )
        ]

    found = differences(lines(33.0, "Yes"), lines(31.0, "No"))
    years, rules = of(found, "mae_years"), of(found, "violation_rate")
    assert years.second - years.first == pytest.approx(-2) == pytest.approx(years.low)
    assert (rules.first, rules.second) == (1, 0)
    table = difference_table(found, ("before", "after"))
    assert len(table.rows) == len(found) and any("−2" in str(cell) or "-2" in str(cell) for cell in table.rows[0])
