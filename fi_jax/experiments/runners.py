"""Where the workers of a sweep run: here, several at a time; in one program; or as a SLURM array through submitit."""

import json
import logging
import os
import signal
import subprocess
import threading
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any, TypeVar

from flax.traverse_util import flatten_dict

from fi_jax.config import Experiment
from fi_jax.config_tree import to_dict
from fi_jax.errors import UserError
from fi_jax.experiments.expressions import Search
from fi_jax.experiments.run import STOP, Interrupted, Result, judge, last_metrics
from fi_jax.experiments.store import status_of
from fi_jax.experiments.worker import Report, Work, record, run_points
from fi_jax.parallel.hosts import Hosts
from fi_jax.training.numbers import FIELDS

log = logging.getLogger(__name__)
T = TypeVar("T")


def run_here(work: Work, parallel: int, gpus: Sequence[str], report: Report) -> None:
    """Runs points as processes of this machine, `parallel` at a time, each on one of `gpus` if any are named.

    `report` is called with every result. Raises `Interrupted` on SIGTERM, Ctrl-C or a run that was preempted, after
    the runs under way have saved.
    """

    def worker(index: int) -> None:
        env = [("CUDA_VISIBLE_DEVICES", gpus[index])] if gpus else []
        try:
            run_points(work, env=env, report=report)
        except Interrupted:
            STOP.set()

    STOP.clear()
    with _stop_on_signals(), ThreadPoolExecutor(parallel) as threads:
        for future in [threads.submit(worker, index) for index in range(parallel)]:
            # Short waits: a signal handler runs only between them.
            while not future.done():
                time.sleep(0.05)
            future.result()
    if STOP.is_set():
        raise Interrupted


@contextmanager
def _stop_on_signals() -> Iterator[None]:
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.signal(number, lambda *_: STOP.set()) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def run_as_members(work: Work, report: Report) -> None:
    """Trains all points that wait, one program a group of those that differ in numbers only.

    A group that fails fails its points and no others. Raises `Interrupted` when told to stop, after all members have
    saved.
    """
    from fi_jax.experiments.training import train_runs
    from fi_jax.training.callbacks import Diverged

    with work.store() as store:
        store.give_back_lost()
        waiting = [trial for trial in store.points().values() if status_of(trial) == "waiting"]
        for group in groups([(trial, work.config_of(trial)) for trial in waiting]):
            mine = [(trial, config) for trial, config in group if store.claim(trial)]
            if not mine:
                continue
            begin = time.monotonic()
            points = [trial.user_attrs["point"] for trial, _ in mine]
            runs = [work.run_folder(point) for point in points]
            try:
                status, errors = train_runs([config for _, config in mine], runs, Hosts()), {}
            except Diverged as error:
                status, errors = 0, dict.fromkeys(error.members, str(error))
            except UserError as error:
                status, errors = 0, dict.fromkeys(range(len(mine)), str(error))
            if status:
                for trial, _ in mine:
                    store.give_back(trial)
                raise Interrupted
            seconds = (time.monotonic() - begin) / len(mine)
            for i, ((trial, _), point, run) in enumerate(zip(mine, points, runs, strict=True)):
                failed = Result("failed", {}, errors[i]) if i in errors else None
                result = failed or judge(last_metrics(run), work.sweep.metric)
                record(work, store, trial, result, seconds)
                report(point, result)


def groups(points: Sequence[tuple[T, Experiment]]) -> list[list[tuple[T, Experiment]]]:
    """Sorts points into groups that can be one program: equal but for the fields that members may differ in."""
    found: dict[str, list[tuple[T, Experiment]]] = {}
    for point, config in points:
        fields = flatten_dict(to_dict(config), sep=".")
        shared = {name: value for name, value in fields.items() if name not in ("name", *FIELDS)}
        found.setdefault(json.dumps(shared, sort_keys=True), []).append((point, config))
    return list(found.values())


class _SlurmTask:
    """What submitit pickles: one point, or one worker of a search. Started again, it goes on where it was."""

    def __call__(self, work: Work, only: str) -> None:
        STOP.clear()
        try:
            run_points(work, only)
        except Interrupted:
            # The run saved because SLURM asked for the node: go back to the queue, and wait to be ended.
            subprocess.run(["scontrol", "requeue", os.environ["SLURM_JOB_ID"]], check=False)
            time.sleep(600)
            raise

    def checkpoint(self, work: Work, only: str) -> Any:
        import submitit

        return submitit.helpers.DelayedSubmission(self, work, only)


def submit(work: Work, parallel: int, slurm: dict[str, Any]) -> list[Any]:
    """Submits one SLURM array: a task for each point that waits, or `parallel` workers of a search.

    Returns submitit's jobs. `slurm` are submitit's parameters, e.g. `slurm_partition`, `timeout_min`. Raises
    `UserError` without SLURM.
    """
    import submitit

    if isinstance(work.sweep.points, Search):
        only = [""] * parallel
    else:
        with work.store() as store:
            store.give_back_lost()
            only = [name for name, trial in store.points().items() if status_of(trial) == "waiting"]
    if not only:
        return []
    executor = submitit.AutoExecutor(folder=work.folder / "slurm", cluster="slurm")
    executor.update_parameters(slurm_array_parallelism=parallel, name=f"sweep-{work.folder.name}", **slurm)
    try:
        return executor.map_array(_SlurmTask(), [work] * len(only), only)
    except (submitit.core.utils.FailedJobError, subprocess.CalledProcessError, RuntimeError) as error:
        raise UserError(f"SLURM did not take the array: {str(error).strip().splitlines()[-1]}") from error
