"""FER2013: grey faces of 48×48 pixels with seven expressions, as the released table of pixels or as folders of pictures."""

from pathlib import Path, PurePosixPath

import numpy as np

from fi_jax.data.datasets import Dataset
from fi_jax.data.records import FaceRecord, Source, Split
from fi_jax.data.sources.release import Release
from fi_jax.errors import UserError
from fi_jax.labels.question_bank import questions_for
from fi_jax.labels.registry import vocabulary
from fi_jax.labels.tasks import EXPRESSION, EXPRESSIONS, one_of

NAME = "fer2013"
SIDE = 48
# The release's own parts; they begin the names of pictures too.
_PARTS: dict[str, Split] = {"Training": "train", "PublicTest": "val", "PrivateTest": "test"}
_FOLDERS: dict[str, Split] = {"train": "train", "validation": "val", "val": "val", "test": "test"}


def read(root: Path | str) -> Source:
    """Reads FER2013: `fer2013.csv` (or Kaggle's `icml_face_data.csv`), else folders `train/angry/…`, `validation/…`, `test/…`.

    Its training, public and private test parts are train, val and test. In folders the part that a picture's name
    begins with counts, as one form puts both test parts under `test/`; for other names the folder does. A row of the
    table is called after its part and number, as the pictures of the folder form are.
    """
    release = Release(NAME, root)
    table = release.has("fer2013.csv", "fer2013/fer2013.csv", "icml_face_data.csv")
    return release.source(_from_table(release, table) if table else _from_folders(release))


def _from_table(release: Release, path: Path) -> list[FaceRecord]:
    faces = []
    for number, (code, part, text) in release.table(path, ("emotion", "Usage", "pixels")):
        # The first row below the header is 0.
        key = f"{part}_{number - 2}"
        if part not in _PARTS:
            raise UserError(
                f"label file '{path}' line {number} has the unknown Usage '{part}'; they are {', '.join(_PARTS)}"
            )
        if code not in map(str, range(len(EXPRESSIONS))):
            raise UserError(f"label file '{path}' line {number} has the unknown emotion '{code}'; they are 0 to 6")
        values = text.split()
        if len(values) != SIDE**2 or not all(value.isdecimal() and int(value) < 256 for value in values):
            release.reject(key, f"{path.name} line {number}: pixels are not {SIDE}x{SIDE} numbers up to 255")
            continue
        # A portable grey map: the smallest file around the pixels as they are.
        picture = f"P5 {SIDE} {SIDE} 255\n".encode() + np.array(values, np.uint8).tobytes()
        labels = one_of(EXPRESSION, f"expression:{EXPRESSIONS[int(code)]}")
        faces.append(FaceRecord(NAME, key, _PARTS[part], picture, labels))
    return faces


def _from_folders(release: Release) -> list[FaceRecord]:
    there = [name for name in _FOLDERS if (release.root / name).is_dir()]
    if not there:
        release.find("fer2013.csv")
    faces = []
    for folder in there:
        pictures = release.require_pictures(release.root / folder, recursive=True)
        for key, path in pictures.items():
            expression = PurePosixPath(key).parent.name.lower()
            if expression not in EXPRESSIONS:
                raise UserError(
                    f"{NAME}: '{path}' lies in a folder that is no expression; they are {', '.join(EXPRESSIONS)}"
                )
            split = _PARTS.get(path.name.partition("_")[0], _FOLDERS[folder])
            labels = one_of(EXPRESSION, f"expression:{expression}")
            faces.append(FaceRecord(NAME, f"{folder}/{key}", split, path, labels))
    return faces


DATASET = Dataset(
    name=NAME,
    title="FER2013",
    read=read,
    vocabulary=vocabulary("expw"),
    questions=questions_for(vocabulary("expw")),
)
