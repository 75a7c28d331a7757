"""Cross-validates the face parser, then trains the one that is kept on every picture."""

import time
from collections.abc import Callable, Sequence
from dataclasses import asdict
from functools import lru_cache
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float, Int, UInt8
from PIL import Image

from fi_jax.errors import UserError
from fi_jax.faces.map_cache import Face, load_mask
from fi_jax.faces.parser import FaceParser
from fi_jax.faces.parser_training import (
    ParserTrainer,
    ParserTraining,
    class_weights,
    confusion_matrix,
    folds_of,
    intersection_over_union,
    on_device,
)
from fi_jax.labels.face_parts import CLASSES, NUM_CLASSES
from fi_jax.models.segformer import Segformer
from fi_jax.pictures.crop import load_square

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


def settings_of(steps: int, batch_size: int, seed: int) -> ParserTraining:
    """Returns the settings of a training with these three changed."""
    return ParserTraining(steps=steps, batch_size=batch_size, seed=seed)


def cross_validate(
    pairs: Pairs, training: ParserTraining, num_folds: int, say: Callable[[str], None] = lambda text: None
) -> dict:
    """Trains one parser a fold and returns `{"cross_validation": scores}`.

    Every picture is predicted once, by the parser that never saw it; the pixel counts of all folds are pooled.
    """
    trainer, exact = _trainer(pairs, training), Segformer(training.model)
    small = resized(pairs, training.input_size)
    fold = folds_of(pairs.names, num_folds)
    pooled = np.zeros((NUM_CLASSES, NUM_CLASSES), np.int64)
    for number in range(num_folds):
        held_out = fold == number
        if not held_out.any():
            raise UserError(f"fold {number} of {num_folds} has no picture; use fewer folds")
        start = time.perf_counter()
        pictures = on_device(pairs.images, pairs.masks, training, held_out)

        def told(text: str, number: int = number) -> None:
            say(f"fold {number} {text}")

        variables, _ = trainer.fit(pictures, training.seed + number, told)
        counts = confusion_matrix(exact, variables, small.images[held_out], small.masks[held_out])
        pooled += counts
        mean, seconds = np.nanmean(intersection_over_union(counts)), time.perf_counter() - start
        say(f"fold {number}: {held_out.sum()} pictures, mean IoU {mean:.4f}, {seconds:.0f} s")
    return {"cross_validation": {"folds": num_folds, "steps": training.steps, **summary(pooled, _shown(pairs))}}


def train(pairs: Pairs, training: ParserTraining, say: Callable[[str], None] = lambda text: None) -> FaceParser:
    """Trains a parser on every pair."""
    start = time.perf_counter()
    pictures = on_device(pairs.images, pairs.masks, training)
    variables, losses = _trainer(pairs, training).fit(pictures, training.seed, lambda text: say(f"final {text}"))
    say(f"final: {time.perf_counter() - start:.0f} s")
    info = {
        "pictures": len(pairs.names),
        "training": {k: v for k, v in asdict(training).items() if k not in ("model", "augmentation")},
        "final_loss": float(losses[-100:].mean()),
    }
    return FaceParser(training.model, training.input_size, variables, info)


@lru_cache(maxsize=1)
def _compiled(training: ParserTraining, weight: tuple[float, ...], dtype: str) -> ParserTrainer:
    # Folds and the final training share one compiled program.
    return ParserTrainer(training, np.array(weight, np.float32), jnp.dtype(dtype))


def _trainer(pairs: Pairs, training: ParserTraining) -> ParserTrainer:
    dtype = "bfloat16" if jax.default_backend() == "gpu" else "float32"
    return _compiled(training, tuple(class_weights(pairs.masks, training.balance).tolist()), dtype)


def _shown(pairs: Pairs) -> Float[np.ndarray, "c"]:
    """Share of the pictures that show each class."""
    return np.stack([np.bincount(mask.ravel(), minlength=NUM_CLASSES) > 0 for mask in pairs.masks]).mean(0)


def score(parser: FaceParser, pairs: Pairs) -> dict:
    """Returns the `summary` of a parser on pairs."""
    small = resized(pairs, parser.input_size)
    counts = confusion_matrix(Segformer(parser.config), parser.variables, small.images, small.masks)
    return summary(counts, _shown(pairs))


def summary(confusion: Int[np.ndarray, "c c"], shown: Float[np.ndarray, "c"]) -> dict:
    """Returns the IoU of each class (None: neither there nor predicted), their mean, and the mean over classes in at least `FREQUENT` of the pictures."""
    iou = intersection_over_union(confusion)
    return {
        "mean": float(np.nanmean(iou)),
        "mean_frequent": float(np.nanmean(iou[shown >= FREQUENT])),
        "pixel_accuracy": float(np.diag(confusion).sum() / confusion.sum()),
        "iou": {name: _rounded(value) for name, value in zip(CLASSES, iou, strict=True)},
        "share_of_pictures": {name: _rounded(value) for name, value in zip(CLASSES, shown, strict=True)},
    }


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
