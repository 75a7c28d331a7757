"""Attribution of one answer to image and segmentation tokens, by integrated gradients (Sundararajan et al. 2017).

The baseline is a face without parts: a picture of one colour, this one's mean, and an empty map (ours). Attributions
are summed over the pixels of each token.
"""

from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, UInt8

from fi_jax.errors import UserError
from fi_jax.inference.answerer import Answerer
from fi_jax.knowledge.choices import yes_no_logits
from fi_jax.labels.questions import Question
from fi_jax.models.face_insight import FaceInsight
from fi_jax.models.pixels import encoder_pixels


@dataclass(frozen=True)
class Attribution:
    """What each token adds to the log-odds (nats) of one option against the others, for one question about one face.

    `image` and `segmentation` are grids of tokens: positive speaks for the option, negative against it. Their sum is
    `log_odds - baseline_log_odds`, up to the error of the integral.
    """

    question: Question
    option: int
    image: Float[np.ndarray, "gy gx"]
    segmentation: Float[np.ndarray, "sy sx"] | None
    # Of the option, for this face and for the baseline.
    log_odds: float
    baseline_log_odds: float

    @property
    def total(self) -> float:
        """Sum over all tokens; equals `log_odds - baseline_log_odds` when the integral has enough steps."""
        return float(self.image.sum() + (0 if self.segmentation is None else self.segmentation.sum()))

    @property
    def image_share(self) -> float:
        """Share of the attribution, for and against, that lies in the image rather than in the map."""
        image = np.abs(self.image).sum()
        segmentation = 0 if self.segmentation is None else np.abs(self.segmentation).sum()
        return float(image / max(image + segmentation, 1e-12))


def attribute(
    answerer: Answerer,
    image: UInt8[np.ndarray, "y x 3"],
    mask: UInt8[np.ndarray, "y x"],
    question: Question,
    option: int | None = None,
    *,
    by_llm: bool = True,
    steps: int = 32,
) -> Attribution:
    """Attributes an answer about one square crop to its tokens.

    Args:
      answerer: the model.
      image: the crop.
      mask: its segmentation map.
      question: a closed question.
      option: which of its options; None explains the answer that the model gives.
      by_llm: explain the LLM's answer, else the alignment head's.
      steps: points of the integral; each costs a forward and a backward pass.

    Raises:
      UserError: the model's vocabulary lacks the question, or the option does not exist.
    """
    if not answerer.answerable([question]):
        raise UserError(
            f"the model's vocabulary '{answerer.vocabulary.name}' knows no answer to '{question.name}', "
            "so there is nothing to explain"
        )
    by_llm = by_llm and answerer.is_instruction_tuned
    if option is None:
        option = int(answerer.answer(image[None], mask[None], [question], by_llm=by_llm).of(by_llm)[0, 0].argmax())
    if not 0 <= option < len(question.options):
        raise UserError(f"'{question.name}' has {len(question.options)} options; there is no option {option}")
    config = answerer.config.model
    pixels, maps = encoder_pixels(jnp.asarray(image[None]), jnp.asarray(mask[None]), config)
    _, empty = encoder_pixels(jnp.asarray(image[None]), jnp.zeros(mask[None].shape, jnp.uint8), config)
    # A second encoder that sees the picture (`model.segmentation_input`) has the picture's baseline.
    without = baseline_pixels(maps) if config.segmentation_input == "picture" else empty
    ends = (baseline_pixels(pixels), pixels), (without, maps)
    batch = _asked(answerer, question) if by_llm else {}
    labels = jnp.array([-1 if label is None else answerer.vocabulary.index(label) for label in question.labels])
    arguments = (answerer.params, answerer.constants, *ends, batch, labels, jnp.int32(option))
    attributions, scores = _integrate(answerer.model, steps, *arguments)
    grids = [
        np.asarray(_by_token(a, encoder.patch_size * encoder.merge), np.float32)
        for a, encoder in zip(attributions, (config.image_encoder, config.segmentation_encoder), strict=True)
    ]
    baseline, log_odds = (float(s) for s in scores)
    return Attribution(question, option, grids[0], grids[1] if config.use_segmentation else None, log_odds, baseline)


def _asked(answerer: Answerer, question: Question) -> dict[str, Array]:
    """The arrays that ask a question where `Answerer.answer` asks it: in a segment, or at the end of the prefix."""
    batch = dict[str, Any](answerer.builder((question,)).build([range(1)]))
    if answerer.asks_in_prefix:
        asked = answerer.builder(()).question_ids(question.text)
        batch["prefix_tokens"] = np.append(batch["prefix_tokens"], [asked], axis=1)
        batch["answer_position"] = np.full((1, 1), -1)
    return {key: jnp.asarray(value) for key, value in batch.items()}


def baseline_pixels(pixels: Float[Array, "b s s 3"]) -> Float[Array, "b s s 3"]:
    """Pictures of one colour, the mean of each. A blur would leave large things, such as a hat, where they are."""
    return jnp.broadcast_to(pixels.mean((1, 2), keepdims=True), pixels.shape)


def _by_token(attributions: Float[Array, "s s 3"], side: int) -> Float[Array, "gy gx"]:
    """Sums over each patch. An edge narrower than a patch, which no token sees, is left out."""
    grid = attributions.shape[0] // side
    seen = attributions[: grid * side, : grid * side]
    return seen.reshape(grid, side, grid, side, 3).sum((1, 3, 4))


def _log_odds(model: FaceInsight, params, constants, pixels, maps, batch, labels, option) -> Float[Array, ""]:
    """Of one option against all others: by the LLM where `batch` asks the question, else by the alignment head."""

    def logits(module: FaceInsight):
        faces = module.encode(pixels, maps)
        alignment = module.align(faces, constants)
        if not batch:
            # Of a yes/no question, the label alone counts.
            alone = yes_no_logits(alignment.scores, constants.groups)
            scores = jnp.where(labels.min() < 0, alone, alignment.scores)[0]
            # "No" stands for no label: its logit is zero.
            return jnp.where(labels >= 0, scores[jnp.maximum(labels, 0)], 0.0)
        return module.answers(module.sequence(faces, alignment, batch), batch)[0][0, 0]

    result: Any = model.apply({"params": params}, method=logits)
    option_logits = result.astype(jnp.float32)
    own = jnp.arange(len(option_logits)) == option
    return option_logits[option] - jax.nn.logsumexp(jnp.where(own, -jnp.inf, option_logits))


@partial(jax.jit, static_argnums=(0, 1))
def _integrate(model: FaceInsight, steps: int, params, constants, image, maps, batch, labels, option):
    """Midpoint rule over the straight line from the baseline to the face; one face at a time bounds memory."""

    def score(pixels, coloured):
        return _log_odds(model, params, constants, pixels, coloured, batch, labels, option)

    def between(ends, share):
        return ends[0] + share * (ends[1] - ends[0])

    def step(total, share):
        slopes = jax.grad(score, argnums=(0, 1))(between(image, share), between(maps, share))
        return jax.tree.map(jnp.add, total, slopes), None

    start = (jnp.zeros_like(image[1]), jnp.zeros_like(maps[1]))
    slopes, _ = jax.lax.scan(step, start, (jnp.arange(steps) + 0.5) / steps)
    attributions = tuple(s[0] / steps * (ends[1] - ends[0])[0] for s, ends in zip(slopes, (image, maps)))
    return attributions, (score(image[0], maps[0]), score(image[1], maps[1]))
