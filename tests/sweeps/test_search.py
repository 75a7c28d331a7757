"""The study behind a search: results told, lost trials put back, all of it in the journal."""

import datetime

import optuna
import pytest

from fi_jax.sweeps import search as module
from fi_jax.sweeps.expressions import Sweep, choice, integers, log_uniform, search, uniform
from fi_jax.sweeps.folder import SweepFolder, claim


def study_of(tmp_path, goal="min"):
    sweep = Sweep("tiny", search({"train.learning_rate": log_uniform(1e-4, 1e-1)}, trials=3), goal=goal)
    return module.open_study(tmp_path, sweep), {"train.learning_rate": module.distribution(log_uniform(1e-4, 1e-1))}


def test_distributions():
    assert module.distribution(uniform(0, 1)) == optuna.distributions.FloatDistribution(0, 1)
    assert module.distribution(integers(1, 8, log=True)) == optuna.distributions.IntDistribution(1, 8, log=True)
    assert module.distribution(choice("a", "b")) == optuna.distributions.CategoricalDistribution(("a", "b"))


@pytest.mark.parametrize("goal", ["min", "max"])
def test_results_reach_the_study(tmp_path, goal):
    study, space = study_of(tmp_path, goal)
    for value in (3.0, 1.0):
        module.tell(study, study.ask(space), {"status": "ok", "metrics": {"loss": value}}, "loss")
    module.tell(study, study.ask(space), {"status": "failed", "metrics": {}, "error": "broke"}, "loss")
    module.tell(study, study.ask(space), {"status": "pruned", "metrics": {"loss": 0.0}}, "loss")
    again, _ = study_of(tmp_path, goal)
    assert again.best_value == (1.0 if goal == "min" else 3.0)
    assert [trial.state.name for trial in again.trials] == ["COMPLETE", "COMPLETE", "FAIL", "PRUNED"]
    assert again.trials[2].user_attrs["error"] == "broke"


def test_trial_of_a_dead_worker_is_put_back(tmp_path, monkeypatch):
    study, space = study_of(tmp_path)
    folder = SweepFolder(tmp_path)
    trials = [study.ask(space), study.ask(space)]
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
    assert study.ask(space).params == trials[1].params
