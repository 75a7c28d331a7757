"""Metrics as pure functions of counts, so that a bootstrap over faces is the same function of resampled counts."""

import numpy as np
from jaxtyping import Bool, Float, Int

Array = np.ndarray


def confusion_cells(target: Int[Array, "f"], answer: Int[Array, "f"], num_classes: int) -> Float[Array, "f c"]:
    """Returns each face's one-hot cell in the flattened `k × (k+1)` confusion matrix.

    `target` and `answer` are class indices, −1 for unknown. A face of unknown truth has no cell (a zero row);
    an answer of −1 (unreadable) falls into the extra last column, so it counts as wrong.
    """
    k = num_classes
    cells = np.zeros((len(target), k * (k + 1)), np.float32)
    known = np.flatnonzero(target >= 0)
    said = np.where(answer[known] >= 0, answer[known], k)
    cells[known, target[known] * (k + 1) + said] = 1
    return cells


def as_confusion(counts: Float[Array, "... c"]) -> Float[Array, "... k j"]:
    """Reshapes flattened cells, or any sum of them, to `k × (k+1)`: truth in rows, answers in columns."""
    size = counts.shape[-1]
    k = int((np.sqrt(4 * size + 1) - 1) / 2 + 0.5)
    return counts.reshape(*counts.shape[:-1], k, k + 1)


def _ratio(top: Array, bottom: Array) -> Array:
    """`top / bottom`, NaN where nothing was counted."""
    return np.divide(top, bottom, out=np.full(np.broadcast(top, bottom).shape, np.nan), where=bottom > 0)


def accuracy(confusion: Float[Array, "... k j"]) -> Float[Array, "..."]:
    """Share of right answers."""
    return _ratio(np.trace(confusion, axis1=-2, axis2=-1), confusion.sum((-2, -1)))


def within_one(confusion: Float[Array, "... k j"]) -> Float[Array, "..."]:
    """Share of answers at most one class away, for ordered classes (age groups: "1-off accuracy")."""
    k = confusion.shape[-2]
    near = np.abs(np.arange(k)[:, None] - np.arange(k + 1)) <= 1
    near[:, k] = False
    return _ratio((confusion * near).sum((-2, -1)), confusion.sum((-2, -1)))


def recalls(confusion: Float[Array, "... k j"]) -> Float[Array, "... k"]:
    """Recall of each class; NaN for a class that no face has."""
    return _ratio(np.diagonal(confusion, axis1=-2, axis2=-1), confusion.sum(-1))


def _mean_known(values: Array) -> Array:
    counted = ~np.isnan(values)
    return _ratio(np.where(counted, values, 0).sum(-1), counted.sum(-1))


def balanced_accuracy(confusion: Float[Array, "... k j"]) -> Float[Array, "..."]:
    """Mean recall over the classes that occur."""
    return _mean_known(recalls(confusion))


def f1_scores(confusion: Float[Array, "... k j"]) -> Float[Array, "... k"]:
    """F1 of each class, `2tp / (2tp + fp + fn)`; NaN for a class neither true nor answered anywhere."""
    tp = np.diagonal(confusion, axis1=-2, axis2=-1)
    k = confusion.shape[-2]
    return _ratio(2 * tp, confusion.sum(-1) + confusion[..., :k].sum(-2))


def macro_f1(confusion: Float[Array, "... k j"]) -> Float[Array, "..."]:
    """Unweighted mean of the classes' F1, over classes that occur among truths or answers (as scikit-learn)."""
    return _mean_known(f1_scores(confusion))


def mean_attribute(metric, counts: Float[Array, "... q 6"]) -> Float[Array, "..."]:
    """Mean over `q` yes/no questions of `metric(2 × 3 confusion)`; questions with no known face are left out."""
    return _mean_known(metric(as_confusion(counts)))


def positive_f1(confusion: Float[Array, "... 2 3"]) -> Float[Array, "..."]:
    """F1 of the first class ("Yes"): the F1 of attribute recognition. NaN where it is never true nor answered."""
    return f1_scores(confusion)[..., 0]


def mean_error(sums: Float[Array, "... 2"]) -> Float[Array, "..."]:
    """Mean absolute error from `(Σ |error|, faces)`."""
    return _ratio(sums[..., 0], sums[..., 1])


def average_precision(
    scores: Float[Array, "f"], truth: Bool[Array, "f"], weights: Float[Array, "r f"]
) -> Float[Array, "r"]:
    """Mean precision at the ranks of the true faces, the highest score first; NaN without a true face.

    Each row of `weights` says how often each face counts (a bootstrap's draw). Equal scores keep the faces' order.
    """
    order = np.argsort(-scores, kind="stable")
    w, y = weights[:, order], truth[order]
    precision = np.cumsum(w * y, axis=1) / np.maximum(np.cumsum(w, axis=1), 1e-9)
    return _ratio((precision * w)[:, y].sum(1), w[:, y].sum(1))


def bootstrap_sums(stats: Float[Array, "f s"], resamples: int = 1000, seed: int = 0) -> Float[Array, "r s"]:
    """Sums of per-face statistics over `resamples` bootstrap samples of the faces (with replacement).

    Every metric here is a function of such sums, so its bootstrap distribution is `metric(bootstrap_sums(...))`.
    All questions about a face stay together: the face is the unit that is resampled.
    """
    faces = len(stats)
    rng = np.random.default_rng(seed)
    # A column that holds one cell a face needs many columns; blocks of resamples bound the memory.
    block = max(1, min(resamples, 4_000_000 // max(faces, 1)))
    sums = np.empty((resamples, stats.shape[1]))
    stats = stats.astype(np.float32)
    for start in range(0, resamples, block):
        count = min(block, resamples - start)
        drawn = rng.integers(faces, size=(count, faces)) + faces * np.arange(count)[:, None]
        weights = np.bincount(drawn.ravel(), minlength=count * faces).reshape(count, faces)
        sums[start : start + count] = weights.astype(np.float32) @ stats
    return sums


def interval(samples: Float[Array, "r"], level: float = 0.95) -> tuple[float, float]:
    """Percentile interval of bootstrap samples; NaN samples (a class absent by chance) are left out."""
    samples = samples[~np.isnan(samples)]
    if not len(samples):
        return float("nan"), float("nan")
    low, high = np.quantile(samples, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)


def majority_class(target: Int[Array, "f"], num_classes: int) -> int:
    """The commonest known class (the first of equals)."""
    return int(np.bincount(target[target >= 0], minlength=num_classes).argmax())
