"""A sweep from start to end: checks everything, makes the folders, runs what is left, writes what came out."""

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from fi_jax.config import Experiment, to_dict
from fi_jax.errors import UserError
from fi_jax.experiments import results
from fi_jax.experiments.expressions import Choice, Point, Points, Search, Sweep
from fi_jax.experiments.folder import SweepFolder, config_source, read_config, read_result, write
from fi_jax.experiments.points import apply, point_id
from fi_jax.experiments.worker import Interrupted, Job
from fi_jax.parallel.preemption import REQUEUE_STATUS

Say = Callable[[str], None]


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


def run_sweep(sweep: Sweep, base: Experiment, path: Path, settings: Settings, say: Say) -> int:
    """Runs what is left of a sweep in folder `path`; `base` is its config with the common overrides.

    Leaves `table.csv`, `table.parquet`, `plot.png` and `best.py`. Returns 0, 1 when a point failed, 75 when
    interrupted. Raises `UserError` before any compute for what can be known before.
    """
    configs = check(sweep, base)
    if settings.dry_run:
        _list(sweep, configs, say)
        return 0
    folder = SweepFolder(path)
    folder.open(_belongs(sweep, base))
    jobs = [Job(path, folder.add(config, point), sweep.metric, tuple(sweep.evaluate)) for config, point in configs]
    if settings.retry_failed:
        _forget_failed(jobs, say)
    status = 0
    if not settings.summary_only:
        try:
            _run(sweep, base, folder, jobs, settings, say)
        except Interrupted as stop:
            say(str(stop))
            status = REQUEUE_STATUS
    failed = summarise(sweep, folder, say)
    return status or int(failed > 0)


def check(sweep: Sweep, base: Experiment) -> list[tuple[Experiment, Point]]:
    """The distinct configs of a sweep in order; none for a search, whose ranges are tried at both ends.

    Raises `UserError` for a field that does not exist, a value that does not fit, or a config that is refused.
    """
    if isinstance(sweep.points, Search):
        for end in (0, -1):
            apply(base, {name: _end(one, end) for name, one in sweep.points.ranges.items()})
        return []
    assert isinstance(sweep.points, Points)
    distinct: dict[str, tuple[Experiment, Point]] = {}
    for point in sweep.points.points:
        config = apply(base, point)
        distinct.setdefault(point_id(config), (config, point))
    return list(distinct.values())


def _end(one: Any, end: int) -> Any:
    if isinstance(one, Choice):
        return one.values[end]
    value = (one.low, one.high)[end]
    return int(value) if one.whole else float(value)


def _belongs(sweep: Sweep, base: Experiment) -> dict[str, Any]:
    """What must not change while a folder is in use. A list of points may grow; a search space may not."""
    config = to_dict(base)
    config.pop("name")
    space = None
    if isinstance(sweep.points, Search):
        space = {name: repr(one) for name, one in sweep.points.ranges.items()}
    return {
        "metric": sweep.metric,
        "goal": sweep.goal,
        "evaluate": list(sweep.evaluate),
        "search": space,
        "config": config,
    }


def _run(sweep: Sweep, base: Experiment, folder: SweepFolder, jobs: list[Job], settings: Settings, say: Say) -> None:
    left = [job for job in jobs if read_result(job.point) is None]
    searching = isinstance(sweep.points, Search)
    if not searching:
        say(f"{len(jobs)} points, {len(left)} to run; folder {folder.path}")
        if not left:
            return
    total = sweep.points.trials if isinstance(sweep.points, Search) else len(jobs)
    done = len(jobs) - len(left)

    def report(job: Job, result: dict[str, Any]) -> None:
        nonlocal done
        done += 1
        shown = result["metrics"].get(sweep.metric)
        text = f"{sweep.metric} {shown:.6g}" if isinstance(shown, float) else result.get("error", "")
        say(f"[{done}/{total}] {job.point.name} {result['status']}  {text}")

    if settings.where == "members":
        if searching:
            raise UserError("--where members needs a list of points, not a search; use grid, zipped or random")
        if sweep.evaluate:
            raise UserError("--where members does not evaluate; choose a metric of training, or --where here")
        from fi_jax.experiments.together import run_together

        run_together(folder, left, report, say)
    elif settings.where == "slurm":
        _on_slurm(sweep, base, folder, left, settings, say)
    elif searching:
        from fi_jax.experiments.runners import search_here

        say(f"searching {total} trials; folder {folder.path}")
        search_here(folder, sweep, base, settings.parallel, settings.gpus, report)
    else:
        from fi_jax.experiments.runners import run_here

        run_here(left, settings.parallel, settings.gpus, report)


def _on_slurm(
    sweep: Sweep, base: Experiment, folder: SweepFolder, left: list[Job], settings: Settings, say: Say
) -> None:
    from fi_jax.experiments.runners import submit

    search = (folder, sweep, base) if isinstance(sweep.points, Search) else None
    # Elsewhere the working directory is another one.
    absolute = SweepFolder(folder.path.absolute())
    left = [Job(absolute.path, job.point.absolute(), job.metric, job.evaluate) for job in left]
    search = (absolute, sweep, base) if search else None
    tasks = submit(absolute.path, left, search, settings.parallel, settings.slurm)
    say(f"submitted array {tasks[0].job_id.split('_')[0]} of {len(tasks)} tasks; logs in {absolute.path / 'slurm'}")
    if settings.detach:
        return
    while not all(task.done() for task in tasks):
        time.sleep(5)
    for task in tasks:
        error = task.exception()
        if error is not None:
            say(f"task {task.job_id}: {str(error).strip().splitlines()[-1]}")


def summarise(sweep: Sweep, folder: SweepFolder, say: Say) -> int:
    """Writes the table, the plot and the best config of what is there; returns how many points failed."""
    import json

    rows = []
    for point in sorted((folder.path / "points").iterdir()):
        if (point / "point.json").exists():
            rows.append((point.name, json.loads((point / "point.json").read_text()), read_result(point)))
    if not rows:
        say("no point has been made yet")
        return 0
    frame = results.table(rows, sweep)
    write(folder.path / "table.csv", frame.to_csv(index=False))
    frame.to_parquet(folder.path / "table.parquet", index=False)
    best = results.best_point(frame)
    if best is not None:
        results.plot(frame, sweep).savefig(folder.path / "plot.png", dpi=120)
        values = to_dict(read_config(folder.path / "points" / best))
        title = f"Best of the sweep {folder.path.name}: point {best}, {sweep.metric} {frame.iloc[0][sweep.metric]:.6g}."
        write(folder.path / "best.py", config_source({**values, "name": f"{folder.path.name}_best"}, title))
    counts = frame["status"].value_counts().to_dict()
    say(
        ", ".join(f"{number} {status}" for status, number in counts.items()) + f"; table in {folder.path / 'table.csv'}"
    )
    if best is not None:
        shown = ", ".join(f"{name}={frame.iloc[0][name]}" for name in sweep.fields)
        say(f"best: {sweep.metric} {frame.iloc[0][sweep.metric]:.6g} with {shown}; config in {folder.path / 'best.py'}")
    failed = frame[frame["status"] == "failed"]
    for _, line in failed.head(5).iterrows():
        say(f"failed: {line['point']}: {line['error']}")
    if len(failed):
        say("--retry-failed runs them again")
    return len(failed)


def _forget_failed(jobs: list[Job], say: Say) -> None:
    for job in jobs:
        result = read_result(job.point)
        if result is not None and result["status"] == "failed":
            (job.point / "result.json").unlink()
            say(f"again: {job.point.name}")


def _list(sweep: Sweep, configs: list[tuple[Experiment, Point]], say: Say) -> None:
    if isinstance(sweep.points, Search):
        for name, one in sweep.points.ranges.items():
            say(f"{name}: {one}")
        say(f"{sweep.points.trials} trials")
        return
    for config, point in configs:
        say(f"{point_id(config)}  {'  '.join(f'{name}={value}' for name, value in point.items())}")
    say(f"{len(configs)} points")
