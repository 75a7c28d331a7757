"""A config by its name or file: found, read, with values laid over it and the schemas of its tables inside."""

import importlib.util
import sys
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

from fi_jax.config import Experiment
from fi_jax.data.datasets import TABLE_PREFIX, find_dataset
from fi_jax.errors import UserError, did_you_mean
from fi_jax.experiments.points import apply
from fi_jax.labels.schema import read_schema
from fi_jax.tables import read_text

T = TypeVar("T")
# The user's own come before those of the package.
_FOLDERS = (Path("configs"), Path(__file__).parent.parent / "configs")


def load_config(name_or_file: str, changes: Mapping[str, Any] | None = None) -> Experiment:
    """Returns the experiment of a config file, or of a name under configs/, with values laid over its fields.

    Args:
      changes: values by dotted field, e.g. `{"train.steps": 50, "data.sources": [{"name": "table:mine.yaml"}]}`.

    Raises:
      UserError: there is no such config or field, or a value does not fit.
    """
    return with_schemas(apply(read_config_file(name_or_file), dict(changes or {})))


def read_config_file(name_or_file: str) -> Experiment:
    """Returns the experiment of a config file or name as it stands there."""
    return made_by(find_config(name_or_file), "config", Experiment)


def with_schemas(config: Experiment) -> Experiment:
    """Puts the schemas of the sources `table:SCHEMA` into a config, so that it holds all that its model knows.

    In `data.vocabulary`, `table:SCHEMA` becomes the schema's name, and `tables` the names of all of them.
    """
    vocabulary, schemas = config.data.vocabulary, dict.fromkeys(config.data.schemas)
    named = [*(source.name for source in config.data.sources), *vocabulary.split("+")]
    for name in dict.fromkeys(name for name in named if name.startswith(TABLE_PREFIX)):
        path = Path(name.removeprefix(TABLE_PREFIX))
        # One that is missing is named when it is opened: not every command opens the config's data sets.
        if path.is_file():
            schemas[read_text(path)] = None
            vocabulary = "+".join(find_dataset(name).name if part == name else part for part in vocabulary.split("+"))
    names = [read_schema(text).name for text in schemas]
    vocabulary = "+".join(part for word in vocabulary.split("+") for part in (names if word == "tables" else [word]))
    return replace(config, data=replace(config.data, vocabulary=vocabulary, schemas=tuple(schemas)))


def find_config(name_or_file: str) -> Path:
    """Finds a config: a `.py` file, or a name under `configs/` here or in the package."""
    path = Path(name_or_file)
    if path.suffix == ".py":
        return path
    for folder in _FOLDERS:
        if (folder / f"{name_or_file}.py").is_file():
            return folder / f"{name_or_file}.py"
    known = config_names()
    raise UserError(f"no config '{name_or_file}' (known: {', '.join(known)}){did_you_mean(name_or_file, known)}")


def config_names() -> list[str]:
    """Names of the configs under `configs/`."""
    return sorted({path.stem for folder in _FOLDERS for path in folder.glob("*.py") if not path.stem.startswith("_")})


def made_by(path: Path, function: str, kind: type[T]) -> T:
    """Runs a Python file and returns what its `function()` makes; it may import its neighbours.

    Raises:
      UserError: it does not run, has no such function, or that makes something else.
    """
    what = f"{function} file {path}"
    spec = importlib.util.spec_from_file_location(f"fi_jax_{function}_{path.stem}", path)
    if not path.is_file() or spec is None or spec.loader is None:
        raise UserError(f"no {what}" if not path.is_file() else f"{what} is not a Python file")
    module = importlib.util.module_from_spec(spec)
    sys.path.insert(0, str(path.parent.absolute()))
    try:
        spec.loader.exec_module(module)
        made = getattr(module, function)() if hasattr(module, function) else None
    except UserError:
        raise
    except (Exception, SystemExit) as error:
        raise UserError(f"{what} does not run: {type(error).__name__}: {' '.join(str(error).split())}") from error
    finally:
        sys.path.pop(0)
    if not hasattr(module, function):
        raise UserError(f"{what} has no function {function}() that returns {kind.__name__}")
    if not isinstance(made, kind):
        raise UserError(f"{function}() of {path} returns {type(made).__name__}, not {kind.__module__}.{kind.__name__}")
    return made
