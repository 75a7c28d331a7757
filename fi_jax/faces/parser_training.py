"""Trains the face parser: a SegFormer on pictures with segmentation maps, all of them on the device.

Ours: cross-entropy with tempered class weights, plus a soft Jaccard loss over the batch, which is the metric
itself made differentiable; an exponential moving average of the weights is what is kept. Pictures with rare
classes are drawn more often (repeat factors of LVIS, Gupta et al. 2019). Folds are weights over the pictures, so
that every fold runs the same compiled program.
"""

import logging
import math
from dataclasses import dataclass
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Bool, Float, Int, PRNGKeyArray, UInt8

from fi_jax.errors import UserError
from fi_jax.faces.parser import logits_at, normalise
from fi_jax.faces.parser_augment import PASTED, ParserAugmentation, augment
from fi_jax.labels.face_parts import NUM_CLASSES
from fi_jax.models.segformer import Segformer, SegformerConfig

log = logging.getLogger(__name__)

# Smaller than B0, and twice as fine: 1.9 million weights, logits at half the input's side.
SMALL_SEGFORMER = SegformerConfig(
    depths=(2, 2, 2, 2),
    hidden_sizes=(32, 64, 128, 192),
    num_heads=(1, 2, 4, 6),
    patch_sizes=(5, 3, 3, 3),
    strides=(2, 2, 2, 2),
    decoder_hidden_size=128,
    hidden_act="gelu_tanh",
)


@dataclass(frozen=True)
class ParserTraining:
    """How the parser is trained. Sizes are sides of squares, in pixels."""

    model: SegformerConfig = SMALL_SEGFORMER
    augmentation: ParserAugmentation = ParserAugmentation()
    input_size: int = 192
    # Size the pictures are kept at; augmentation cuts its crops from it.
    source_size: int = 256
    steps: int = 5000
    batch_size: int = 64
    learning_rate: float = 1e-3
    warmup_steps: int = 300
    weight_decay: float = 0.05
    ema: float = 0.998
    # Exponent of the inverse pixel frequency in the cross-entropy's class weights.
    balance: float = 0.25
    # Classes in a smaller share of the pictures have these drawn more often.
    repeat_below: float = 0.2
    jaccard: float = 1.0
    steps_per_dispatch: int = 250
    seed: int = 0

    def __post_init__(self):
        if self.steps < 1 or self.batch_size < 1:
            raise UserError(
                f"parser training needs steps and batch_size above 0, not {self.steps} and {self.batch_size}"
            )
        if self.input_size % self.model.size_multiple:
            raise UserError(f"input_size {self.input_size} is not a multiple of {self.model.size_multiple}")


class ParserState(NamedTuple):
    """What a step changes. `variables` and `average` hold `params` and `batch_stats`."""

    step: Int[Array, ""]
    variables: dict
    average: dict
    optimizer: optax.OptState


class Pictures(NamedTuple):
    """The training set on the device. `log_weight` is −inf for pictures that are held out."""

    image: UInt8[Array, "n y x 3"]
    mask: UInt8[Array, "n y x"]
    log_weight: Float[Array, "n"]
    # The same for donors of accessories.
    log_donor: Float[Array, "n"]


def segmentation_loss(
    logits: Float[Array, "b y x c"],
    label: Int[Array, "b y x"],
    valid: Bool[Array, "b y x"],
    class_weight: Float[Array, "c"],
    jaccard: float,
) -> Float[Array, ""]:
    """Weighted cross-entropy plus `jaccard` × soft Jaccard loss, over valid pixels.

    The Jaccard part is the mean, over the classes that the batch shows, of
    `1 − Σ p·t / Σ (p + t − p·t)`, sums over the whole batch; it is 0 for a perfect map.
    """
    log_p = jax.nn.log_softmax(logits, axis=-1)
    target = jax.nn.one_hot(label, logits.shape[-1]) * valid[..., None]
    weight = class_weight[label] * valid
    cross_entropy = -(target * log_p).sum(-1) * weight
    p = jnp.exp(log_p) * valid[..., None]
    inner, total = (p * target).sum((0, 1, 2)), (p + target - p * target).sum((0, 1, 2))
    shown = target.sum((0, 1, 2)) > 0
    overlap = jnp.where(shown, 1 - inner / jnp.maximum(total, 1e-6), 0.0).sum() / jnp.maximum(shown.sum(), 1)
    return cross_entropy.sum() / jnp.maximum(weight.sum(), 1e-6) + jaccard * overlap


def class_weights(masks: UInt8[np.ndarray, "n y x"], balance: float) -> Float[np.ndarray, "c"]:
    """Returns `frequency^-balance`, scaled so that the mean over pixels is 1; absent classes count as one pixel."""
    frequency = np.bincount(masks.ravel(), minlength=NUM_CLASSES) / masks.size
    weight = np.maximum(frequency, 1 / masks.size) ** -balance
    return (weight / (weight * frequency).sum()).astype(np.float32)


def classes_shown(masks: UInt8[np.ndarray, "n y x"]) -> Bool[np.ndarray, "n c"]:
    """Tells which classes each map holds."""
    return np.stack([np.bincount(mask.ravel(), minlength=NUM_CLASSES) > 0 for mask in masks])


def repeat_factors(shown: Bool[np.ndarray, "n c"], below: float) -> Float[np.ndarray, "n"]:
    """Returns how often each picture is drawn: the largest `max(1, sqrt(below / f_c))` over the classes it shows.

    `f_c` is the share of pictures that show class c (Gupta et al. 2019).
    """
    factor = np.maximum(1.0, np.sqrt(below / np.maximum(shown.mean(0), 1 / len(shown))))
    return np.where(shown, factor, 1.0).max(1)


def on_device(
    images: UInt8[np.ndarray, "n y x 3"],
    masks: UInt8[np.ndarray, "n y x"],
    training: ParserTraining,
    held_out: Bool[np.ndarray, "n"] | None = None,
) -> Pictures:
    """Puts pictures on the device with their sampling weights; those `held_out` are never drawn, not as donors either."""
    used = np.ones(len(images), bool) if held_out is None else ~held_out
    if not used.any():
        raise UserError("every picture is held out; there is nothing to train on")
    shown = classes_shown(masks)
    weight = np.where(used, repeat_factors(shown, training.repeat_below), 0.0)
    # Each accessory is drawn equally often, whatever its share.
    accessories = shown[:, PASTED] & used[:, None]
    donor = (accessories / np.maximum(accessories.sum(0), 1)).sum(1)
    donor = donor if donor.any() else weight
    with np.errstate(divide="ignore"):
        return Pictures(jnp.asarray(images), jnp.asarray(masks), jnp.log(weight), jnp.log(donor))


class ParserTrainer:
    """The compiled programs of one training: the same for every fold. Holds no state."""

    def __init__(self, training: ParserTraining, class_weight: Float[np.ndarray, "c"], dtype: jnp.dtype = jnp.float32):
        self.training, self.class_weight = training, jnp.asarray(class_weight)
        self.model = Segformer(training.model, dtype=dtype)
        schedule = optax.warmup_cosine_decay_schedule(
            0.0, training.learning_rate, min(training.warmup_steps, training.steps - 1), training.steps
        )
        self.optimizer = optax.chain(
            optax.clip_by_global_norm(1.0),
            optax.adamw(
                schedule,
                weight_decay=training.weight_decay,
                mask=lambda params: jax.tree.map(lambda leaf: leaf.ndim > 1, params),
            ),
        )

    def init(self, key: PRNGKeyArray) -> ParserState:
        """Returns the state before the first step."""
        size = self.training.input_size
        variables = jax.jit(self.model.init)(key, jnp.zeros((1, size, size, 3)))
        copy = jax.tree.map(jnp.copy, variables)
        return ParserState(jnp.zeros((), jnp.int32), variables, copy, self.optimizer.init(variables["params"]))

    @partial(jax.jit, static_argnums=(0, 4), donate_argnums=1)
    def run(
        self, state: ParserState, key: PRNGKeyArray, pictures: Pictures, steps: int
    ) -> tuple[ParserState, Float[Array, "steps"]]:
        """Runs `steps` steps in one program; returns the state and their losses."""
        if steps == 1:
            state, loss = self._step(state, key, pictures)
            return state, loss[None]
        return jax.lax.scan(lambda s, _: self._step(s, key, pictures), state, length=steps)

    def _step(self, state: ParserState, key: PRNGKeyArray, pictures: Pictures):
        training = self.training
        k_face, k_donor, k_augment, k_drop = jax.random.split(jax.random.fold_in(key, state.step), 4)
        face = jax.random.categorical(k_face, pictures.log_weight, shape=(training.batch_size,))
        donor = jax.random.categorical(k_donor, pictures.log_donor, shape=(training.batch_size,))
        image, label, valid = augment(
            k_augment, pictures.image[face], pictures.mask[face], pictures.image[donor], pictures.mask[donor],
            training.input_size, training.augmentation,
        )  # fmt: skip

        def loss_of(params):
            variables = {"params": params, "batch_stats": state.variables["batch_stats"]}
            logits, updated = self.model.apply(
                variables, normalise(image), train=True, mutable=["batch_stats"], rngs={"dropout": k_drop}
            )
            logits = logits_at(logits, training.input_size)
            return segmentation_loss(logits, label, valid, self.class_weight, training.jaccard), updated["batch_stats"]

        (loss, stats), gradient = jax.value_and_grad(loss_of, has_aux=True)(state.variables["params"])
        update, optimizer = self.optimizer.update(gradient, state.optimizer, state.variables["params"])
        variables = {"params": optax.apply_updates(state.variables["params"], update), "batch_stats": stats}
        # The average forgets the first steps quickly, then slowly.
        decay = jnp.minimum(training.ema, (1.0 + state.step) / (10.0 + state.step))
        average = jax.tree.map(lambda old, new: decay * old + (1 - decay) * new, state.average, variables)
        return ParserState(state.step + 1, variables, average, optimizer), loss

    def fit(self, pictures: Pictures, seed: int, label: str) -> tuple[dict, Float[np.ndarray, "steps"]]:
        """Trains from scratch; returns the averaged variables and the loss of every step. `label` begins log lines."""
        k_init, k_steps = jax.random.split(jax.random.key(seed))
        state, losses = self.init(k_init), []
        # XLA runs convolutions inside loops on one core: on CPUs single steps are several times faster.
        together = 1 if jax.default_backend() == "cpu" else self.training.steps_per_dispatch
        for done in range(0, self.training.steps, together):
            state, loss = self.run(state, k_steps, pictures, min(together, self.training.steps - done))
            losses += np.asarray(loss).tolist()
            if not math.isfinite(losses[-1]):
                raise UserError(f"the parser's loss is {losses[-1]} at step {len(losses)}; lower the learning rate")
            if len(losses) % self.training.steps_per_dispatch == 0 or len(losses) == self.training.steps:
                log.info(f"{label} step {len(losses)}/{self.training.steps} loss {np.mean(losses[-50:]):.4f}")
        return jax.device_get(state.average), np.array(losses)
