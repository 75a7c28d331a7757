"""Cross-validates the face parser, scores it, and trains the one that is kept on every picture."""

import logging
import time
from collections.abc import Sequence
from dataclasses import asdict
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float, Int, UInt8
from PIL import Image

from fi_jax.errors import UserError
from fi_jax.faces.map_cache import Face, load_mask
from fi_jax.faces.parser import FaceParser, mirrored_probabilities
from fi_jax.faces.parser_training import ParserTrainer, ParserTraining, class_weights, classes_shown, on_device
from fi_jax.files import sha256
from fi_jax.labels.face_parts import CLASSES, NUM_CLASSES
from fi_jax.pictures.crop import load_square

log = logging.getLogger(__name__)

# A class is frequent when at least this share of the pictures show it.
FREQUENT = 0.8


class Pairs(NamedTuple):
    """Pictures with their maps, all of one square size."""

    names: list[str]
    images: UInt8[np.ndarray, "n s s 3"]
    masks: UInt8[np.ndarray, "n s s"]


def read_pairs(faces: Sequence[Face], size: int) -> Pairs:
    """Reads the crops of faces that have maps of their own."""
    if not all(face.mask is not None for face in faces):
        raise UserError("the face parser is trained on pictures that have segmentation maps; some of these have none")
    images = np.stack([load_square(face.image, face.box, size, face.key) for face in faces])
    return Pairs([face.key for face in faces], images, np.stack([load_mask(face, size) for face in faces]))


def resized(pairs: Pairs, size: int) -> Pairs:
    """Returns the pairs at another size: pictures by antialiased bicubic, maps by nearest pixel."""

    def scale(array, how):
        return np.stack([np.asarray(Image.fromarray(a).resize((size, size), how)) for a in array])

    images = scale(pairs.images, Image.Resampling.BICUBIC)
    return Pairs(pairs.names, images, scale(pairs.masks, Image.Resampling.NEAREST))


def folds_of(names: Sequence[str], count: int) -> Int[np.ndarray, "n"]:
    """Returns the fold of each picture, 0 to `count` - 1, which depends on its name alone."""
    return np.array([int(sha256(f"celebamask_hq folds:{name}")[:16], 16) * count >> 64 for name in names])


def make_trainer(pairs: Pairs, training: ParserTraining) -> ParserTrainer:
    """Returns the programs that all folds and the final training share."""
    dtype = jnp.bfloat16 if jax.default_backend() == "gpu" else jnp.float32
    return ParserTrainer(training, class_weights(pairs.masks, training.balance), dtype)


def cross_validate(trainer: ParserTrainer, pairs: Pairs, num_folds: int) -> dict:
    """Trains one parser a fold and returns `{"cross_validation": scores}`.

    Every picture is predicted once, by the parser that never saw it; the pixel counts of all folds are pooled.
    """
    training = trainer.training
    small = resized(pairs, training.input_size)
    fold = folds_of(pairs.names, num_folds)
    pooled = np.zeros((NUM_CLASSES, NUM_CLASSES), np.int64)
    for number in range(num_folds):
        held_out = fold == number
        if not held_out.any():
            raise UserError(f"fold {number} of {num_folds} has no picture; use fewer folds")
        start = time.perf_counter()
        pictures = on_device(pairs.images, pairs.masks, training, held_out)
        variables, _ = trainer.fit(pictures, training.seed + number, f"fold {number}")
        parser = FaceParser(training.model, training.input_size, variables)
        counts = confusion_matrix(parser, small.images[held_out], small.masks[held_out])
        pooled += counts
        mean, seconds = np.nanmean(intersection_over_union(counts)), time.perf_counter() - start
        log.info(f"fold {number}: {held_out.sum()} pictures, mean IoU {mean:.4f}, {seconds:.0f} s")
    return {"cross_validation": {"folds": num_folds, "steps": training.steps, **summary(pooled, _shares(pairs))}}


def train(trainer: ParserTrainer, pairs: Pairs) -> FaceParser:
    """Trains a parser on every pair."""
    training, start = trainer.training, time.perf_counter()
    pictures = on_device(pairs.images, pairs.masks, training)
    variables, losses = trainer.fit(pictures, training.seed, "final")
    log.info(f"final: {time.perf_counter() - start:.0f} s")
    info = {
        "pictures": len(pairs.names),
        "training": {k: v for k, v in asdict(training).items() if k not in ("model", "augmentation")},
        "final_loss": float(losses[-100:].mean()),
    }
    return FaceParser(training.model, training.input_size, variables, info)


def score(parser: FaceParser, pairs: Pairs) -> dict:
    """Returns the `summary` of a parser on pairs."""
    small = resized(pairs, parser.input_size)
    return summary(confusion_matrix(parser, small.images, small.masks), _shares(pairs))


def confusion_matrix(
    parser: FaceParser, images: UInt8[np.ndarray, "n y x 3"], masks: UInt8[np.ndarray, "n y x"], batch_size: int = 64
) -> Int[np.ndarray, "c c"]:
    """Counts pixels by (true class, predicted class); predictions are the mean over picture and mirror image."""
    counts = np.zeros((NUM_CLASSES, NUM_CLASSES), np.int64)
    for start in range(0, len(images), batch_size):
        image, mask = images[start : start + batch_size], masks[start : start + batch_size]
        # The last batch is filled up, so that one program serves all.
        filled = np.concatenate([image, np.zeros((batch_size - len(image), *image.shape[1:]), np.uint8)])
        probabilities = mirrored_probabilities(parser.config, parser.variables, filled)
        predicted = np.asarray(probabilities.argmax(-1))[: len(image)]
        pairs = mask.astype(np.int64) * NUM_CLASSES + predicted
        counts += np.bincount(pairs.ravel(), minlength=NUM_CLASSES**2).reshape(counts.shape)
    return counts


def intersection_over_union(confusion: Int[np.ndarray, "c c"]) -> Float[np.ndarray, "c"]:
    """Returns the IoU of each class; NaN for a class that is neither there nor predicted."""
    inner = np.diag(confusion).astype(float)
    with np.errstate(invalid="ignore"):
        return inner / (confusion.sum(0) + confusion.sum(1) - inner)


def summary(confusion: Int[np.ndarray, "c c"], shares: Float[np.ndarray, "c"]) -> dict:
    """Returns the IoU of each class (None: neither there nor predicted), their mean, and the mean over classes in at least `FREQUENT` of the pictures."""
    iou = intersection_over_union(confusion)
    return {
        "mean": float(np.nanmean(iou)),
        "mean_frequent": float(np.nanmean(iou[shares >= FREQUENT])),
        "pixel_accuracy": float(np.diag(confusion).sum() / confusion.sum()),
        "iou": {name: _rounded(value) for name, value in zip(CLASSES, iou, strict=True)},
        "share_of_pictures": {name: _rounded(value) for name, value in zip(CLASSES, shares, strict=True)},
    }


def _shares(pairs: Pairs) -> Float[np.ndarray, "c"]:
    """Returns the share of the pictures that show each class."""
    return classes_shown(pairs.masks).mean(0)


def _rounded(value: float) -> float | None:
    return None if np.isnan(value) else round(float(value), 4)


def report(scores: dict) -> str:
    """Returns scores (of `summary`) as a Markdown table."""
    lines = ["| class | pictures with it | IoU |", "| --- | --- | --- |"]
    share = scores["share_of_pictures"]
    lines += [f"| {name} | {share[name]:.0%} | {iou:.1%} |" for name, iou in scores["iou"].items() if iou is not None]
    lines += [
        f"| mean of {len(scores['iou'])} | | {scores['mean']:.1%} |",
        f"| mean of those in at least {FREQUENT:.0%} of pictures | | {scores['mean_frequent']:.1%} |",
    ]
    return "\n".join(lines)
