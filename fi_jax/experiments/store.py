"""The Optuna study of a sweep or an ablation: its points, who works on them, and what came out. There is no other store.

`FOLDER/study.journal` is one file that any number of processes on any nodes share. Each point is a trial that
`user_attrs["point"]` names:

    WAITING         nobody works on it
    RUNNING         `user_attrs["worker"]` works on it
    COMPLETE        it ended well; `user_attrs["metrics"]` has its numbers
    PRUNED          stopped early, as one that cannot win
    FAIL            with `error`, its run failed; without, it was given back and a younger trial stands for its point

A point has one standing trial, and the journal lets one worker claim it. Optuna's heartbeats need a relational database:
here workers note the time in the study themselves, and whoever looks next gives back the trials of those that fell silent.
"""

import contextlib
import json
import os
import threading
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import optuna
from optuna.exceptions import UpdateFinishedTrialError
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend, JournalFileSymlinkLock
from optuna.trial import FrozenTrial, TrialState

from fi_jax.errors import UserError

# Seconds between a worker's notes of the time.
BEAT = 20.0
# A worker that has not noted the time for this long (seconds) is dead. Clocks of the nodes must agree better than that.
STALE = 180.0
Trial = FrozenTrial | optuna.Trial


class Store:
    """One study. Open it with `with`: that long, the trials claimed through it count as worked on.

    Raises `UserError` when the journal cannot be read.
    """

    def __init__(self, folder: Path, goal: str = "min", pruner: optuna.pruners.BasePruner | None = None):
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        folder.mkdir(parents=True, exist_ok=True)
        self.path = folder / "study.journal"
        self.worker = f"{os.uname().nodename}:{os.getpid()}:{os.urandom(4).hex()}"
        self._closed = threading.Event()
        try:
            self.storage = JournalStorage(JournalFileBackend(str(self.path)))
            self.study = optuna.create_study(
                storage=self.storage,
                study_name="points",
                load_if_exists=True,
                direction="minimize" if goal == "min" else "maximize",
                pruner=pruner,
            )
        except OSError:
            raise
        except Exception as error:
            raise UserError(
                f"'{self.path}' is damaged ({type(error).__name__}: {error}); move it away and start again: "
                "the runs stay, and finished ones end at once"
            ) from error

    def __enter__(self) -> "Store":
        threading.Thread(target=self._beat, daemon=True).start()
        return self

    def __exit__(self, *_: Any) -> None:
        self._closed.set()

    def _beat(self) -> None:
        while not self._closed.is_set():
            # On a full disk, later beats may find room; the run itself says what is wrong.
            with contextlib.suppress(OSError):
                self.study.set_user_attr(f"worker {self.worker}", time.time())
            self._closed.wait(BEAT)

    def describe(self, about: Mapping[str, Any]) -> None:
        """Notes what the study is about. Raises `UserError` naming what differs when it is about something else."""
        # As the journal keeps it: JSON has no tuples.
        about = json.loads(json.dumps(about))
        there = self.study.user_attrs.get("about", {})
        if not there and not self.trials():
            self.study.set_user_attr("about", about)
            return
        differing = sorted(key for key in {**there, **about} if there.get(key) != about.get(key))
        if differing:
            raise UserError(
                f"folder '{self.path.parent}' holds another sweep ({', '.join(differing)} differ); "
                "choose another --out, or delete it"
            )

    def trials(self, *states: TrialState) -> list[FrozenTrial]:
        """All trials, or those in some states, oldest first."""
        return self.study.get_trials(deepcopy=False, states=states or None)

    def points(self) -> dict[str, FrozenTrial]:
        """The standing trial of each point."""
        standing = [trial for trial in self.trials() if status_of(trial) not in ("duplicate", "given back")]
        return {trial.user_attrs["point"]: trial for trial in standing if "point" in trial.user_attrs}

    def add(self, points: Mapping[str, Mapping[str, Any]]) -> None:
        """Adds points (fields by name of the point) that the study does not have yet."""
        with self._alone():
            there = self.points()
            for point, fields in points.items():
                if point not in there:
                    self._enqueue(point, fields)

    def retry_failed(self) -> list[str]:
        """Makes failed points run again; returns their names."""
        with self._alone():
            failed = {point: trial for point, trial in self.points().items() if status_of(trial) == "failed"}
            for point, trial in failed.items():
                self._enqueue(point, fields_of(trial), retry=True)
        return list(failed)

    def claim(self, trial: FrozenTrial) -> bool:
        """Takes a waiting trial for this worker; False when somebody else has taken it."""
        try:
            mine = self.storage.set_trial_state_values(trial._trial_id, TrialState.RUNNING)
        except UpdateFinishedTrialError:
            return False
        if mine:
            self.note(trial, worker=self.worker)
        return mine

    def name_point(self, trial: optuna.Trial, point: str) -> bool:
        """Says which point a trial that was just drawn is; False, and it has ended, when the study has that point."""
        with self._alone():
            if self.points().get(point, trial).number == trial.number:
                self.note(trial, point=point, worker=self.worker)
                return True
            self.finish(trial, TrialState.FAIL, duplicate=True)
            return False

    def holds(self, trial: Trial) -> bool:
        """Whether the trial is still this worker's: others may have thought it dead, say while the machine slept."""
        now = self.storage.get_trial(trial._trial_id)
        return now.state == TrialState.RUNNING and now.user_attrs.get("worker") == self.worker

    def note(self, trial: Trial, **attributes: Any) -> None:
        """Writes attributes of a trial that runs. Raises `UpdateFinishedTrialError` when it was given back."""
        for name, value in attributes.items():
            if isinstance(trial, optuna.Trial):
                trial.set_user_attr(name, value)
            else:
                self.storage.set_trial_user_attr(trial._trial_id, name, value)

    def finish(self, trial: Trial, state: TrialState, value: float | None = None, **attributes: Any) -> None:
        """Ends a trial with attributes and, when COMPLETE, a value. Raises `UpdateFinishedTrialError` like `note`."""
        self.note(trial, **attributes)
        self.storage.set_trial_state_values(trial._trial_id, state, None if value is None else [value])

    def give_back(self, trial: Trial) -> None:
        """Ends a trial without a result; another one stands for its point then, and its run resumes."""
        there = self.storage.get_trial(trial._trial_id).user_attrs
        with self._alone(), contextlib.suppress(UpdateFinishedTrialError):
            self.finish(trial, TrialState.FAIL)
            if "point" in there:
                kept = {name: there[name] for name in ("retry",) if name in there}
                self._enqueue(there["point"], fields_of(trial), **kept)

    def give_back_lost(self) -> None:
        """Gives back the trials of workers that died."""
        times = self.study.user_attrs
        for trial in self.trials(TrialState.RUNNING):
            if _is_lost(trial, times):
                self.give_back(trial)

    def _enqueue(self, point: str, fields: Mapping[str, Any], **attributes: Any) -> None:
        self.study.enqueue_trial(dict(fields), user_attrs={"point": point, "fields": dict(fields), **attributes})

    @contextlib.contextmanager
    def _alone(self):
        """Nobody else gives points a new trial meanwhile."""
        lock = JournalFileSymlinkLock(str(self.path.with_suffix("")))
        lock.acquire()
        try:
            yield
        finally:
            with contextlib.suppress(RuntimeError):
                lock.release()


def status_of(trial: FrozenTrial) -> str:
    """How a trial stands: waiting, running, ok, pruned, failed, duplicate (of an older trial) or given back."""
    if trial.state == TrialState.FAIL:
        return next((s for name, s in _FAILURES.items() if name in trial.user_attrs), "given back")
    return _STATUSES[trial.state]


_FAILURES = {"error": "failed", "duplicate": "duplicate"}
_STATUSES = {
    TrialState.WAITING: "waiting",
    TrialState.RUNNING: "running",
    TrialState.COMPLETE: "ok",
    TrialState.PRUNED: "pruned",
}


def fields_of(trial: Trial) -> dict[str, Any]:
    """The values that a trial's point sets, by dotted config field."""
    return trial.user_attrs.get("fields") or trial.params


def _is_lost(trial: FrozenTrial, times: Mapping[str, Any]) -> bool:
    worker = trial.user_attrs.get("worker")
    if worker is None:
        # Claimed a moment ago, unless the worker died in that moment.
        return trial.datetime_start is not None and time.time() - trial.datetime_start.timestamp() > STALE
    node, pid, _ = worker.split(":")
    if node == os.uname().nodename and not _is_alive(int(pid)):
        # A run that outlived its worker must end before another one may use the same folder.
        return not _is_alive(trial.user_attrs.get("process", 0))
    return time.time() - times.get(f"worker {worker}", 0.0) > STALE


def _is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return pid > 0
