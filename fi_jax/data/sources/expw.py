"""ExpW: photographs with face boxes and seven expressions."""

from collections.abc import Iterator
from pathlib import Path

from fi_jax.data.datasets import Dataset
from fi_jax.data.near_duplicates import near_duplicate_groups
from fi_jax.data.records import FaceRecord, Source
from fi_jax.data.sources.release import Release, read_box
from fi_jax.data.splits import hash_split
from fi_jax.errors import UserError
from fi_jax.labels.question_bank import questions_for
from fi_jax.labels.registry import vocabulary
from fi_jax.labels.tasks import EXPRESSION, EXPRESSIONS, one_of
from fi_jax.pictures.crop import Box, enlarge

NAME = "expw"
# The labelled boxes are tight; so much larger they hold what other sets' face crops hold.
ENLARGE = 1.4
_CODES = {str(i): f"expression:{name}" for i, name in enumerate(EXPRESSIONS)}


def read(root: Path | str) -> Source:
    """Reads ExpW. A face's key is `picture#face_id`; its box is the labelled one enlarged 1.4 times.

    The release has no split: it is 80/10/10 by `hash_split(group, "expw")`, where a group holds all faces of one
    photograph and their near-duplicates. Boxes may overrun the picture; those outside it are rejected.
    """
    release = Release(NAME, root)
    path = release.find("label/label.lst", "data/label/label.lst")
    pictures = release.require_pictures(release.find("image/origin", "data/image/origin"))
    rows = release.distinct(_rows(release, path, pictures), path.name)
    present = [key for key in sorted(rows) if rows[key][0] in pictures]
    for key in sorted(rows.keys() - set(present)):
        release.reject(key, "picture missing")
    # A photograph whose only rows were rejected is not without rows.
    named = {row[0] for row in rows.values()} | {item.key.rpartition("#")[0] for item in release.rejected}
    for name in sorted(pictures.keys() - named):
        release.reject(name, f"no row in {path.name}")
    boxes = [enlarge(rows[key][1], ENLARGE) for key in present]
    photographs = [rows[key][0] for key in present]
    groups, outside = near_duplicate_groups(NAME, present, [pictures[name] for name in photographs], boxes, photographs)
    faces = []
    for key, box in zip(present, boxes, strict=True):
        name, _, expression = rows[key]
        if key in outside:
            release.reject(key, outside[key])
        else:
            labels = one_of(EXPRESSION, expression)
            faces.append(FaceRecord(NAME, key, hash_split(groups[key], NAME), pictures[name], labels, box=box))
    return release.source(faces)


def _rows(release: Release, path: Path, pictures: dict[str, Path]) -> Iterator[tuple[str, tuple[str, Box, str]]]:
    """Yields `(key, (picture, box, expression))`; the file gives `name id top left right bottom confidence label`."""
    for number, (cell, face, top, left, right, bottom, _, code) in release.rows(path, 8):
        name = release.named_picture(cell, pictures, path.name)
        if code not in _CODES:
            raise UserError(f"label file '{path}' line {number} has the unknown expression '{code}'; they are 0 to 6")
        box, problem = read_box((left, top, right, bottom))
        if problem:
            release.reject(f"{name}#{face}", f"{path.name} line {number}: {problem}")
        else:
            yield f"{name}#{face}", (name, box, _CODES[code])


DATASET = Dataset(
    name=NAME,
    title="ExpW",
    read=read,
    vocabulary=vocabulary("expw"),
    questions=questions_for(vocabulary("expw")),
)
