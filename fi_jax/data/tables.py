"""One's own data: a table (CSV, TSV, Parquet, JSON lines) or folders by class, with a schema -> a data set like any other."""

from collections import Counter
from collections.abc import Mapping
from functools import partial
from pathlib import Path

from fi_jax.data.datasets import Dataset
from fi_jax.data.near_duplicates import near_duplicate_groups
from fi_jax.data.records import FaceRecord, Source, Split
from fi_jax.data.sources.release import Release, read_box
from fi_jax.data.splits import hash_split
from fi_jax.errors import UserError, did_you_mean
from fi_jax.labels.question_bank import question
from fi_jax.labels.schema import Column, Schema, as_number, read_schema, schema_vocabulary
from fi_jax.tables import Row, Table, read_table, read_text

SPLIT_WORDS: dict[str, Split] = {
    "train": "train", "training": "train", "0": "train",
    "val": "val", "valid": "val", "validation": "val", "dev": "val", "1": "val",
    "test": "test", "testing": "test", "2": "test",
}  # fmt: skip
_MAX_AGE = 125


def table_dataset(path: Path | str) -> Dataset:
    """Returns the data set that a schema file describes.

    Raises:
      UserError: the schema is missing or wrong. The table itself is read when the data set is opened.
    """
    path = Path(path)
    text = read_text(path, "schema")
    schema = read_schema(text, f"schema '{path}'")
    questions = []
    for column in schema.columns:
        questions += [column.question] if column.question else [question("age_group"), question("age_years")]
    return Dataset(
        schema.name,
        schema.name,
        partial(_read, schema, path.parent),
        schema_vocabulary(schema),
        tuple(dict.fromkeys(questions)),
        schema=text,
    )


def _read(schema: Schema, folder: Path, root: Path | str = "") -> Source:
    """Reads the faces; `root` stands in for the schema's own folder of pictures."""
    if schema.folders:
        release = Release(schema.name, Path(root) if str(root) else folder / schema.folders)
        pictures = release.require_pictures(release.root, recursive=True)
        rows = [{schema.picture: key, schema.columns[0].column: key.split("/")[0]} for key in pictures if "/" in key]
    else:
        release = Release(schema.name, Path(root) if str(root) else folder / schema.images)
        table = read_table(folder / schema.table)
        _check_columns(schema, table)
        pictures = release.require_pictures(release.root, recursive=True)
        rows = list(table.rows)
    named = [(release.named_picture(row[schema.picture], pictures, schema.table), row) for row in rows]
    unique = release.distinct(((_face_key(schema, key, row), row) for key, row in named), schema.table or "folders")
    picture_of = {_face_key(schema, key, row): key for key, row in named}
    release.reject_unpaired({picture_of[key] for key in unique}, pictures, schema.table or "folders")
    present = {key: row for key, row in unique.items() if picture_of[key] in pictures}
    splits = _splits(schema, release, present, {key: pictures[picture_of[key]] for key in present})
    faces: list[FaceRecord] = []
    meaningless: Counter[tuple[str, str]] = Counter()
    for key, row in present.items():
        box, problem = read_box([row[name] for name in schema.box]) if schema.box else (None, "")
        labels, age = _labels(schema, row, meaningless)
        texts = _texts(schema, row)
        if problem or not (labels or age is not None or texts):
            release.reject(key, problem or "no label is known")
            continue
        person = row[schema.person] or None if schema.person else None
        faces.append(
            FaceRecord(
                schema.name,
                key,
                splits[key],
                pictures[picture_of[key]],
                labels,
                age,
                box,
                identity=person,
                numbers=_numbers(schema, row),
                texts=texts,
            )
        )
    for (column, value), count in sorted(meaningless.items()):
        release.note(f"column '{column}': '{value}' ({count} rows) means nothing by the schema; taken as unknown")
    _note_constants(schema, release, faces)
    return release.source(faces)


def _check_columns(schema: Schema, table: Table) -> None:
    labels = [*(one.column for one in schema.columns), *(one.column for one in schema.texts)]
    wanted = [schema.picture, schema.person, schema.split, *schema.box, *labels]
    for name in wanted:
        if name and name not in table.columns:
            raise UserError(
                f"{schema.name}: table '{schema.table}' has no column '{name}'{did_you_mean(name, table.columns)}"
            )


def _face_key(schema: Schema, picture: str, row: Row) -> str:
    """A picture's name; with boxes, several faces may share it."""
    return f"{picture}#{','.join(row[name] for name in schema.box)}" if schema.box else picture


def _labels(schema: Schema, row: Row, meaningless: Counter) -> tuple[dict[str, float], float | None]:
    labels: dict[str, float] = {}
    age = None
    for column in schema.columns:
        value = row[column.column]
        if value.lower() in schema.unknown:
            continue
        if column.question is None:
            years = as_number(value)
            if years is None or not 0 <= years <= _MAX_AGE:
                meaningless[column.column, value] += 1
            else:
                age = years
            continue
        read = column.read(value)
        if read is None:
            meaningless[column.column, value] += 1
        labels |= read or {}
    return labels, age


def _numbers(schema: Schema, row: Row) -> dict[str, float]:
    """The numbers of columns with bins, by the question's name."""
    read = {
        column.question.name: as_number(row[column.column])
        for column in schema.columns
        if column.question and column.edges and row[column.column].lower() not in schema.unknown
    }
    return {name: number for name, number in read.items() if number is not None}


def _texts(schema: Schema, row: Row) -> tuple[tuple[str, str], ...]:
    """Every wording of an open question with its answer, where one is known."""
    known = [one for one in schema.texts if row[one.column].lower() not in schema.unknown]
    return tuple((wording, row[one.column]) for one in known for wording in one.wordings)


def _splits(
    schema: Schema, release: Release, rows: Mapping[str, Row], pictures: Mapping[str, Path]
) -> dict[str, Split]:
    """The split of every face: the table's own, else by the hash of the person, or of near-duplicate pictures.

    Raises:
      UserError: the table's split has an unknown word, or puts a person on both sides.
    """
    if not schema.split:
        if schema.person:
            return {key: hash_split(row[schema.person] or key, schema.name) for key, row in rows.items()}
        groups, _ = near_duplicate_groups(schema.name, list(rows), [pictures[key] for key in rows])
        return {key: hash_split(groups[key], schema.name) for key in rows}
    splits: dict[str, Split] = {}
    sides: dict[str, Split] = {}
    for key, row in rows.items():
        word = row[schema.split].lower()
        if word not in SPLIT_WORDS:
            raise UserError(f"{schema.name}: split '{row[schema.split]}' of {key} is neither train, val nor test")
        splits[key] = SPLIT_WORDS[word]
        person = row[schema.person] if schema.person else ""
        if person and sides.setdefault(person, splits[key]) != splits[key]:
            raise UserError(
                f"{schema.name}: person '{person}' is in {sides[person]} and in {splits[key]}; "
                "a person must lie in one split (correct the table, or leave 'split' out of the schema)"
            )
    return splits


def _note_constants(schema: Schema, release: Release, faces: list[FaceRecord]) -> None:
    for column in schema.columns:
        said = {_stated(column, face) for face in faces} - {None}
        if len(said) <= 1 and column.question:
            release.note(f"column '{column.column}' says the same of every face; nothing can be learnt from it")


def _stated(column: Column, face: FaceRecord) -> tuple | None:
    if column.question is None:
        return None
    stated = tuple(face.labels.get(label) for label in column.question.labels if label)
    return None if None in stated else stated
