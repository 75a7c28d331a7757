"""One record describes a data set: its reader, title, vocabulary and questions; the released ones by name."""

import importlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from fi_jax.data.records import Source
from fi_jax.errors import require_choice
from fi_jax.labels.questions import Question
from fi_jax.labels.vocabulary import Vocabulary

# Each is a module of fi_jax.data.sources that ends in its record, `DATASET`; imported when it is needed.
DATASET_NAMES: tuple[str, ...] = (
    "celeba",
    "maad_face",
    "fairface",
    "utkface",
    "expw",
    "raf_db",
    "fer2013",
    "celebamask_hq",
    "synthetic_faces",
)
# Before the file of a schema, where a data set is named.
TABLE_PREFIX = "table:"


@dataclass(frozen=True)
class Dataset:
    """All that the program knows about a data set before it has read one face of it."""

    name: str
    # As its authors write it.
    title: str
    # Reads a release as published from the folder where it lies.
    read: Callable[[Path | str], Source]
    # The labels that it annotates.
    vocabulary: Vocabulary
    # What its protocol asks about each face, in the order of tables.
    questions: tuple[Question, ...]
    # Reads the labels of its faces alone, without pictures, to count which go together; evaluated faces are not in its
    # split "train". None: as `read` does.
    annotations: Callable[[Path | str], Source] | None = None
    # Other data sets that hold the same photographs.
    same_pictures_as: tuple[str, ...] = ()
    # The schema (YAML) of a table of one's own.
    schema: str = ""

    @property
    def same_pictures(self) -> frozenset[str]:
        """The names of the data sets that hold these photographs, its own included."""
        return frozenset({self.name, *self.same_pictures_as})

    def open(self, root: Path | str = "") -> Source:
        """Reads the data set under `root`: a folder as released, or one that `fi-jax prepare` wrote.

        Raises:
          UserError: the release is not there, or damaged beyond what is handled.
        """
        from fi_jax.data import shards

        if str(root) and shards.is_prepared(root):
            return shards.read(self.name, Path(root))
        return self.read(root)


def find_dataset(name: str) -> Dataset:
    """Returns the record of the data set `name`, or of one's own: `table:SCHEMA` with the file of its schema.

    An unknown name is a `UserError` with a guess.
    """
    if name.startswith(TABLE_PREFIX):
        from fi_jax.data.tables import table_dataset

        return table_dataset(name.removeprefix(TABLE_PREFIX))
    require_choice("data set", name, DATASET_NAMES)
    return importlib.import_module(f"fi_jax.data.sources.{name}").DATASET


def dataset_title(name: str) -> str:
    """Returns a data set's title, or the name itself where no such set is known (results of another program)."""
    return find_dataset(name).title if name in DATASET_NAMES or name.startswith(TABLE_PREFIX) else name


def open_source(name: str, root: Path | str = "") -> Source:
    """Returns `find_dataset(name).open(root)`."""
    return find_dataset(name).open(root)
