"""A run's folder: `config.json`, `metrics.jsonl`, TensorBoard events, rewound on resume; and the lock of its owner."""

import contextlib
import json
import logging
import math
import os
import socket
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from fi_jax.config import Experiment
from fi_jax.config_tree import to_dict
from fi_jax.errors import UserError
from fi_jax.files import sha256, write_json, write_text

log = logging.getLogger(__name__)

LOCK = "lock.json"
# Seconds between two signs of life in a lock, and without one until an owner elsewhere counts as gone.
_BEAT, _SILENCE = 10.0, 35.0
# Seconds that a killed process may take to be gone.
_DYING = 2.0


class RunLog:
    """Writes what training measures. Only the first process makes one."""

    def __init__(self, folder: Path, config: Experiment, start_step: int):
        """Opens the folder; metrics of steps from `start_step` on (lost work) are dropped from the log."""
        write_json(folder / "config.json", to_dict(config), indent=2)
        self._folder = folder
        path = folder / "metrics.jsonl"
        if path.exists():
            lines = path.read_text(errors="replace").splitlines()
            # A start from nothing judges the model at step 0 again.
            write_text(path, "".join(line + "\n" for line in lines if start_step and _step_of(line) <= start_step))
        self._file = path.open("a")
        self._board: Any = None
        self._tracked = _open_wandb(config, folder) if config.train.wandb else None
        self._clock = time.monotonic()

    def write(self, step: int, metrics: dict[str, float]) -> None:
        """Appends one line and one point a curve; a full disk is a `UserError` at once.

        Wall time goes to TensorBoard and Weights & Biases alone, so logs compare bit for bit.
        """
        clean = {name: value if math.isfinite(value) else None for name, value in metrics.items()}
        try:
            self._file.write(json.dumps({"step": step, **clean}) + "\n")
            self._file.flush()
            timed = {**metrics, "seconds": time.monotonic() - self._clock}
            self._draw(step, timed)
            if self._tracked is not None:
                self._tracked.log(timed, step=step)
        except OSError as error:
            raise UserError(
                f"cannot write the log of '{self._folder}' ({error.strerror or error}); the checkpoints are whole. "
                "Free space, then repeat the command: it resumes"
            ) from error

    def _draw(self, step: int, values: dict[str, float]) -> None:
        # Not its SummaryWriter: that writes on a thread, whose death on a full disk blocks whoever logs.
        with _without_torch():
            from tensorboardX.event_file_writer import EventsWriter
            from tensorboardX.proto.event_pb2 import Event, SessionLog
            from tensorboardX.summary import scalar

        events = [
            Event(summary=scalar(name, value), step=step, wall_time=time.time()) for name, value in values.items()
        ]
        if self._board is None:
            folder = self._folder / "tensorboard"
            folder.mkdir(exist_ok=True)
            self._board = EventsWriter(str(folder / "events"))
            # TensorBoard forgets what an earlier start has drawn from this step on.
            session = SessionLog(status=SessionLog.START)
            events.insert(0, Event(step=step, session_log=session, wall_time=time.time()))
        for event in events:
            self._board.write_event(event)
        self._board.flush()

    def close(self) -> None:
        """Closes the files; everything has been flushed."""
        for opened in (self._file, self._board):
            # What a full disk did not take has been said.
            with contextlib.suppress(OSError):
                if opened is not None:
                    opened.close()
        if self._tracked is not None:
            self._tracked.finish()


@contextlib.contextmanager
def _without_torch() -> Iterator[None]:
    """Hides torch from an import: tensorboardX loads it where it is installed, for seconds, and does without it."""
    # At the first import alone: later lines of the log hide nothing from other threads.
    hidden = sys.modules.keys().isdisjoint(("torch", "tensorboardX"))
    if hidden:
        sys.modules["torch"] = None  # type: ignore[assignment]
    try:
        yield
    finally:
        if hidden:
            del sys.modules["torch"]


def _open_wandb(config: Experiment, folder: Path) -> Any:
    """A run of Weights & Biases, the same one whenever this folder goes on."""
    import wandb

    try:
        return wandb.init(
            project=config.train.wandb,
            name=config.name,
            dir=str(folder),
            id=sha256(str(folder.absolute()))[:16],
            resume="allow",
            config=to_dict(config),
            settings=wandb.Settings(silent=True),
        )
    except wandb.errors.Error as error:
        raise UserError(
            f"Weights & Biases: {' '.join(str(error).split())}; log in with 'wandb login', or set WANDB_MODE=offline"
        ) from error


def _step_of(line: str) -> float:
    """The step of a line of the log; infinity for one that a kill cut short or a disk damaged."""
    try:
        step = json.loads(line)["step"]
    except (json.JSONDecodeError, KeyError, TypeError, RecursionError):
        return math.inf
    return step if isinstance(step, int | float) else math.inf


def diverged_at(folder: Path) -> int:
    """The last logged step of a run where its loss was not finite there; else 0."""
    try:
        last = json.loads((folder / "metrics.jsonl").read_text().splitlines()[-1])
        return int(last["step"]) if last.get("loss", 0) is None else 0
    except (OSError, ValueError, IndexError, KeyError, TypeError, AttributeError, RecursionError):
        return 0


@contextlib.contextmanager
def locked(folders: Sequence[Path]) -> Iterator[None]:
    """Holds the lock of run folders, so that no second run writes into them.

    A lock whose owner is gone is taken over: at once where the owner was a process of this machine, after `_SILENCE`
    seconds without a sign of life where it was elsewhere.

    Raises:
      UserError: another run holds one of them.
    """
    held: list[Path] = []
    stop = threading.Event()

    def beat() -> None:
        while not stop.wait(_BEAT):
            for path in held:
                with contextlib.suppress(OSError):
                    os.utime(path)

    try:
        for folder in folders:
            folder.mkdir(parents=True, exist_ok=True)
            _take(folder / LOCK)
            held.append(folder / LOCK)
        threading.Thread(target=beat, name="run lock", daemon=True).start()
        yield
    finally:
        stop.set()
        for path in held:
            if _owner(path) == _me():
                path.unlink(missing_ok=True)


def check_unlocked(folder: Path) -> None:
    """Raises `UserError` when a process of this machine trains in `folder`: before anything is loaded."""
    path = folder / LOCK
    if (owner := _owner(path)) and _is_here(owner) and _runs(owner):
        raise _taken(path, owner)


def _take(path: Path) -> None:
    while True:
        try:
            with os.fdopen(os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY), "w") as file:
                json.dump(_me(), file)
            return
        except FileExistsError:
            owner = _owner(path)
        except OSError as error:
            # A lock without an owner would be waited for.
            path.unlink(missing_ok=True)
            raise UserError(
                f"cannot write '{path}' ({error.strerror}); free space or choose another --runs, and repeat the command"
            ) from error
        if owner and _is_here(owner):
            if _runs(owner):
                raise _taken(path, owner)
        elif _beats(path, owner):
            raise _taken(path, owner)
        log.info(f"the run that held {path.parent} ended without letting it go; going on from what it saved")
        path.unlink(missing_ok=True)


def _taken(path: Path, owner: dict) -> UserError:
    who = f"process {owner.get('pid', '?')} on {owner.get('host', 'an unknown host')}"
    return UserError(
        f"{who} trains in '{path.parent}'; wait for it or use another --name (if it is gone for certain, delete {path})"
    )


def _beats(path: Path, owner: dict) -> bool:
    """Whether the lock of an owner elsewhere shows a sign of life; the clocks of two machines are not compared."""
    log.info(
        f"'{path.parent}' was locked by process {owner.get('pid', '?')} on {owner.get('host', 'an unknown host')}; "
        f"looking up to {_SILENCE:g} s whether it still runs"
    )
    deadline = time.monotonic() + _SILENCE
    first = _time(path)
    while time.monotonic() < deadline:
        time.sleep(0.5)
        if _time(path) != first:
            # Gone is let go.
            return path.exists()
    return False


def _time(path: Path) -> int:
    try:
        return path.stat().st_mtime_ns
    except OSError:
        return 0


def _me() -> dict[str, Any]:
    return {"host": socket.gethostname(), "space": _space(), "pid": os.getpid(), "start": _start_of(os.getpid())}


def _owner(path: Path) -> dict[str, Any]:
    """Who a lock names; empty where there is none or it was not written to its end."""
    try:
        owner = json.loads(path.read_text())
    except (OSError, ValueError):
        return {}
    return owner if isinstance(owner, dict) else {}


def _space() -> str:
    # Process numbers mean something within one machine and one container.
    try:
        return os.readlink("/proc/self/ns/pid")  # noqa: PTH115 - a name, not a path
    except OSError:
        return ""


def _is_here(owner: dict) -> bool:
    return (owner.get("host"), owner.get("space")) == (socket.gethostname(), _space())


def _runs(owner: dict) -> bool:
    """Whether an owner on this machine still runs: its number may have passed to another process."""
    deadline = time.monotonic() + _DYING
    while owner.get("start") == _start_of(owner.get("pid", 0)) != "":
        if time.monotonic() > deadline:
            return True
        time.sleep(0.1)
    return False


def _start_of(pid: int) -> str:
    """When a process started, as its machine counts; empty where there is no such process."""
    try:
        state, *fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return ""
    # A killed process is listed until its parent has noticed.
    return "" if state in "ZX" else fields[18]
