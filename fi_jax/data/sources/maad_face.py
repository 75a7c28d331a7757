"""MAAD-Face: 47 attributes valued 1, -1 or 0 (undefined) over VGGFace2's picture folders."""

from pathlib import Path

import numpy as np

from fi_jax.data.datasets import Dataset
from fi_jax.data.records import FaceRecord, Split
from fi_jax.data.sources.attributes import AttributeRow, with_female
from fi_jax.data.sources.reading import find, missing_and_unlabelled, picture_key, pictures_in, read_table, require_root
from fi_jax.data.sources.source import Findings, FolderSource
from fi_jax.data.splits import hash_split
from fi_jax.errors import UserError
from fi_jax.labels.maad_face import LABELS
from fi_jax.labels.question_bank import questions_for
from fi_jax.labels.registry import vocabulary

NAME = "maad_face"
ATTRIBUTES = tuple(label.name for label in LABELS)
_VALUES = {"1": 1, "0": 0, "-1": -1, "1.0": 1, "0.0": 0, "-1.0": -1}


def read(root: Path | str) -> FolderSource:
    """Reads MAAD-Face. A key is `nXXXXXX/NNNN_NN.jpg`, as in the file.

    Splits: VGGFace2's folder `test` is `test`; of the people in `train` a tenth, dealt by
    `hash_split(identity, "maad_face")`, is `val`. Pictures that stand in neither folder are dealt
    80/10/10 by identity. An undefined attribute (0) is unknown.
    """
    root = require_root(NAME, root)
    findings = Findings()
    path = find(NAME, root, ("MAAD_Face.csv",))
    pictures, parts = _pictures(root, findings)
    keys, people, values = _rows(path, pictures, findings)
    names, values = with_female(ATTRIBUTES, values)
    missing_and_unlabelled(keys, pictures, path.name, findings)
    faces = []
    for key, person, row in zip(keys, people, values, strict=True):
        if key not in pictures:
            continue
        split = _split(parts[key], person)
        faces.append(FaceRecord(NAME, key, split, pictures[key], AttributeRow(names, row), identity=person))
    return findings.source(NAME, root, faces)


def _pictures(root: Path, findings: Findings) -> tuple[dict[str, Path], dict[str, str]]:
    """Returns paths by key, and which folder (`train`, `test` or neither) each is in."""
    pictures: dict[str, Path] = {}
    parts: dict[str, str] = {}
    for part in ("train", "test"):
        folder = next((f for f in (root / part, root / "data" / part) if f.is_dir()), None)
        for key, path in (pictures_in(folder, recursive=True) if folder else {}).items():
            if key in pictures:
                raise UserError(f"{NAME}: picture '{key}' is in both train/ and test/")
            pictures[key], parts[key] = path, part
    if not pictures:
        pictures = pictures_in(root, recursive=True)
        parts = dict.fromkeys(pictures, "")
        if pictures:
            findings.note("no train/ or test/ folder: faces dealt to splits by identity")
    if not pictures:
        raise UserError(f"{NAME}: '{root}' holds no pictures; VGGFace2's train/ and test/ folders belong there")
    return pictures, parts


def _split(part: str, person: str) -> Split:
    if part == "test":
        return "test"
    return hash_split(person, NAME, (0.9, 0.1, 0.0)) if part == "train" else hash_split(person, NAME)


def _rows(path: Path, pictures: dict[str, Path], findings: Findings) -> tuple[list[str], list[str], np.ndarray]:
    first: dict[str, int] = {}
    disagree: set[str] = set()
    keys: list[str] = []
    people: list[str] = []
    table: list[np.ndarray] = []
    for number, row in read_table(path, ("Filename", "Identity", *ATTRIBUTES), findings):
        try:
            values = np.array([_VALUES[row[name]] for name in ATTRIBUTES], np.int8)
        except KeyError as error:
            raise UserError(
                f"label file '{path}' line {number} has the unknown value {error}; the values are 1, 0 and -1"
            ) from None
        key = picture_key(row["Filename"], pictures, path.name, findings)
        if key in first:
            if np.array_equal(values, table[first[key]]):
                findings.reject(key, f"{path.name}: duplicate row (the first is kept)")
            else:
                disagree.add(key)
            continue
        first[key] = len(keys)
        keys.append(key)
        people.append(row["Identity"])
        table.append(values)
    for key in sorted(disagree):
        findings.reject(key, f"{path.name}: rows disagree (none is kept)")
    kept = [i for i, key in enumerate(keys) if key not in disagree]
    values = np.array([table[i] for i in kept], np.int8).reshape(len(kept), len(ATTRIBUTES))
    return [keys[i] for i in kept], [people[i] for i in kept], values


DATASET = Dataset(
    name=NAME,
    title="MAAD-Face",
    read=read,
    vocabulary=vocabulary("maad_face"),
    questions=questions_for(vocabulary("maad_face")),
)
