"""Runs one point of a sweep in a process of its own, so that nothing it does can hurt the others."""

import contextlib
import json
import math
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fi_jax.experiments.folder import SweepFolder, claim, read_result, release, renew, write_result
from fi_jax.parallel.preemption import REQUEUE_STATUS

_POLL = 0.5
_LAST_LINES = 3


class Interrupted(Exception):
    """The run was told to stop and has saved; it goes on from there when the sweep is started again."""


@dataclass(frozen=True)
class Job:
    """Everything a worker needs, wherever it runs (it is pickled for SLURM)."""

    sweep: Path
    point: Path
    metric: str
    evaluate: tuple[str, ...] = ()
    # Variables of the run's environment, e.g. the one GPU it may see.
    env: tuple[tuple[str, str], ...] = ()


Watch = Callable[[int, float], bool]
Report = Callable[[Job, dict[str, Any]], None]
# Set it to end every run of this process in order.
STOP = threading.Event()


def run_point(job: Job, watch: Watch | None = None) -> dict[str, Any]:
    """Trains (and evaluates) one point; returns its result, which is also in its folder.

    A failed run is a result like any other: `status` "failed" and the last lines it printed. `watch(step, value)` sees
    the metric as it comes and may return True to prune the run. Raises `Interrupted` when the run was preempted.
    """
    done = read_result(job.point)
    if done is not None:
        return done
    if not claim(job.point):
        return {"status": "running elsewhere", "metrics": {}}
    begin = time.monotonic()
    try:
        result = _train_and_evaluate(job, watch)
        result["seconds"] = round(time.monotonic() - begin, 3)
        write_result(job.point, result)
        return result
    finally:
        release(job.point)


def _train_and_evaluate(job: Job, watch: Watch | None) -> dict[str, Any]:
    run = SweepFolder(job.sweep).run_folder(job.point)
    config = str(job.point / "config.py")
    status, pruned = _follow(job, ["train", config, "--runs", str(run.parent)], run, watch)
    metrics = last_metrics(run / "metrics.jsonl")
    if pruned:
        return {"status": "pruned", "metrics": metrics}
    if status == 0 and job.evaluate:
        arguments = ["evaluate", config, "--checkpoint", str(run), "--out", str(run / "evaluation"), *job.evaluate]
        status, _ = _follow(job, arguments, run, None)
        file = run / "evaluation" / "metrics.json"
        metrics = flatten(json.loads(file.read_text())) if status == 0 and file.exists() else metrics
    if status:
        return {"status": "failed", "metrics": metrics, "error": _error(job.point, status)}
    return _judged(job, metrics)


def metrics_result(job: Job, run: Path) -> dict[str, Any]:
    """The result of a run that ended well, from its log."""
    return _judged(job, last_metrics(run / "metrics.jsonl"))


def _judged(job: Job, metrics: dict[str, float]) -> dict[str, Any]:
    value = metrics.get(job.metric)
    if value is None:
        return {
            "status": "failed",
            "metrics": metrics,
            "error": f"the run has no metric '{job.metric}' (it has {sorted(metrics)})",
        }
    if not math.isfinite(value):
        return {"status": "failed", "metrics": metrics, "error": f"metric '{job.metric}' is {value}"}
    return {"status": "ok", "metrics": metrics}


def _follow(job: Job, arguments: Sequence[str], run: Path, watch: Watch | None) -> tuple[int, bool]:
    """Runs fi-jax, renews the claim, passes metrics on; returns (exit status, pruned)."""
    # The workers are not one program: they must not find each other through the launcher's variables.
    env = {**os.environ, "FI_JAX_CLUSTER": "none", "PYTHONUNBUFFERED": "1", **dict(job.env)}
    seen = 0
    with (job.point / "log.txt").open("ab") as log:
        child = subprocess.Popen([sys.executable, "-m", "fi_jax", *arguments], stdout=log, stderr=log, env=env)
        try:
            last_renewal = 0.0
            while True:
                with contextlib.suppress(subprocess.TimeoutExpired):
                    status = child.wait(_POLL)
                    break
                if STOP.is_set():
                    raise Interrupted(f"point {job.point.name} was stopped; start the sweep again to go on")
                if time.monotonic() - last_renewal > 10:
                    renew(job.point)
                    last_renewal = time.monotonic()
                if watch is not None:
                    lines = read_metrics(run / "metrics.jsonl")
                    for line in lines[seen:]:
                        value = line.get(job.metric)
                        if isinstance(value, int | float) and watch(int(line["step"]), value):
                            _stop(child)
                            return 0, True
                    seen = len(lines)
        except BaseException:
            # A signal to us, or Ctrl-C: the run saves and stops before we do.
            _stop(child)
            raise
    if status in (REQUEUE_STATUS, 130):
        raise Interrupted(f"point {job.point.name} was stopped; start the sweep again to go on")
    return status, False


def _stop(child: subprocess.Popen) -> None:
    if child.poll() is None:
        child.send_signal(signal.SIGTERM)
        try:
            child.wait(60)
        except subprocess.TimeoutExpired:
            child.kill()
            child.wait()


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """The whole lines of a `metrics.jsonl`; empty when there is none yet."""
    if not path.exists():
        return []
    lines = []
    for line in path.read_text().splitlines():
        with contextlib.suppress(json.JSONDecodeError):
            lines.append(json.loads(line))
    return lines


def last_metrics(path: Path) -> dict[str, float]:
    """The last value of every metric of a run."""
    last: dict[str, float] = {}
    for line in read_metrics(path):
        last |= {name: math.nan if value is None else value for name, value in line.items()}
    return last


def flatten(values: dict[str, Any], prefix: str = "") -> dict[str, float]:
    """The numbers of nested dicts by dotted name."""
    flat: dict[str, float] = {}
    for name, value in values.items():
        if isinstance(value, dict):
            flat |= flatten(value, f"{prefix}{name}.")
        elif isinstance(value, int | float) and not isinstance(value, bool):
            flat[prefix + name] = value
    return flat


def _error(point: Path, status: int) -> str:
    text = (point / "log.txt").read_text(errors="replace").strip().splitlines()
    reason = f"killed by signal {-status}" if status < 0 else f"exit status {status}"
    return f"{reason}: {' | '.join(text[-_LAST_LINES:])}"
