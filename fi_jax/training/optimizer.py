"""The optimiser of the trained tree, and which leaves are trained."""

import re

import jax
import jax.numpy as jnp
import optax

from fi_jax.config import TrainConfig
from fi_jax.errors import UserError
from fi_jax.models.precision import Quantised
from fi_jax.training.numbers import Numbers
from fi_jax.trees import flatten, unflatten


def split_params(params: dict, patterns: tuple[str, ...]) -> tuple[dict, dict]:
    """Splits a parameter tree into `(trained, frozen)`, both flat {path: leaf}.

    A leaf is trained when a pattern matches its whole path. A pattern that matches nothing is a `UserError`:
    a typo would otherwise silently train less.
    """
    leaves = flatten(params)
    compiled = [re.compile(pattern) for pattern in patterns]
    for pattern in compiled:
        if not any(pattern.fullmatch(path) for path in leaves):
            raise UserError(
                f"train.trainable pattern '{pattern.pattern}' matches no parameter; paths look like '{next(iter(leaves))}'"
            )
    trained = {path: leaf for path, leaf in leaves.items() if any(p.fullmatch(path) for p in compiled)}
    return trained, {path: leaf for path, leaf in leaves.items() if path not in trained}


def merge_params(trained: dict[str, jax.Array], frozen: dict[str, jax.Array]) -> dict:
    """Joins the two flat trees into the nested one that `apply` takes."""
    return unflatten({**frozen, **trained})


def learning_rate(config: TrainConfig, peak: float | jax.Array) -> optax.Schedule:
    """Linear warm-up to `peak`, then cosine to zero or constant."""
    warmup = min(config.warmup_steps, config.steps - 1)
    if config.schedule == "constant":
        return optax.linear_schedule(0.0 if warmup else peak, peak, max(warmup, 1))
    # `optax.warmup_cosine_decay_schedule` without its branch on the peak's value, which may be traced.
    decay = optax.cosine_decay_schedule(peak, config.steps - warmup)
    return optax.join_schedules([optax.linear_schedule(0.0, peak, warmup), decay], [warmup])


def make_optimizer(config: TrainConfig, numbers: Numbers | None = None) -> optax.GradientTransformation:
    """AdamW with clipping; no decay on vectors and scalars; learning rates scaled by pattern.

    Its `init` raises `UserError` for a pattern that matches no trained leaf.

    Args:
      numbers: stand for those of `config` where they are traced.
    """
    given = config if numbers is None else numbers
    scales = [(re.compile(pattern), scale) for pattern, scale in config.learning_rate_scales]

    def scale_of(path: str) -> float:
        return next((scale for pattern, scale in scales if pattern.fullmatch(path)), 1.0)

    def scale_updates(updates, state, params=None):
        return {path: update * scale_of(path) for path, update in updates.items()}, state

    def decays(params):
        # Stacked layers add an axis, so biases and norms are told by name.
        return {
            path: path.endswith(("kernel", "lora_a", "lora_b", "embedding")) and leaf.ndim > 1
            for path, leaf in params.items()
        }

    def check_scales(params):
        for pattern, _ in scales:
            if not any(pattern.fullmatch(path) for path in params):
                raise UserError(
                    f"train.learning_rate_scales pattern '{pattern.pattern}' matches no trained parameter; "
                    f"paths look like '{next(iter(params))}'"
                )
        return optax.EmptyState()

    return optax.chain(
        optax.clip_by_global_norm(given.clip_norm),
        optax.scale_by_adam(b1=0.9, b2=given.adam_b2),
        optax.add_decayed_weights(given.weight_decay, mask=decays),
        optax.GradientTransformation(check_scales, scale_updates),
        optax.scale_by_learning_rate(learning_rate(config, given.learning_rate)),
    )


def cast(leaves: dict[str, jax.Array], dtype: str) -> dict[str, jax.Array]:
    """Casts every floating leaf; what is in 8 bits stays."""

    def one(leaf):
        floating = not isinstance(leaf, Quantised) and jnp.issubdtype(leaf.dtype, jnp.floating)
        return leaf.astype(dtype) if floating else leaf

    return {path: one(leaf) for path, leaf in leaves.items()}
