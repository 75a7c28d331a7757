"""Many runs in one program: configs that differ only in numbers train side by side under `jax.vmap`.

One copy of the frozen leaves, one data stream, one compile; where the encoders are frozen, one pass through them for
all members. What a member computes is what it computes alone (to rounding), whatever its neighbours are. Ours.
"""

import copy
import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple, cast

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float

from fi_jax.config import Experiment, flat_fields
from fi_jax.errors import UserError
from fi_jax.knowledge.logic import RuleTable, compile_rules
from fi_jax.labels.registry import vocabulary as find_vocabulary
from fi_jax.labels.rule_tables import rules_for
from fi_jax.models.face_insight import Constants, FaceInsight, Faces
from fi_jax.training.losses import TERMS, loss_terms, total
from fi_jax.training.optimizer import make_optimizer, merge_params
from fi_jax.training.state import Leaves, TrainState
from fi_jax.training.step import Batch, add_pixels, forward, pixel_and_model_keys, step_key

# Fields whose values are traced, one a member.
TRACED = (
    "train.learning_rate",
    "train.weight_decay",
    "train.clip_norm",
    "train.adam_b2",
    "train.seed",
    "loss.lm",
    "loss.bce",
    "loss.logic",
    "loss.head_bce",
    "loss.head_logic",
)
# Fields that act before the first step (through Ĉ and T_p^0) or on a leaf (through B), and on nothing else.
PREPARED = ("model.knowledge.tau", "model.knowledge.omega", "model.knowledge.graph", "model.llm.lora.alpha")
FIELDS = (*TRACED, *PREPARED)
_ANY = ("name",)


class Numbers(NamedTuple):
    """What the members differ in, one row each; float32 but for `seed` (int32)."""

    fields: Mapping[str, Array | np.ndarray]
    # Factor of every lora_b: a member's alpha over that of the program.
    lora_scale: Float[Array | np.ndarray, "m"]


class MemberInputs(NamedTuple):
    """What the members read: `graph` is one a member (`m n n`), everything else is shared."""

    frozen: Leaves
    prompts: Float[Array | np.ndarray, "n d0"]
    graph: Float[Array | np.ndarray, "m n n"]
    rules: RuleTable
    numbers: Numbers


def differing_fields(configs: Sequence[Experiment]) -> list[str]:
    """Dotted names of the fields in which the configs differ, the name of the run left out."""
    flat = [dict(flat_fields(config)) for config in configs]
    names = dict.fromkeys(name for one in flat for name in one)
    return [name for name in names if name not in _ANY and any(one.get(name) != flat[0].get(name) for one in flat)]


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
    """Whether one pass through the encoders serves all members: they are frozen and nothing in them is random."""
    towers = ("image_encoder", "segmentation_encoder")
    drops = any(getattr(config.model, tower).drop_path > 0 for tower in towers)
    return not drops and not any(path.startswith(towers) for path in trained)


def numbers_of(configs: Sequence[Experiment]) -> Numbers:
    """Collects what the members differ in."""
    flat = [dict(flat_fields(config)) for config in configs]
    fields = {
        name: np.asarray([one[name] for one in flat], np.int32 if name == "train.seed" else np.float32)
        for name in TRACED
    }
    alphas = np.asarray([config.model.llm.lora.alpha for config in configs], np.float32)
    return Numbers(fields, alphas / alphas[0])


def member_inputs(
    configs: Sequence[Experiment],
    frozen: Leaves,
    prompts: Array | np.ndarray,
    graphs: Sequence[Array | np.ndarray],
) -> MemberInputs:
    """Returns what the members read, on the host: T_p^0 (`n d0`) for all, a graph (`n n`) for each, their rules."""
    vocabulary = find_vocabulary(configs[0].data.vocabulary)
    rules = compile_rules(rules_for(vocabulary), vocabulary)
    return MemberInputs(frozen, np.asarray(prompts, np.float32), np.stack(graphs), rules, numbers_of(configs))


def stack(trees: Sequence[Any]) -> Any:
    """Stacks trees of equal structure along a new first axis, one row a member."""
    return jax.tree.map(lambda *leaves: np.stack([np.asarray(leaf) for leaf in leaves]), *trees)


def member(tree: Any, index: int) -> Any:
    """One member's row of a stacked tree, on the host."""
    return jax.tree.map(lambda leaf: np.asarray(leaf[index]), tree)


def make_member_step(configs: Sequence[Experiment], share_encoders: bool) -> Callable:
    """Returns `step(states, inputs, batch) -> (states, metrics)`; states and metrics have `m` rows.

    A batch may bring what frozen encoders say about its pictures instead of the pictures ("faces").
    Metrics hold every term that has a weight for some member.
    """
    config = configs[0]
    # Which terms are computed is static, their weights are traced.
    on: dict[str, Any] = {name: float(any(getattr(one.loss, name) for one in configs)) for name in TERMS}
    everything = dataclasses.replace(config.loss, **on)

    def step(states: TrainState, inputs: MemberInputs, batch: Batch) -> tuple[TrainState, dict[str, Array]]:
        seen, faces = batch, cast(Faces | None, batch.get("faces"))
        if faces is None:
            pixel_key, _ = pixel_and_model_keys(step_key(config, states.step[0]), config)
            seen = add_pixels(batch, config, pixel_key)
            faces = _encode(config, inputs, seen) if share_encoders else None

        def one(state: TrainState, numbers: Numbers, graph: Array | np.ndarray) -> tuple[TrainState, dict[str, Array]]:
            own = with_numbers(config, numbers)
            _, model_key = pixel_and_model_keys(step_key(own, state.step), own)

            def loss(trained: Leaves) -> tuple[Array, dict]:
                params = merge_params(_scaled(trained, numbers.lora_scale), inputs.frozen)
                constants = Constants(inputs.prompts, graph)
                model = FaceInsight(config.model)
                answers = forward(model, params, constants, seen, stage=config.train.stage, key=model_key, faces=faces)
                terms = loss_terms(answers, seen, inputs.rules, everything)
                return total(terms, {name: count for name, (_, count) in terms.items()}, own.loss), terms

            (_, terms), grads = jax.value_and_grad(loss, has_aux=True)(state.trained)
            updates, opt_state = make_optimizer(own.train).update(grads, state.opt_state, state.trained)
            # The rate is the last factor of every update, and optax's schedules do not take a traced one.
            updates = jax.tree.map(lambda update: numbers.fields["train.learning_rate"] * update, updates)
            trained = optax.apply_updates(state.trained, updates)
            average = state.average
            if config.train.ema:
                decay = jnp.minimum(config.train.ema, (1.0 + state.step) / (10.0 + state.step))
                average = {path: decay * average[path] + (1 - decay) * leaf for path, leaf in trained.items()}
            metrics = {name: value / jnp.maximum(count, 1.0) for name, (value, count) in terms.items()}
            metrics["loss"] = sum(getattr(own.loss, name) * value for name, value in metrics.items())
            metrics["grad_norm"] = optax.global_norm(grads)
            return TrainState(state.step + 1, trained, opt_state, average), metrics

        return jax.vmap(one)(states, inputs.numbers, inputs.graph)

    return step


def own_metrics(metrics: Mapping[str, Array], configs: Sequence[Experiment]) -> list[dict[str, float]]:
    """Each member's metrics, with the names it has alone: a term of weight 0 is not there."""
    values = {name: np.asarray(value) for name, value in metrics.items()}
    off = [{name for name in TERMS if not getattr(one.loss, name)} for one in configs]
    return [
        {name: float(rows[i]) for name, rows in values.items() if name not in unused} for i, unused in enumerate(off)
    ]


def with_numbers(config: Experiment, numbers: Numbers) -> Experiment:
    """Lays traced numbers over a config; the learning rate becomes 1, a factor for the caller.

    Past the checks of its construction: they read values, which a traced number does not have. Each member's config
    has passed them.
    """
    changed = copy.copy(config)
    parts = {part: copy.copy(getattr(config, part)) for part in ("train", "loss")}
    for name, value in numbers.fields.items():
        part, field = name.split(".")
        object.__setattr__(parts[part], field, value)
    object.__setattr__(parts["train"], "learning_rate", 1.0)
    for part, value in parts.items():
        object.__setattr__(changed, part, value)
    return changed


def _encode(config: Experiment, inputs: MemberInputs, batch: Batch) -> Faces:
    """One pass through frozen encoders, in training mode (without dropout it is the same)."""
    towers = ("image_encoder/", "segmentation_encoder/")
    params = merge_params({}, {path: leaf for path, leaf in inputs.frozen.items() if path.startswith(towers)})
    model = FaceInsight(config.model)
    return Faces(*model.apply({"params": params}, batch["pixels"], batch["map_pixels"], True, method="encode"))


def _scaled(trained: Leaves, scale: Array | np.ndarray) -> Leaves:
    # alpha enters the model as a factor of A·B; as a factor of B it may differ between members.
    return {
        path: leaf * scale if path.startswith("llm/") and path.endswith("lora_b") else leaf
        for path, leaf in trained.items()
    }
