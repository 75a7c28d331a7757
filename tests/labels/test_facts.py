"""Statements about a face: what they say of labels by definition and by rule, and what they may not say."""

import pytest

from fi_jax.errors import UserError
from fi_jax.labels.facts import stated_labels, with_consequences
from fi_jax.labels.registry import vocabulary
from fi_jax.labels.rules import Rule, excludes, implies

FACES = vocabulary("faces")


def test_answers_and_years_become_labels():
    found = stated_labels({"gender": "female", "age": "71", "Smiling": "no"}, FACES)
    assert found["Female"] == 1 and found["Male"] == found["Smiling"] == 0
    assert found["age:70+"] == 1 and found["age:60-69"] == 0
    assert found["years:70-74"] == pytest.approx(0.8) and found["years:65-69"] == pytest.approx(0.2)
    # The same in Python's own terms.
    assert found == stated_labels({"gender": "Female", "age": 71, "Smiling": False}, FACES)
    assert stated_labels({"race": "asian"}, FACES)["race:Asian"] == 1


def test_rules_follow_from_statements():
    woman = stated_labels({"gender": "female"}, FACES)
    assert woman["Goatee"] == woman["Mustache"] == woman["Sideburns"] == 0 and "Smiling" not in woman
    child = stated_labels({"age": 5}, FACES)
    assert child["Young"] == child["No_Beard"] == 1 and child["Gray_Hair"] == child["Goatee"] == 0
    assert stated_labels({"age": 80}, FACES)["Young"] == 0
    # Neither: what a rule leaves open stays open.
    assert "Young" not in stated_labels({"age": 50}, FACES)
    # A man need not have a beard.
    assert "Goatee" not in stated_labels({"gender": "male"}, FACES)


def test_chains_of_each_kind():
    rules = (
        implies("a", ("b", "c"), "t"),
        excludes("b", ("d",), "t"),
        Rule("exactly_one", ("d", "e"), "t"),
        Rule("at_most_one", ("e", "f"), "t"),
    )
    assert with_consequences({"a": 1.0, "c": 0.0}, rules) == {"a": 1, "c": 0, "b": 1, "d": 0, "e": 1, "f": 0}
    assert with_consequences({"b": 0.0, "c": 0.0}, rules) == {"b": 0, "c": 0, "a": 0}
    assert with_consequences({"d": 1.0}, rules) == {"d": 1, "b": 0, "e": 0}
    assert with_consequences({"d": 0.4, "e": 0.6}, rules) == {"d": 0.4, "e": 0.6}


@pytest.mark.parametrize(
    ("known", "said"),
    [
        ({"gendr": "female"}, "did you mean 'gender'"),
        ({"gender": "woman"}, "--known gender"),
        ({"Smiling": "perhaps"}, "--known Smiling"),
        ({"age": "old"}, "number of years"),
        ({"age": -3}, "not a number of years"),
        ({"age": 5, "Goatee": "yes"}, "breaks the rule: age:3-9 excludes"),
        ({"gender": "female", "Male": "yes"}, "contradicts another statement about Male"),
    ],
)
def test_what_cannot_be_is_refused_in_one_line(known, said):
    with pytest.raises(UserError, match=said) as error:
        stated_labels(known, FACES)
    assert "\n" not in str(error.value)
