"""The study behind sweeps and ablations: one owner a point, lost workers' trials, what is refused."""

import multiprocessing
import os
import time

import pytest
from optuna.trial import TrialState

from fi_jax.errors import UserError
from fi_jax.experiments import store as module
from fi_jax.experiments.store import STALE, Store, fields_of, status_of


def only(store: Store):
    (trial,) = store.points().values()
    return trial


def test_folder_of_another_sweep_is_refused(tmp_path):
    Store(tmp_path / "s").describe({"metric": "loss", "config": {"a": (1, 2)}})
    store = Store(tmp_path / "s")
    store.describe({"metric": "loss", "config": {"a": (1, 2)}})
    with pytest.raises(UserError, match=r"another sweep \(metric differ"):
        store.describe({"metric": "bce", "config": {"a": [1, 2]}})


def test_same_point_is_there_once(tmp_path):
    store = Store(tmp_path)
    store.add({"a": {"train.seed": 3}})
    Store(tmp_path).add({"a": {"train.seed": 3}, "b": {"train.seed": 4}})
    assert [fields_of(trial) for trial in store.trials()] == [{"train.seed": 3}, {"train.seed": 4}]


def test_claims(tmp_path):
    with Store(tmp_path) as first, Store(tmp_path) as second:
        first.add({"a": {}})
        trial = only(second)
        assert first.claim(only(first)) and first.holds(trial)
        assert not second.claim(trial) and not second.holds(trial)
        # A living worker loses nothing.
        second.give_back_lost()
        assert status_of(only(second)) == "running"
        first.give_back(trial)
        assert not first.holds(trial)
        assert second.claim(only(second))
        # Whoever lost a trial cannot end it.
        with pytest.raises(module.UpdateFinishedTrialError):
            first.finish(trial, TrialState.COMPLETE, 1.0)


def worker_gone(store: Store, worker: str, seconds: float, **noted) -> str:
    """How a point stands after somebody looked for lost ones, when `worker` noted the time `seconds` ago."""
    store.add({worker: {}})
    trial = store.points()[worker]
    assert store.claim(trial)
    store.note(trial, worker=worker, **noted)
    store.study.set_user_attr(f"worker {worker}", time.time() - seconds)
    store.give_back_lost()
    return status_of(store.points()[worker])


def test_points_of_dead_workers_are_given_back(tmp_path):
    here, dead = os.uname().nodename, 4194305
    store = Store(tmp_path)
    # A process of this node that is gone holds nothing, unless its run goes on without it.
    assert worker_gone(store, f"{here}:{dead}:1", 0) == "waiting"
    assert worker_gone(store, f"{here}:{dead}:2", 0, process=dead) == "waiting"
    assert worker_gone(store, f"{here}:{dead}:3", STALE + 1, process=os.getpid()) == "running"
    assert worker_gone(store, f"{here}:{os.getpid()}:4", 0) == "running"
    # One of another node is believed until it is silent.
    assert worker_gone(store, "elsewhere:1:5", STALE - 5) == "running"
    assert worker_gone(store, "elsewhere:1:6", STALE + 1) == "waiting"


def test_failed_points_are_run_again_when_asked(tmp_path):
    store = Store(tmp_path)
    store.add({"a": {"x": 1}, "b": {"x": 2}})
    for point, state in (("a", TrialState.FAIL), ("b", TrialState.COMPLETE)):
        trial = store.points()[point]
        assert store.claim(trial)
        store.finish(trial, state, None if point == "a" else 0.5, **({"error": "broke"} if point == "a" else {}))
    store.add({"a": {"x": 1}, "b": {"x": 2}})
    assert [status_of(trial) for trial in store.points().values()] == ["failed", "ok"]
    assert store.retry_failed() == ["a"] and store.retry_failed() == []
    again = store.points()["a"]
    assert status_of(again) == "waiting" and fields_of(again) == {"x": 1}


@pytest.mark.parametrize(
    "damage", [b"\xff\x00\n{}\n", b"null\n", b'{"op_code": 99}\n', b'{"op_code": 4, "trial_id":\n{}\n']
)
def test_damaged_journal_is_one_line(tmp_path, damage):
    Store(tmp_path).add({"a": {}})
    with (tmp_path / "study.journal").open("ab") as file:
        file.write(damage)
    with pytest.raises(UserError, match=r"study.journal' is damaged .* move it away"):
        Store(tmp_path)


def _take_all(folder, barrier):
    with Store(folder) as store:
        barrier.wait()
        store.add({str(i): {"x": i} for i in range(12)})
        for _ in range(3):
            for trial in store.trials(TrialState.WAITING):
                if store.claim(trial):
                    if trial.number % 5 == 0:
                        store.give_back(trial)
                    else:
                        store.finish(trial, TrialState.COMPLETE, 0.0)


def test_workers_that_start_at_once_share_the_points(tmp_path):
    """Real processes race: each point is added once, claimed by one at a time, and ends once."""
    context = multiprocessing.get_context("spawn")
    barrier = context.Barrier(3)
    processes = [context.Process(target=_take_all, args=(tmp_path, barrier)) for _ in range(3)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(120)
        assert process.exitcode == 0
    store = Store(tmp_path)
    trials = store.trials()
    done = [trial.user_attrs["point"] for trial in trials if status_of(trial) == "ok"]
    back = [trial.user_attrs["point"] for trial in trials if status_of(trial) == "given back"]
    left = [trial.user_attrs["point"] for trial in trials if status_of(trial) == "waiting"]
    assert sorted(map(int, done + left)) == list(range(12)) and back
    assert len(trials) == 12 + len(back)
