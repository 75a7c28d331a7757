"""How a worker takes points: draws of a search, results told to Optuna, lost trials put back."""

import json

import pytest

from fi_jax.config import Experiment
from fi_jax.experiments import worker as module
from fi_jax.experiments.expressions import Sweep, choice, grid, integers, log_uniform, search, uniform
from fi_jax.experiments.points import point_id
from fi_jax.experiments.run import Interrupted, Result, evaluation_metrics, last_metrics
from fi_jax.experiments.store import status_of
from fi_jax.experiments.worker import Work, run_points

RATE = {"train.learning_rate": log_uniform(1e-4, 1e-1)}


def work_of(folder, goal="min", **settings) -> Work:
    return Work(folder, Sweep("tiny", search(RATE, **{"trials": 3} | settings), goal=goal), Experiment())


def run_with(monkeypatch, work: Work, results) -> list:
    """Runs the trials with these results (or errors) in place of training; returns the values that were drawn."""
    drawn, waiting = [], iter(results)

    def train(work, store, trial, env):
        drawn.append(trial.params)
        assert trial.user_attrs["point"] == point_id(work.config_of(trial))
        result = next(waiting)
        if isinstance(result, type):
            raise result
        return result

    monkeypatch.setattr(module, "_train_and_evaluate", train)
    run_points(work)
    return drawn


@pytest.mark.parametrize("sampler", ["tpe", "random"])
def test_values_lie_in_their_ranges(tmp_path, monkeypatch, sampler):
    ranges = {
        "train.ema": uniform(0, 1),
        "train.steps": integers(1, 8, log=True),
        "train.schedule": choice("cosine", "constant"),
        "train.learning_rate": log_uniform(1e-3, 1),
    }
    work = Work(tmp_path, Sweep("tiny", search(ranges, trials=6, sampler=sampler)), Experiment())
    drawn = run_with(monkeypatch, work, [Result("ok", {"loss": float(value)}) for value in range(6)])
    for values in drawn:
        a, b, c, d = (values[name] for name in ranges)
        assert 0 <= a <= 1 and b in range(1, 9) and c in ("cosine", "constant") and 1e-3 <= d <= 1
    assert len({values["train.ema"] for values in drawn}) == 6


def test_workers_that_know_nothing_of_each_other_draw_different_points(tmp_path):
    work = work_of(tmp_path)
    with work.store() as first, work.store() as second:
        one, two = module._next_trial(work, first, ""), module._next_trial(work, second, "")
        assert one.params != two.params
    # And the same search draws the same points again.
    work = work_of(tmp_path / "again")
    with work.store() as again:
        assert module._next_trial(work, again, "").params == one.params


@pytest.mark.parametrize("goal", ["min", "max"])
def test_results_reach_the_study(tmp_path, monkeypatch, goal):
    work = work_of(tmp_path, goal, trials=4)
    results = [Result("ok", {"loss": 3.0}), Result("ok", {"loss": 1.0}), Result("failed", {}, "broke")]
    run_with(monkeypatch, work, [*results, Result("pruned", {"loss": 0.0})])
    study = work.store().study
    assert study.best_value == (1.0 if goal == "min" else 3.0)
    assert [trial.state.name for trial in study.trials] == ["COMPLETE", "COMPLETE", "FAIL", "PRUNED"]
    assert study.trials[2].user_attrs["error"] == "broke"


def test_a_search_has_as_many_trials_as_it_was_asked_for(tmp_path, monkeypatch):
    """Interrupted ones are put back, with the same values; repeated values count and are not run again."""
    work = work_of(tmp_path)
    with pytest.raises(Interrupted):
        run_with(monkeypatch, work, [Result("ok", {"loss": 1.0}), Interrupted])
    statuses = [status_of(trial) for trial in work.store().trials()]
    assert statuses == ["ok", "given back", "waiting"]
    stopped = work.store().trials()[1].params
    drawn = run_with(monkeypatch, work, [Result("ok", {"loss": 1.0})] * 2)
    assert drawn[0] == stopped and len(drawn) == 2 and drawn[1] not in (stopped, drawn[0])
    assert run_with(monkeypatch, work, []) == []

    few = Work(tmp_path / "few", Sweep("tiny", search({"train.seed": integers(0, 1)}, trials=5)), Experiment())
    drawn = run_with(monkeypatch, few, [Result("ok", {"loss": 1.0})] * 5)
    assert len(drawn) <= 2 and len({str(values) for values in drawn}) == len(drawn)
    assert len(few.store().trials()) == 5


def test_failed_trials_of_a_search_can_be_run_again(tmp_path, monkeypatch):
    work = work_of(tmp_path)
    first = run_with(monkeypatch, work, [Result("failed", {}, "broke")] + [Result("ok", {"loss": 1.0})] * 2)
    with work.store() as store:
        assert len(store.retry_failed()) == 1
    assert run_with(monkeypatch, work, [Result("ok", {"loss": 0.0})]) == first[:1]
    assert [status_of(trial) for trial in work.store().points().values()] == ["ok"] * 3


def test_one_point_can_be_asked_for(tmp_path, monkeypatch):
    work = Work(tmp_path, Sweep("tiny", grid({"train.seed": [0, 1, 2]})), Experiment())
    names = {point_id(module.apply(Experiment(), point)): point for point in work.sweep.points.points}
    work.store().add(names)
    wanted = list(names)[1]
    monkeypatch.setattr(module, "_train_and_evaluate", lambda *_: Result("ok", {"loss": 1.0}))
    run_points(work, wanted)
    statuses = {name: status_of(trial) for name, trial in work.store().points().items()}
    assert statuses == {name: "ok" if name == wanted else "waiting" for name in names}


def test_damaged_logs(tmp_path):
    (tmp_path / "metrics.jsonl").write_text(
        '{"step": 1, "loss": 2.0}\nnull\n[3]\n{"step": 2, "loss": null, "a": "x"}\n{"st'
    )
    metrics = last_metrics(tmp_path)
    assert metrics["step"] == 2 and metrics["loss"] != metrics["loss"] and "a" not in metrics
    for text in ("[]", "{", ""):
        (tmp_path / "metrics.json").write_text(text)
        with pytest.raises(ValueError):
            evaluation_metrics(tmp_path / "metrics.json")
    (tmp_path / "metrics.json").write_text(json.dumps({"a": {"b": 1, "c": True}, "d": "x"}))
    assert evaluation_metrics(tmp_path / "metrics.json") == {"a.b": 1}
