"""The folder of a sweep (ownership, claims) and the table, best point and plot made of results."""

import os
import time

import pytest

from fi_jax.config import Experiment
from fi_jax.errors import UserError
from fi_jax.experiments import results
from fi_jax.experiments.expressions import Sweep, grid
from fi_jax.experiments.folder import STALE, SweepFolder, claim, is_claimed, release
from fi_jax.experiments.points import apply


def test_folder_of_another_sweep_is_refused(tmp_path):
    folder = SweepFolder(tmp_path / "s")
    folder.open({"metric": "loss", "config": {"a": (1, 2)}})
    folder.open({"metric": "loss", "config": {"a": (1, 2)}})
    with pytest.raises(UserError, match=r"another sweep \(metric differ"):
        folder.open({"metric": "bce", "config": {"a": (1, 2)}})


def test_same_point_has_one_folder(tmp_path):
    folder = SweepFolder(tmp_path)
    point = {"train.seed": 3}
    config = apply(Experiment(), point)
    assert folder.add(config, point) == folder.add(config, point)
    assert len(list((tmp_path / "points").iterdir())) == 1


def test_claims(tmp_path):
    assert claim(tmp_path) and is_claimed(tmp_path)
    assert not claim(tmp_path)
    release(tmp_path)
    assert not is_claimed(tmp_path)
    # A process of this node that is gone holds nothing.
    (tmp_path / "claim").write_text(f"{os.uname().nodename} 4194305\n")
    assert not is_claimed(tmp_path) and claim(tmp_path)
    # One of another node is believed until its claim is stale.
    (tmp_path / "claim").write_text("elsewhere 1\n")
    assert not claim(tmp_path)
    old = time.time() - STALE - 1
    os.utime(tmp_path / "claim", (old, old))
    assert claim(tmp_path)


def rows():
    ok = {"status": "ok", "seconds": 1.0}
    return [
        ("a", {"train.seed": 1, "train.schedule": "cosine"}, {**ok, "metrics": {"loss": 2.0, "bce": 1.0}}),
        ("b", {"train.seed": 2, "train.schedule": "cosine"}, {**ok, "metrics": {"loss": 1.0, "bce": 3.0}}),
        (
            "c",
            {"train.seed": 3, "train.schedule": "constant"},
            {"status": "failed", "metrics": {"loss": 0.1}, "error": "x"},
        ),
        ("d", {"train.seed": 4, "train.schedule": "constant"}, None),
    ]


@pytest.mark.parametrize(("metric", "goal", "best"), [("loss", "min", "b"), ("bce", "max", "b"), ("bce", "min", "a")])
def test_table_and_best(metric, goal, best):
    sweep = Sweep("tiny", grid({"train.seed": [1], "train.schedule": ["cosine"]}), metric=metric, goal=goal)
    frame = results.table(rows(), sweep)
    assert results.best_point(frame) == best
    assert list(frame.columns[:6]) == ["point", "status", "seconds", "train.seed", "train.schedule", metric]
    assert set(frame["status"]) == {"ok", "failed", "waiting"} and len(frame) == 4


def test_no_best_without_success():
    sweep = Sweep("tiny", grid({"train.seed": [1]}), metric="nothing")
    assert results.best_point(results.table(rows()[2:], sweep)) is None


def test_plot_has_a_panel_a_field():
    sweep = Sweep("tiny", grid({"train.seed": [1], "train.schedule": ["cosine"]}))
    figure = results.plot(results.table(rows(), sweep), sweep)
    assert [axes.get_xlabel() for axes in figure.axes] == ["train.seed", "train.schedule"]
    assert len(figure.axes[0].collections[0].get_offsets()) == 2
