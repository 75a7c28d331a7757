"""Reads label files and picture folders as released, mending only what has one possible meaning."""

import csv
import os
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path, PurePosixPath
from typing import TypeVar

from fi_jax.data.sources.source import Findings
from fi_jax.errors import UserError, did_you_mean

T = TypeVar("T")

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".webp")


def require_root(name: str, root: Path | str) -> Path:
    """Returns the root folder as a path; one that is missing is a `UserError`."""
    if not str(root):
        raise UserError(f"{name}: no folder given; name it with --data-root (or `root` of the source in the config)")
    root = Path(root)
    if not root.is_dir():
        raise UserError(f"{name}: folder '{root}' does not exist")
    return root


def find(name: str, root: Path, choices: Sequence[str]) -> Path:
    """Returns the first of `choices` (relative to `root`) that exists, else a `UserError` naming the first."""
    for choice in choices:
        if (root / choice).exists():
            return root / choice
    raise UserError(f"{name}: '{root / choices[0]}' is missing; the release has it")


def read_text(path: Path) -> str:
    """Returns a text file without byte-order mark, with plain line ends."""
    try:
        return path.read_bytes().decode("utf-8-sig").replace("\r\n", "\n")
    except UnicodeDecodeError as error:
        raise UserError(f"label file '{path}' is not UTF-8 text (byte {error.start})") from None
    except OSError as error:
        raise UserError(f"label file '{path}' cannot be read ({error.strerror})") from None


def read_rows(path: Path, columns: int, findings: Findings) -> Iterator[tuple[int, list[str]]]:
    """Yields `(line number, cells)` of a file of rows separated by white space; other widths are rejected."""
    for number, line in enumerate(read_text(path).split("\n"), 1):
        cells = line.split()
        if len(cells) == columns:
            yield number, cells
        elif cells:
            findings.reject(cells[0], f"{path.name} line {number}: {len(cells)} columns, not {columns}")


def read_table(
    path: Path, required: Sequence[str], findings: Findings, optional: Sequence[str] = ()
) -> Iterator[tuple[int, dict[str, str]]]:
    """Yields `(line number, cells by column name)` of a CSV file with a header, cells stripped.

    A missing required column is a `UserError`. Further columns are left out and noted. Rows whose
    number of cells is not the header's are rejected.
    """
    rows = csv.reader(read_text(path).split("\n"))
    header = [cell.strip() for cell in next(rows, [])]
    for column in required:
        if column not in header:
            raise UserError(f"label file '{path}' has no column '{column}'{did_you_mean(column, header)}")
    for column in header:
        if header.count(column) > 1:
            raise UserError(f"label file '{path}' has two columns '{column}'")
        if column not in required and column not in optional:
            findings.note(f"{path.name}: unknown column '{column}' left out")
    for row in rows:
        cells = [cell.strip() for cell in row]
        if not any(cells):
            continue
        if len(cells) != len(header):
            findings.reject(cells[0], f"{path.name} line {rows.line_num}: {len(cells)} columns, not {len(header)}")
            continue
        yield rows.line_num, dict(zip(header, cells, strict=True))


def without_duplicates(rows: Iterable[tuple[str, T]], file: str, findings: Findings) -> dict[str, T]:
    """Returns rows by key. Of equal rows the first stays; a key whose rows disagree is left out altogether."""
    kept: dict[str, T] = {}
    disagree: set[str] = set()
    for key, row in rows:
        if key not in kept:
            kept[key] = row
        elif kept[key] == row:
            findings.reject(key, f"{file}: duplicate row (the first is kept)")
        else:
            disagree.add(key)
    for key in sorted(disagree):
        del kept[key]
        findings.reject(key, f"{file}: rows disagree (none is kept)")
    return kept


def pictures_in(folder: Path, recursive: bool = False) -> dict[str, Path]:
    """Returns the pictures of a folder by name (relative, with forward slashes), sorted."""
    found: dict[str, Path] = {}
    stack = [("", str(folder))]
    while stack:
        prefix, current = stack.pop()
        with os.scandir(current) as entries:
            for entry in entries:
                if entry.name.startswith("."):
                    continue
                if entry.name.lower().endswith(IMAGE_SUFFIXES):
                    found[prefix + entry.name] = Path(entry.path)
                elif recursive and entry.is_dir():
                    stack.append((f"{prefix}{entry.name}/", entry.path))
    return dict(sorted(found.items()))


def require_pictures(name: str, folder: Path, recursive: bool = False) -> dict[str, Path]:
    """Returns `pictures_in(folder)`; a missing or empty folder is a `UserError`."""
    if not folder.is_dir():
        raise UserError(f"{name}: picture folder '{folder}' is missing")
    pictures = pictures_in(folder, recursive)
    if not pictures:
        raise UserError(f"{name}: picture folder '{folder}' holds no pictures")
    return pictures


def picture_key(cell: str, pictures: dict[str, Path], file: str, findings: Findings) -> str:
    """Returns the picture that a label row names, with a path prefix taken off where only that finds it.

    `./a/b.jpg`, `C:\\data\\a\\b.jpg` and `/data/a/b.jpg` all become `a/b.jpg` if that is a picture and the
    longer forms are not. A name that finds nothing comes back as it stands (plain slashes).
    """
    plain = str(PurePosixPath(cell.replace("\\", "/")))
    if plain in pictures:
        if plain != cell:
            findings.note(f"{file}: slashes of picture names put straight")
        return plain
    parts = plain.split("/")
    for start in range(1, len(parts)):
        shorter = "/".join(parts[start:])
        if shorter in pictures:
            findings.note(f"{file}: path prefix '{'/'.join(parts[:start])}/' of picture names taken off")
            return shorter
    return plain


def missing_and_unlabelled(rows: Iterable[str], pictures: Iterable[str], file: str, findings: Findings) -> None:
    """Rejects rows without a picture, and pictures without a row unless their row was rejected before."""
    rows, pictures = set(rows), set(pictures)
    named = {item.key for item in findings.rejected}
    for key in sorted(rows - pictures):
        findings.reject(key, "picture missing")
    for key in sorted(pictures - rows - named):
        findings.reject(key, f"no row in {file}")
