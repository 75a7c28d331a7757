"""Rules as data: their form, restriction to a vocabulary, and tables without contradictions or strangers."""

import pytest

from fi_jax.errors import UserError
from fi_jax.labels.registry import VOCABULARY_NAMES, vocabulary
from fi_jax.labels.rule_tables import REJECTED, TABLES, rules_for
from fi_jax.labels.rules import Rule, excludes, implies, restrict
from fi_jax.labels.tasks import AGE_GROUP, AGE_YEARS, age_labels
from fi_jax.labels.vocabulary import Label, Vocabulary

AB = Vocabulary("ab", (Label("a", "a"), Label("b", "b")))


def test_restriction_keeps_only_what_stays_true():
    assert restrict(excludes("a", ["b", "c"], "x"), AB) == excludes("a", ["b"], "x")
    assert restrict(implies("a", ["b", "c"], "x"), AB) is None
    assert restrict(Rule("at_most_one", ("a", "b", "c"), "x"), AB) == Rule("at_most_one", ("a", "b"), "x")
    assert restrict(Rule("at_most_one", ("a", "c"), "x"), AB) is None
    assert restrict(Rule("exactly_one", ("a", "b", "c"), "x"), AB) is None
    assert restrict(excludes("c", ["a"], "x"), AB) is None


@pytest.mark.parametrize(
    "wrong",
    [
        lambda: Rule("implies", ("a",), "x"),
        lambda: Rule("at_most_one", ("a", "b"), "x", "c"),
        lambda: Rule("at_most_one", ("a",), "x"),
        lambda: excludes("a", [], "x"),
        lambda: implies("a", ["a", "b"], "x"),
    ],
)
def test_malformed_rules(wrong):
    with pytest.raises(UserError):
        wrong()


def test_tables_name_only_real_labels_and_give_reasons():
    everything = vocabulary("all")
    for rule in [rule for table in TABLES.values() for rule in table] + list(REJECTED):
        assert all(name in everything for name in rule.labels) and rule.source
        assert rule.premise is None or rule.premise in everything
    kept = {(r.kind, r.premise, r.labels) for table in TABLES.values() for r in table}
    assert not kept & {(r.kind, r.premise, r.labels) for r in REJECTED}


@pytest.mark.parametrize("name", VOCABULARY_NAMES)
def test_every_group_of_a_vocabulary_has_its_rule(name):
    vocab = vocabulary(name)
    rules = rules_for(vocab)
    grouped = {(rule.kind, rule.labels) for rule in rules if rule.premise is None}
    assert grouped == {(group.kind, group.labels) for group in vocab.groups}
    assert len(set(rules)) == len(rules)


def test_required_rules():
    said = {str(rule) for rule in rules_for(vocabulary("faces"))}
    assert "No_Beard excludes Goatee, Mustache, Sideburns" in said
    assert "at most one of Black_Hair, Blond_Hair, Brown_Hair, Gray_Hair" in said
    assert any(text.startswith("age:0-2 excludes") and "Goatee" in text and "Gray_Hair" in text for text in said)
    assert {r.premise for r in rules_for(vocabulary("raf_db"))} == {None}


@pytest.mark.parametrize("age", range(117))
def test_age_targets_keep_the_years_rules(age):
    """A bin with any mass at a whole age allows the group of that age."""
    targets = age_labels(age)
    group = next(name for name in AGE_GROUP.labels if targets[name] == 1)
    allowed = {rule.premise: rule.labels for rule in rules_for(vocabulary("utkface")) if rule.kind == "implies"}
    assert set(allowed) == set(AGE_YEARS.labels)
    assert all(group in allowed[name] for name in AGE_YEARS.labels if targets[name] > 0)
