"""How well faces are aligned however they are turned: by the parsed map's parts, by eyes and mouth alone, by a regressor.

Truth are CelebAMask-HQ's own maps, those with left and right swapped put right. Errors are those of eyes and mouth, mean over
the three, in distances of the eyes. The regressor is ridge regression from histograms of oriented gradients, trained on the
pictures that are not judged, each turned eight ways.

    python benchmarks/alignment.py --data data --pictures 120
"""

import argparse
from pathlib import Path

import numpy as np
from PIL import Image

from fi_jax.data.datasets import open_source
from fi_jax.faces.alignment import FRAME, Similarity, align, part_centres
from fi_jax.faces.map_cache import load_mask
from fi_jax.faces.parser import load_parser, parse_crop
from fi_jax.pictures.crop import load_square

SIDE = 128
ANGLES = (0, -15, 20, -30, 30, -45, 45)
EYES = abs(FRAME[0] - FRAME[1])


def turned(image: np.ndarray, angle: float) -> tuple[np.ndarray, Similarity]:
    """The picture turned about its centre, edges repeated, and the map of its points."""
    margin = SIDE // 2
    wide = np.pad(image, ((margin, margin), (margin, margin), (0, 0)), "edge")
    shown = np.asarray(Image.fromarray(wide).rotate(-angle, Image.Resampling.BILINEAR))[margin:-margin, margin:-margin]
    scale = complex(np.exp(1j * np.deg2rad(angle)))
    return shown, Similarity(scale, SIDE / 2 * (1 + 1j) * (1 - scale))


def gradients(image: np.ndarray) -> np.ndarray:
    """Histograms of oriented gradients, 8×8 cells of 8 directions."""
    from skimage.feature import hog

    grey = np.asarray(Image.fromarray(image).convert("L"))
    return hog(grey, orientations=8, pixels_per_cell=(16, 16), cells_per_block=(2, 2), feature_vector=True)


def regressor(pictures: list[np.ndarray], truths: list[np.ndarray]) -> np.ndarray:
    """Weights from gradients (and 1) to the three landmarks, x and y, in sides of the picture."""
    rng, rows, targets = np.random.default_rng(0), [], []
    for image, truth in zip(pictures, truths, strict=True):
        for angle in rng.uniform(-50, 50, 8):
            shown, move = turned(image, angle)
            rows.append(gradients(shown))
            points = move(truth[:3]) / SIDE
            targets.append(np.concatenate([points.real, points.imag]))
    x, y = np.c_[np.array(rows), np.ones(len(rows))], np.array(targets)
    return np.linalg.solve(x.T @ x + 1.0 * np.eye(x.shape[1]), x.T @ y)


def main() -> None:
    """Prints the table."""
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("--data", type=Path, required=True)
    arguments.add_argument("--pictures", type=int, default=120)
    args = arguments.parse_args()
    parser, faces = load_parser(), open_source("celebamask_hq", args.data / "celebamask_hq").records("all")
    pairs = []
    for face in faces:
        truth = part_centres(load_mask(face, 256)) / 2
        if np.isfinite(truth[:3]).all() and align(truth) is not None:
            pairs.append((load_square(face.image, face.box, SIDE, face.key), truth))
    step = len(pairs) // args.pictures
    judged = pairs[::step][: args.pictures]
    rest = [pair for i, pair in enumerate(pairs) if i % step]
    weights = regressor([image for image, _ in rest], [truth for _, truth in rest])
    print("| turned by | how | error: 50, 90, 99 % | not trusted |\n| --- | --- | --- | --- |")
    for angle in ANGLES:
        errors: dict[str, list[float]] = {"six parts": [], "eyes and mouth": [], "regressor": []}
        for image, truth in judged:
            shown, move = turned(image, angle)
            centres = part_centres(parse_crop(parser, shown))
            values = np.r_[gradients(shown), 1] @ weights * SIDE
            regressed = np.r_[values[:3] + 1j * values[3:], np.full(3, np.nan)]
            three = np.where(np.arange(6) < 3, centres, np.nan)
            right = align(truth)
            for how, points in (("six parts", centres), ("eyes and mouth", three), ("regressor", regressed)):
                found = align(points)
                if found is not None and right is not None:
                    errors[how].append(abs(found(move(truth)) - right(truth))[:3].mean() / EYES)
        for how, found in errors.items():
            shares = ", ".join(f"{100 * v:.1f}" for v in np.percentile(found, [50, 90, 99]))
            print(f"| {angle}° | {how} | {shares} % | {len(judged) - len(found)} of {len(judged)} |", flush=True)


if __name__ == "__main__":
    main()
