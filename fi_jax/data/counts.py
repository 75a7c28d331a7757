"""Counts which labels occur together, in one pass over records or annotation files, without opening a picture."""

from collections.abc import Iterable, Iterator, Sequence
from itertools import islice
from pathlib import Path

import numpy as np
from jaxtyping import Bool, Float

from fi_jax.config import SourceConfig
from fi_jax.data.datasets import find_dataset
from fi_jax.data.records import FaceRecord, label_arrays
from fi_jax.knowledge import correlation
from fi_jax.labels.vocabulary import Vocabulary

_BLOCK = 8192


def label_blocks(
    records: Iterable[FaceRecord], vocabulary: Vocabulary, block: int = _BLOCK
) -> Iterator[tuple[Float[np.ndarray, "b n"], Bool[np.ndarray, "b n"]]]:
    """Yields `(labels, known)` of up to `block` records at a time."""
    records = iter(records)
    while chunk := list(islice(records, block)):
        yield label_arrays(chunk, vocabulary)


def training_counts(
    records: Sequence[FaceRecord], counted: Sequence[SourceConfig], vocabulary: Vocabulary
) -> correlation.Counts:
    """Returns the counts of the faces trained on, and of the annotation files of `counted` (`data.counted`).

    Of a release that is counted by its files, the faces trained on are among them and count once.
    """
    # A table's records carry the name of its schema.
    names = {find_dataset(source.name).name for source in counted}
    counts = count_records((record for record in records if record.dataset not in names), vocabulary)
    for source in counted:
        annotated = annotation_records(source.name, source.root)
        counts = correlation.merge(counts, count_records(annotated, vocabulary))
    return counts


def annotation_records(name: str, root: Path | str) -> tuple[FaceRecord, ...]:
    """The faces of a release that may be counted: those of training, with or without a picture at hand.

    Raises:
      UserError: the release is not there.
    """
    dataset = find_dataset(name)
    return tuple((dataset.annotations or dataset.open)(root).records("train"))


def count_records(records: Iterable[FaceRecord], vocabulary: Vocabulary) -> correlation.Counts:
    """Returns the masked co-occurrence counts of the records; give it those of the training split alone.

    Counts of several hosts or sets add up with `knowledge.correlation.merge`.
    """
    counts = correlation.empty(len(vocabulary))
    for labels, known in label_blocks(records, vocabulary):
        counts = correlation.update(counts, labels, known)
    return counts
