"""What every data set yields: faces, where their pictures are, what is known about them, and what was left out."""

import re
from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Literal, get_args

import numpy as np
from jaxtyping import Bool, Float

from fi_jax.errors import require_choice
from fi_jax.labels.tasks import age_labels
from fi_jax.labels.vocabulary import Vocabulary
from fi_jax.pictures.crop import Box
from fi_jax.pictures.header import Readable

Split = Literal["train", "val", "test"]
SPLITS: tuple[Split, ...] = get_args(Split)


@dataclass(frozen=True)
class FaceRecord:
    """One face of one data set; pure data, nothing decoded.

    `labels` holds only what is known: label name -> True/False, or a share in [0, 1]. `box` (left, top, right, bottom, pixels)
    is the region cropped for the model, squared and padded by `pictures.crop.crop_square`; None is the
    whole picture. `image` is a path (or another `Readable`), or the bytes of the image file.
    """

    dataset: str
    # The picture's name as released (plus "#i" where a picture has several faces); unique in the set.
    key: str
    split: Split
    image: Readable | bytes
    labels: Mapping[str, float] = field(default_factory=dict)
    # Years, where the release states them.
    age: float | None = None
    box: Box | None = None
    # The set's own segmentation map (index PNG, 19 classes of `faces.masks`), where it has one.
    mask: Readable | bytes | None = None
    identity: str | None = None
    # Numbers of one's own table, by the question's name, and its open questions with their answers.
    numbers: Mapping[str, float] = field(default_factory=dict)
    texts: tuple[tuple[str, str], ...] = ()


@dataclass(frozen=True)
class Rejected:
    """A row or file of a release that was left out, and why, in words."""

    key: str
    reason: str


def by_reason(rejected: Iterable[Rejected]) -> list[str]:
    """Returns a line a reason, the commonest first: "000002.jpg and 2 more: picture missing".

    Reasons that differ in the key or the number of a line alone are one.
    """
    keys = defaultdict(list)
    for item in rejected:
        reason = item.reason.replace(f"'{item.key.rpartition('/')[2]}' ", "").replace(f"'{item.key}' ", "")
        keys[re.sub(r" line [0-9]+\b", "", reason)].append(item.key)
    found = sorted(keys.items(), key=lambda pair: -len(pair[1]))
    return [f"{k[0]}{f' and {len(k) - 1:,} more' if len(k) > 1 else ''}: {reason}" for reason, k in found]


@dataclass(frozen=True)
class Source:
    """One data set as it was found under one root. `faces` are in order of their keys."""

    name: str
    faces: tuple[FaceRecord, ...]
    # Rows and files that were left out, each with the reason.
    rejected: tuple[Rejected, ...] = ()
    # What was corrected on reading (a stripped path prefix, "9-Mar" read as "3-9"), in words.
    notes: tuple[str, ...] = ()

    def records(self, split: str = "all") -> list[FaceRecord]:
        """Returns the faces of a split, in order; "all" is every face under the root."""
        require_choice("split", split, (*SPLITS, "all"))
        return [face for face in self.faces if split in ("all", face.split)]


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


def label_arrays(
    records: Iterable[FaceRecord], vocabulary: Vocabulary
) -> tuple[Float[np.ndarray, "f n"], Bool[np.ndarray, "f n"]]:
    """Returns `encode_labels` of every record; there must be one."""
    labels, known = zip(*(encode_labels(record, vocabulary) for record in records), strict=True)
    return np.stack(labels), np.stack(known)


@lru_cache(maxsize=256)
def _age_targets(age: float | None) -> tuple[tuple[str, float], ...]:
    # Most releases state whole years: a hundred ages, a million faces.
    return () if age is None else tuple(age_labels(age).items())
