"""Checkpoints of a run: everything that was ever trained, the optimiser, the step, and what they belong to.

Orbax writes asynchronously into a temporary folder and renames it when whole, so a kill at any moment or a full
disk leaves the last good one. Frozen leaves of a base that can be fetched again are never written; `carried` leaves
(trained in an earlier stage, frozen in this one) always are. The data position is the step itself.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import orbax.checkpoint as ocp

from fi_jax.config import Experiment
from fi_jax.config_tree import to_dict
from fi_jax.errors import UserError
from fi_jax.training.state import Leaves, TrainState

# Fields that may differ between save and restore: they change where and how long a run runs, not what it computes.
_FREE_FIELDS = {
    "name",
    "mesh",
    "train.log_every",
    "train.stall_seconds",
    "train.checkpoint_every",
    "train.keep_checkpoints",
    "train.evaluate_every",
    "data.workers",
    "data.mask_cache",
    "data.cache_in_memory",
}


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
        self._config = config
        self._manager = ocp.CheckpointManager((folder / "checkpoints").absolute(), options=options)

    def latest_step(self) -> int | None:
        """The last whole checkpoint's step, or None."""
        return self._manager.latest_step()

    def steps(self) -> list[int]:
        """The steps of all whole checkpoints."""
        return sorted(self._manager.all_steps())

    def save(self, state: TrainState, carried: Leaves, info: dict) -> None:
        """Starts saving; returns before it is written. `info` is JSON: label names, the base and its hash, …"""
        step = int(state.step)
        if self._manager.latest_step() == step:
            return
        tree = {"state": state._asdict(), "carried": carried}
        metadata = {"config": to_dict(self._config), **info}
        self._manager.save(
            step, args=ocp.args.Composite(tree=ocp.args.StandardSave(tree), metadata=ocp.args.JsonSave(metadata))
        )

    def restore(self, like: TrainState, carried: Leaves, step: int | None = None) -> TrainState:
        """Restores `step` (default: the last) into the shapes and shardings of `like` (any mesh, any number of hosts).

        Raises `UserError` when the checkpoint was made by another config.
        """
        step = self._manager.latest_step() if step is None else step
        check_same_config(self.about(step)["config"], to_dict(self._config))
        abstract = jax.tree.map(ocp.utils.to_shape_dtype_struct, {"state": like._asdict(), "carried": carried})
        args = ocp.args.Composite(tree=ocp.args.StandardRestore(abstract))
        return TrainState(**self._manager.restore(step, args=args).tree["state"])

    def about(self, step: int) -> dict:
        """Returns what was saved beside a checkpoint's arrays: the config, and `info` of `save`."""
        return self._manager.restore(step, args=ocp.args.Composite(metadata=ocp.args.JsonRestore())).metadata

    def wait(self) -> None:
        """Blocks until the save under way is on disk; raises what went wrong in it."""
        self._manager.wait_until_finished()

    def close(self) -> None:
        """Waits and releases the manager."""
        self._manager.close()


def restore_last(
    checkpoints: Sequence[Checkpoints], states: Sequence[TrainState], carried: Leaves
) -> Sequence[TrainState]:
    """Restores all runs at the last step that every one has saved (a kill may have come between two saves).

    Returns `states` where nothing has been saved.
    """
    common = set.intersection(*(set(one.steps()) for one in checkpoints))
    if not common and any(one.steps() for one in checkpoints):
        raise UserError("the members' checkpoints have no step in common; raise train.keep_checkpoints, or start anew")
    if not common:
        return states
    return [one.restore(state, carried, max(common)) for one, state in zip(checkpoints, states)]


def check_same_config(saved: dict, now: dict) -> None:
    """Raises `UserError` naming every field in which a checkpoint's config differs from the run's."""
    differing = [
        path
        for path in _differences(saved, now)
        if not any(path == f or path.startswith(f + ".") for f in _FREE_FIELDS)
    ]
    if differing:
        shown = ", ".join(f"{path} ({_at(saved, path)!r} then, {_at(now, path)!r} now)" for path in differing[:5])
        more = f" and {len(differing) - 5} more" if len(differing) > 5 else ""
        raise UserError(
            f"the run's checkpoint was made by another config: {shown}{more}; use another --name, or the same settings"
        )


def _differences(a: Any, b: Any, path: str = "") -> list[str]:
    if isinstance(a, dict) and isinstance(b, dict):
        keys = [*a, *(key for key in b if key not in a)]
        return [d for key in keys for d in _differences(a.get(key), b.get(key), f"{path}.{key}".lstrip("."))]
    return [] if _plain(a) == _plain(b) else [path]


def _plain(value: Any) -> Any:
    # JSON has no tuples.
    if isinstance(value, list | tuple):
        return [_plain(v) for v in value]
    return {k: _plain(v) for k, v in value.items()} if isinstance(value, dict) else value


def _at(tree: Any, path: str) -> Any:
    for key in path.split("."):
        tree = tree.get(key) if isinstance(tree, dict) else None
    return tree
