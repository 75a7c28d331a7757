"""A run's folder: `config.json`, `metrics.jsonl`, TensorBoard events. Rewound to the restored step on resume."""

import json
import math
import time
from pathlib import Path
from typing import TYPE_CHECKING

from fi_jax.config import Experiment
from fi_jax.config_tree import to_dict

if TYPE_CHECKING:
    from tensorboardX import SummaryWriter


class RunLog:
    """Writes what training measures. Only the first process makes one."""

    def __init__(self, folder: Path, config: Experiment, start_step: int):
        """Opens the folder; metrics of steps from `start_step` on (lost work) are dropped from the log."""
        folder.mkdir(parents=True, exist_ok=True)
        _write(folder / "config.json", json.dumps(to_dict(config), indent=2) + "\n")
        self._path = folder / "metrics.jsonl"
        if self._path.exists():
            kept = [line for line in self._path.read_text().splitlines() if _step_of(line) <= start_step]
            _write(self._path, "".join(line + "\n" for line in kept))
        self._file = self._path.open("a")
        self._board: SummaryWriter | None = None
        self._folder = folder
        self._clock = time.monotonic()

    def write(self, step: int, metrics: dict[str, float]) -> None:
        """Appends one line and one point a curve. Wall time goes to TensorBoard alone, so logs compare bit for bit."""
        clean = {name: value if math.isfinite(value) else None for name, value in metrics.items()}
        self._file.write(json.dumps({"step": step, **clean}) + "\n")
        self._file.flush()
        if self._board is None:
            from tensorboardX import SummaryWriter

            self._board = SummaryWriter(str(self._folder / "tensorboard"), purge_step=step)
        for name, value in metrics.items():
            self._board.add_scalar(name, value, step)
        self._board.add_scalar("seconds", time.monotonic() - self._clock, step)

    def close(self) -> None:
        """Flushes everything."""
        self._file.close()
        if self._board is not None:
            self._board.close()


def _step_of(line: str) -> float:
    try:
        return json.loads(line)["step"]
    except (json.JSONDecodeError, KeyError):
        # A line that a kill cut short.
        return math.inf


def _write(path: Path, text: str) -> None:
    temporary = path.with_name(path.name + ".part")
    temporary.write_text(text)
    temporary.replace(path)
