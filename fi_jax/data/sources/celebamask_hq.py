"""CelebAMask-HQ: pictures with 19-class segmentation maps, merged (index PNGs) or in the official parts."""

import os
from collections.abc import Mapping
from pathlib import Path

from fi_jax.data.datasets import Dataset
from fi_jax.data.records import FaceRecord
from fi_jax.data.sources import celeba
from fi_jax.data.sources.attributes import AttributeRow, with_female
from fi_jax.data.sources.reading import find, require_pictures, require_root
from fi_jax.data.sources.source import Findings, FolderSource
from fi_jax.data.splits import hash_split
from fi_jax.errors import UserError
from fi_jax.faces.masks import PartFiles
from fi_jax.labels.face_parts import CLASSES
from fi_jax.labels.question_bank import questions_for
from fi_jax.labels.registry import vocabulary
from fi_jax.pictures.decode import Readable

NAME = "celebamask_hq"
_PICTURES = ("images", "CelebA-HQ-img")
_MASKS = ("masks", "CelebAMask-HQ-mask-anno")
_ATTRIBUTES = "CelebAMask-HQ-attribute-anno.txt"


def read(root: Path | str) -> FolderSource:
    """Reads CelebAMask-HQ; with its attribute file, where that is there, the 40 attributes too.

    Faces are dealt 80/10/10 by `hash_split(stem, "celebamask_hq")`. A picture without a map, and a map
    without a picture, is rejected.
    """
    root = require_root(NAME, root)
    findings = Findings()
    pictures = {Path(key).stem: path for key, path in require_pictures(NAME, find(NAME, root, _PICTURES)).items()}
    folder = find(NAME, root, _MASKS)
    masks: Mapping[str, Readable] = _parts(folder, findings) if folder.name == _MASKS[1] else _merged(folder)
    if not masks:
        raise UserError(f"{NAME}: mask folder '{folder}' holds no maps")
    for stem in sorted(masks.keys() - pictures.keys()):
        findings.reject(stem, "picture missing")
    for stem in sorted(pictures.keys() - masks.keys()):
        findings.reject(pictures[stem].name, "segmentation map missing")
    rows = _attributes(root, findings)
    faces = [
        FaceRecord(NAME, path.name, hash_split(stem, NAME), path, rows.get(path.name, {}), mask=masks[stem])
        for stem, path in pictures.items()
        if stem in masks
    ]
    return findings.source(NAME, root, faces)


def _merged(folder: Path) -> dict[str, Path]:
    return {path.stem: path for path in sorted(folder.glob("*.png"))}


def _parts(folder: Path, findings: Findings) -> dict[str, PartFiles]:
    """Maps by picture number; part files are `<folder>/<number // 2000>/<number as 00000>_<part>.png`."""
    found: dict[str, PartFiles] = {}
    for chapter in sorted(path for path in folder.iterdir() if path.is_dir()):
        with os.scandir(chapter) as entries:
            names = sorted(entry.name for entry in entries if entry.name.endswith(".png"))
        for name in names:
            number, _, part = name[: -len(".png")].partition("_")
            if not number.isdigit() or part not in CLASSES:
                findings.reject(f"{chapter.name}/{name}", "not named <number>_<part>.png after one of the 19 classes")
            else:
                found.setdefault(str(int(number)), PartFiles(chapter, number))
    return found


def _attributes(root: Path, findings: Findings) -> dict[str, AttributeRow]:
    if not (root / _ATTRIBUTES).exists():
        return {}
    names, attributes, values = celeba.read_attribute_file(root / _ATTRIBUTES, findings)
    attributes, values = with_female(attributes, values)
    return {name: AttributeRow(attributes, row) for name, row in zip(names, values, strict=True)}


DATASET = Dataset(
    name=NAME,
    title="CelebAMask-HQ",
    read=read,
    vocabulary=vocabulary("celeba"),
    questions=questions_for(vocabulary("celeba")),
    same_pictures_as=("celeba",),
)
