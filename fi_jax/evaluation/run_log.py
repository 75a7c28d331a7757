"""Reads what a training run left behind: the lines of `metrics.jsonl` and `config.json`."""

import json
from pathlib import Path

from fi_jax.errors import UserError

# Whole numbers beyond this are no counts of steps.
_MOST = 2**53


def read_run_log(folder: Path) -> list[dict]:
    """Returns the records of a run's `metrics.jsonl`; a last line that a kill cut short is dropped."""
    path = folder / "metrics.jsonl"
    if not path.is_file():
        raise UserError(f"{path} does not exist; '{folder}' is no run folder (runs/NAME)")
    records = []
    lines = _read(path).splitlines()
    for number, line in enumerate(lines, 1):
        try:
            record = json.loads(line)
        except (ValueError, RecursionError) as error:
            if number < len(lines):
                raise UserError(f"{path}, line {number}: not JSON ({error})") from error
            continue
        step = record.get("step", 0) if isinstance(record, dict) else None
        if isinstance(step, bool) or not isinstance(step, int) or abs(step) > _MOST:
            raise UserError(f"{path}, line {number}: not an object whose 'step' is a whole number ({line[:40]})")
        records.append(record)
    return records


def read_run_config(folder: Path) -> dict | None:
    """Returns a run's `config.json`, or None where it has none."""
    path = folder / "config.json"
    if not path.is_file():
        return None
    try:
        config = json.loads(_read(path))
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path} is not JSON ({error})") from error
    if not isinstance(config, dict):
        raise UserError(f"{path} is not an object of settings")
    return config


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path} cannot be read ({error})") from error
