"""CelebAMask-HQ: pictures with 19-class segmentation maps, merged (index PNGs) or in the official parts."""

import os
from collections.abc import Mapping
from pathlib import Path

from fi_jax.data.datasets import Dataset
from fi_jax.data.records import FaceRecord, Source
from fi_jax.data.sources import celeba
from fi_jax.data.sources.release import Release, whole_number
from fi_jax.data.splits import hash_split
from fi_jax.errors import UserError
from fi_jax.faces.masks import PartFiles
from fi_jax.labels.face_parts import CLASSES
from fi_jax.labels.question_bank import questions_for
from fi_jax.labels.registry import vocabulary
from fi_jax.pictures.header import Readable

NAME = "celebamask_hq"
_MASKS = ("masks", "CelebAMask-HQ-mask-anno")
_ATTRIBUTES = "CelebAMask-HQ-attribute-anno.txt"


def read(root: Path | str) -> Source:
    """Reads CelebAMask-HQ; with its attribute file, where that is there, the 40 attributes too.

    The split is 80/10/10 by `hash_split(stem, "celebamask_hq")`. A picture without a map, and a map without a
    picture, is rejected.
    """
    release = Release(NAME, root)
    folder = release.find("images", "CelebA-HQ-img")
    pictures = {Path(key).stem: (key, path) for key, path in release.require_pictures(folder).items()}
    folder = release.find(*_MASKS)
    masks: Mapping[str, Readable] = _parts(release, folder) if folder.name == _MASKS[1] else _merged(release, folder)
    if not masks:
        raise UserError(f"{NAME}: mask folder '{folder}' holds no maps")
    for stem in sorted(masks.keys() - pictures.keys()):
        release.reject(stem, "picture missing")
    for stem in sorted(pictures.keys() - masks.keys()):
        release.reject(pictures[stem][0], "segmentation map missing")
    attributes = release.has(_ATTRIBUTES)
    rows = celeba.read_attribute_file(release, attributes) if attributes else {}
    faces = [
        FaceRecord(NAME, key, hash_split(stem, NAME), path, rows.get(key, {}), mask=masks[stem])
        for stem, (key, path) in pictures.items()
        if stem in masks
    ]
    return release.source(faces)


def _merged(release: Release, folder: Path) -> dict[str, Path]:
    return {Path(key).stem: path for key, path in release.pictures(folder).items() if key.endswith(".png")}


def _parts(release: Release, folder: Path) -> dict[str, PartFiles]:
    """Maps by picture number; part files are `<folder>/<number // 2000>/<number as 00000>_<part>.png`."""
    found: dict[str, PartFiles] = {}
    for chapter in sorted(path for path in folder.iterdir() if path.is_dir()):
        with os.scandir(chapter) as entries:
            names = sorted(entry.name for entry in entries if entry.name.endswith(".png"))
        for name in names:
            number, _, part = name[: -len(".png")].partition("_")
            if whole_number(number) is None or part not in CLASSES:
                release.reject(f"{chapter.name}/{name}", "not named <number>_<part>.png after one of the 19 classes")
            else:
                found.setdefault(str(int(number)), PartFiles(chapter, number))
    return found


DATASET = Dataset(
    name=NAME,
    title="CelebAMask-HQ",
    read=read,
    vocabulary=vocabulary("celeba"),
    questions=questions_for(vocabulary("celeba")),
    same_pictures_as=("celeba",),
)
