"""RAF-DB (basic): seven expressions; the text list or the circulating CSV; aligned, or original with boxes."""

import math
import re
from pathlib import Path

from fi_jax.data.datasets import Dataset
from fi_jax.data.records import FaceRecord, Split
from fi_jax.data.sources.reading import (
    find,
    missing_and_unlabelled,
    picture_key,
    pictures_in,
    read_rows,
    read_table,
    read_text,
    require_root,
    without_duplicates,
)
from fi_jax.data.sources.source import Findings, FolderSource
from fi_jax.data.splits import hash_split
from fi_jax.errors import UserError
from fi_jax.labels.question_bank import question
from fi_jax.labels.registry import vocabulary
from fi_jax.labels.tasks import EXPRESSION, GENDER, RACE_GROUPS, one_of
from fi_jax.pictures.crop import Box, enlarge
from fi_jax.pictures.decode import picture_size

NAME = "raf_db"
# The release's codes 1 to 7.
EXPRESSIONS = ("surprise", "fear", "disgust", "happy", "sad", "angry", "neutral")
_GENDERS = ("Male", "Female")  # 2 is "unsure"
_RACES = ("race:White", "race:Black", "race:Asian")
_LIST = ("EmoLabel/list_patition_label.txt", "basic/EmoLabel/list_patition_label.txt", "list_patition_label.txt")
_CSV = ("labels.csv", "train_labels.csv", "test_labels.csv", "EmoLabel/labels.csv")
_PICTURES = ("Image/aligned", "basic/Image/aligned", "aligned", "DATASET", "Image/original", "basic/Image/original")
# As for ExpW: boxes around the face alone, enlarged to what other sets' crops hold.
_ENLARGE = 1.4


def read(root: Path | str) -> FolderSource:
    """Reads RAF-DB. A key is the name of the list (`train_00001.jpg`).

    Splits: names starting with `test_` are `test`; of the others a tenth, dealt by
    `hash_split(name, "raf_db")`, is `val`. Aligned pictures are used where there are any (the whole
    picture is the face), else the originals with the release's boxes enlarged 1.4 times. Gender (not
    "unsure") and race are read where `Annotation/manual` is there.
    """
    root = require_root(NAME, root)
    findings = Findings()
    folder = find(NAME, root, _PICTURES)
    pictures = _pictures(folder)
    if not pictures:
        raise UserError(f"{NAME}: picture folder '{folder}' holds no pictures")
    file, rows = _labels(root, pictures, findings)
    missing_and_unlabelled(rows, pictures, file, findings)
    base = folder.parent.parent if folder.parent.name == "Image" else root
    original = folder.name == "original"
    faces = []
    for key in sorted(rows.keys() & pictures.keys()):
        labels = one_of(EXPRESSION, f"expression:{EXPRESSIONS[rows[key] - 1]}") | _manual(base, key)
        box = None
        if original:
            box, problem = _box(base, key, pictures[key])
            if problem:
                findings.reject(key, problem)
                continue
        faces.append(FaceRecord(NAME, key, _split(key), pictures[key], labels, box=box))
    return findings.source(NAME, root, faces)


def _pictures(folder: Path) -> dict[str, Path]:
    """Pictures by the list's name; `train_00001_aligned.jpg` is the list's `train_00001.jpg`."""
    found: dict[str, Path] = {}
    for key, path in pictures_in(folder, recursive=True).items():
        name = re.sub(r"_aligned(?=\.\w+$)", "", key.split("/")[-1])
        if name in found:
            raise UserError(f"{NAME}: '{path}' and '{found[name]}' both are picture '{name}'; remove one")
        found[name] = path
    return found


def _labels(root: Path, pictures: dict[str, Path], findings: Findings) -> tuple[str, dict[str, int]]:
    """Returns the label file's name, and the code of every picture it names."""
    path = next((root / choice for choice in _LIST if (root / choice).exists()), None)
    tables = [root / choice for choice in _CSV if (root / choice).exists()]
    if path:
        paths = [path]
        pairs = [(path, number, name, code) for number, (name, code) in read_rows(path, 2, findings)]
    elif tables:
        paths = tables
        pairs = [
            (table, number, row["image"], row["label"])
            for table in tables
            for number, row in read_table(table, ("image", "label"), findings)
        ]
    else:
        find(NAME, root, _LIST)
    codes = {str(code) for code in range(1, len(EXPRESSIONS) + 1)}
    rows = []
    for file, number, name, code in pairs:
        if code not in codes:
            raise UserError(f"label file '{file}' line {number} has the unknown expression '{code}'; they are 1 to 7")
        plain = re.sub(r"_aligned(?=\.\w+$)", "", name)
        rows.append((picture_key(plain, pictures, file.name, findings), int(code)))
    files = ", ".join(path.name for path in paths)
    return files, without_duplicates(rows, files, findings)


def _split(key: str) -> Split:
    return "test" if key.startswith("test_") else hash_split(key, NAME, (0.9, 0.1, 0.0))


def _box(base: Path, key: str, picture: Path) -> tuple[Box | None, str]:
    """Returns the enlarged box of an original picture, and why there is none."""
    path = base / "Annotation" / "boundingbox" / f"{Path(key).stem}_boundingbox.txt"
    if not path.exists():
        return None, f"{path.name} is missing"
    cells = read_text(path).split()
    try:
        left, top, right, bottom = (float(cell) for cell in cells)
    except ValueError:
        return None, f"{path.name} does not hold four numbers"
    if not all(map(math.isfinite, (left, top, right, bottom))):
        return None, f"{path.name} does not hold four numbers"
    if right <= left or bottom <= top:
        return None, f"{path.name}: the box is empty"
    try:
        height, width = picture_size(picture)
    except UserError as error:
        return None, str(error)
    if right <= 0 or bottom <= 0 or left >= width or top >= height:
        return None, f"{path.name}: the box lies outside the {width}x{height} picture"
    return enlarge((left, top, right, bottom), _ENLARGE), ""


def _manual(base: Path, key: str) -> dict[str, bool]:
    """Returns gender and race from `<name>_manu_attri.txt`: five landmarks, then gender, race and age codes."""
    path = base / "Annotation" / "manual" / f"{Path(key).stem}_manu_attri.txt"
    if not path.exists():
        return {}
    codes = [line.split()[0] for line in read_text(path).split("\n") if len(line.split()) == 1]
    if len(codes) != 3 or codes[0] not in ("0", "1", "2") or codes[1] not in ("0", "1", "2"):
        raise UserError(f"label file '{path}' does not end in a gender (0-2), a race (0-2) and an age group")
    labels = one_of(RACE_GROUPS["raf_db"], _RACES[int(codes[1])])
    return labels | (one_of(GENDER, _GENDERS[int(codes[0])]) if codes[0] != "2" else {})


DATASET = Dataset(
    name=NAME,
    title="RAF-DB",
    read=read,
    vocabulary=vocabulary("raf_db"),
    questions=tuple(map(question, ("expression", "gender", "race:raf_db"))),
)
