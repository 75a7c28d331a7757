"""Counts which labels occur together, in one pass over records, without opening a picture."""

from collections.abc import Iterable, Iterator
from itertools import islice
from typing import TYPE_CHECKING

import numpy as np

from fi_jax.data.records import FaceRecord, encode_labels
from fi_jax.labels.vocabulary import Vocabulary

if TYPE_CHECKING:
    from fi_jax.knowledge.correlation import Counts

_BLOCK = 8192


def label_blocks(
    records: Iterable[FaceRecord], vocabulary: Vocabulary, block: int = _BLOCK
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Yields `(labels, known)` of up to `block` records at a time, shapes `b n`, float32 and bool."""
    records = iter(records)
    while chunk := list(islice(records, block)):
        pairs = [encode_labels(record, vocabulary) for record in chunk]
        yield np.stack([labels for labels, _ in pairs]), np.stack([known for _, known in pairs])


def label_arrays(records: Iterable[FaceRecord], vocabulary: Vocabulary) -> tuple[np.ndarray, np.ndarray]:
    """Returns `(labels, known)` of all records, shapes `m n`, float32 and bool."""
    blocks = list(label_blocks(records, vocabulary))
    if not blocks:
        return np.zeros((0, len(vocabulary)), np.float32), np.zeros((0, len(vocabulary)), bool)
    return np.concatenate([labels for labels, _ in blocks]), np.concatenate([known for _, known in blocks])


def count_records(records: Iterable[FaceRecord], vocabulary: Vocabulary) -> "Counts":
    """Returns the masked co-occurrence counts of the records; give it those of the training split alone.

    Counts of several hosts or sets add up with `knowledge.correlation.merge`.
    """
    # Late: the module imports JAX, which reading labels does not need.
    from fi_jax.knowledge import correlation

    counts = correlation.empty(len(vocabulary))
    for labels, known in label_blocks(records, vocabulary):
        counts = correlation.update(counts, labels, known)
    return counts
