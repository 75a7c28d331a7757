"""UTKFace: aligned chips whose names state age, gender and race."""

import re
from pathlib import Path

from fi_jax.data.datasets import Dataset
from fi_jax.data.records import FaceRecord
from fi_jax.data.sources.near_duplicate_clusters import cluster_names
from fi_jax.data.sources.reading import require_pictures, require_root
from fi_jax.data.sources.source import Findings, FolderSource
from fi_jax.data.splits import hash_split
from fi_jax.labels.question_bank import question
from fi_jax.labels.registry import vocabulary
from fi_jax.labels.tasks import GENDER, RACE_GROUPS, RACES, one_of

NAME = "utkface"
_GENDERS = ("Male", "Female")
_MAX_AGE = 120
# A few released names have a space before, or no dot before, "jpg"; all three facts are there.
_NAME = re.compile(r"(\d+)_(\d+)_(\d+)_(\d+) ?\.?jpg(\.chip\.jpg)?")


def read(root: Path | str) -> FolderSource:
    """Reads UTKFace.

    The release has no split: faces are dealt 80/10/10 by `hash_split(cluster, "utkface")`, where the
    cluster is that of the picture's near-twins (about 7 % have one, often under another label), named
    after its first picture. Names that do not state age, gender and race are rejected.
    """
    root = require_root(NAME, root)
    findings = Findings()
    folder = next((f for f in (root / "UTKFace", root / "utkface_aligned_cropped" / "UTKFace") if f.is_dir()), root)
    pictures = require_pictures(NAME, folder)
    stated = {}
    for key in pictures:
        problem, labels = _parse(key)
        if problem:
            findings.reject(key, problem)
        else:
            stated[key] = labels
    clusters, _ = cluster_names(NAME, list(stated), [pictures[key] for key in stated])
    faces = [
        FaceRecord(NAME, key, hash_split(clusters[key], NAME), pictures[key], labels, age=age)
        for key, (age, labels) in stated.items()
    ]
    return findings.source(NAME, root, faces)


def _parse(key: str) -> tuple[str, tuple[float, dict[str, bool]]]:
    """Returns `(why the name is malformed or "", (age, labels))`."""
    nothing: tuple[float, dict[str, bool]] = (0.0, {})
    match = _NAME.fullmatch(key)
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
