"""Tables and label files as people have them (CSV, TSV, Parquet, JSON lines) -> text, whatever program wrote them."""

import csv
import json
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

from fi_jax.errors import UserError

TABLE_SUFFIXES = (".csv", ".tsv", ".parquet", ".jsonl")
# How files begin that stand in a label file's place, and what to do.
_NOT_TEXT = {
    b"version https://git-lfs": "is a Git LFS pointer, not the file; run `git lfs pull`",
    b"PK\x03\x04": "is a zip archive; unpack it",
    b"\x1f\x8b": "is compressed; unpack it",
    b"<!doctype html": "is a web page, not the file; download it again",
    b"<html": "is a web page, not the file; download it again",
    b"<?xml": "is a web page, not the file; download it again",
}
Row = dict[str, str]


@dataclass(frozen=True)
class Table:
    """A table as text: every cell a string, empty where nothing stands."""

    columns: tuple[str, ...]
    rows: tuple[Row, ...]


def read_table(path: Path) -> Table:
    """Reads a table by its file's ending; CSV cells may be separated by commas, semicolons or tabs.

    Raises:
      UserError: the file is missing, of another kind, damaged, or has a column twice.
    """
    suffix = path.suffix.lower()
    if not path.is_file():
        raise UserError(f"table '{path}' does not exist")
    if suffix == ".parquet":
        header, rows = _read_parquet(path)
    elif suffix == ".jsonl":
        header, rows = _read_json_lines(path)
    elif suffix in (".csv", ".tsv", ".txt"):
        header, rows = _read_csv(path)
    else:
        raise UserError(f"table '{path}' is neither .csv, .tsv, .jsonl nor .parquet")
    twice = [name for name, count in Counter(header).items() if count > 1]
    if twice:
        raise UserError(f"table '{path}' has two columns '{twice[0]}'")
    if not rows:
        raise UserError(f"table '{path}' has no rows")
    return Table(tuple(header), tuple(dict(zip(header, row, strict=True)) for row in rows))


def _read_csv(path: Path) -> tuple[list[str], list[list[str]]]:
    lines = read_text(path).split("\n")
    reader = csv.reader(lines, delimiter=max(",;\t", key=lines[0].count))
    try:
        rows = [[cell.strip() for cell in row] for row in reader if any(cell.strip() for cell in row)]
    except csv.Error as error:
        raise UserError(f"table '{path}' line {reader.line_num} cannot be read ({error})") from None
    header = rows[0] if rows else []
    for number, row in enumerate(rows[1:], 2):
        if len(row) != len(header):
            raise UserError(f"table '{path}' row {number} has {len(row)} cells, its header {len(header)}")
    return header, rows[1:]


def _read_json_lines(path: Path) -> tuple[list[str], list[list[str]]]:
    found = []
    for number, line in enumerate(read_text(path).split("\n"), 1):
        if not line.strip():
            continue
        try:
            entry = json.loads(line)
        except (ValueError, RecursionError):
            entry = None
        if not isinstance(entry, dict):
            raise UserError(f"table '{path}' line {number} is not a JSON object")
        found.append(entry)
    header = list(dict.fromkeys(str(key) for entry in found for key in entry))
    return header, [[_cell(entry.get(key)) for key in header] for entry in found]


def _read_parquet(path: Path) -> tuple[list[str], list[list[str]]]:
    import pandas as pd

    try:
        frame = pd.read_parquet(path)
    except (ValueError, OSError) as error:
        raise UserError(f"table '{path}' is not a Parquet file ({str(error).splitlines()[0]})") from None
    return [str(name) for name in frame.columns], [
        [_cell(cell) for cell in row] for row in frame.itertuples(index=False)
    ]


def _cell(value) -> str:
    if value is None or (isinstance(value, float) and value != value):
        return ""
    if isinstance(value, float) and value.is_integer():
        return str(int(value))
    return str(value).strip()


def read_text(path: Path, what: str = "label file") -> str:
    """Returns a text file without byte-order mark, with plain line ends; a `UserError` says what else `what` is."""
    try:
        data = path.read_bytes()
    except OSError as error:
        raise UserError(f"{what} '{path}' cannot be read ({error.strerror})") from None
    start = data[:64].lstrip().lower()
    for mark, problem in _NOT_TEXT.items():
        if start.startswith(mark.lower()):
            raise UserError(f"{what} '{path}' {problem}")
    try:
        return data.decode("utf-8-sig").replace("\r\n", "\n").replace("\r", "\n")
    except UnicodeDecodeError as error:
        raise UserError(f"{what} '{path}' is not UTF-8 text (byte {error.start})") from None
