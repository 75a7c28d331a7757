"""CelebA: aligned pictures, 40 attributes, identities, and the official partition (text or Kaggle CSV files)."""

import io
from pathlib import Path

import numpy as np
from jaxtyping import Int8

from fi_jax.data.datasets import Dataset
from fi_jax.data.records import FaceRecord, Split
from fi_jax.data.sources import celeba_tfds
from fi_jax.data.sources.attributes import AttributeRow, with_female
from fi_jax.data.sources.reading import find, missing_and_unlabelled, read_text, require_pictures, require_root
from fi_jax.data.sources.source import Findings, FolderSource
from fi_jax.data.splits import hash_split
from fi_jax.errors import UserError, did_you_mean
from fi_jax.labels import celeba as labels
from fi_jax.labels.question_bank import questions_for
from fi_jax.labels.registry import vocabulary
from fi_jax.pictures.crop import Box
from fi_jax.pictures.decode import decode

NAME = "celeba"
_ATTRIBUTES = tuple(f"{d}list_attr_celeba.{e}" for e in ("txt", "csv") for d in ("", "Anno/"))
_PARTITION = tuple(f"{d}list_eval_partition.{e}" for e in ("txt", "csv") for d in ("", "Eval/"))
_IDENTITY = ("identity_CelebA.txt", "Anno/identity_CelebA.txt")
_PICTURES = ("img_align_celeba", "Img/img_align_celeba", "img_align_celeba/img_align_celeba")
_PARTS: dict[int, Split] = {0: "train", 1: "val", 2: "test"}


def read(root: Path | str) -> FolderSource:
    """Reads CelebA, from its own files or from a TFDS data folder (`celeba_tfds`).

    Splits: the official partition, as soon as a picture of its val or test part is under the root.
    When every picture there is of the official train part, the faces are dealt 80/10/10 by
    `hash_split(identity, "celeba")`, so that no person is on two sides.
    """
    root = require_root(NAME, root)
    if celeba_tfds.is_prepared(root):
        return celeba_tfds.read(root)
    findings = Findings()
    names, attributes, values = read_attributes(root, findings)
    attributes, values = with_female(attributes, values)
    partition = read_partition(root, findings)
    folder = find(NAME, root, _PICTURES)
    nested = folder / folder.name
    pictures = require_pictures(NAME, nested if nested.is_dir() else folder)
    rows = {name: i for i, name in enumerate(names)}
    usable = _usable(pictures, rows, partition, findings)
    official = any(partition[key] != "train" for key in usable)
    identities = read_identities(root, findings) if not official or _has_identities(root) else {}
    box = _face_box(pictures, usable)
    faces = []
    for key in usable:
        identity = identities.get(key)
        if identity is None and not official:
            findings.reject(key, "no row in identity_CelebA.txt, by which the faces are split")
            continue
        split = partition[key] if official else hash_split(str(identity), NAME)
        row = AttributeRow(attributes, values[rows[key]])
        person = None if identity is None else str(identity)
        faces.append(FaceRecord(NAME, key, split, pictures[key], row, box=box, identity=person))
    return findings.source(NAME, root, faces)


def _usable(pictures, rows, partition, findings: Findings) -> list[str]:
    missing_and_unlabelled(rows, pictures, "list_attr_celeba", findings)
    usable = []
    for key in pictures:
        if key not in rows:
            continue
        if key not in partition:
            findings.reject(key, "no row in list_eval_partition")
        else:
            usable.append(key)
    return usable


def _face_box(pictures: dict[str, Path], usable: list[str]) -> Box | None:
    """The square of full width whose top is at 30/218 of the height: y 30..208 of the official 178×218.

    The release's pictures are all of one size, so it is read from the first that can be decoded.
    """
    for key in usable:
        try:
            height, width = decode(pictures[key]).shape[:2]
        except UserError:
            continue
        top = min(round(height * 30 / 218), max(height - width, 0))
        return (0.0, float(top), float(width), float(top + width))
    return None


def read_attributes(
    root: Path | str, findings: Findings | None = None
) -> tuple[list[str], tuple[str, ...], Int8[np.ndarray, "m 40"]]:
    """Returns `read_attribute_file` of the release under `root`."""
    return read_attribute_file(find(NAME, Path(root), _ATTRIBUTES), findings if findings is not None else Findings())


def read_attribute_file(path: Path, findings: Findings) -> tuple[list[str], tuple[str, ...], Int8[np.ndarray, "m 40"]]:
    """Returns `(picture names, attribute names, values)`, values 1 or -1, in file and column order.

    Rows of another width and duplicate rows are rejected, columns that CelebA does not have left out
    and noted. Another value, or a missing attribute, is a `UserError`.
    """
    lines = read_text(path).rstrip().split("\n")
    if path.suffix == ".csv":
        header, lines = [cell.strip() for cell in lines[0].split(",")][1:], lines[1:]
    else:
        stated, header, lines = lines[0].strip(), (lines[1] if len(lines) > 1 else "").split(), lines[2:]
        lines = [line for line in lines if line.strip()]
        if stated != str(len(lines)):
            findings.note(f"{path.name}: its first line says {stated} rows, it has {len(lines)}")
    columns = _columns(path, header, findings)
    names, values = _parse(path, lines, len(header), findings)
    values = values[:, columns]
    bad = np.argwhere(np.abs(values) != 1)
    if len(bad):
        row, column = bad[0]
        raise UserError(
            f"label file '{path}' gives {names[row]} the unknown value {values[row, column]} for "
            f"{header[columns[column]]}; the values are 1 and -1"
        )
    kept = _first_rows(names, values, path.name, findings)
    attributes = tuple(header[column] for column in columns)
    return [names[i] for i in kept], attributes, values if len(kept) == len(names) else values[kept]


def _columns(path: Path, header: list[str], findings: Findings) -> list[int]:
    known = [label.name for label in labels.LABELS]
    for name in known:
        if header.count(name) != 1:
            raise UserError(
                f"label file '{path}' has {header.count(name)} columns '{name}'{did_you_mean(name, header)}"
            )
    for name in header:
        if name not in known:
            findings.note(f"{path.name}: unknown column '{name}' left out")
    return [i for i, name in enumerate(header) if name in known]


def _parse(path: Path, lines: list[str], columns: int, findings: Findings) -> tuple[list[str], np.ndarray]:
    """Returns names and the int8 table. Sound files go through pandas at once, others line by line."""
    import pandas as pd

    separator = "," if path.suffix == ".csv" else r"\s+"
    try:
        # One column too many is asked for: pandas silently cuts rows wider than its list of names.
        frame = pd.read_csv(
            io.StringIO("\n".join(lines)),
            sep=separator,
            header=None,
            names=["name", *range(columns), "more"],
            dtype={"name": str, "more": str} | dict.fromkeys(range(columns), np.int8),
            index_col=False,
            on_bad_lines="error",
            skipinitialspace=True,
        )
        if not frame["name"].isna().any() and frame["more"].isna().all():
            return frame["name"].str.strip().tolist(), frame[list(range(columns))].to_numpy(np.int8)
    except (ValueError, pd.errors.ParserError, TypeError):
        pass
    names, rows = [], []
    for number, line in enumerate(lines, 2 if path.suffix == ".csv" else 3):
        cells = [cell.strip() for cell in line.split("," if path.suffix == ".csv" else None)]
        if not any(cells):
            continue
        if len(cells) != columns + 1:
            findings.reject(cells[0], f"{path.name} line {number}: {len(cells)} columns, not {columns + 1}")
            continue
        try:
            rows.append([int(cell) for cell in cells[1:]])
        except ValueError:
            wrong = next(cell for cell in cells[1:] if not cell.lstrip("-").isdigit())
            raise UserError(
                f"label file '{path}' line {number} has the unknown value '{wrong}'; the values are 1 and -1"
            ) from None
        names.append(cells[0])
    return names, np.clip(np.array(rows, int).reshape(len(names), columns), -128, 127).astype(np.int8)


def _first_rows(names: list[str], values: np.ndarray, file: str, findings: Findings) -> list[int]:
    if len(set(names)) == len(names):
        return list(range(len(names)))
    first: dict[str, int] = {}
    disagree = set()
    for i, name in enumerate(names):
        if name not in first:
            first[name] = i
        elif np.array_equal(values[i], values[first[name]]):
            findings.reject(name, f"{file}: duplicate row (the first is kept)")
        else:
            disagree.add(name)
    for name in sorted(disagree):
        findings.reject(name, f"{file}: rows disagree (none is kept)")
    return [i for name, i in first.items() if name not in disagree]


def read_partition(root: Path | str, findings: Findings | None = None) -> dict[str, Split]:
    """Returns the official split of every picture."""
    path = find(NAME, Path(root), _PARTITION)
    pairs = _pairs(path, findings if findings is not None else Findings())
    wrong = next((item for item in pairs.items() if item[1] not in ("0", "1", "2")), None)
    if wrong:
        raise UserError(f"label file '{path}' gives {wrong[0]} the unknown part '{wrong[1]}'; the parts are 0, 1 and 2")
    return {name: _PARTS[int(part)] for name, part in pairs.items()}


def read_identities(root: Path | str, findings: Findings | None = None) -> dict[str, int]:
    """Returns the number of the person in every picture."""
    path = find(NAME, Path(root), _IDENTITY)
    pairs = _pairs(path, findings if findings is not None else Findings())
    wrong = next((item for item in pairs.items() if not item[1].isdigit()), None)
    if wrong:
        raise UserError(f"label file '{path}' gives {wrong[0]} the identity '{wrong[1]}', not a number")
    return {name: int(person) for name, person in pairs.items()}


def _has_identities(root: Path) -> bool:
    return any((root / choice).exists() for choice in _IDENTITY)


def _pairs(path: Path, findings: Findings) -> dict[str, str]:
    lines = read_text(path).split("\n")
    separator = None
    if path.suffix == ".csv":
        lines, separator = lines[1:], ","
    pairs: dict[str, str] = {}
    for number, line in enumerate(lines, 2 if separator else 1):
        cells = line.split(separator)
        if len(cells) != 2:
            if line.strip():
                findings.reject(cells[0].strip(), f"{path.name} line {number}: {len(cells)} columns, not 2")
            continue
        name, value = cells[0].strip(), cells[1].strip()
        if pairs.setdefault(name, value) != value:
            raise UserError(f"label file '{path}' line {number} contradicts an earlier row about {name}")
    return pairs


DATASET = Dataset(
    name=NAME,
    title="CelebA",
    read=read,
    vocabulary=vocabulary("celeba"),
    questions=questions_for(vocabulary("celeba")),
    same_pictures_as=("celebamask_hq",),
)
