"""Finds a config by name or file and applies dotted overrides (tyro), with a guess for a mistyped field."""

import contextlib
import importlib.util
import io
import sys
from dataclasses import replace
from pathlib import Path

from fi_jax.config import Experiment
from fi_jax.config_tree import RETIRED, flat_fields
from fi_jax.errors import UserError, did_you_mean

# The user's own come before those of the package.
_FOLDERS = (Path("configs"), Path(__file__).parent.parent / "configs")


def load_config(name_or_file: str, overrides: list[str] | None = None) -> Experiment:
    """Returns the experiment of a config file or name, with `--field.sub value` overrides applied."""
    return with_schemas(override(_read(find_config(name_or_file)), overrides or []))


def with_schemas(config: Experiment) -> Experiment:
    """Puts the schemas of the sources `table:SCHEMA` into a config, so that it holds all that its model knows.

    In `data.vocabulary`, `table:SCHEMA` becomes the schema's name, and `tables` the names of all of them.
    """
    from fi_jax.data.datasets import TABLE_PREFIX, find_dataset
    from fi_jax.data.sources.release import read_text
    from fi_jax.labels.schema import read_schema

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
        if not path.is_file():
            raise UserError(f"no config file {path}")
        return path
    for folder in _FOLDERS:
        if (folder / f"{name_or_file}.py").is_file():
            return folder / f"{name_or_file}.py"
    known = config_names()
    raise UserError(f"no config '{name_or_file}' (known: {', '.join(known)}){did_you_mean(name_or_file, known)}")


def config_names() -> list[str]:
    """Names of the configs under `configs/`."""
    return sorted({path.stem for folder in _FOLDERS for path in folder.glob("*.py") if not path.stem.startswith("_")})


def _read(path: Path) -> Experiment:
    spec = importlib.util.spec_from_file_location(f"fi_jax_config_{path.stem}", path)
    if spec is None or spec.loader is None:
        raise UserError(f"config {path} is not a Python file")
    module = importlib.util.module_from_spec(spec)
    # A config may build on its neighbours (`import nano`).
    sys.path.insert(0, str(path.parent.absolute()))
    try:
        spec.loader.exec_module(module)
        made = module.config() if hasattr(module, "config") else None
    except UserError:
        raise
    except Exception as error:
        raise UserError(f"config {path} does not run: {type(error).__name__}: {error}") from error
    finally:
        sys.path.pop(0)
    if not hasattr(module, "config"):
        raise UserError(f"config {path} has no function config() that returns an Experiment")
    if not isinstance(made, Experiment):
        raise UserError(f"config() of {path} returns {type(made).__name__}, not fi_jax.config.Experiment")
    return made


def override(config: Experiment, flags: list[str]) -> Experiment:
    """Applies `--train.steps 10 --data.batch-size 8` to a config; every field of the tree has such a flag."""
    if not flags:
        return config
    fields = [name for name, _ in flat_fields(config)]
    for flag in flags:
        if flag.startswith("--"):
            name = flag[2:].split("=")[0].replace("-", "_")
            last = name.rsplit(".", 1)[-1]
            if name in RETIRED:
                raise UserError(f"{flag} is gone: {RETIRED[name]}")
            positive = name[: -len(last)] + last.removeprefix("no_")
            if name not in fields and positive not in fields:
                raise UserError(f"unknown option '{flag}'{_guess(name, fields)}")
    import tyro

    said = io.StringIO()
    try:
        with contextlib.redirect_stderr(said), contextlib.redirect_stdout(said):
            return tyro.cli(Experiment, default=config, args=flags, config=(tyro.conf.AvoidSubcommands,))
    except SystemExit as stop:
        lines = [line.strip(" │╭╮╰╯─") for line in said.getvalue().splitlines()]
        told = [line for line in lines if line.startswith(("Error parsing", "Unrecognized options:", "Missing"))]
        raise UserError(
            f"bad override in '{' '.join(flags)}': {told[0] if told else 'see fi-jax train CONFIG --fields'}"
        ) from stop


def _guess(name: str, fields: list[str]) -> str:
    shown = did_you_mean(name, fields) or did_you_mean(name.rsplit(".", 1)[-1], [f.rsplit(".", 1)[-1] for f in fields])
    return shown.replace("'", "'--", 1) if shown else " (fi-jax train CONFIG --fields lists them)"
