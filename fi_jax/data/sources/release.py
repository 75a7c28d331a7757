"""A release under one folder: its files, tables and pictures as they are, what was left out and what was corrected."""

import csv
import math
import os
import unicodedata
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path, PurePosixPath
from typing import TypeVar

from fi_jax.data.records import FaceRecord, Rejected, Source
from fi_jax.errors import UserError, did_you_mean
from fi_jax.pictures.crop import Box
from fi_jax.pictures.find import PICTURE_SUFFIXES
from fi_jax.tables import read_text

T = TypeVar("T")

_ARCHIVES = (".zip", ".tar", ".tgz", ".gz", ".7z", ".rar")


class Release:
    """Reads one release, correcting only what has one possible meaning, and collects what is worth saying about it."""

    def __init__(self, name: str, root: Path | str):
        """`root` is the folder of the release; one that is missing is a `UserError`."""
        if not str(root):
            raise UserError(
                f"{name}: no folder given; name it with --data-root (or `root` of the source in the config)"
            )
        if not Path(root).is_dir():
            raise UserError(f"{name}: folder '{root}' does not exist")
        self.name, self.root = name, Path(root)
        self.rejected: list[Rejected] = []
        self.notes: list[str] = []

    def reject(self, key: str, reason: str) -> None:
        """Leaves `key` out for `reason`."""
        self.rejected.append(Rejected(key, reason))

    def note(self, text: str) -> None:
        """Records, once, that something was corrected."""
        if text not in self.notes:
            self.notes.append(text)

    def source(self, faces: list[FaceRecord]) -> Source:
        """Returns the finished source; a release without a single usable face is a `UserError`."""
        if not faces:
            first = f"; the first of {len(self.rejected)} rejected: {self.rejected[0].key}, {self.rejected[0].reason}"
            raise UserError(f"{self.name}: no usable face under '{self.root}'{first if self.rejected else ''}")
        ordered = tuple(sorted(faces, key=lambda record: record.key))
        return Source(self.name, ordered, tuple(self.rejected), tuple(self.notes))

    # Files and pictures

    def has(self, *choices: str) -> Path | None:
        """Returns the first of `choices` (relative to the root) that exists."""
        return next((self.root / choice for choice in choices if (self.root / choice).exists()), None)

    def find(self, *choices: str) -> Path:
        """Returns the first of `choices` that exists, else a `UserError` that names the first."""
        found = self.has(*choices)
        if found:
            return found
        stems = {Path(choice).stem.lower() for choice in choices}
        packed = [p for p in sorted(self.root.iterdir()) if p.suffix.lower() in _ARCHIVES and p.stem.lower() in stems]
        remedy = f"unpack '{packed[0].name}' there" if packed else "the release has it"
        raise UserError(f"{self.name}: '{self.root / choices[0]}' is missing; {remedy}")

    def pictures(self, folder: Path, recursive: bool = False) -> dict[str, Path]:
        """Returns the pictures of a folder by `picture_key` of their relative name, sorted.

        A name that is no UTF-8, or that differs from another only in its Unicode form or the case of its ending, is
        rejected. Folders that link back to one above are not entered again.
        """
        found: dict[str, Path] = {}
        entered = {os.path.realpath(folder)}
        stack = [("", str(folder))]
        while stack:
            prefix, current = stack.pop()
            with os.scandir(current) as entries:
                for entry in sorted(entries, key=lambda entry: entry.name):
                    name = prefix + entry.name
                    if entry.name.startswith("."):
                        continue
                    if entry.name.lower().endswith(PICTURE_SUFFIXES):
                        self._add_picture(found, name, entry.path)
                    elif recursive and _is_folder(entry):
                        real = os.path.realpath(entry.path) if entry.is_symlink() else entry.path
                        if real not in entered:
                            entered.add(real)
                            stack.append((f"{name}/", entry.path))
        return dict(sorted(found.items()))

    def _add_picture(self, found: dict[str, Path], name: str, path: str) -> None:
        key = picture_key(name)
        try:
            key.encode()
        except UnicodeEncodeError:
            self.reject(os.fsencode(name).decode(errors="replace"), "its name is not UTF-8; rename it")
            return
        if key in found:
            self.reject(name, f"the same name as '{found[key].name}', written in another way")
            return
        found[key] = Path(path)

    def require_pictures(self, folder: Path, recursive: bool = False) -> dict[str, Path]:
        """Returns `pictures(folder)`; a missing or empty folder is a `UserError`."""
        if not folder.is_dir():
            raise UserError(f"{self.name}: picture folder '{folder}' is missing")
        pictures = self.pictures(folder, recursive)
        if not pictures:
            raise UserError(f"{self.name}: picture folder '{folder}' holds no pictures")
        return pictures

    def named_picture(self, cell: str, pictures: dict[str, Path], file: str) -> str:
        """Returns the picture that a label row names, with a path prefix taken off where only that finds it.

        `./a/b.jpg`, `C:\\data\\a\\b.jpg` and `/data/a/b.jpg` all become `a/b.jpg` if that is a picture and the
        longer forms are not. A name that finds nothing comes back as it stands (plain slashes).
        """
        if cell in pictures:
            return cell
        plain = picture_key(str(PurePosixPath(cell.replace("\\", "/"))))
        parts = plain.split("/")
        for start in range(len(parts)):
            shorter = "/".join(parts[start:])
            if shorter in pictures:
                if start:
                    self.note(f"{file}: path prefix '{'/'.join(parts[:start])}/' of picture names taken off")
                elif "\\" in cell or "/" in cell:
                    self.note(f"{file}: slashes of picture names put straight")
                return shorter
        return plain

    def reject_unpaired(self, rows: Iterable[str], pictures: Iterable[str], file: str) -> None:
        """Rejects rows without a picture, and pictures without a row unless their row was rejected before."""
        rows, pictures = set(rows), set(pictures)
        named = {item.key for item in self.rejected}
        for key in sorted(rows - pictures):
            self.reject(key, "picture missing")
        for key in sorted(pictures - rows - named):
            self.reject(key, f"no row in {file}")

    # Label files

    def rows(self, path: Path, columns: int) -> Iterator[tuple[int, list[str]]]:
        """Yields `(line number, cells)` of a file of rows separated by white space; other widths are rejected."""
        rows = ((number, line.split()) for number, line in enumerate(read_text(path).split("\n"), 1))
        yield from self._of_width(path, rows, columns)

    def table(
        self, path: Path, columns: Sequence[str], optional: Sequence[str] = (), key_first: bool = False
    ) -> Iterator[tuple[int, list[str]]]:
        """Yields `(line number, cells of columns)` of a CSV file with a header, cells stripped.

        Cells may be separated by commas, semicolons or tabs. A missing column is a `UserError`; with `key_first`, the
        file's first column stands for a missing first one. Columns that are neither wanted nor `optional` are left
        out and noted. Rows of another width than the header's are rejected.
        """
        lines = read_text(path).split("\n")
        separator = max(",;\t", key=lines[0].count)
        if separator != ",":
            self.note(f"{path.name}: cells are separated by {'tabs' if separator == chr(9) else 'semicolons'}")
        reader = csv.reader(lines, delimiter=separator)
        rows = ((reader.line_num, [cell.strip() for cell in row]) for row in reader)
        try:
            header = next(rows, (0, []))[1]
            if key_first and columns[0].lower() not in map(str.lower, header):
                header = [columns[0], *header[1:]]
            yield from self.columns(path, header, rows, columns, optional)
        except csv.Error as error:
            raise UserError(f"label file '{path}' line {reader.line_num} cannot be read ({error})") from None

    def columns(
        self,
        path: Path,
        header: list[str],
        rows: Iterable[tuple[int, list[str]]],
        wanted: Sequence[str],
        optional: Sequence[str] = (),
    ) -> Iterator[tuple[int, list[str]]]:
        """Yields the `wanted` columns of numbered `rows` below a header; errors and notes are those of `table`."""
        lower = [cell.lower() for cell in header]
        places = []
        for column in wanted:
            named = [i for i, cell in enumerate(header) if cell == column]
            if not named:
                named = [i for i, cell in enumerate(lower) if cell == column.lower()]
                if named:
                    self.note(f"{path.name}: column '{header[named[0]]}' read as '{column}'")
            if not named:
                raise UserError(f"label file '{path}' has no column '{column}'{did_you_mean(column, header)}")
            if len(named) > 1:
                raise UserError(f"label file '{path}' has two columns '{column}'")
            places += named
        for i, column in enumerate(header):
            if i not in places and column not in optional:
                self.note(f"{path.name}: unknown column '{column}' left out")
        in_order = places == list(range(len(header)))
        for number, cells in self._of_width(path, rows, len(header)):
            yield number, cells if in_order else [cells[place] for place in places]

    def _of_width(self, path: Path, rows: Iterable[tuple[int, list[str]]], columns: int):
        for number, cells in rows:
            if not any(cells):
                continue
            if len(cells) == columns:
                yield number, cells
            else:
                self.reject(cells[0], f"{path.name} line {number}: {len(cells)} columns, not {columns}")

    def distinct(self, rows: Iterable[tuple[str, T]], file: str) -> dict[str, T]:
        """Returns rows by key. Of equal rows the first stays; a key whose rows disagree is left out altogether."""
        kept: dict[str, T] = {}
        disagree: set[str] = set()
        for key, row in rows:
            if key not in kept:
                kept[key] = row
            elif kept[key] == row:
                self.reject(key, f"{file}: duplicate row (the first is kept)")
            else:
                disagree.add(key)
        for key in sorted(disagree):
            del kept[key]
            self.reject(key, f"{file}: rows disagree (none is kept)")
        return kept


def picture_key(name: str) -> str:
    """Returns a picture's name as data sets compare it: one Unicode form (NFC), and its ending in lower case."""
    stem, dot, suffix = name.rpartition(".")
    name = f"{stem}{dot}{suffix.lower()}"
    return name if name.isascii() else unicodedata.normalize("NFC", name)


def whole_number(cell: str) -> int | None:
    """Returns the number that a cell of at most nine ASCII digits states, else None."""
    return int(cell) if cell.isascii() and cell.isdigit() and len(cell) <= 9 else None


def read_box(cells: Sequence[str]) -> tuple[Box, str]:
    """Returns `(left, top, right, bottom)` of four cells, and what is wrong with them or ""."""
    try:
        left, top, right, bottom = (float(cell if cell.isascii() else "") for cell in cells)
    except ValueError:
        return (0.0, 0.0, 0.0, 0.0), "the box is not four numbers"
    box = (left, top, right, bottom)
    if not all(math.isfinite(edge) and abs(edge) < 1e7 for edge in box):
        return box, "the box is not four numbers of pixels"
    return box, "the box is empty" if right <= left or bottom <= top else ""


def _is_folder(entry: os.DirEntry) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # A link to itself.
        return False
