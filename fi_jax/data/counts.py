"""Counts which labels occur together, in one pass over records, without opening a picture."""

from collections.abc import Iterable, Iterator
from itertools import islice

import numpy as np
from jaxtyping import Bool, Float

from fi_jax.data.records import FaceRecord, encode_labels
from fi_jax.knowledge import correlation
from fi_jax.labels.vocabulary import Vocabulary

_BLOCK = 8192


def label_blocks(
    records: Iterable[FaceRecord], vocabulary: Vocabulary, block: int = _BLOCK
) -> Iterator[tuple[Float[np.ndarray, "b n"], Bool[np.ndarray, "b n"]]]:
    """Yields `(labels, known)` of up to `block` records at a time."""
    records = iter(records)
    while chunk := list(islice(records, block)):
        pairs = [encode_labels(record, vocabulary) for record in chunk]
        yield np.stack([labels for labels, _ in pairs]), np.stack([known for _, known in pairs])


def count_records(records: Iterable[FaceRecord], vocabulary: Vocabulary) -> correlation.Counts:
    """Returns the masked co-occurrence counts of the records; give it those of the training split alone.

    Counts of several hosts or sets add up with `knowledge.correlation.merge`.
    """
    counts = correlation.empty(len(vocabulary))
    for labels, known in label_blocks(records, vocabulary):
        counts = correlation.update(counts, labels, known)
    return counts
