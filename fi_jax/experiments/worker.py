"""One worker of a sweep: takes points from the study, runs each, and writes down what came out.

FOLDER/study.journal        the study: all points, claims and results
FOLDER/points/ID/config.py  the whole config of a point; log.txt what its run printed
FOLDER/runs/ID/             the run's own folder
"""

import logging
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import optuna
from optuna.exceptions import UpdateFinishedTrialError
from optuna.trial import TrialState

from fi_jax.config import Experiment
from fi_jax.config_tree import to_dict
from fi_jax.experiments.expressions import Search, Sweep
from fi_jax.experiments.points import apply, config_source, point_id
from fi_jax.experiments.run import (
    STOP,
    Interrupted,
    Process,
    Result,
    evaluation_metrics,
    judge,
    last_metrics,
    read_metrics,
)
from fi_jax.experiments.store import BEAT, STALE, Store, Trial, fields_of, status_of
from fi_jax.files import write_text

log = logging.getLogger(__name__)

_ENDED = {"ok": TrialState.COMPLETE, "pruned": TrialState.PRUNED, "failed": TrialState.FAIL}
Report = Callable[[str, Result], None]


@dataclass(frozen=True)
class Work:
    """A sweep in its folder, as a worker anywhere needs it (it is pickled for SLURM)."""

    folder: Path
    sweep: Sweep
    # The sweep's config with the common overrides.
    base: Experiment

    def store(self) -> Store:
        """The study; open it with `with`."""
        points = self.sweep.points
        prunes = isinstance(points, Search) and points.pruner == "median"
        pruner = optuna.pruners.MedianPruner() if prunes else optuna.pruners.NopPruner()
        return Store(self.folder, self.sweep.goal, pruner)

    def run_folder(self, point: str) -> Path:
        """The run folder that training a point leaves."""
        return self.folder / "runs" / point

    def config_of(self, trial: Trial) -> Experiment:
        """The config of a trial's point."""
        return apply(self.base, fields_of(trial))


def run_points(work: Work, only: str = "", env: Sequence[tuple[str, str]] = (), report: Report | None = None) -> None:
    """Runs the points that wait (or the one named `only`), or a search's trials, until none is left.

    Any number of workers, on any nodes, may do so at once. `env` are variables of the runs' environment, e.g. the one
    GPU they may see. Raises `Interrupted` when told to stop: the run under way has saved, and its point is given back.
    """
    with work.store() as store:
        while not STOP.is_set() and (trial := _next_trial(work, store, only)) is not None:
            begin = time.monotonic()
            try:
                result = _train_and_evaluate(work, store, trial, env)
                record(work, store, trial, result, time.monotonic() - begin)
            except Interrupted:
                store.give_back(trial)
                raise
            except UpdateFinishedTrialError:
                log.warning(f"another worker took trial {trial.number} over")
                continue
            if report is not None:
                report(trial.user_attrs["point"], result)


def record(work: Work, store: Store, trial: Trial, result: Result, seconds: float) -> None:
    """Writes how a trial's run ended into the study."""
    value = result.metrics[work.sweep.metric] if result.status == "ok" else None
    error = {"error": result.error} if result.status == "failed" else {}
    store.finish(trial, _ENDED[result.status], value, metrics=result.metrics, seconds=round(seconds, 3), **error)


def _next_trial(work: Work, store: Store, only: str) -> Trial | None:
    """A trial that this worker now has; None when there is no work left for it."""
    store.give_back_lost()
    if isinstance(work.sweep.points, Search):
        return _draw(work.sweep.points, work, store)
    deadline = time.monotonic() + STALE
    while True:
        for trial in store.trials(TrialState.WAITING):
            if only in ("", trial.user_attrs["point"]) and store.claim(trial):
                return trial
        # A task that SLURM started again on another node may come before its own silence was noticed.
        standing = store.points().get(only)
        if standing is None or status_of(standing) != "running" or time.monotonic() > deadline or STOP.wait(1):
            return None
        store.give_back_lost()


def _draw(search: Search, work: Work, store: Store) -> optuna.Trial | None:
    """A new trial of a search, or one that was given back; None when it has as many as it was asked for."""
    while len(_spent(store)) < search.trials or store.trials(TrialState.WAITING):
        store.study.sampler = _sampler(search, len(store.trials()))
        trial = store.study.ask()
        store.study.sampler = _sampler(search, trial.number)
        for name, one in search.ranges.items():
            _suggest(trial, name, one)
        if "retry" not in trial.user_attrs and _spent(store).index(trial.number) >= search.trials:
            # Two workers took the last place.
            store.give_back(trial)
        elif store.name_point(trial, point_id(work.config_of(trial))):
            return trial
    return None


def _spent(store: Store) -> list[int]:
    """Numbers of the trials that count towards those that a search was asked for."""
    return [t.number for t in store.trials() if status_of(t) != "given back" and "retry" not in t.user_attrs]


def _sampler(search: Search, number: int) -> optuna.samplers.BaseSampler:
    """The sampler of trial `number`. Seeded by it: workers that know nothing of each other draw different points."""
    seed = search.seed + number
    if search.sampler == "random":
        return optuna.samplers.RandomSampler(seed=seed)
    return optuna.samplers.TPESampler(seed=seed, constant_liar=True)


def _suggest(trial: optuna.Trial, name: str, one: Any) -> Any:
    if isinstance(one, optuna.distributions.CategoricalDistribution):
        return trial.suggest_categorical(name, one.choices)
    suggest: Any = trial.suggest_int if isinstance(one, optuna.distributions.IntDistribution) else trial.suggest_float
    return suggest(name, one.low, one.high, log=one.log)


def _train_and_evaluate(work: Work, store: Store, trial: Trial, env: Sequence[tuple[str, str]]) -> Result:
    """Trains one point from where its run folder stands, and evaluates it. A run that fails is a result like any other."""
    point = trial.user_attrs["point"]
    run, own, metric = work.run_folder(point), work.folder / "points" / point, work.sweep.metric
    config = own / "config.py"
    values = {**to_dict(work.config_of(trial)), "name": point}
    write_text(config, config_source(values, f"Point {point} of the sweep {work.folder.name}."))
    seen, checked = 0, time.monotonic()

    def watch() -> bool:
        nonlocal seen, checked
        if time.monotonic() - checked > BEAT:
            checked = time.monotonic()
            if not store.holds(trial):
                raise UpdateFinishedTrialError
        if not isinstance(trial, optuna.Trial) or isinstance(trial.study.pruner, optuna.pruners.NopPruner):
            return False
        lines = read_metrics(run)
        new, seen = lines[seen:], len(lines)
        for line in new:
            if isinstance(line.get(metric), int | float) and isinstance(line.get("step"), int):
                trial.report(line[metric], line["step"])
                if trial.should_prune():
                    return True
        return False

    process = Process(own / "log.txt", env, lambda pid: store.note(trial, process=pid), watch)
    status = process.run(["train", str(config), "--runs", str(run.parent)])
    metrics = last_metrics(run)
    if status is None:
        return Result("pruned", metrics)
    if status == 0 and work.sweep.evaluate:
        out = run / "evaluation"
        arguments = ["evaluate", str(config), "--checkpoint", str(run), "--out", str(out), *work.sweep.evaluate]
        status = process._replace(watch=lambda: False).run(arguments)
        if status == 0:
            try:
                metrics = evaluation_metrics(out / "metrics.json")
            except (OSError, ValueError) as error:
                return Result("failed", metrics, f"{out / 'metrics.json'} cannot be read ({error})")
    return Result("failed", metrics, process.error(status)) if status else judge(metrics, metric)
