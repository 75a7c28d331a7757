"""Checkpoints of a run: everything that was ever trained, the optimiser, the step, and what they belong to.

Orbax writes asynchronously into a temporary folder and renames it when whole, so a kill at any moment or a full
disk leaves the last good one. Frozen leaves of a base that can be fetched again are never written; `carried` leaves
(trained in an earlier stage, frozen in this one) always are. The data position is the step itself. A checkpoint that
was damaged afterwards is noticed by its checksums, and the one before it is taken.
"""

import contextlib
import json
import logging
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import jax
import orbax.checkpoint as ocp

from fi_jax.config import Experiment
from fi_jax.config_tree import to_dict
from fi_jax.errors import UserError
from fi_jax.files import sha256
from fi_jax.training.fingerprint import differences
from fi_jax.training.state import Leaves, TrainState, all_finite, checksum
from fi_jax.trees import flatten

log = logging.getLogger(__name__)

# Fields that may differ between save and restore: they change where and how long a run runs, not what it computes.
_FREE_FIELDS = (
    "name",
    "mesh",
    "train.log_every",
    "train.stall_seconds",
    "train.checkpoint_every",
    "train.keep_checkpoints",
    "train.wandb",
    "train.evaluate_every",
    "train.evaluate_faces",
    "train.patience",
    "data.workers",
    "data.mask_cache",
    "data.cache_in_memory",
)
# What a disk that is full or may not be written to is called in the messages of Orbax and its libraries.
_DISK = ("no space left", "quota", "read-only", "permission denied", "file too large", "enospc")


class Damaged(Exception):
    """A checkpoint cannot be used; the message says why."""


class Checkpoints:
    """The checkpoints of one run folder."""

    def __init__(self, folder: Path, config: Experiment):
        """Opens (and makes) `folder/checkpoints`. A save that a kill interrupted is swept away."""
        options = ocp.CheckpointManagerOptions(
            max_to_keep=config.train.keep_checkpoints,
            save_interval_steps=1,
            enable_async_checkpointing=True,
            cleanup_tmp_directories=True,
        )
        self._config, self._folder, self._failed = config, folder, False
        # Orbax also raises whatever it logs with a traceback. On a full disk, writes that end after it has given up
        # print one more each, by way of Python's hook for errors that nobody can catch.
        logging.getLogger("absl").setLevel(logging.CRITICAL)
        if getattr(sys.unraisablehook, "func", None) is not _but_late_writes:
            sys.unraisablehook = partial(_but_late_writes, sys.unraisablehook)
        with self._on_disk():
            self._manager = ocp.CheckpointManager((folder / "checkpoints").absolute(), options=options)

    def steps(self) -> list[int]:
        """The steps of all checkpoints that were written to their end."""
        return sorted(self._manager.all_steps())

    def save(self, state: TrainState, carried: Leaves, info: dict) -> None:
        """Starts saving; returns before it is written. `info` is JSON: label names, the base and its hash, …"""
        step = int(state.step)
        if self._manager.latest_step() == step:
            return
        tree = {"state": state._asdict(), "carried": carried}
        about = {"config": to_dict(self._config), **info, "checksum": int(checksum(state))}
        args = ocp.args.Composite(
            tree=ocp.args.StandardSave(tree), metadata=ocp.args.JsonSave({**about, "seal": _seal(about)})
        )
        with self._on_disk():
            self._manager.save(step, args=args)

    def about(self, step: int) -> dict:
        """Returns what was saved beside a checkpoint's arrays: the config, and `info` of `save`. Raises `Damaged`."""
        with _damage():
            about = self._manager.restore(step, args=ocp.args.Composite(metadata=ocp.args.JsonRestore())).metadata
            if not isinstance(about["config"], dict):
                raise Damaged("its config is not there")
            # Runs of version 0.1 have no seal.
            if about.pop("seal", None) not in (None, _seal(about)):
                raise Damaged("its description is not the one that was saved")
        return about

    def restore(
        self, like: TrainState, carried: Leaves, step: int | None = None, data: dict | None = None
    ) -> TrainState:
        """Restores `step` (default: the last) into the shapes and shardings of `like` (any mesh, any number of hosts).

        Args:
          data: the fingerprint of the faces that training goes on with; None accepts any.

        Raises:
          UserError: the checkpoint was made by another config, or of other faces.
          Damaged: it cannot be read, or is not what was saved.
        """
        step = self._manager.latest_step() if step is None else step
        about = self.about(step)
        check_same_config(about["config"], to_dict(self._config), any_root="data" in about)
        changed = differences(about["data"], data) if data and "data" in about else []
        if changed:
            raise UserError(
                f"the data have changed since step {step} of {self._folder}: {'; '.join(changed)}. Bring them back, "
                "train under another --name, or go on with --accept-changed-data"
            )
        abstract = jax.tree.map(ocp.utils.to_shape_dtype_struct, {"state": like._asdict(), "carried": carried})
        with _damage():
            args = ocp.args.Composite(tree=ocp.args.StandardRestore(abstract))
            state = TrainState(**self._manager.restore(step, args=args).tree["state"])
            if about.get("checksum") not in (None, int(checksum(state))):
                raise Damaged("its numbers are not those that were saved")
            if int(state.step) != step:
                raise Damaged(f"it is of step {int(state.step)}, under another number")
            if not all_finite(state):
                raise Damaged("some of its numbers are not finite")
        return state

    def set_aside(self, step: int) -> None:
        """Moves a damaged checkpoint out of the way, into the run's folder `damaged`."""
        if jax.process_index() == 0:
            aside = self._folder / "damaged" / f"{step}-{time.time_ns()}"
            aside.parent.mkdir(exist_ok=True)
            (self._folder / "checkpoints" / str(step)).rename(aside)
        if jax.process_count() > 1:
            from jax.experimental import multihost_utils

            multihost_utils.sync_global_devices("damaged checkpoint set aside")
        self._manager.reload()

    def wait(self) -> None:
        """Blocks until the save under way is on disk; a full disk is a `UserError`."""
        with self._on_disk():
            self._manager.wait_until_finished()

    def close(self) -> None:
        """Waits and releases the manager."""
        # What went wrong with the disk has been said.
        with contextlib.suppress(Exception) if self._failed else self._on_disk():
            self._manager.close()

    @contextlib.contextmanager
    def _on_disk(self) -> Iterator[None]:
        try:
            yield
        except Exception as error:
            text = f"{error} {error.__cause__ or ''} {error.__context__ or ''}"
            if not any(word in text.lower() for word in _DISK):
                raise
            self._failed = True
            # Leaves are written side by side; what the others met, asyncio would log when Python ends.
            logging.getLogger("asyncio").setLevel(logging.CRITICAL)
            reason = next(word for word in _DISK if word in text.lower())
            raise UserError(
                f"cannot write a checkpoint under '{self._folder}' ({reason}); the ones before it are whole. "
                "Free space, then repeat the command: it resumes"
            ) from error


def _but_late_writes(hook: Callable[[Any], object], unraisable: Any) -> None:
    """A `sys.unraisablehook` that leaves out the errors of writes into an event loop that is closed."""
    if str(unraisable.exc_value) != "Event loop is closed":
        hook(unraisable)


@contextlib.contextmanager
def _damage() -> Iterator[None]:
    """Turns whatever a damaged file makes Orbax raise into `Damaged`."""
    try:
        yield
    except (Damaged, UserError, MemoryError, PermissionError):
        raise
    except Exception as error:
        if "RESOURCE_EXHAUSTED" in str(error):
            raise
        raise Damaged(
            f"it cannot be read ({type(error).__name__}: {(str(error) or '-').splitlines()[0][:150]})"
        ) from error


def _seal(about: dict) -> str:
    return sha256(json.dumps(about, sort_keys=True))


def restore_last(
    checkpoints: Sequence[Checkpoints], states: Sequence[TrainState], carried: Leaves, data: dict | None = None
) -> Sequence[TrainState]:
    """Restores all runs at the last step that every one has saved whole; returns `states` where none was saved.

    A kill may have come between two saves, and a checkpoint may have been damaged afterwards: it is set aside.
    Arguments and errors are those of `Checkpoints.restore`.
    """
    common = set.intersection(*(set(one.steps()) for one in checkpoints))
    if not common and any(one.steps() for one in checkpoints):
        raise UserError("the members' checkpoints have no step in common; raise train.keep_checkpoints, or start anew")
    damaged: list[tuple[Checkpoints, int]] = []
    for step in sorted(common, reverse=True):
        restored: list[TrainState] = []
        try:
            for one, state in zip(checkpoints, states):
                restored.append(one.restore(state, carried, step, data))
        except Damaged as problem:
            one = checkpoints[len(restored)]
            log.warning(f"checkpoint {step} of {one._folder} is damaged: {problem}")
            damaged.append((one, step))
            continue
        for one, bad in damaged:
            one.set_aside(bad)
        return restored
    if damaged:
        raise UserError(f"no checkpoint of {damaged[0][0]._folder} can be read; move 'checkpoints' away to start anew")
    return states


def check_same_config(saved: dict, now: dict, any_root: bool = False) -> None:
    """Raises `UserError` naming every field in which a checkpoint's config differs from the run's.

    `any_root`: the folders of the data may differ, since the faces themselves are compared.
    """
    a, b = _flat(saved, any_root), _flat(now, any_root)
    # A field that came later was then what it is by default.
    later = {path: value for path, value in _flat(to_dict(Experiment()), any_root).items() if path not in a}
    differing = [
        path
        for path in dict.fromkeys((*a, *b))
        if {**later, **a}.get(path) != b.get(path)
        and not any(f"{path}.".startswith(f"{free}.") for free in _FREE_FIELDS)
    ]
    if differing:
        shown = ", ".join(f"{path} ({a.get(path)!r} then, {b.get(path)!r} now)" for path in differing[:5])
        more = f" and {len(differing) - 5} more" if len(differing) > 5 else ""
        raise UserError(
            f"the run's checkpoint was made by another config: {shown}{more}; use another --name, or the same settings"
        )


def _flat(config: dict, any_root: bool) -> dict[str, Any]:
    # JSON has no tuples.
    fields = flatten(json.loads(json.dumps(config)))
    flat = {path.replace("/", "."): value for path, value in fields.items()}
    sources = flat.get("data.sources")
    if any_root and isinstance(sources, list):
        flat["data.sources"] = [{**source, "root": ""} for source in sources]
    return flat
