"""What changes while training: step, trained leaves, optimiser state, running average."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Int

from fi_jax.config import TrainConfig

Leaves = dict[str, jax.Array]


class TrainState(NamedTuple):
    """The carried state of training; everything in it is checkpointed. Leaves are float32."""

    step: Int[Array, ""]
    trained: Leaves
    opt_state: optax.OptState
    # Running average of `trained`; the same arrays' shapes, or empty when `train.ema` is 0.
    average: Leaves


def init_state(trained: Leaves, optimizer: optax.GradientTransformation, config: TrainConfig) -> TrainState:
    """Makes the state at step 0."""
    trained = {path: jnp.asarray(leaf, jnp.float32) for path, leaf in trained.items()}
    average = {path: jnp.copy(leaf) for path, leaf in trained.items()} if config.ema else {}
    return TrainState(jnp.zeros((), jnp.int32), trained, optimizer.init(trained), average)


def final_leaves(state: TrainState) -> Leaves:
    """The leaves to evaluate and export: the running average where there is one."""
    return state.average or state.trained
