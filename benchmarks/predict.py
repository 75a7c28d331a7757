"""How many faces a second `fi-jax predict` answers about, by processor time: head and LLM, photographs and face crops.

python benchmarks/predict.py [--faces 32] [--cores 2]

Processor time (user + system, of all threads) a face does not depend on who else uses the machine; faces/s are what that
many cores would give when all of them are busy. Photographs are NASA's portrait of Eileen Collins (public domain),
mirrored and shifted; crops are drawn.
"""

import argparse
import time
from collections.abc import Iterable

import numpy as np
from skimage import data

import fi_jax
from fi_jax.cli.runtime import start
from fi_jax.data.synthetic.face import draw_face


def photographs(count: int) -> list[np.ndarray]:
    """Different pixels each, 512 a side."""
    return [np.roll(data.astronaut()[:, :: 1 - 2 * (i % 2)], i, axis=1) for i in range(count)]


def measure(model, name: str, pictures: Iterable[np.ndarray], by: str, cores: int, **how) -> None:
    """Answers about the pictures twice; the first time compiles."""
    pictures = list(pictures)
    list(model.predict(pictures[:8], by=by, **how))
    wall, processor = time.perf_counter(), time.process_time()
    found = [face for faces in model.predict(pictures, by=by, **how) for face in faces]
    wall, processor = time.perf_counter() - wall, time.process_time() - processor
    faces = sum(face.face > 0 for face in found)
    print(
        f"{name}, by the {by}: {faces} faces, {len(found[0].answers)} questions each; {processor / faces:.3f} s of "
        f"processor time a face = {cores * faces / processor:.1f} faces/s on {cores} cores ({faces / wall:.1f} seen)",
        flush=True,
    )


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--faces", type=int, default=32)
    parser.add_argument("--cores", type=int, default=2)
    args = parser.parse_args()
    start()
    model = fi_jax.load("nano")
    crops = [draw_face(0, i, 112).image for i in range(args.faces)]
    for by in ("head", "llm"):
        measure(model, "photographs of 512x512", photographs(args.faces), by, args.cores)
        measure(model, "face crops of 112x112", crops, by, args.cores, whole=True)
