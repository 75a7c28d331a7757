"""Many runs in one program: configs that differ only in numbers train side by side under `jax.vmap`.

One copy of the frozen leaves, one data stream, one compile; where the encoders are frozen, one pass through them for
all members. What a member computes is what it computes alone (to rounding), whatever its neighbours are. Ours.
"""

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import jax
import numpy as np

from fi_jax.config import LOSS_TERMS, Experiment
from fi_jax.config_tree import flat_fields
from fi_jax.errors import UserError
from fi_jax.models.face_insight import Constants
from fi_jax.training.numbers import FIELDS
from fi_jax.training.state import Leaves, TrainState
from fi_jax.training.step import StepInputs

# Members are at the same step, read one batch, and differ in their state, graph and numbers.
_STATE = TrainState(step=None, trained=0, opt_state=0, average=0)  # type: ignore[arg-type]
_INPUTS = StepInputs(frozen=None, constants=Constants(None, 0, None, 0), rules=None, numbers=0)  # type: ignore[arg-type]


def differing_fields(configs: Sequence[Experiment]) -> list[str]:
    """Dotted names of the fields in which the configs differ, the name of the run left out."""
    flat = [dict(flat_fields(config)) for config in configs]
    names = dict.fromkeys(name for one in flat for name in one)
    return [name for name in names if name != "name" and any(one.get(name) != flat[0].get(name) for one in flat)]


def check_members(configs: Sequence[Experiment]) -> None:
    """Raises `UserError` unless the configs can share one program and one stream."""
    others = [name for name in differing_fields(configs) if name not in FIELDS]
    if others:
        raise UserError(
            f"members may differ in numbers only, not in {', '.join(others)}; train those apart (fi-jax sweep --where here)"
        )
    config = configs[0]
    if config.train.stage == "pretrain":
        raise UserError("members answer questions about labels, which stage pretrain has none of; train those apart")
    if config.train.accumulate != 1:
        raise UserError("members cannot accumulate; set train.accumulate to 1 and lower data.batch_size")


def shares_encoders(config: Experiment, trained: Leaves) -> bool:
    """Whether one pass through the encoders serves all members: they are frozen and nothing in them is random.

    What does not depend on a member is computed once under `jax.vmap`; nothing has to be arranged for it.
    """
    towers = ("image_encoder", "segmentation_encoder")
    drops = any(getattr(config.model, tower).drop_path > 0 for tower in towers)
    return not drops and not any(path.startswith(towers) for path in trained)


def shared_config(configs: Sequence[Experiment]) -> Experiment:
    """The config of a program for all members: the first one's, with every term of L that some member has.

    Which terms are computed is static; their weights are among the numbers.
    """
    config = configs[0]
    if len(configs) == 1:
        return config
    on: dict[str, Any] = {name: float(any(getattr(one.loss, name) for one in configs)) for name in LOSS_TERMS}
    return replace(config, loss=replace(config.loss, **on))


def side_by_side(step: Callable) -> Callable:
    """Returns `step(states, inputs, batch) -> (states, metrics)` for stacked states, graphs and numbers."""
    return jax.vmap(step, in_axes=(_STATE, _INPUTS, None), out_axes=(_STATE, 0))


def stack(states: Sequence[TrainState]) -> TrainState:
    """Stacks states at the same step along a new first axis, one row a member; one state stays as it is."""
    if len(states) == 1:
        return states[0]
    rows = jax.tree.map(lambda *leaves: np.stack([np.asarray(leaf) for leaf in leaves]), *states)
    return rows._replace(step=states[0].step)


def member(state: TrainState, index: int, count: int) -> TrainState:
    """One of `count` members' rows of a stacked state, on the host; the state itself where there is one."""
    if count == 1:
        return state
    rows = jax.tree.map(lambda leaf: np.asarray(leaf[index]), (state.trained, state.opt_state, state.average))
    return TrainState(state.step, *rows)
