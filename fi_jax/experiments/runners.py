"""Where the points of a sweep run: here, several at a time; or as a SLURM array through submitit."""

import os
import queue
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from fi_jax.config import Experiment
from fi_jax.errors import UserError
from fi_jax.experiments.expressions import Search, Sweep
from fi_jax.experiments.folder import SweepFolder
from fi_jax.experiments.search import search_worker
from fi_jax.experiments.worker import STOP, Interrupted, Job, Report, run_point


def run_here(jobs: Sequence[Job], parallel: int, gpus: Sequence[str], report: Report) -> None:
    """Runs points as processes of this machine, `parallel` at a time, each on one of `gpus` if any are named.

    `report` is called with every result. Raises `Interrupted` on SIGTERM, Ctrl-C or a run that was preempted, after
    the runs under way have saved.
    """
    pool: queue.SimpleQueue[tuple] = queue.SimpleQueue()
    for i in range(parallel):
        pool.put((("CUDA_VISIBLE_DEVICES", gpus[i]),) if gpus else ())
    lock = threading.Lock()

    def one(job: Job) -> None:
        if STOP.is_set():
            return
        env = pool.get()
        try:
            result = run_point(replace(job, env=env))
        except Interrupted:
            STOP.set()
            return
        finally:
            pool.put(env)
        with lock:
            report(job, result)

    _all([partial(one, job) for job in jobs], parallel)


def search_here(
    folder: SweepFolder, sweep: Sweep, base: Experiment, parallel: int, gpus: Sequence[str], report: Report
) -> None:
    """Runs an Optuna search with `parallel` workers on this machine."""

    def one(worker: int) -> None:
        env = (("CUDA_VISIBLE_DEVICES", gpus[worker]),) if gpus else ()
        try:
            search_worker(folder, sweep, base, env, report)
        except Interrupted:
            STOP.set()

    _all([partial(one, i) for i in range(parallel)], parallel)


def _all(tasks: Sequence[Callable[[], None]], parallel: int) -> None:
    STOP.clear()
    with _stop_on_signals(), ThreadPoolExecutor(parallel) as threads:
        waiting = [threads.submit(task) for task in tasks]
        for future in waiting:
            # Short waits: a signal handler runs only between them.
            while not future.done():
                time.sleep(0.05)
            future.result()
    if STOP.is_set():
        raise Interrupted("stopped; the same command goes on where it was")


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


class _SlurmTask:
    """What submitit pickles: one point, or one worker of a search. Started again, it goes on where it was."""

    def __call__(self, task: tuple) -> Any:
        STOP.clear()
        try:
            if isinstance(task[0], Job):
                return run_point(task[0])
            return search_worker(*task)
        except Interrupted:
            # The run saved because SLURM asked for the node: go back to the queue, and wait to be ended.
            subprocess.run(["scontrol", "requeue", os.environ["SLURM_JOB_ID"]], check=False)
            time.sleep(600)
            raise

    def checkpoint(self, task: tuple) -> Any:
        import submitit

        return submitit.helpers.DelayedSubmission(self, task)


def submit(
    folder: Path,
    jobs: Sequence[Job],
    search: tuple[SweepFolder, Sweep, Experiment] | None,
    parallel: int,
    slurm: dict[str, Any],
) -> list[Any]:
    """Submits one SLURM array: a task a point, or `parallel` workers of a search. Returns submitit's jobs.

    `slurm` are submitit's parameters, e.g. `slurm_partition`, `timeout_min`. Raises `UserError` without SLURM.
    """
    import submitit

    logs = folder / "slurm"
    executor = submitit.AutoExecutor(folder=logs, cluster="slurm")
    executor.update_parameters(slurm_array_parallelism=parallel, name=f"sweep-{folder.name}", **slurm)
    if search is not None:
        assert isinstance(search[1].points, Search)
        tasks: list[tuple] = [search for _ in range(parallel)]
    else:
        tasks = [(job,) for job in jobs]
    try:
        return executor.map_array(_SlurmTask(), tasks)
    except (submitit.core.utils.FailedJobError, subprocess.CalledProcessError, RuntimeError) as error:
        raise UserError(f"SLURM did not take the array: {str(error).strip().splitlines()[-1]}") from error
