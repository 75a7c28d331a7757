"""The table, the best point and the plot made of a study."""

import pytest
from optuna.trial import TrialState

from fi_jax.experiments import results
from fi_jax.experiments.expressions import Sweep, grid
from fi_jax.experiments.store import Store


@pytest.fixture
def store(tmp_path) -> Store:
    made = Store(tmp_path)
    kinds = ("cosine", "cosine", "constant", "constant")
    made.add({name: {"train.seed": i, "train.schedule": kind} for i, (name, kind) in enumerate(zip("abcd", kinds), 1)})
    trials = made.points()
    for name in "abc":
        assert made.claim(trials[name])
    made.finish(trials["a"], TrialState.COMPLETE, 2.0, metrics={"loss": 2.0, "bce": 1.0}, seconds=1.0)
    made.finish(trials["b"], TrialState.COMPLETE, 1.0, metrics={"loss": 1.0, "bce": 3.0}, seconds=1.0)
    made.finish(trials["c"], TrialState.FAIL, metrics={"loss": 0.1}, error="x")
    return made


@pytest.mark.parametrize(("metric", "goal", "best"), [("loss", "min", "b"), ("bce", "max", "b"), ("bce", "min", "a")])
def test_table_and_best(store, metric, goal, best):
    sweep = Sweep("tiny", grid({"train.seed": [1], "train.schedule": ["cosine"]}), metric=metric, goal=goal)
    table = results.tabulate(store, sweep)
    row = results.best_row(table)
    assert row is not None and row["point"] == best
    assert list(table.header[:6]) == ["point", "status", "seconds", "train.seed", "train.schedule", metric]
    rows = table.records()
    assert {row["status"] for row in rows} == {"ok", "failed", "waiting"} and len(rows) == 4
    assert [row["error"] for row in rows] == ["", "", "x", ""]


def test_no_best_without_success(tmp_path):
    made = Store(tmp_path)
    made.add({"d": {"train.seed": 4}})
    sweep = Sweep("tiny", grid({"train.seed": [1]}), metric="nothing")
    assert results.best_row(results.tabulate(made, sweep)) is None


def test_plot_has_a_panel_a_field(store):
    sweep = Sweep("tiny", grid({"train.seed": [1], "train.schedule": ["cosine"]}))
    figure = results.plot(results.tabulate(store, sweep), sweep)
    assert [axes.get_xlabel() for axes in figure.axes] == ["train.seed", "train.schedule"]
    assert len(figure.axes[0].collections[0].get_offsets()) == 2
