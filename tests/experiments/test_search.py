"""The study behind a search: results told, lost trials put back, all of it in the journal."""

import datetime

import pytest

from fi_jax.experiments import search as module
from fi_jax.experiments.expressions import Sweep, choice, integers, log_uniform, search, uniform
from fi_jax.experiments.folder import SweepFolder, claim


def study_of(tmp_path, goal="min"):
    sweep = Sweep("tiny", search({"train.learning_rate": log_uniform(1e-4, 1e-1)}, trials=3), goal=goal)
    return module.open_study(tmp_path, sweep), sweep.points


@pytest.mark.parametrize("sampler", ["tpe", "random"])
def test_values_lie_in_their_ranges(tmp_path, sampler):
    ranges = {"a": uniform(0, 1), "b": integers(1, 8, log=True), "c": choice("x", "y"), "d": log_uniform(1e-3, 1)}
    settings = search(ranges, trials=6, sampler=sampler)
    study = module.open_study(tmp_path, Sweep("tiny", settings))
    for value in range(6):
        trial = module.ask(study, settings)
        a, b, c, d = (trial.params[name] for name in "abcd")
        assert 0 <= a <= 1 and b in range(1, 9) and c in "xy" and 1e-3 <= d <= 1
        study.tell(trial, float(value))
    assert len({trial.params["a"] for trial in study.trials}) == 6


def test_workers_that_know_nothing_of_each_other_draw_different_points(tmp_path):
    first, settings = study_of(tmp_path)
    second, _ = study_of(tmp_path)
    one, two = module.ask(first, settings), module.ask(second, settings)
    assert one.params != two.params
    # And the same search draws the same points again.
    (tmp_path / "again").mkdir()
    again, _ = study_of(tmp_path / "again")
    assert module.ask(again, settings).params == one.params


@pytest.mark.parametrize("goal", ["min", "max"])
def test_results_reach_the_study(tmp_path, goal):
    study, settings = study_of(tmp_path, goal)
    for value in (3.0, 1.0):
        module.tell(study, module.ask(study, settings), {"status": "ok", "metrics": {"loss": value}}, "loss")
    module.tell(study, module.ask(study, settings), {"status": "failed", "metrics": {}, "error": "broke"}, "loss")
    module.tell(study, module.ask(study, settings), {"status": "pruned", "metrics": {"loss": 0.0}}, "loss")
    again, _ = study_of(tmp_path, goal)
    assert again.best_value == (1.0 if goal == "min" else 3.0)
    assert [trial.state.name for trial in again.trials] == ["COMPLETE", "COMPLETE", "FAIL", "PRUNED"]
    assert again.trials[2].user_attrs["error"] == "broke"


def test_trial_of_a_dead_worker_is_put_back(tmp_path, monkeypatch):
    study, settings = study_of(tmp_path)
    folder = SweepFolder(tmp_path)
    trials = [module.ask(study, settings), module.ask(study, settings)]
    for name, trial in zip(("living", "dead"), trials):
        point = tmp_path / "points" / name
        point.mkdir(parents=True)
        trial.set_user_attr("point", name)
    assert claim(tmp_path / "points" / "living")
    module._take_back_lost(study, folder)
    # Both are young: the second worker may be about to claim its point.
    assert [trial.state.name for trial in study.trials] == ["RUNNING", "RUNNING"]
    monkeypatch.setattr(module, "_SETUP", 0.0)
    assert study.trials[1].datetime_start <= datetime.datetime.now()
    module._take_back_lost(study, folder)
    assert [trial.state.name for trial in study.trials] == ["RUNNING", "FAIL", "WAITING"]
    assert module.ask(study, settings).params == trials[1].params
