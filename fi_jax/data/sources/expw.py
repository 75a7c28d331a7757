"""ExpW: photographs with face boxes and seven expressions."""

import math
from pathlib import Path

from fi_jax.data.datasets import Dataset
from fi_jax.data.records import FaceRecord
from fi_jax.data.sources.near_duplicate_clusters import cluster_names
from fi_jax.data.sources.reading import find, picture_key, read_rows, require_pictures, require_root, without_duplicates
from fi_jax.data.sources.source import Findings, FolderSource
from fi_jax.data.splits import hash_split
from fi_jax.errors import UserError
from fi_jax.labels.question_bank import questions_for
from fi_jax.labels.registry import vocabulary
from fi_jax.labels.tasks import EXPRESSION, EXPRESSIONS, one_of
from fi_jax.pictures.crop import Box, enlarge

NAME = "expw"
# The labelled boxes are tight; so much larger they hold what other sets' face crops hold.
ENLARGE = 1.4


def read(root: Path | str) -> FolderSource:
    """Reads ExpW. A face's key is `picture#face_id`; its box is the labelled one enlarged 1.4 times.

    The release has no split: faces are dealt 80/10/10 by `hash_split(cluster, "expw")`, where a cluster
    holds all faces of one photograph and their near-twins. Boxes may overrun the picture; those
    outside it are rejected.
    """
    root = require_root(NAME, root)
    findings = Findings()
    path = find(NAME, root, ("label/label.lst", "data/label/label.lst"))
    pictures = require_pictures(NAME, find(NAME, root, ("image/origin", "data/image/origin")))
    rows = without_duplicates(_rows(path, pictures, findings), path.name, findings)
    present = [key for key in sorted(rows) if rows[key][0] in pictures]
    for key in sorted(rows.keys() - set(present)):
        findings.reject(key, "picture missing")
    # A photograph whose only rows were rejected is not without rows.
    named = {row[0] for row in rows.values()} | {item.key.rpartition("#")[0] for item in findings.rejected}
    for name in sorted(pictures.keys() - named):
        findings.reject(name, f"no row in {path.name}")
    boxes = [enlarge(rows[key][1], ENLARGE) for key in present]
    photographs = [rows[key][0] for key in present]
    clusters, outside = cluster_names(NAME, present, [pictures[name] for name in photographs], boxes, photographs)
    faces = []
    for key, box in zip(present, boxes, strict=True):
        name, _, expression = rows[key]
        if key in outside:
            findings.reject(key, outside[key])
            continue
        labels = one_of(EXPRESSION, f"expression:{EXPRESSIONS[expression]}")
        faces.append(FaceRecord(NAME, key, hash_split(clusters[key], NAME), pictures[name], labels, box=box))
    return findings.source(NAME, root, faces)


def _rows(path: Path, pictures: dict[str, Path], findings: Findings):
    """Yields `(key, (picture, box, expression))`; the file gives `name id top left right bottom confidence label`."""
    for number, cells in read_rows(path, 8, findings):
        name, face = picture_key(cells[0], pictures, path.name, findings), cells[1]
        try:
            top, left, right, bottom = (float(cell) for cell in cells[2:6])
            if not all(map(math.isfinite, (top, left, right, bottom))):
                raise ValueError
        except ValueError:
            findings.reject(f"{name}#{face}", f"{path.name} line {number}: the box is not four numbers")
            continue
        if cells[7] not in {str(i) for i in range(len(EXPRESSIONS))}:
            raise UserError(
                f"label file '{path}' line {number} has the unknown expression '{cells[7]}'; they are 0 to 6"
            )
        if right <= left or bottom <= top:
            findings.reject(f"{name}#{face}", f"{path.name} line {number}: the box is empty")
            continue
        box: Box = (left, top, right, bottom)
        yield f"{name}#{face}", (name, box, int(cells[7]))


DATASET = Dataset(
    name=NAME,
    title="ExpW",
    read=read,
    vocabulary=vocabulary("expw"),
    questions=questions_for(vocabulary("expw")),
)
