"""RAF-DB (basic): seven expressions; the text list or the circulating CSV; aligned, or original with boxes."""

import re
from collections.abc import Iterator
from pathlib import Path

from fi_jax.data.datasets import Dataset
from fi_jax.data.records import FaceRecord, Source
from fi_jax.data.sources.release import Release, read_box
from fi_jax.data.splits import hash_split
from fi_jax.errors import UserError
from fi_jax.labels.question_bank import question
from fi_jax.labels.registry import vocabulary
from fi_jax.labels.tasks import EXPRESSION, GENDER, RACE_GROUPS, one_of
from fi_jax.pictures.crop import Box, enlarge
from fi_jax.pictures.decode import picture_size
from fi_jax.tables import read_text

NAME = "raf_db"
# The release's codes 1 to 7.
EXPRESSIONS = ("surprise", "fear", "disgust", "happy", "sad", "angry", "neutral")
_CODES = {str(i): f"expression:{name}" for i, name in enumerate(EXPRESSIONS, 1)}
_GENDERS = ("Male", "Female")  # 2 is "unsure"
_RACES = ("race:White", "race:Black", "race:Asian")
_LIST = ("EmoLabel/list_patition_label.txt", "basic/EmoLabel/list_patition_label.txt", "list_patition_label.txt")
_CSV = ("labels.csv", "train_labels.csv", "test_labels.csv", "EmoLabel/labels.csv")
_PICTURES = ("Image/aligned", "basic/Image/aligned", "aligned", "DATASET", "Image/original", "basic/Image/original")
# As for ExpW: boxes around the face alone, enlarged to what other sets' crops hold.
_ENLARGE = 1.4


def read(root: Path | str) -> Source:
    """Reads RAF-DB. A key is the name of the list (`train_00001.jpg`).

    Splits: names starting with `test_` are `test`; of the others a tenth, by `hash_split(name, "raf_db")`, is `val`.
    Aligned pictures are used where there are any (the whole picture is the face), else the originals with the
    release's boxes enlarged 1.4 times. Gender (not "unsure") and race are read where `Annotation/manual` is there.
    """
    release = Release(NAME, root)
    folder, pictures = _pictures(release)
    file, rows = _labels(release, pictures)
    release.reject_unpaired(rows, pictures, file)
    base = folder.parent.parent if folder.parent.name == "Image" else release.root
    faces = []
    for key in sorted(rows.keys() & pictures.keys()):
        labels = one_of(EXPRESSION, rows[key]) | _manual(base, key)
        box, problem = _box(base, key, pictures[key]) if folder.name == "original" else (None, "")
        if problem:
            release.reject(key, problem)
            continue
        split = "test" if key.startswith("test_") else hash_split(key, NAME, (0.9, 0.1, 0.0))
        faces.append(FaceRecord(NAME, key, split, pictures[key], labels, box=box))
    return release.source(faces)


def _pictures(release: Release) -> tuple[Path, dict[str, Path]]:
    """Returns the first folder that holds pictures, and those by the list's names, `train_00001.jpg`."""
    release.find(*_PICTURES)
    for folder in (release.root / choice for choice in _PICTURES):
        found: dict[str, Path] = {}
        for key, path in (release.pictures(folder, recursive=True) if folder.is_dir() else {}).items():
            name = _list_name(key.split("/")[-1])
            if name in found:
                raise UserError(f"{NAME}: '{path}' and '{found[name]}' both are picture '{name}'; remove one")
            found[name] = path
        if found:
            return folder, found
    raise UserError(f"{NAME}: picture folder '{release.find(*_PICTURES)}' holds no pictures")


def _list_name(name: str) -> str:
    """`train_00001_aligned.jpg` is the list's `train_00001.jpg`."""
    return re.sub(r"_aligned(?=\.\w+$)", "", name)


def _labels(release: Release, pictures: dict[str, Path]) -> tuple[str, dict[str, str]]:
    """Returns the label files' names, and the expression of every picture they name."""
    text = release.has(*_LIST)
    paths = [text] if text else [path for choice in _CSV if (path := release.has(choice))]
    if not paths:
        release.find(*_LIST)

    def rows() -> Iterator[tuple[str, str]]:
        for path in paths:
            table = release.rows(path, 2) if path == text else release.table(path, ("image", "label"))
            for number, (name, code) in table:
                if code not in _CODES:
                    raise UserError(
                        f"label file '{path}' line {number} has the unknown expression '{code}'; they are 1 to 7"
                    )
                yield release.named_picture(_list_name(name), pictures, path.name), _CODES[code]

    files = ", ".join(path.name for path in paths)
    return files, release.distinct(rows(), files)


def _box(base: Path, key: str, picture: Path) -> tuple[Box | None, str]:
    """Returns the enlarged box of an original picture, and why there is none."""
    path = base / "Annotation" / "boundingbox" / f"{Path(key).stem}_boundingbox.txt"
    if not path.exists():
        return None, f"{path.name} is missing"
    box, problem = read_box(read_text(path).split())
    if problem:
        return None, f"{path.name}: {problem}"
    left, top, right, bottom = box
    try:
        height, width = picture_size(picture)
    except UserError as error:
        return None, str(error)
    if right <= 0 or bottom <= 0 or left >= width or top >= height:
        return None, f"{path.name}: the box lies outside the {width}x{height} picture"
    return enlarge(box, _ENLARGE), ""


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
