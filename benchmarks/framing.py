"""What a model's answers lose when faces are turned, nearer, farther, shifted or padded: cut by the box, and aligned.

Each face is warped about the centre of its box, into a picture of its own, and cut from that as `fi-jax ask --box full` cuts.
With `--frame own` faces are aligned to the set's own mean face (of the sample), which is what a model sees that was trained
on faces cut by their boxes; with `--frame model` to the frame of `data.frame aligned`. Answers are the alignment head's. A model
that sees some questions nearer (`nano` 0.3) does so here; `--as-trained` shows it everything as it is cut.

    python benchmarks/framing.py --data data --faces 150 --model nano
"""

import argparse
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from PIL import Image

from fi_jax.data.datasets import find_dataset
from fi_jax.data.records import FaceRecord
from fi_jax.data.splits import limited
from fi_jax.evaluation.answering import closed_lines
from fi_jax.evaluation.predictions import Prediction
from fi_jax.faces import alignment
from fi_jax.faces.alignment import Similarity, into_frame
from fi_jax.faces.framing import FramedFace
from fi_jax.faces.map_cache import map_of, parser_of
from fi_jax.inference.answerer import Answerer, load_answerer
from fi_jax.pictures.crop import crop_square, square_box
from fi_jax.pictures.decode import decode
from fi_jax.weights.bundle import load_model

SIDE = 192
BATCH = 50
# Degrees, scale, shift (x, y) in sides of the box, padding in sides; where there are several, faces take them in turn.
CHANGES: dict[str, list[tuple[float, float, complex, float]]] = {
    "as it is": [(0, 1, 0j, 0)],
    "turned 20°": [(20, 1, 0j, 0), (-20, 1, 0j, 0)],
    "scaled 0.7": [(0, 0.7, 0j, 0)],
    "scaled 1.4": [(0, 1.4, 0j, 0)],
    "shifted 15 %": [(0, 1, shift, 0) for shift in (0.15, -0.15, 0.15j, -0.15j)],
    "padded 35 %": [(0, 1, 0j, 0.175)],
    # From UTKFace's frame to that in which `ask` cuts faces out of photographs.
    "padded 78 %": [(0, 1, 0j, 0.39)],
}


def changed(record: FaceRecord, angle: float, scale: float, shift: complex, padding: float) -> np.ndarray:
    """The square around a face's box, `SIDE` pixels, after the change; the picture's edge is repeated outside."""
    image = decode(record.image, record.key)
    left, top, right, bottom = square_box(record.box, *image.shape[:2])
    side, middle = right - left, complex(left + right, top + bottom) / 2
    # The picture at the square's resolution, with room for the corners.
    wide = crop_square(
        image, (middle.real - side, middle.imag - side, middle.real + side, middle.imag + side), 2 * SIDE
    )
    if padding:
        square = crop_square(image, record.box, SIDE)
        margin = round(padding * SIDE)
        return crop_square(np.pad(square, ((margin, margin), (margin, margin), (0, 0)), "edge"), None, SIDE)
    turn = np.exp(-1j * np.deg2rad(angle)) / scale
    source = Similarity(turn, (1 + 1j) * SIDE - turn * (0.5 + 0.5j + shift) * SIDE)
    a, b = source.scale, source.shift
    rows = (a.real, -a.imag, b.real, a.imag, a.real, b.imag)
    return np.asarray(
        Image.fromarray(wide).transform((SIDE, SIDE), Image.Transform.AFFINE, rows, Image.Resampling.BILINEAR)
    )


def cut(image: np.ndarray, mask: np.ndarray, size: int, frame: np.ndarray | None) -> FramedFace:
    """One picture as the model sees it: brought into `frame` where that is trusted."""

    def square(box, side):
        return crop_square(image, box, side)

    whole = square_box(None, *image.shape[:2])
    if frame is not None and (found := into_frame(square, mask, whole, image.shape[:2], size, frame)) is not None:
        return FramedFace(*found, "aligned")
    resized = Image.fromarray(mask).resize((size, size), Image.Resampling.NEAREST)
    return FramedFace(square(None, size), np.asarray(resized), "box")


def answers(model: Answerer, records: list[FaceRecord], faces: list[FramedFace], questions) -> Iterator[Prediction]:
    """The head's answers about every face."""
    for start in range(0, len(faces), BATCH):
        some = faces[start : start + BATCH]
        full = some + some[:1] * (BATCH - len(some))
        images, masks = np.stack([face.image for face in full]), np.stack([face.mask for face in full])
        found = model.answer(images, masks, questions, by_llm=False).of(False)
        for record, row in zip(records[start : start + BATCH], found, strict=False):
            yield from closed_lines(record, questions, row, "head", False, "median")


def metrics(predictions: Iterator[Prediction]) -> dict[str, float]:
    """Accuracy of yes/no attributes (mean over all), mean recall of the classes of a choice, mean error of years."""
    rows = defaultdict(list)
    for p in predictions:
        if p.label is not None:
            rows[p.question].append((p.label, p.answer))
    found, yes_no = {}, []
    for name, pairs in rows.items():
        truths, said = (np.array(column) for column in zip(*pairs, strict=True))
        if name == "age_years":
            found["age (years off)"] = float(abs(truths.astype(float) - said.astype(float)).mean())
        elif set(truths) <= {"Yes", "No"}:
            yes_no.append(100 * float((truths == said).mean()))
        else:
            found[name] = 100 * float(np.mean([(said[truths == kind] == kind).mean() for kind in sorted(set(truths))]))
    return found | ({"attributes": float(np.mean(yes_no))} if yes_no else {})


def own_frame(masks: list[np.ndarray]) -> np.ndarray:
    """The mean places of the parts in a set's own boxes, of faces that can be aligned."""
    centres = [alignment.part_centres(mask) / len(mask) for mask in masks]
    back = [found.inverse() for c in centres if (found := alignment.align(c)) is not None]
    return np.mean([found(alignment.FRAME) for found in back], 0)


def main() -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder that holds the releases under their names")
    parser.add_argument("--datasets", nargs="+", default=["utkface", "celeba", "expw", "fer2013"])
    parser.add_argument("--split", default="val")
    parser.add_argument("--faces", type=int, default=150, help="faces of each set")
    parser.add_argument("--model", default="nano")
    parser.add_argument("--frame", choices=("own", "model"), default="own")
    parser.add_argument("--as-trained", action="store_true", help="bring no face nearer")
    args = parser.parse_args()
    model = load_answerer(load_model(args.model))
    model.info = {name: value for name, value in model.info.items() if name != "nearer" or not args.as_trained}
    size, face_parser = model.config.data.image_size, model.config.weights.parser
    side = parser_of(face_parser).input_size
    print("| set | metric | frame | " + " | ".join(CHANGES) + " |\n| --- | --- | --- |" + " --- |" * len(CHANGES))
    for name in args.datasets:
        dataset = find_dataset(name)
        records = limited(dataset.open(args.data / name).records(args.split), args.faces)
        questions = model.answerable(dataset.questions)
        table: dict[tuple[str, str], list[float]] = defaultdict(list)
        aligned, frame = [], alignment.FRAME
        for kinds in CHANGES.values():
            pictures = [changed(record, *kinds[i % len(kinds)]) for i, record in enumerate(records)]
            masks = [map_of(crop_square(picture, None, side), face_parser) for picture in pictures]
            if args.frame == "own" and not aligned:
                frame = own_frame(masks)
            for how in ("box", "aligned"):
                to = frame if how == "aligned" else None
                faces = [cut(image, mask, size, to) for image, mask in zip(pictures, masks, strict=True)]
                for metric, value in metrics(answers(model, records, faces, questions)).items():
                    table[metric, how].append(value)
                if how == "aligned":
                    aligned.append(100 * np.mean([face.frame == "aligned" for face in faces]))
        for (metric, how), values in sorted(table.items()):
            rest = (f"{value - values[0]:+.2f}" for value in values[1:])
            print(f"| {name} | {metric} | {how} | {values[0]:.2f} | " + " | ".join(rest) + " |", flush=True)
        print(f"| {name} | aligned, % | | " + " | ".join(f"{share:.0f}" for share in aligned) + " |", flush=True)


if __name__ == "__main__":
    main()
