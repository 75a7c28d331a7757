"""FairFace: pictures listed with age group, gender and race in two CSV files."""

from collections.abc import Iterator
from pathlib import Path

from fi_jax.data.datasets import Dataset
from fi_jax.data.records import FaceRecord, Source
from fi_jax.data.sources.release import Release
from fi_jax.data.splits import hash_split
from fi_jax.errors import UserError, did_you_mean
from fi_jax.labels.question_bank import question
from fi_jax.labels.registry import vocabulary
from fi_jax.labels.tasks import AGE_GROUP, GENDER, RACE_GROUPS, one_of

NAME = "fairface"
# What circulating copies write for a value; each form can stand for nothing else. Spreadsheets read "3-9" and "10-19"
# as dates.
_CORRECTIONS = {
    "age": {
        **dict.fromkeys(("9-Mar", "09-Mar", "Mar-9", "Mar-09", "3-Sep", "03-Sep", "Sep-3", "Sep-03"), "3-9"),
        **dict.fromkeys(("19-Oct", "Oct-19"), "10-19"),
        "more than 70": "70+",
    },
    "gender": {"male": "Male", "female": "Female", "MALE": "Male", "FEMALE": "Female"},
    "race": {
        **dict.fromkeys(("Latino", "Latino Hispanic"), "Latino_Hispanic"),
        "East_Asian": "East Asian",
        "Southeast_Asian": "Southeast Asian",
        "Middle_Eastern": "Middle Eastern",
    },
}
# Of the official train list.
_SHARES = (0.9, 0.1, 0.0)
_GROUPS = {"age": AGE_GROUP, "gender": GENDER, "race": RACE_GROUPS["fairface"]}


def read(root: Path | str) -> Source:
    """Reads FairFace.

    Splits: the official val list is `test`; of the official train list a tenth, by `hash_split(file, "fairface")`, is
    `val`. A list may be missing if the other is there.
    """
    release = Release(NAME, root)
    pictures = {
        f"{part}/{name}": path
        for part in ("train", "val")
        if (release.root / part).is_dir()
        for name, path in release.pictures(release.root / part).items()
    }
    if not pictures:
        raise UserError(f"{NAME}: '{release.root}' holds no pictures under train/ or val/")
    files = {part: f"fairface_label_{part}.csv" for part in ("train", "val")}
    lists = {part: path for part, file in files.items() if (path := release.has(file))}
    if not lists:
        release.find(files["train"])
    faces: list[FaceRecord] = []
    for part, path in lists.items():
        rows = release.distinct(_rows(release, path, pictures), path.name)
        release.reject_unpaired(rows, [key for key in pictures if key.startswith(f"{part}/")], path.name)
        for key in sorted(rows.keys() & pictures.keys()):
            split = "test" if part == "val" else hash_split(key, NAME, _SHARES)
            faces.append(FaceRecord(NAME, key, split, pictures[key], rows[key]))
    for key in pictures:
        if key.split("/")[0] not in lists:
            release.reject(key, f"{files[key.split('/')[0]]} is missing")
    return release.source(faces)


def read_countable(root: Path | str) -> Source:
    """Returns the rows of the official train list that are in our split `train`, without looking for pictures."""
    release = Release(NAME, root)
    path = release.find("fairface_label_train.csv")
    rows = release.distinct(_rows(release, path, {}), path.name)
    splits = {key: hash_split(key, NAME, _SHARES) for key in rows}
    return release.source([FaceRecord(NAME, key, splits[key], b"", row) for key, row in rows.items()])


def _rows(release: Release, path: Path, pictures: dict[str, Path]) -> Iterator[tuple[str, dict[str, bool]]]:
    """Yields pictures and their labels."""
    for number, (file, *values) in release.table(path, ("file", *_GROUPS), optional=("service_test",)):
        labels: dict[str, bool] = {}
        for (what, group), value in zip(_GROUPS.items(), values, strict=True):
            corrected = _CORRECTIONS[what].get(value, value)
            if corrected != value:
                release.note(f"{path.name}: {what} '{value}' read as '{corrected}'")
            chosen = corrected if what == "gender" else f"{what}:{corrected}"
            if chosen not in group.labels:
                guess = did_you_mean(chosen, group.labels)
                raise UserError(f"label file '{path}' line {number} has the unknown {what} '{value}'{guess}")
            labels |= one_of(group, chosen)
        yield release.named_picture(file, pictures, path.name), labels


DATASET = Dataset(
    name=NAME,
    title="FairFace",
    read=read,
    vocabulary=vocabulary("fairface"),
    questions=tuple(map(question, ("gender", "race:fairface", "age_group"))),
    annotations=read_countable,
)
