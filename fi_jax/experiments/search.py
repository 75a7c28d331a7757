"""Optuna behind a sweep: the study in a journal that many nodes share, and the loop of one worker."""

import datetime
from pathlib import Path
from typing import Any

from fi_jax.config import Experiment
from fi_jax.experiments.expressions import Choice, Range, Search, Sweep
from fi_jax.experiments.folder import SweepFolder, is_claimed, read_result
from fi_jax.experiments.points import apply
from fi_jax.experiments.worker import STOP, Interrupted, Job, Report, run_point

# A trial without a claim is being set up for at most this long (seconds).
_SETUP = 60.0
_MOVED = "moved-"


def suggest(trial: Any, name: str, one: Range) -> Any:
    """Asks an Optuna trial for a value of a field."""
    if isinstance(one, Choice):
        return trial.suggest_categorical(name, one.values)
    if one.whole:
        return trial.suggest_int(name, int(one.low), int(one.high), log=one.log)
    return trial.suggest_float(name, one.low, one.high, log=one.log)


def sampler(settings: Search, number: int) -> Any:
    """The sampler of trial `number`. Seeded by it: workers that know nothing of each other draw different points."""
    import optuna

    seed = settings.seed + number
    if settings.sampler == "random":
        return optuna.samplers.RandomSampler(seed=seed)
    return optuna.samplers.TPESampler(seed=seed, constant_liar=True)


def ask(study: Any, settings: Search) -> Any:
    """A new trial, or one that was put back, with a value for every field."""
    study.sampler = sampler(settings, len(study.get_trials(deepcopy=False)))
    trial = study.ask()
    study.sampler = sampler(settings, trial.number)
    for name, one in settings.ranges.items():
        suggest(trial, name, one)
    return trial


def open_study(path: Path, sweep: Sweep) -> Any:
    """Opens or makes the study in the journal under `path`."""
    import optuna
    from optuna.storages import JournalStorage
    from optuna.storages.journal import JournalFileBackend

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    settings = sweep.points
    assert isinstance(settings, Search)
    pruners = {"none": optuna.pruners.NopPruner, "median": optuna.pruners.MedianPruner}
    return optuna.create_study(
        storage=JournalStorage(JournalFileBackend(str(path / "study.journal"))),
        study_name=path.name,
        load_if_exists=True,
        direction="minimize" if sweep.goal == "min" else "maximize",
        pruner=pruners[settings.pruner](),
    )


def search_worker(
    folder: SweepFolder, sweep: Sweep, base: Experiment, env: tuple = (), report: Report | None = None
) -> None:
    """Runs trials until the study has `trials` of them. Any number of workers, on any nodes, may do so at once.

    Raises `Interrupted` when told to stop; the trial under way is put back first.
    """
    from optuna.trial import TrialState

    study = open_study(folder.path, sweep)
    settings = sweep.points
    assert isinstance(settings, Search)
    while not STOP.is_set():
        _take_back_lost(study, folder)
        # Those that were put back count again as soon as someone takes them.
        moved = {name for name in study.user_attrs if name.startswith(_MOVED)}
        trials = study.get_trials(deepcopy=False)
        spent = [t for t in trials if t.state != TrialState.WAITING and f"{_MOVED}{t.number}" not in moved]
        if len(spent) >= settings.trials:
            return
        trial = ask(study, settings)
        config = apply(base, trial.params)
        point = folder.add(config, trial.params)
        trial.set_user_attr("point", point.name)

        def watch(step: int, value: float, trial=trial) -> bool:
            trial.report(value, step)
            return trial.should_prune()

        job = Job(folder.path, point, sweep.metric, tuple(sweep.evaluate), env)
        try:
            result = run_point(job, watch if settings.pruner != "none" else None)
        except Interrupted:
            _put_back(study, trial.number, trial.params)
            raise
        tell(study, trial, result, sweep.metric)
        if report is not None:
            report(job, result)


def tell(study: Any, trial: Any, result: dict[str, Any], metric: str) -> None:
    """Reports one run's result to the study."""
    from optuna.trial import TrialState

    if result["status"] == "ok":
        study.tell(trial, result["metrics"][metric])
    elif result["status"] == "pruned":
        study.tell(trial, state=TrialState.PRUNED)
    else:
        trial.set_user_attr("error", result.get("error", result["status"]))
        study.tell(trial, state=TrialState.FAIL)


def _put_back(study: Any, number: int, params: dict[str, Any]) -> None:
    """Makes the next worker run the same parameters; their run resumes from its own checkpoint."""
    from optuna.trial import TrialState

    study.set_user_attr(f"{_MOVED}{number}", True)
    study.tell(number, state=TrialState.FAIL)
    study.enqueue_trial(params)


def _take_back_lost(study: Any, folder: SweepFolder) -> None:
    """Puts back the trials of workers that died."""
    from optuna.trial import TrialState

    now = datetime.datetime.now()
    for trial in study.get_trials(deepcopy=False, states=(TrialState.RUNNING,)):
        name = trial.user_attrs.get("point")
        point = folder.path / "points" / str(name)
        young = trial.datetime_start and (now - trial.datetime_start).total_seconds() < _SETUP
        # A run that has its result is done: its worker has let go of the point and is about to tell the study.
        if name and (is_claimed(point) or read_result(point) is not None):
            continue
        if name and young and not (point / "claim").exists():
            continue
        if not name and young:
            continue
        _put_back(study, trial.number, trial.params)
