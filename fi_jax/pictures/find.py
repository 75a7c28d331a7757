"""Pictures named on a command line: files, folders, globs, lists and tables of paths."""

import os
from collections.abc import Sequence
from pathlib import Path

from fi_jax.errors import UserError, require_choice
from fi_jax.tables import TABLE_SUFFIXES, Row, read_table, read_text

PICTURE_SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".tif", ".tiff", ".gif", ".avif", ".ppm", ".pgm")
# Names of the column that holds pictures, first match first.
PICTURE_COLUMNS = ("image", "picture", "path", "file", "filename", "image_path", "file_name", "name")


def find_pictures(paths: Sequence[str], column: str = "") -> list[Path]:
    """Lists the pictures that paths name, each once: files, folders (searched through), globs, lists and tables.

    A list (`.txt`) has a path a line; a table (CSV, TSV, Parquet, JSON lines) has them in `column`. Relative paths in
    either start at its own folder.

    Raises:
      UserError: a path that names no picture, or a table without such a column.
    """
    return list(dict.fromkeys(path for text in paths for path in _named_by(text, column)))


def is_named_like_pictures(text: str) -> bool:
    """Whether a word of a command line names pictures, there or not, rather than saying something about them."""
    suffixes = (*PICTURE_SUFFIXES, *TABLE_SUFFIXES, ".txt")
    # Path.exists raises where a name is too long for one, as a question may be.
    return "*" in text or text.lower().endswith(suffixes) or os.path.exists(text)  # noqa: PTH110


def _named_by(text: str, column: str) -> list[Path]:
    if not text.strip():
        raise UserError("the name of a picture is empty")
    path = Path(text)
    if path.is_dir():
        files = sorted(
            file
            for file in path.rglob("*")
            if file.suffix.lower() in PICTURE_SUFFIXES and not file.is_dir() and not _hidden(file.relative_to(path))
        )
        if not files:
            raise UserError(f"folder '{path}' holds no picture ({', '.join(PICTURE_SUFFIXES)})")
        return files
    if path.is_file():
        suffix = path.suffix.lower()
        if suffix != ".txt" and suffix not in TABLE_SUFFIXES:
            return [path]
        if suffix in TABLE_SUFFIXES:
            named = [picture for picture, _ in picture_rows(path, column)]
        else:
            named = [path.parent / line.strip() for line in read_text(path).split("\n") if line.strip()]
        if not named:
            raise UserError(f"'{path}' names no picture")
        return named
    try:
        matches = Path().glob(text) if not path.is_absolute() else Path("/").glob(text.lstrip("/"))
        files = sorted(match for match in matches if match.is_file() and _hidden(match) <= _hidden(path))
    except ValueError as error:  # A pattern such as "a**".
        raise UserError(f"'{text}' is not a pattern of names ({error})") from None
    if not files:
        raise UserError(f"'{text}' is neither a file nor a folder, and no file matches it")
    return files


def _hidden(path: Path) -> int:
    """How many parts of a path are hidden, as `._NAME` is: no picture, beside every picture that came from a Mac."""
    return sum(part.startswith(".") and part != ".." for part in path.parts)


def picture_rows(path: Path, column: str = "") -> list[tuple[Path, Row]]:
    """The rows of a table that name a picture, with it; errors are those of `find_pictures`."""
    table = read_table(path)
    if column:
        require_choice(f"column of '{path.name}'", column, table.columns)
    names = {name.lower(): name for name in table.columns}
    chosen = column or next((names[name] for name in PICTURE_COLUMNS if name in names), None)
    if chosen is None:
        raise UserError(
            f"table '{path}' has none of the columns {', '.join(PICTURE_COLUMNS)}; name the pictures' with --column"
        )
    return [(path.parent / row[chosen], row) for row in table.rows if row[chosen]]
