"""The file of predictions about many pictures: CSV, Parquet or JSON lines, resumable."""

import csv
import itertools
import json
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from fi_jax.errors import UserError
from fi_jax.files import atomic_path, require_writable
from fi_jax.inference.batch_prediction import ROW_COLUMNS, FacePrediction
from fi_jax.labels.questions import Question

OUTPUT_SUFFIXES = (".csv", ".parquet", ".jsonl")
_ROWS_AT_ONCE = 1000


def _plain(text: str) -> str:
    return text.encode(errors="backslashreplace").decode()


def _whole(entry: dict[str, Any]) -> str:
    """The picture of a line of a partial file; a `TypeError` or `KeyError` where the line is damaged."""
    if not all(isinstance(row, dict) for row in entry["rows"]):
        raise TypeError
    return str(entry["image"])


class PredictionFile:
    """What `predict` leaves at `path`; what is done already is kept in `path`.partial until the end."""

    def __init__(self, path: Path, questions: Sequence[Question], made_with: dict[str, Any]):
        """`made_with`: what the predictions depend on; a partial file of something else is refused.

        Raises:
          UserError: `path` is there already or has another suffix, or its partial file was made otherwise.
        """
        if path.suffix.lower() not in OUTPUT_SUFFIXES:
            raise UserError(f"--out '{path}' must end in {', '.join(OUTPUT_SUFFIXES)}")
        if path.exists():
            raise UserError(f"'{path}' is there already; choose another --out, or delete it")
        require_writable(path.parent)
        self.path, self.partial = path, path.with_name(f"{path.name}.partial")
        answers = [column for question in questions for column in (question.name, f"{question.name}_probability")]
        self.columns = [*ROW_COLUMNS, *answers]
        # Columns of Parquet that hold text; all others are numbers.
        self._texts = {"image", "frame", "error", *(q.name for q in questions if q.family != "age_years")}
        self._header = {"made_with": json.loads(json.dumps(made_with)), "columns": self.columns}
        self.done = self._read_done()

    def _read_done(self) -> set[str]:
        if not self.partial.exists():
            return set()
        done, whole = set(), 0
        with self.partial.open("rb") as lines:
            for number, line in enumerate(lines):
                try:
                    entry = json.loads(line)
                    done |= set() if number == 0 else {_whole(entry)}
                except (ValueError, KeyError, TypeError, RecursionError):
                    break  # The line that an interruption cut short.
                if number == 0 and entry != self._header:
                    raise UserError(
                        f"'{self.partial}' holds predictions of another model or other options; finish those, or delete it"
                    )
                whole += len(line)
        with self.partial.open("r+b") as lines:
            lines.truncate(whole)
        return done

    def write(self, predictions: Iterable[Sequence[FacePrediction]]) -> Iterator[Sequence[FacePrediction]]:
        """Appends each picture's predictions as they come, and passes them on; a full disk is a `UserError`."""
        self._append()
        for faces in predictions:
            self._append({"image": faces[0].image, "rows": [face.to_row() for face in faces]})
            yield faces

    def _append(self, *entries: dict[str, Any]) -> None:
        """Appends lines to the partial file, the header first where it is empty."""
        try:
            self.partial.parent.mkdir(parents=True, exist_ok=True)
            with self.partial.open("a", encoding="utf-8", errors="backslashreplace") as lines:
                for entry in (*(() if lines.tell() else (self._header,)), *entries):
                    lines.write(json.dumps(entry) + "\n")
        except OSError as error:
            raise UserError(
                f"cannot write '{self.partial}' ({error.strerror or error}); free space, and repeat the command: it goes "
                "on from what is done"
            ) from error

    def finish(self) -> int:
        """Writes `path` from the partial file, which goes; returns the number of rows."""
        write = {".csv": self._write_csv, ".jsonl": self._write_jsonl, ".parquet": self._write_parquet}
        with atomic_path(self.path) as temporary:
            write[self.path.suffix.lower()](temporary)
        count = sum(1 for _ in self._rows())
        self.partial.unlink()
        return count

    def _rows(self) -> Iterator[dict[str, Any]]:
        with self.partial.open(encoding="utf-8") as lines:
            next(lines, None)
            for line in lines:
                for row in json.loads(line)["rows"]:
                    # A name of bytes that are no UTF-8 (\udcff for FF) has no text of its own in any format.
                    yield {k: _plain(v) if isinstance(v, str) else v for k, v in row.items()}

    def _write_csv(self, path: Path) -> None:
        with path.open("w", encoding="utf-8", newline="") as opened:
            writer = csv.DictWriter(opened, self.columns)
            writer.writeheader()
            writer.writerows(self._rows())

    def _write_jsonl(self, path: Path) -> None:
        with path.open("w", encoding="utf-8") as opened:
            opened.writelines(json.dumps(row, ensure_ascii=False) + "\n" for row in self._rows())

    def _write_parquet(self, path: Path) -> None:
        import pyarrow as pa
        import pyarrow.parquet as pq

        schema = pa.schema([(name, self._type_of(name, pa)) for name in self.columns])
        rows = self._rows()
        with pq.ParquetWriter(path, schema) as writer:
            while chunk := list(itertools.islice(rows, _ROWS_AT_ONCE)):
                writer.write_table(pa.Table.from_pylist(chunk, schema))

    def _type_of(self, name: str, pa):
        if name in self._texts:
            return pa.string()
        return pa.int64() if name in ("face", "faces") else pa.float64()
