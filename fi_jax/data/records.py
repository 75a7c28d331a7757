"""What every data source yields: one face, where its picture is, and what is known about it."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Literal

import numpy as np

from fi_jax.labels.tasks import age_labels
from fi_jax.labels.vocabulary import Vocabulary
from fi_jax.pictures.crop import Box
from fi_jax.pictures.decode import Readable

Split = Literal["train", "val", "test"]


@dataclass(frozen=True)
class FaceRecord:
    """One face of one data set; pure data, nothing decoded.

    `labels` holds only what is known: label name -> True/False. `box` (left, top, right, bottom, pixels)
    is the region cropped for the model, squared and padded by `pictures.crop.crop_square`; None is the
    whole picture. `image` is a path (or another `Readable`), or the bytes of the image file.
    """

    dataset: str
    # The picture's name as released (plus "#i" where a picture has several faces); unique in the set.
    key: str
    split: Split
    image: Readable | bytes
    labels: Mapping[str, bool] = field(default_factory=dict)
    # Years, where the release states them.
    age: float | None = None
    box: Box | None = None
    # The set's own segmentation map (index PNG, 19 classes of `faces.masks`), where it has one.
    mask: Readable | bytes | None = None
    identity: str | None = None


@dataclass(frozen=True)
class Rejected:
    """A row or file of a release that was left out, and why, in words."""

    key: str
    reason: str


def encode_labels(record: FaceRecord, vocabulary: Vocabulary) -> tuple[np.ndarray, np.ndarray]:
    """Returns `(labels, known)`, both of shape `n`: float32 targets in [0, 1] and a bool mask.

    Labels outside the vocabulary are dropped; labels the record does not state are unknown.
    An exact age also sets the nine age groups and, two-hot by linear interpolation between the
    nearest bin centres, the five-year bins ("years:...") where the vocabulary has them.
    """
    labels = np.zeros(len(vocabulary), np.float32)
    known = np.zeros(len(vocabulary), bool)
    places = vocabulary.places
    for name, value in (*record.labels.items(), *_age_targets(record.age)):
        place = places.get(name)
        if place is not None:
            labels[place], known[place] = value, True
    return labels, known


@lru_cache(maxsize=256)
def _age_targets(age: float | None) -> tuple[tuple[str, float], ...]:
    # Most releases state whole years: a hundred ages, a million faces.
    return () if age is None else tuple(age_labels(age).items())
