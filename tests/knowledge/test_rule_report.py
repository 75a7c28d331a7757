"""The page of rules: measured numbers, and docs/rules.md up to date."""

from pathlib import Path

import numpy as np
import pytest

from fi_jax.knowledge.rule_report import measure, rules_page
from fi_jax.labels.registry import vocabulary
from fi_jax.labels.rule_tables import REJECTED, TABLES
from fi_jax.labels.rules import Rule, excludes, implies
from fi_jax.labels.vocabulary import Label, Vocabulary

ROOT = Path(__file__).parents[2]
CELEBA = ROOT.parent / "shared" / "data" / "celeba"
ABC = Vocabulary("abc", tuple(Label(c, c) for c in "abc"))


def test_measure_counts_by_hand():
    labels = np.array([[1, 1, 0], [1, 0, 1], [0, 1, 1], [1, 0, 0]], bool)
    known = np.ones_like(labels)
    known[3, 1] = False
    rules = [
        excludes("a", ["b"], "x"),
        implies("a", ["b", "c"], "x"),
        Rule("at_most_one", ("b", "c"), "x"),
        implies("a", ["z"], "x"),
    ]
    found = measure(rules, ABC, labels, known)
    assert [tuple(f[1:]) if f else None for f in found] == [(3, 2, 1), (3, 2, 0), (3, 3, 1), None]


def test_the_docs_list_every_rule():
    page = (ROOT / "docs" / "rules.md").read_text()
    empty = np.zeros((1, 40), bool)
    fresh = rules_page("", vocabulary("celeba"), empty, ~empty)
    rows = [line.split("|")[1:3] for line in fresh.splitlines() if line.startswith("| ")]
    assert len(rows) >= sum(map(len, TABLES.values())) + len(REJECTED)
    for rule, why in rows:
        assert f"|{rule}|{why}|" in page, f"docs/rules.md is out of date: {rule}"


@pytest.mark.real_data
def test_the_docs_are_what_the_command_writes(tmp_path):
    if not CELEBA.exists():
        pytest.skip("the CelebA annotation files are not beside the checkout (../shared/data/celeba)")
    from fi_jax.cli.main import main

    out = tmp_path / "graph"
    assert main(["graph", "celeba", "--data-root", str(CELEBA), "--split", "all", "--rules", "--out", str(out)]) == 0
    assert (out / "rules.md").read_text() == (ROOT / "docs" / "rules.md").read_text()
