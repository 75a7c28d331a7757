"""FairFace: pictures listed with age group, gender and race in two CSV files."""

from pathlib import Path

from fi_jax.data.datasets import Dataset
from fi_jax.data.records import FaceRecord, Split
from fi_jax.data.sources.reading import (
    find,
    missing_and_unlabelled,
    picture_key,
    pictures_in,
    read_table,
    require_root,
    without_duplicates,
)
from fi_jax.data.sources.source import Findings, FolderSource
from fi_jax.data.splits import hash_split
from fi_jax.errors import UserError, did_you_mean
from fi_jax.labels.question_bank import question
from fi_jax.labels.registry import vocabulary
from fi_jax.labels.tasks import AGE_GROUP, GENDER, RACE_GROUPS, one_of

NAME = "fairface"
_COLUMNS = ("file", "age", "gender", "race")
# Spreadsheets read "3-9" and "10-19" as dates; each form below can stand for nothing else.
_MENDED_AGES = {
    **dict.fromkeys(("9-Mar", "09-Mar", "Mar-9", "Mar-09", "3-Sep", "03-Sep", "Sep-3", "Sep-03"), "3-9"),
    **dict.fromkeys(("19-Oct", "Oct-19"), "10-19"),
    "more than 70": "70+",
}
# Also known by these words in copies of the files.
_MENDED_RACES = {"Latino": "Latino_Hispanic", "Latino Hispanic": "Latino_Hispanic", "East_Asian": "East Asian"} | {
    "Southeast_Asian": "Southeast Asian",
    "Middle_Eastern": "Middle Eastern",
}


def read(root: Path | str) -> FolderSource:
    """Reads FairFace.

    Splits: the official val list is `test`; of the official train list a tenth, dealt by
    `hash_split(file, "fairface")`, is `val`. A list may be missing if the other is there.
    """
    root = require_root(NAME, root)
    findings = Findings()
    pictures = {
        key: path
        for part in ("train", "val")
        if (root / part).is_dir()
        for key, path in ((f"{part}/{name}", path) for name, path in pictures_in(root / part).items())
    }
    if not pictures:
        raise UserError(f"{NAME}: '{root}' holds no pictures under train/ or val/")
    lists = _lists(root)
    if not lists:
        find(NAME, root, ("fairface_label_train.csv",))
    faces: list[FaceRecord] = []
    for part, path in lists.items():
        rows = without_duplicates(_rows(path, pictures, findings), path.name, findings)
        there = [key for key in pictures if key.startswith(f"{part}/")]
        missing_and_unlabelled(rows, there, path.name, findings)
        for key in sorted(rows.keys() & pictures.keys()):
            labels, _ = rows[key]
            faces.append(FaceRecord(NAME, key, _split(part, key), pictures[key], labels))
    for key in pictures:
        if key.split("/")[0] not in lists:
            findings.reject(key, f"fairface_label_{key.split('/')[0]}.csv is missing")
    return findings.source(NAME, root, faces)


def balanced_keys(root: Path | str) -> frozenset[str]:
    """Returns the pictures of the subset that is balanced by race and gender (`service_test` is True)."""
    keys = set()
    for path in _lists(Path(root)).values():
        for number, row in read_table(path, (*_COLUMNS, "service_test"), Findings()):
            if row["service_test"].lower() not in ("true", "false"):
                raise UserError(
                    f"label file '{path}' line {number} has the unknown service_test '{row['service_test']}'"
                )
            if row["service_test"].lower() == "true":
                keys.add(row["file"])
    return frozenset(keys)


def _lists(root: Path) -> dict[str, Path]:
    paths = {part: root / f"fairface_label_{part}.csv" for part in ("train", "val")}
    return {part: path for part, path in paths.items() if path.exists()}


def _split(part: str, key: str) -> Split:
    return "test" if part == "val" else hash_split(key, NAME, (0.9, 0.1, 0.0))


def _rows(path: Path, pictures: dict[str, Path], findings: Findings):
    """Yields `(picture, (labels, service_test))`."""
    for number, row in read_table(path, _COLUMNS, findings, optional=("service_test",)):
        age = _mended(row["age"], _MENDED_AGES, "age", path, findings)
        race = _mended(row["race"], _MENDED_RACES, "race", path, findings)
        labels: dict[str, bool] = {}
        for what, group, chosen in (
            ("age", AGE_GROUP, f"age:{age}"),
            ("gender", GENDER, row["gender"]),
            ("race", RACE_GROUPS["fairface"], f"race:{race}"),
        ):
            if chosen not in group.labels:
                guess = did_you_mean(chosen, group.labels)
                raise UserError(f"label file '{path}' line {number} has the unknown {what} '{row[what]}'{guess}")
            labels |= one_of(group, chosen)
        yield picture_key(row["file"], pictures, path.name, findings), (labels, row.get("service_test", ""))


def _mended(value: str, table: dict[str, str], what: str, path: Path, findings: Findings) -> str:
    if value in table:
        findings.note(f"{path.name}: {what} '{value}' read as '{table[value]}'")
        return table[value]
    return value


DATASET = Dataset(
    name=NAME,
    title="FairFace",
    read=read,
    vocabulary=vocabulary("fairface"),
    questions=tuple(map(question, ("gender", "race:fairface", "age_group"))),
)
