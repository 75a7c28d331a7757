"""UTKFace: aligned chips whose names state age, gender and race."""

import re
from pathlib import Path

from fi_jax.data.datasets import Dataset
from fi_jax.data.near_duplicates import near_duplicate_groups
from fi_jax.data.records import FaceRecord, Source
from fi_jax.data.sources.release import Release
from fi_jax.data.splits import hash_split
from fi_jax.labels.question_bank import question
from fi_jax.labels.registry import vocabulary
from fi_jax.labels.tasks import GENDER, RACE_GROUPS, RACES, one_of

NAME = "utkface"
_GENDERS = ("Male", "Female")
_MAX_AGE = 120
# A few released names have a space, or no dot, or another letter ("pg") before "jpg"; all three facts are there.
_FILE_NAME = re.compile(r"([0-9]{1,3})_([0-9])_([0-9])_([0-9]+) ?\.?j?pg(\.chip\.jpg)?", re.IGNORECASE)


def read(root: Path | str) -> Source:
    """Reads UTKFace.

    The release has no split: it is 80/10/10 by `hash_split(group, "utkface")`, where the group is that of the
    picture's near-duplicates (about 7 % have one, often under another label), named after its first picture. Names
    that do not state age, gender and race are rejected.
    """
    release = Release(NAME, root)
    folder = release.has("UTKFace", "utkface_aligned_cropped/UTKFace") or release.root
    pictures = release.require_pictures(folder)
    stated = {}
    for key in pictures:
        problem, facts = _parse(key)
        if problem:
            release.reject(key, problem)
        else:
            stated[key] = facts
    groups, _ = near_duplicate_groups(NAME, list(stated), [pictures[key] for key in stated])
    faces = [
        FaceRecord(NAME, key, hash_split(groups[key], NAME), pictures[key], labels, age=age)
        for key, (age, labels) in stated.items()
    ]
    return release.source(faces)


def _parse(key: str) -> tuple[str, tuple[float, dict[str, bool]]]:
    """Returns `(why the name is malformed or "", (age, labels))`."""
    nothing: tuple[float, dict[str, bool]] = (0.0, {})
    match = _FILE_NAME.fullmatch(key)
    if not match:
        return "name is not [age]_[gender]_[race]_[date&time].jpg.chip.jpg", nothing
    age, gender, race = (int(part) for part in match.groups()[:3])
    races = RACES["utkface"]
    if age > _MAX_AGE:
        return f"age {age} in the name is over {_MAX_AGE}", nothing
    if gender >= len(_GENDERS):
        return f"gender {gender} in the name is unknown (0 male, 1 female)", nothing
    if race >= len(races):
        return f"race {race} in the name is unknown (0 to {len(races) - 1})", nothing
    labels = one_of(GENDER, _GENDERS[gender]) | one_of(RACE_GROUPS["utkface"], f"race:{races[race]}")
    return "", (float(age), labels)


DATASET = Dataset(
    name=NAME,
    title="UTKFace",
    read=read,
    vocabulary=vocabulary("utkface"),
    questions=tuple(map(question, ("gender", "race:utkface", "age_group", "age_years"))),
)
