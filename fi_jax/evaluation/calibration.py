"""Whether probabilities mean what they say: reliability bins, expected calibration error, temperature."""

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float, Int

from fi_jax.evaluation.predictions import Prediction
from fi_jax.labels.tasks import YEAR_CENTRES

Array = np.ndarray


@dataclass(frozen=True)
class Reliability:
    """Equal-width bins of confidence: mean confidence, share right, number of answers (`m` bins each, `m + 1` edges)."""

    edges: Float[Array, "edges"]
    confidence: Float[Array, "m"]
    accuracy: Float[Array, "m"]
    count: Int[Array, "m"]

    @property
    def ece(self) -> float:
        """Expected calibration error: count-weighted mean gap of accuracy and confidence."""
        used = self.count > 0
        if not used.any():
            return float("nan")
        gaps = np.abs(self.accuracy[used] - self.confidence[used])
        return float(np.average(gaps, weights=self.count[used]))


def reliability(confidence: Float[Array, "f"], correct: Bool[Array, "f"], bins: int = 15) -> Reliability:
    """Bins the probability of the answer given. 15 equal-width bins, as in Guo et al. 2017 (arXiv 1706.04599)."""
    edges = np.linspace(0, 1, bins + 1)
    index = np.clip(np.searchsorted(edges, confidence, side="left") - 1, 0, bins - 1)
    count = np.bincount(index, minlength=bins)
    divisor = np.maximum(count, 1)
    return Reliability(
        edges,
        np.where(count, np.bincount(index, confidence, bins) / divisor, np.nan),
        np.where(count, np.bincount(index, correct, bins) / divisor, np.nan),
        count,
    )


def apply_temperature(probs: Float[Array, "... k"], temperature: float) -> Float[Array, "... k"]:
    """Returns `softmax(log(probs) / temperature)`; 1 changes nothing, more flattens."""
    logits = np.log(np.clip(probs, 1e-12, 1)) / temperature
    scaled = np.exp(logits - logits.max(-1, keepdims=True))
    return scaled / scaled.sum(-1, keepdims=True)


def negative_log_likelihood(probs: Float[Array, "f k"], target: Int[Array, "f"]) -> float:
    """Mean −log p(truth) over faces whose truth is known (`target` ≥ 0), in nats."""
    known = np.flatnonzero(target >= 0)
    return float(-np.log(np.clip(probs[known, target[known]], 1e-12, 1)).mean())


def fit_temperature(probs: Float[Array, "f k"], target: Int[Array, "f"]) -> float:
    """Returns the temperature in [0.05, 20] of least negative log-likelihood. Fit it on validation faces only."""
    from scipy.optimize import minimize_scalar

    def loss(log_temperature: float) -> float:
        return negative_log_likelihood(apply_temperature(probs, np.exp(log_temperature)), target)

    found = minimize_scalar(loss, bounds=(np.log(0.05), np.log(20.0)), method="bounded", options={"xatol": 1e-4})
    return float(np.exp(found.x))


def family_temperatures(predictions: Iterable[Prediction]) -> dict[str, float]:
    """Returns one temperature a task family, fitted over all its answered questions together.

    Questions of fewer options are padded with options of probability 0. The option of an age in years is the bin
    whose centre is nearest.
    """
    rows: dict[str, list[tuple[list[float], int]]] = {}
    for p in predictions:
        if p.label is None or not p.probabilities:
            continue
        if isinstance(p.label, str):
            at = list(p.probabilities).index(p.label)
        else:
            at = int(np.abs(np.asarray(YEAR_CENTRES) - p.label).argmin())
        rows.setdefault(p.task, []).append((list(p.probabilities.values()), at))
    found = {}
    for family, answered in rows.items():
        probs = np.zeros((len(answered), max(len(values) for values, _ in answered)))
        for row, (values, _) in zip(probs, answered, strict=True):
            row[: len(values)] = values
        found[family] = fit_temperature(probs, np.array([at for _, at in answered]))
    return found
