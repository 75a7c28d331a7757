"""Times device programs: compile time, median of repeated calls, peak memory; and says on what."""

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax

from fi_jax.parallel.collectives import collectives


@dataclass(frozen=True)
class Timing:
    """Seconds of repeated calls."""

    s: float
    lo: float
    hi: float


def timed(call: Callable[[], Any], repeats: int, warmups: int = 1) -> Timing:
    """Median, least and most seconds of `repeats` calls after `warmups`; waits for the device each time."""
    seconds = []
    for i in range(warmups + repeats):
        start = time.perf_counter()
        jax.block_until_ready(call())
        if i >= warmups:
            seconds.append(time.perf_counter() - start)
    return Timing(statistics.median(seconds), min(seconds), max(seconds))


def compiled(jitted, *arguments) -> tuple[Any, dict[str, float]]:
    """Compiles ahead of time; returns the program and seconds of tracing and compiling, and the bytes it plans for."""
    start = time.perf_counter()
    lowered = jitted.lower(*arguments)
    traced = time.perf_counter()
    program = lowered.compile()
    ended = time.perf_counter()
    plan = program.memory_analysis()
    spent = {"trace_s": round(traced - start, 2), "compile_s": round(ended - start, 2)}
    if plan is not None:
        sizes = {name: getattr(plan, f"{name}_size_in_bytes", 0) for name in ("argument", "output", "temp", "alias")}
        spent["planned_gib"] = _gib(sizes["argument"] + sizes["output"] + sizes["temp"] - sizes["alias"])
    return program, spent


def peak_gib() -> float | None:
    """Most memory of one device that was ever in use in this process, GiB; None where the backend does not say."""
    stats = [device.memory_stats() or {} for device in jax.local_devices()]
    peaks = [one["peak_bytes_in_use"] for one in stats if "peak_bytes_in_use" in one]
    return _gib(max(peaks)) if peaks else None


def sent(program: Any) -> dict[str, dict[str, float]]:
    """What a compiled program sends between devices a call: `{kind: {"count": …, "mib": …}}`, results on one device."""
    return {
        one.kind: {"count": one.count, "mib": round(one.bytes / 2**20, 2)} for one in collectives(program.as_text())
    }


def machine() -> dict[str, str]:
    """The device and the version that a figure belongs to."""
    return {"device": jax.local_devices()[0].device_kind, "jax": jax.__version__}


def _gib(count: float) -> float:
    return round(count / 2**30, 2)
