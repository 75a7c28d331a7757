"""The stated rules that assign faces to train, val and test where a release has no split."""

import hashlib
from collections.abc import Sequence

from fi_jax.data.records import FaceRecord, Split

# Shares of train, val and test.
FRACTIONS = (0.8, 0.1, 0.1)


def hash_fraction(name: str, salt: str) -> float:
    """Returns a number in [0, 1) that depends on `salt` and `name` alone: the first 8 bytes of a SHA-256."""
    digest = hashlib.sha256(f"{salt}:{name}".encode()).digest()
    return int.from_bytes(digest[:8], "big") / 2**64


def hash_split(name: str, salt: str, fractions: tuple[float, float, float] = FRACTIONS) -> Split:
    """Returns the split of `name` (a picture, a cluster of pictures, or a person).

    The split is train below `fractions[0]`, val below `fractions[0] + fractions[1]`, else test, of
    `hash_fraction(name, salt)`. Anyone can redo it; `salt` is the data set's name, so that a name
    used by two sets is not tied to one side.
    """
    x = hash_fraction(name, salt)
    return "train" if x < fractions[0] else "val" if x < fractions[0] + fractions[1] else "test"


def limited(records: Sequence[FaceRecord], count: int | None) -> list[FaceRecord]:
    """Returns `count` of the records (None or 0: all), in their order: those whose keys have the lowest hashes.

    The first by name would be a biased sample: of UTKFace's first hundred, 97 are teenagers.
    """
    if not count or count >= len(records):
        return list(records)
    order = sorted(range(len(records)), key=lambda i: hash_fraction(records[i].key, "limit"))
    return [records[i] for i in sorted(order[:count])]
