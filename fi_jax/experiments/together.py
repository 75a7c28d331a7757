"""Runs the points of a sweep as members of as few programs as possible: those that differ in numbers share one."""

import json
import time
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

from fi_jax.config import Experiment, to_dict
from fi_jax.experiments.folder import SweepFolder, claim, read_config, release, write_result
from fi_jax.experiments.worker import Interrupted, Job, Report, metrics_result
from fi_jax.parallel.hosts import Hosts
from fi_jax.training.members import FIELDS

Say = Callable[[str], None]
T = TypeVar("T")


def run_together(folder: SweepFolder, jobs: Sequence[Job], report: Report, say: Say) -> None:
    """Trains all points, one program a group. A group that fails fails its points and no others.

    Raises `Interrupted` when told to stop, after all members have saved.
    """
    from fi_jax.errors import UserError
    from fi_jax.training.members_loop import train_members

    for group in groups([(job, read_config(job.point)) for job in jobs]):
        mine = [(job, config) for job, config in group if claim(job.point)]
        if not mine:
            continue
        begin = time.monotonic()
        try:
            runs = [folder.run_folder(job.point) for job, _ in mine]
            status, error = train_members([config for _, config in mine], runs, Hosts(), say), ""
        except UserError as mistake:
            status, error = 2, str(mistake)
        finally:
            for job, _ in mine:
                release(job.point)
        if status not in (0, 2):
            raise Interrupted("stopped; the same command goes on where it was")
        seconds = round((time.monotonic() - begin) / len(mine), 3)
        for (job, _), run in zip(mine, runs):
            failed: dict[str, Any] = {"status": "failed", "metrics": {}, "error": error}
            result = failed if error else metrics_result(job, run)
            result["seconds"] = seconds
            write_result(job.point, result)
            report(job, result)


def groups(jobs: Sequence[tuple[T, Experiment]]) -> list[list[tuple[T, Experiment]]]:
    """Sorts points into groups that can be one program: equal but for the fields that members may differ in."""
    found: dict[str, list[tuple[T, Experiment]]] = {}
    for job, config in jobs:
        found.setdefault(_kind(config), []).append((job, config))
    return list(found.values())


def _kind(config: Experiment) -> str:
    values = to_dict(config)
    values.pop("name")
    for name in FIELDS:
        *parents, last = name.split(".")
        part = values
        for parent in parents:
            part = part[parent]
        part.pop(last)
    return json.dumps(values, sort_keys=True)
