"""One optimisation step: augment, forward, the terms of L, gradients of the trained tree alone, update."""

from collections.abc import Callable
from typing import Any, NamedTuple, cast

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh
from jaxtyping import Array, Int

from fi_jax.config import Experiment
from fi_jax.knowledge.logic import Facts, RuleTable
from fi_jax.knowledge.score_graph import revealed
from fi_jax.models.face_insight import Constants, FaceInsight, Faces
from fi_jax.models.masked import hidden_patches, patch_targets, visible_patches
from fi_jax.models.pixels import encoder_pixels
from fi_jax.models.projections import GPU_OPTIONS
from fi_jax.parallel.mesh import run_on
from fi_jax.parallel.rules import gather_small, state_shardings
from fi_jax.training.augment import Augmentation, augment
from fi_jax.training.losses import Answers, loss_terms, mae_loss, total
from fi_jax.training.mixup import mixup
from fi_jax.training.numbers import Numbers, numbers_of
from fi_jax.training.optimizer import make_optimizer, merge_params
from fi_jax.training.state import Leaves, TrainState

Batch = dict[str, Array]
Metrics = dict[str, Array]
# `step(state, inputs, batch) -> (state, metrics)`.
Step = Callable[..., tuple[TrainState, Metrics]]


class StepInputs(NamedTuple):
    """What a step reads and never changes. Arguments, not closures, so that nothing is baked into the program."""

    frozen: Leaves
    constants: Constants
    rules: RuleTable
    # A member's among many; None for those of the config, as constants.
    numbers: Numbers | None = None


def add_pixels(batch: Batch, config: Experiment, key: Array | None) -> Batch:
    """Adds `pixels` and `map_pixels` for the encoders; when a key is given, augments and blends faces (`training.mixup`)."""
    image, mask = batch["image"], batch["mask"]
    if key is not None and config.data.augment:
        image, mask = augment(key, image, mask, Augmentation().scaled(config.data.augment_strength))
    pixels, map_pixels = encoder_pixels(image, mask, config.model)
    batch = {**batch, "pixels": pixels, "map_pixels": map_pixels}
    if key is None or not config.data.mixup:
        return batch
    blended = mixup(jax.random.fold_in(key, 1), pixels, map_pixels, batch["labels"], batch["known"], config.data.mixup)
    return {**batch, **dict(zip(("pixels", "map_pixels", "labels", "known", "whole"), blended, strict=True))}


def forward(
    model: FaceInsight,
    params: dict,
    constants: Constants,
    batch: Batch,
    *,
    stage: str,
    key: Array | None,
    faces: Faces | None = None,
) -> Answers:
    """What the model says about a batch that has pixels. Stage `align` stops at the alignment head.

    `faces` are the encoders' outputs where they have been computed before.
    """
    train = key is not None
    rngs = {"dropout": key} if key is not None else None

    def run(model: FaceInsight) -> Answers:
        seen = model.encode(batch["pixels"], batch["map_pixels"], train) if faces is None else faces
        alignment = model.align(seen, constants, _told(constants, batch, key))
        if stage == "align":
            return Answers(alignment.scores, alignment.own)
        sequence = model.sequence(seen, alignment, batch)
        options, tokens = model.answers(sequence, batch)
        has_tokens = batch["lm_positions"].shape[1] > 0
        return Answers(alignment.scores, alignment.own, options, tokens if has_tokens else None)

    return cast(Answers, model.apply({"params": params}, rngs=rngs, method=run))


def _told(constants: Constants, batch: Batch, key: Array | None) -> Facts | None:
    """What a training step states of each face, where the model listens to facts."""
    if key is None or constants.relations is None:
        return None
    return Facts(batch["labels"], revealed(jax.random.fold_in(key, 2), batch["known"], constants.groups))


def step_key(config: Experiment, step: Int[Array, ""]) -> Array:
    """The key of a step: a function of `data.seed` and its number alone."""
    return jax.random.fold_in(jax.random.key(config.data.seed), step)


def batch_loss(trained: Leaves, inputs: StepInputs, batch: Batch, key: Array, config: Experiment, counts: dict | None):
    """Returns `(loss, {term: (sum, count)})` of a (micro-)batch; `counts` are the whole batch's.

    A batch may bring what frozen encoders say about its pictures ("faces") instead of the pictures.
    """
    numbers = numbers_of(config) if inputs.numbers is None else inputs.numbers
    # Augmentation belongs to the stream, dropout to the run.
    pixel_key, model_key = jax.random.split(key)
    model_key = jax.random.fold_in(model_key, numbers.seed)
    faces = cast(Faces | None, batch.get("faces"))
    if faces is None:
        batch = add_pixels(batch, config, pixel_key)
    params = gather_small(merge_params(_scaled(trained, numbers.lora_scale), inputs.frozen))
    model = FaceInsight(config.model)
    if config.train.stage == "pretrain":
        terms = {"pixels": _reconstruct(model, params, batch["pixels"], model_key)}
    else:
        answers = forward(model, params, inputs.constants, batch, stage=config.train.stage, key=model_key, faces=faces)
        terms = loss_terms(answers, batch, inputs.rules, config.loss, inputs.constants.groups)
    return total(terms, counts or {name: count for name, (_, count) in terms.items()}, numbers.loss), terms


def _scaled(trained: Leaves, scale: Any) -> Leaves:
    # alpha enters the model as a factor of A·B; as a factor of B it may differ between members.
    return {
        path: leaf * scale if path.startswith("llm/") and path.endswith("lora_b") else leaf
        for path, leaf in trained.items()
    }


def _reconstruct(model: FaceInsight, params: dict, pixels: Array, key: Array) -> tuple[Array, Array]:
    encoder, decoder = model.config.image_encoder, model.config.decoder
    keep = visible_patches(key, pixels.shape[0], encoder.grid**2, decoder.mask_ratio)
    reconstructed = model.apply({"params": params}, pixels, keep, True, rngs={"dropout": key}, method="reconstruct")
    hidden = hidden_patches(keep, encoder.grid**2)
    return mae_loss(cast(Array, reconstructed), patch_targets(pixels, encoder.patch_size), hidden)


def make_step(config: Experiment) -> Step:
    """Returns `step(state, inputs, batch) -> (state, metrics)`, to be jitted with `state` donated.

    With `train.accumulate` > 1 the batch is cut into micro-batches whose gradients are summed. Counts are summed
    first (they depend on the data alone), so the result is that of the whole batch; the `lcp` form of L_c, which
    is not a sum over faces, is averaged over micro-batches.
    """
    grad = jax.value_and_grad(batch_loss, has_aux=True)

    def step(state: TrainState, inputs: StepInputs, batch: Batch) -> tuple[TrainState, Metrics]:
        numbers = numbers_of(config) if inputs.numbers is None else inputs.numbers
        key = step_key(config, state.step)
        if config.train.accumulate == 1:
            (_, terms), grads = grad(state.trained, inputs, batch, key, config, None)
        else:
            terms, grads = _accumulated(grad, state.trained, inputs, batch, key, config)
        updates, opt_state = make_optimizer(config.train, numbers).update(grads, state.opt_state, state.trained)
        trained = optax.apply_updates(state.trained, updates)
        average = state.average
        if config.train.ema:
            # A young average must not be dominated by the starting point.
            decay = jnp.minimum(config.train.ema, (1.0 + state.step) / (10.0 + state.step))
            average = {path: decay * average[path] + (1 - decay) * leaf for path, leaf in trained.items()}
        metrics = {name: value / jnp.maximum(count, 1.0) for name, (value, count) in terms.items()}
        metrics["loss"] = sum(numbers.loss[name] * value for name, value in metrics.items())
        metrics["grad_norm"] = optax.global_norm(grads)
        return TrainState(state.step + 1, trained, opt_state, average), metrics

    return step


def jit_step(config: Experiment, state: Any, mesh: Mesh, wrap: Callable[[Step], Step] | None = None) -> Any:
    """The step as the trainer jits it: `step(state, inputs, batch)`; `state` is donated.

    Args:
      state: arrays or shapes, for their places on the mesh.
      wrap: makes the step of many members from that of one.
    """
    step = make_step(run_on(config, mesh))
    options = GPU_OPTIONS if mesh.devices.flat[0].platform == "gpu" and config.train.stage == "instruct" else None
    step = wrap(step) if wrap else step
    return jax.jit(step, donate_argnums=0, out_shardings=(state_shardings(state, mesh), None), compiler_options=options)


def micro_batches(batch: Batch, parts: int) -> Batch:
    """Cuts a batch into `parts`, stacked on a new first axis: each takes every `parts`-th face.

    So every device's own faces are spread over all of them; of consecutive faces, each device would send its own away.
    """
    return jax.tree.map(lambda x: x.reshape(-1, parts, *x.shape[1:]).swapaxes(0, 1), batch)


def _accumulated(grad, trained: Leaves, inputs: StepInputs, batch: Batch, key: Array, config: Experiment):
    """Sums gradients over micro-batches, each divided by the whole batch's counts."""
    parts = config.train.accumulate
    micro = micro_batches(batch, parts)

    def terms_only(part):
        return jax.eval_shape(lambda p: batch_loss(trained, inputs, p, key, config, None)[1], part)

    names = list(terms_only(jax.tree.map(lambda x: x[0], micro)))
    counts = jax.lax.map(lambda part: _counts(part, inputs, config, names), micro)
    counts = {name: value.sum() for name, value in counts.items()}

    def body(carry, part_and_key):
        part, part_key = part_and_key
        (_, terms), grads = grad(trained, inputs, part, part_key, config, counts)
        sums = {name: value for name, (value, _) in terms.items()}
        return jax.tree.map(jnp.add, carry, (sums, grads)), None

    zero = ({name: jnp.zeros(()) for name in names}, jax.tree.map(jnp.zeros_like, trained))
    (sums, grads), _ = jax.lax.scan(body, zero, (micro, jax.random.split(key, parts)))
    return {name: (sums[name], counts[name]) for name in names}, grads


def _counts(batch: Batch, inputs: StepInputs, config: Experiment, names: list[str]) -> dict[str, Array]:
    """The counts of every term from the data alone (answers of zeros count the same)."""
    b, n = batch["labels"].shape
    align_only = config.train.stage == "align"
    answers = Answers(
        jnp.zeros((b, n)),
        None,
        None if align_only else jnp.where(batch["option_tokens"] >= 0, 0.0, -1e9),
        None if align_only else jnp.zeros((b, batch["lm_positions"].shape[1], 1)),
    )
    batch = {**batch, "lm_targets": jnp.zeros_like(batch["lm_targets"])} if not align_only else batch
    terms = loss_terms(answers, batch, inputs.rules, config.loss, inputs.constants.groups)
    return {name: terms[name][1].astype(jnp.float32) for name in names}
