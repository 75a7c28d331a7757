"""What every protocol shares: scores with intervals and baselines, group breakdowns, calibration, as plain dicts."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Int

from fi_jax.evaluation import calibration, metrics
from fi_jax.knowledge.rule_proposals import exact_interval

Array = np.ndarray
# Groups smaller than this are shown but take no part in the gap between best and worst: chance would decide it.
SMALLEST_GROUP = 30


@dataclass(frozen=True)
class Metric:
    """A named function of summed per-face statistics (`... s` → `...`)."""

    name: str
    of: Callable[[Array], Array]
    higher_is_better: bool = True
    # Of a metric that is a share of faces: how many, from the same sums.
    faces: Callable[[Array], Array] | None = None


def number(value: float | Array | None) -> float | None:
    """A JSON number: None for NaN, six digits otherwise."""
    return None if value is None or not np.isfinite(value) else round(float(value), 6)


def score(stats: Float[Array, "f s"], metric: Metric, resamples: int, samples: Array | None = None) -> dict:
    """Returns `{"value", "low", "high"}`: the metric over all faces and its bootstrap interval over faces.

    Where a share is 0 or 1 every resample says the same, so its interval is the exact one (Clopper & Pearson 1934).
    """
    if samples is None:
        samples = metrics.bootstrap_sums(stats, resamples)
    sums = stats.sum(0, dtype=np.float64)
    value = metric.of(sums)
    if metric.faces is not None and value in (0, 1):
        faces = int(metric.faces(sums))
        low, high = exact_interval(round(float(value) * faces), faces)
    else:
        low, high = metrics.interval(metric.of(samples))
    return {"value": number(value), "low": number(low), "high": number(high)}


def scores(
    stats: Float[Array, "f s"],
    measured: Sequence[Metric],
    resamples: int,
    baseline: Float[Array, "f s"] | None = None,
    samples: Float[Array, "r s"] | None = None,
) -> dict[str, dict]:
    """Returns a score for each metric; `baseline` holds the same statistics for the majority's answers.

    `samples` are the bootstrap sums of `stats`, where they have been drawn before.
    """
    if samples is None:
        samples = metrics.bootstrap_sums(stats, resamples)
    found = {}
    for metric in measured:
        found[metric.name] = score(stats, metric, resamples, samples) | {"higher_is_better": metric.higher_is_better}
        if baseline is not None:
            found[metric.name]["baseline"] = number(metric.of(baseline.sum(0, dtype=np.float64)))
    return found


def intervals(samples: Float[Array, "r m"]) -> list[list[float | None]]:
    """Returns `[low, high]` of each of `m` values over the bootstrap samples; None where it is never defined."""
    return [[number(edge) for edge in metrics.interval(column)] for column in samples.T]


def breakdown(
    stats: Float[Array, "f s"],
    counted: Array,
    groups: Mapping[str, Sequence[str | None]],
    metric: Metric,
    resamples: int,
) -> dict[str, dict]:
    """Returns, for each grouping that the faces state, the metric of each group and the gap of best and worst.

    `counted` (`f` bool) marks faces with a known truth. The gap is over groups of at least `SMALLEST_GROUP`
    faces; it is None when fewer than two are that large.
    """
    found = {}
    for name, values in groups.items():
        stated = np.asarray([v if v is not None else "" for v in values])
        names = sorted({v for v in stated[counted] if v}, key=_natural)
        if not names:
            continue
        members = {group: np.flatnonzero((stated == group) & counted) for group in names}
        rows = {group: score(stats[rows], metric, resamples) | {"faces": len(rows)} for group, rows in members.items()}
        large = [g for g in names if rows[g]["faces"] >= SMALLEST_GROUP and rows[g]["value"] is not None]
        best = worst = gap = None
        if len(large) >= 2:
            order = sorted(large, key=lambda g: rows[g]["value"], reverse=metric.higher_is_better)
            best, worst = order[0], order[-1]
            gap = number(abs(rows[best]["value"] - rows[worst]["value"]))
        found[name] = {"metric": metric.name, "groups": rows, "best": best, "worst": worst, "gap": gap}
    return found


def _natural(name: str) -> tuple:
    """Sorts "3-9" before "10-19"."""
    digits = name.split("-")[0].rstrip("+")
    return (0, int(digits), name) if digits.isdigit() else (1, 0, name)


def calibrate(confidence: Float[Array, "f"], correct: Array) -> dict | None:
    """Returns `{"ece", "bins"}` of the answers given, or None where they carry no probabilities."""
    used = ~np.isnan(confidence)
    if not used.any():
        return None
    bins = calibration.reliability(confidence[used], correct[used])
    return {
        "ece": number(bins.ece),
        "bins": [
            {
                "low": number(bins.edges[i]),
                "high": number(bins.edges[i + 1]),
                "confidence": number(bins.confidence[i]),
                "accuracy": number(bins.accuracy[i]),
                "count": int(bins.count[i]),
            }
            for i in range(len(bins.count))
        ],
    }


def confidence_of(probs: Float[Array, "f k"], answer: Int[Array, "f"]) -> Float[Array, "f"]:
    """Probability of the answer given; NaN where there is none."""
    picked = probs[np.arange(len(answer)), np.maximum(answer, 0)]
    return np.where(answer >= 0, picked, np.nan)
