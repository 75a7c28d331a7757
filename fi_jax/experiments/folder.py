"""A sweep's folder: what it sweeps, one folder a point, who works on it, and how each ended.

SWEEP/sweep.json           what belongs here; another sweep is refused
SWEEP/points/ID/point.json the fields of a point; config.py the whole config; result.json how it ended
SWEEP/points/ID/log.txt    what the run printed
SWEEP/runs/ID/             the run's own folder
"""

import contextlib
import json
import os
import pprint
import runpy
import time
from pathlib import Path
from typing import Any

from fi_jax.config import Experiment, to_dict
from fi_jax.errors import UserError
from fi_jax.experiments.expressions import Point
from fi_jax.experiments.points import point_id

# A claim that was not renewed for this long (seconds) belongs to a worker that died.
STALE = 180.0


class SweepFolder:
    """Reads and writes one sweep's folder. Every file is written whole or not at all."""

    def __init__(self, path: Path):
        self.path = path

    def open(self, belongs: dict[str, Any]) -> None:
        """Makes the folder, or checks that it holds this sweep: `belongs` must be what it was made with.

        Raises `UserError` naming what differs.
        """
        file = self.path / "sweep.json"
        belongs = json.loads(json.dumps(belongs))
        if file.exists():
            there = json.loads(file.read_text())
            differing = sorted(key for key in {**there, **belongs} if there.get(key) != belongs.get(key))
            if differing:
                raise UserError(
                    f"folder '{self.path}' holds another sweep ({', '.join(differing)} differ); choose another --out, or delete it"
                )
            return
        (self.path / "points").mkdir(parents=True, exist_ok=True)
        write(file, json.dumps(belongs, indent=2) + "\n")

    def add(self, config: Experiment, point: Point) -> Path:
        """Makes the folder of a point (the same one for the same config) and returns it."""
        identity = point_id(config)
        folder = self.path / "points" / identity
        if not (folder / "config.py").exists():
            folder.mkdir(parents=True, exist_ok=True)
            write(folder / "point.json", json.dumps(point, indent=2) + "\n")
            values = {**to_dict(config), "name": identity}
            write(folder / "config.py", config_source(values, f"Point {identity} of the sweep {self.path.name}."))
        return folder

    def run_folder(self, point: Path) -> Path:
        """The run folder that training a point leaves."""
        return self.path / "runs" / point.name


def read_config(point: Path) -> Experiment:
    """The config of a point."""
    return runpy.run_path(str(point / "config.py"))["config"]()


def read_result(point: Path) -> dict[str, Any] | None:
    """How a point ended: `status` ("ok", "failed", "pruned"), `metrics`, `error`, `seconds`; None when it has not."""
    try:
        return json.loads((point / "result.json").read_text())
    except FileNotFoundError:
        return None


def write_result(point: Path, result: dict[str, Any]) -> None:
    """Records how a point ended."""
    write(point / "result.json", json.dumps(result, indent=2) + "\n")


def claim(point: Path) -> bool:
    """Takes a point for this process; False when another one works on it."""
    file = point / "claim"
    try:
        file.touch(exist_ok=False)
    except FileExistsError:
        if is_claimed(point):
            return False
        file.touch()
    file.write_text(f"{os.uname().nodename} {os.getpid()}\n")
    return True


def is_claimed(point: Path) -> bool:
    """Whether a living process works on the point, here or on another node."""
    file = point / "claim"
    try:
        age = time.time() - file.stat().st_mtime
        node, _, pid = file.read_text().strip().partition(" ")
    except FileNotFoundError:
        return False
    if node == os.uname().nodename and pid.isdigit() and not Path(f"/proc/{pid}").exists():
        return False
    return age < STALE


def renew(point: Path) -> None:
    """Says that this process still works on the point it claimed."""
    with contextlib.suppress(FileNotFoundError):
        os.utime(point / "claim")


def release(point: Path) -> None:
    """Gives a claimed point back."""
    (point / "claim").unlink(missing_ok=True)


def config_source(values: dict[str, Any], title: str) -> str:
    """Python source of a config file that `fi-jax train` takes and that depends on no other file."""
    return (
        f'"""{title}"""\n\nfrom fi_jax.config import Experiment, from_dict\n\n'
        f"VALUES = {pprint.pformat(values, sort_dicts=False, width=118)}\n\n\n"
        "def config() -> Experiment:\n    return from_dict(Experiment, VALUES)\n"
    )


def write(path: Path, text: str) -> None:
    """Writes a file whole: a reader sees the old one or the new one."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    temporary.write_text(text)
    temporary.replace(path)
