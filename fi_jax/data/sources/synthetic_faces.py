"""Procedural faces, drawn when asked for: for tests and the demo, never for claims."""

import io
import re
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Literal

from fi_jax.data.datasets import Dataset
from fi_jax.data.records import FaceRecord, Source
from fi_jax.data.splits import hash_split
from fi_jax.data.synthetic.face import SyntheticFace, draw_face, traits_of
from fi_jax.errors import UserError
from fi_jax.labels import celeba
from fi_jax.labels.question_bank import question
from fi_jax.labels.registry import vocabulary

NAME = "synthetic_faces"
DEFAULT_COUNT = 2000


@dataclass(frozen=True)
class Drawn:
    """The PNG of one face, or of its map, drawn when it is read; the same bytes every time."""

    seed: int
    index: int
    part: Literal["image", "mask"]

    def __str__(self) -> str:
        return f"{NAME} seed={self.seed} face {self.index} ({self.part})"

    def read_bytes(self) -> bytes:
        """Returns the whole file."""
        from PIL import Image

        from fi_jax.faces.masks import encode_mask

        face = _draw(self.seed, self.index)
        if self.part == "mask":
            return encode_mask(face.mask)
        buffer = io.BytesIO()
        Image.fromarray(face.image).save(buffer, "PNG", compress_level=1)
        return buffer.getvalue()


# A face's picture and map are read one after the other.
@lru_cache(maxsize=64)
def _draw(seed: int, index: int) -> SyntheticFace:
    return draw_face(seed, index)


def read(root: Path | str = "") -> Source:
    """Makes a series of faces.

    Args:
      root: no folder but "count=N" and "seed=S", in any order, separated by a comma; 2000 and 0 by default.

    The split is 80/10/10 by `hash_split(key, "synthetic_faces")`; a shorter series is the start of a longer one.
    """
    count, seed = _parse(str(root))
    faces = []
    for index in range(count):
        traits, key = traits_of(seed, index), f"{seed}-{index:06d}.png"
        image, mask = Drawn(seed, index, "image"), Drawn(seed, index, "mask")
        faces.append(FaceRecord(NAME, key, hash_split(key, NAME), image, traits.labels, age=traits.age, mask=mask))
    return Source(NAME, tuple(faces))


def _parse(root: str) -> tuple[int, int]:
    settings = {"count": DEFAULT_COUNT, "seed": 0}
    for part in filter(None, (piece.strip() for piece in root.split(","))):
        match = re.fullmatch(r"(count|seed)=([0-9]{1,9})", part)
        if not match:
            raise UserError(f"{NAME} are drawn, not read: the data root is 'count=N,seed=S', not '{root}'")
        settings[match[1]] = int(match[2])
    if settings["count"] < 1:
        raise UserError(f"{NAME}: count must be at least 1")
    return settings["count"], settings["seed"]


DATASET = Dataset(
    name=NAME,
    title="synthetic faces",
    read=read,
    vocabulary=vocabulary("faces"),
    questions=tuple(
        map(question, (*celeba.QUESTIONS, "gender", "race:utkface", "age_group", "age_years", "expression"))
    ),
)
