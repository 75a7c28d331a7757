"""Runs one point of a sweep in a process of its own, so that nothing it does can hurt the others; reads what it logged."""

import contextlib
import json
import math
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from flax.traverse_util import flatten_dict

from fi_jax.parallel.preemption import REQUEUE_STATUS

_POLL = 0.5
_LAST_LINES = 3
# Set it to end every run of this process in order.
STOP = threading.Event()


class Interrupted(Exception):
    """The run was told to stop and has saved; it goes on from there when the sweep is started again."""

    def __init__(self) -> None:
        super().__init__("stopped; the same command goes on where it was")


class Result(NamedTuple):
    """How a run ended: `status` is "ok", "failed" (with `error`) or "pruned"."""

    status: str
    metrics: dict[str, float]
    error: str = ""


class Process(NamedTuple):
    """How fi-jax is run: where its output goes, variables of its environment, and who is told of it."""

    output: Path
    env: Sequence[tuple[str, str]]
    # Called with the process's number.
    started: Callable[[int], None]
    # Called twice a second; True ends the process in order.
    watch: Callable[[], bool]

    def run(self, arguments: Sequence[str]) -> int | None:
        """Runs fi-jax; returns its exit status, None when `watch` ended it. Raises `Interrupted`."""
        # The workers are not one program: they must not find each other through the launcher's variables.
        env = {**os.environ, "FI_JAX_CLUSTER": "none", "PYTHONUNBUFFERED": "1", **dict(self.env)}
        with self.output.open("ab") as output:
            child = subprocess.Popen(
                [sys.executable, "-m", "fi_jax", *arguments], stdout=output, stderr=output, env=env
            )
            with _ended(child):
                self.started(child.pid)
                while child.poll() is None:
                    with contextlib.suppress(subprocess.TimeoutExpired):
                        child.wait(_POLL)
                    if STOP.is_set():
                        raise Interrupted
                    if self.watch():
                        return None
        if child.returncode in (REQUEUE_STATUS, 130):
            raise Interrupted
        return child.returncode

    def error(self, status: int) -> str:
        """What a failed run said last."""
        text = self.output.read_text(errors="replace").strip().splitlines()
        reason = f"killed by signal {-status}" if status < 0 else f"exit status {status}"
        return f"{reason}: {' | '.join(text[-_LAST_LINES:])}"


@contextlib.contextmanager
def _ended(child: subprocess.Popen) -> Iterator[None]:
    """On a signal to us, Ctrl-C or an error, the run saves and stops before we do."""
    try:
        yield
    finally:
        if child.poll() is None:
            child.send_signal(signal.SIGTERM)
            try:
                child.wait(60)
            except subprocess.TimeoutExpired:
                child.kill()
                child.wait()


def judge(metrics: dict[str, float], metric: str) -> Result:
    """The result of a run that ended well: it failed all the same without a finite value of `metric`."""
    value = metrics.get(metric)
    if value is None:
        return Result("failed", metrics, f"the run has no metric '{metric}' (it has {sorted(metrics)})")
    if not math.isfinite(value):
        return Result("failed", metrics, f"metric '{metric}' is {value}")
    return Result("ok", metrics)


def read_metrics(run: Path) -> list[dict[str, Any]]:
    """The whole lines of a run's `metrics.jsonl`; empty when there is none yet."""
    lines: list[Any] = []
    with contextlib.suppress(FileNotFoundError):
        for line in (run / "metrics.jsonl").read_text(errors="replace").splitlines():
            with contextlib.suppress(ValueError, RecursionError):
                lines.append(json.loads(line))
    return [line for line in lines if isinstance(line, dict)]


def last_metrics(run: Path) -> dict[str, float]:
    """The last value of every metric of a run; what was not finite is NaN."""
    last: dict[str, Any] = {}
    for line in read_metrics(run):
        last |= line
    return _numbers({name: math.nan if value is None else value for name, value in last.items()})


def evaluation_metrics(path: Path) -> dict[str, float]:
    """The numbers of a `metrics.json` by dotted name. Raises `ValueError` when it is damaged."""
    found = json.loads(path.read_text())
    if not isinstance(found, dict):
        raise ValueError("not an object")
    return _numbers(flatten_dict(found, sep="."))


def _numbers(values: dict[str, Any]) -> dict[str, float]:
    return {name: v for name, v in values.items() if isinstance(v, int | float) and not isinstance(v, bool)}
