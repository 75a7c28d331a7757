"""What changes while training: step, trained leaves, optimiser state, running average; and what can go wrong in it."""

import math
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Bool, Int, UInt32

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


@partial(jax.jit, static_argnums=1)
def all_finite(state: TrainState, axes: int = 0) -> Bool[Array, "..."]:
    """Whether every number of a state is finite; with `axes` 1, of each row of a stacked state."""
    leaves = jax.tree.leaves((state.trained, state.opt_state, state.average))
    return jnp.stack([jnp.isfinite(leaf).all(tuple(range(axes, leaf.ndim))) for leaf in leaves]).all(0)


@jax.jit
def checksum(state: TrainState) -> UInt32[Array, ""]:
    """A number that changes with any single bit of a state, and with nearly any other damage; the same on any mesh.

    Every word counts with an odd factor of its place, modulo 2³², so no flip of one bit is lost.
    """
    total = jnp.uint32(0)
    for leaf in jax.tree.leaves(state):
        words = jax.lax.bitcast_convert_type(leaf, jnp.uint32)
        # By axes: flattening an array that is cut over devices would gather it.
        strides = [math.prod(leaf.shape[axis + 1 :]) for axis in range(leaf.ndim)]
        place = sum(
            (jax.lax.broadcasted_iota(jnp.uint32, leaf.shape, axis) * jnp.uint32(stride % 2**32))
            for axis, stride in enumerate(strides)
        )
        total = total * jnp.uint32(2654435761) + jnp.sum(words * (2 * place + 1), dtype=jnp.uint32)
    return total
