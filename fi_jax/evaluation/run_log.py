"""Reads what a training run left behind: the lines of `metrics.jsonl` and `config.json`."""

import json
from pathlib import Path

from fi_jax.errors import UserError


def read_run_log(folder: Path) -> list[dict]:
    """Returns the records of a run's `metrics.jsonl`; a last line that a kill cut short is dropped."""
    path = folder / "metrics.jsonl"
    if not path.is_file():
        raise UserError(f"{path} does not exist; '{folder}' is no run folder (runs/NAME)")
    records = []
    lines = path.read_text(encoding="utf-8").splitlines()
    for number, line in enumerate(lines, 1):
        try:
            records.append(json.loads(line))
        except json.JSONDecodeError as error:
            if number < len(lines):
                raise UserError(f"{path}, line {number}: not JSON ({error})") from error
    return records


def read_run_config(folder: Path) -> dict | None:
    """Returns a run's `config.json`, or None where it has none."""
    path = folder / "config.json"
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else None
