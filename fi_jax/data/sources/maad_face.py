"""MAAD-Face: 47 attributes valued 1, -1 or 0 (undefined) over VGGFace2's picture folders."""

from pathlib import Path

from fi_jax.data.datasets import Dataset
from fi_jax.data.records import FaceRecord, Source, Split
from fi_jax.data.sources.attributes import read_attributes
from fi_jax.data.sources.release import Release
from fi_jax.data.splits import hash_split
from fi_jax.errors import UserError
from fi_jax.labels.maad_face import LABELS
from fi_jax.labels.question_bank import questions_for
from fi_jax.labels.registry import vocabulary

NAME = "maad_face"
ATTRIBUTES = tuple(label.name for label in LABELS)
_VALUES = {"1": "1", "0": "?", "-1": "0", "1.0": "1", "0.0": "?", "-1.0": "0"}


def read(root: Path | str) -> Source:
    """Reads MAAD-Face. A key is `nXXXXXX/NNNN_NN.jpg`, as in the file.

    Splits: VGGFace2's folder `test` is `test`; of the people in `train` a tenth, by `hash_split(identity,
    "maad_face")`, is `val`. Pictures that stand in neither folder are split 80/10/10 by identity. An undefined
    attribute (0) is unknown.
    """
    release = Release(NAME, root)
    path = release.find("MAAD_Face.csv")
    pictures, parts = _pictures(release)
    table = read_attributes(
        path, release.table(path, ("Filename", "Identity", *ATTRIBUTES)), ATTRIBUTES, _VALUES, first=2
    )
    people: dict[str, str] = {}

    def keyed():
        for (name, person), row in table:
            key = release.named_picture(name, pictures, path.name)
            people.setdefault(key, person)
            yield key, row

    rows = release.distinct(keyed(), path.name)
    release.reject_unpaired(rows, pictures, path.name)
    faces = [
        FaceRecord(NAME, key, _split(parts[key], people[key]), pictures[key], row, identity=people[key])
        for key, row in rows.items()
        if key in pictures
    ]
    return release.source(faces)


def _pictures(release: Release) -> tuple[dict[str, Path], dict[str, str]]:
    """Returns paths by key, and which folder (`train`, `test` or neither) each is in."""
    pictures: dict[str, Path] = {}
    parts: dict[str, str] = {}
    for part in ("train", "test"):
        folder = release.has(part, f"data/{part}")
        for key, path in (release.pictures(folder, recursive=True) if folder and folder.is_dir() else {}).items():
            if key in pictures:
                raise UserError(f"{NAME}: picture '{key}' is in both train/ and test/")
            pictures[key], parts[key] = path, part
    if not pictures:
        pictures = release.pictures(release.root, recursive=True)
        parts = dict.fromkeys(pictures, "")
        if pictures:
            release.note("no train/ or test/ folder: faces are split by identity")
    if not pictures:
        raise UserError(f"{NAME}: '{release.root}' holds no pictures; VGGFace2's train/ and test/ folders belong there")
    return pictures, parts


def _split(part: str, person: str) -> Split:
    if part == "test":
        return "test"
    return hash_split(person, NAME, (0.9, 0.1, 0.0)) if part == "train" else hash_split(person, NAME)


DATASET = Dataset(
    name=NAME,
    title="MAAD-Face",
    read=read,
    vocabulary=vocabulary("maad_face"),
    questions=questions_for(vocabulary("maad_face")),
)
