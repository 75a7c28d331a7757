"""A sweep from start to end: checks everything, adds the points to the study, runs what is left, writes what came out."""

import logging
import threading
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from optuna.distributions import CategoricalDistribution

from fi_jax.config import Experiment
from fi_jax.config_tree import to_dict
from fi_jax.errors import UserError
from fi_jax.experiments import results
from fi_jax.experiments.expressions import Points, Search, Sweep
from fi_jax.experiments.points import Point, apply, config_source, point_id
from fi_jax.experiments.run import Interrupted, Result
from fi_jax.experiments.store import fields_of, status_of
from fi_jax.experiments.worker import Work
from fi_jax.files import atomic_path, write_text
from fi_jax.parallel.preemption import REQUEUE_STATUS

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Settings:
    """How a sweep is run, not what it computes."""

    where: Literal["here", "members", "slurm"] = "here"
    parallel: int = 1
    gpus: tuple[str, ...] = ()
    retry_failed: bool = False
    dry_run: bool = False
    summary_only: bool = False
    detach: bool = False
    slurm: dict[str, Any] = field(default_factory=dict)


def run_sweep(sweep: Sweep, base: Experiment, path: Path, settings: Settings) -> int:
    """Runs what is left of a sweep in folder `path`; `base` is its config with the common overrides.

    Leaves `table.csv`, `table.parquet`, `plot.png` and `best.py`. Returns 0, 1 when a point failed, 75 when
    interrupted. Raises `UserError` before any compute for what can be known before.
    """
    points = check(sweep, base)
    if settings.where == "members" and isinstance(sweep.points, Search):
        raise UserError("--where members needs a list of points, not a search; use grid, zipped or random")
    if settings.where == "members" and sweep.evaluate:
        raise UserError("--where members does not evaluate; choose a metric of training, or --where here")
    if settings.dry_run:
        _list(sweep, points)
        return 0
    work = Work(path, sweep, base)
    with work.store() as store:
        store.describe(_about(sweep, base))
        store.give_back_lost()
        store.add(points)
        for point in store.retry_failed() if settings.retry_failed else ():
            log.info(f"again: {point}")
        left = sum(status_of(store.points()[point]) in ("waiting", "running") for point in points)
    status = 0
    if not settings.summary_only:
        try:
            _run(work, len(points), left, settings)
        except Interrupted as stop:
            log.info(str(stop))
            status = REQUEUE_STATUS
    failed = summarise(work)
    return status or int(failed > 0)


def check(sweep: Sweep, base: Experiment) -> dict[str, Point]:
    """The distinct points of a sweep by name, in order; none for a search, whose ranges are tried at both ends.

    Raises `UserError` for a field that does not exist, a value that does not fit, or a config that is refused.
    """
    if isinstance(sweep.points, Search):
        for end in (0, -1):
            apply(base, {name: _end(one, end) for name, one in sweep.points.ranges.items()})
        return {}
    assert isinstance(sweep.points, Points)
    distinct: dict[str, Point] = {}
    for point in sweep.points.points:
        distinct.setdefault(point_id(apply(base, point)), point)
    return distinct


def _end(one: Any, end: int) -> Any:
    return one.choices[end] if isinstance(one, CategoricalDistribution) else (one.low, one.high)[end]


def _about(sweep: Sweep, base: Experiment) -> dict[str, Any]:
    """What must not change while a folder is in use. A list of points may grow; a search space may not."""
    config = to_dict(base)
    config.pop("name")
    space = None
    if isinstance(sweep.points, Search):
        space = {name: repr(one) for name, one in sweep.points.ranges.items()}
    about = {"metric": sweep.metric, "goal": sweep.goal, "evaluate": list(sweep.evaluate), "search": space}
    return {**about, "config": config}


def _run(work: Work, total: int, left: int, settings: Settings) -> None:
    from fi_jax.experiments import runners

    if isinstance(work.sweep.points, Search):
        total = work.sweep.points.trials
        log.info(f"searching {total} trials; folder {work.folder}")
    else:
        log.info(f"{total} points, {left} to run; folder {work.folder}")
        if not left:
            return
    done, lock, metric = total - left, threading.Lock(), work.sweep.metric

    def report(point: str, result: Result) -> None:
        nonlocal done
        value = result.metrics.get(metric)
        text = f"{metric} {value:.6g}" if isinstance(value, float) else result.error
        with lock:
            done += 1
            log.info(f"[{done}/{total}] {point} {result.status}  {text}")

    if settings.where == "members":
        runners.run_as_members(work, report)
    elif settings.where == "slurm":
        _on_slurm(work, settings)
    else:
        runners.run_here(work, settings.parallel, settings.gpus, report)


def _on_slurm(work: Work, settings: Settings) -> None:
    from fi_jax.experiments.runners import submit

    # Elsewhere the working directory is another one.
    work = Work(work.folder.absolute(), work.sweep, work.base)
    tasks = submit(work, settings.parallel, settings.slurm)
    if not tasks:
        log.info("all points that are left run elsewhere")
        return
    log.info(f"submitted array {tasks[0].job_id.split('_')[0]} of {len(tasks)} tasks; logs in {work.folder / 'slurm'}")
    if settings.detach:
        return
    while not all(task.done() for task in tasks):
        time.sleep(5)
    for task in tasks:
        error = task.exception()
        if error is not None:
            log.info(f"task {task.job_id}: {str(error).strip().splitlines()[-1]}")


def summarise(work: Work) -> int:
    """Writes the table, the plot and the best config of what is there; returns how many points failed."""
    import pandas as pd

    sweep, folder = work.sweep, work.folder
    with work.store() as store:
        table = results.tabulate(store, sweep)
        fields = {point: fields_of(trial) for point, trial in store.points().items()}
    rows = table.records()
    if not rows:
        log.info("no point has been made yet")
        return 0
    write_text(folder / "table.csv", table.to_csv())
    with atomic_path(folder / "table.parquet") as path:
        pd.DataFrame(rows).to_parquet(path, index=False)
    best = results.best_row(table)
    statuses = [row["status"] for row in rows]
    counts = ", ".join(f"{statuses.count(status)} {status}" for status in dict.fromkeys(statuses))
    log.info(f"{counts}; table in {folder / 'table.csv'}")
    if best is not None:
        with atomic_path(folder / "plot.png") as path:
            results.plot(table, sweep).savefig(path, dpi=120)
        score = f"{sweep.metric} {best[sweep.metric]:.6g}"
        values = {**to_dict(apply(work.base, fields[str(best["point"])])), "name": f"{folder.name}_best"}
        title = f"Best of the sweep {folder.name}: point {best['point']}, {score}."
        write_text(folder / "best.py", config_source(values, title))
        shown = ", ".join(f"{name}={best[name]}" for name in sweep.fields)
        log.info(f"best: {score} with {shown}; config in {folder / 'best.py'}")
    failed = [row for row in rows if row["status"] == "failed"]
    for row in failed[:5]:
        log.info(f"failed: {row['point']}: {row['error']}")
    if failed:
        log.info("--retry-failed runs them again")
    return len(failed)


def _list(sweep: Sweep, points: dict[str, Point]) -> None:
    if isinstance(sweep.points, Search):
        for name, one in sweep.points.ranges.items():
            log.info(f"{name}: {one}")
        log.info(f"{sweep.points.trials} trials")
        return
    for name, point in points.items():
        log.info(f"{name}  {'  '.join(f'{field}={value}' for field, value in point.items())}")
    log.info(f"{len(points)} points")
