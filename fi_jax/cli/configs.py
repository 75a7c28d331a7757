"""Applies dotted flags to a config (tyro), with a guess for a mistyped field."""

import contextlib
import io

from fi_jax.config import Experiment
from fi_jax.config_tree import RETIRED, flat_fields
from fi_jax.errors import UserError, did_you_mean
from fi_jax.experiments.configs import read_config_file, with_schemas


def load_config(name_or_file: str, overrides: list[str] | None = None) -> Experiment:
    """Returns the experiment of a config file or name, with `--field.sub value` overrides applied."""
    return with_schemas(override(read_config_file(name_or_file), overrides or []))


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
