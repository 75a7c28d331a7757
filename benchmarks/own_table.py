"""Draws a table of faces with two labels that the bundled model does not know: `sticker` (yes/no) and `backdrop`.

    python benchmarks/own_table.py FOLDER --count 200

writes FOLDER/photos, FOLDER/labels.csv and FOLDER/mine.yaml.
"""

import argparse
import csv
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

from fi_jax.data.synthetic.face import draw_face

BACKDROPS = {"red": (196, 40, 40), "green": (40, 160, 60), "blue": (40, 70, 200)}
SCHEMA = """\
name: mine
table: labels.csv
images: photos
picture: file
split: part
labels:
  sticker:
    type: yes/no
    question: Does this person wear a sticker?
    prompt: A face with a sticker on the forehead.
  backdrop:
    type: one of
    question: Which colour is the backdrop?
    options: {red: A face before a red wall., green: A face before a green wall., blue: A face before a blue wall.}
"""


def draw_table(folder: Path, count: int, seed: int = 0) -> Path:
    """Draws `count` faces and writes their table and schema; returns the schema. A fifth each is val and test."""
    (folder / "photos").mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(seed)
    rows = []
    for index in range(count):
        face = draw_face(seed, index)
        backdrop, sticker = list(BACKDROPS)[index % 3], int(rng.random() < 0.5)
        pixels = np.where((face.mask == 0)[..., None], np.array(BACKDROPS[backdrop], np.uint8), face.image)
        picture = Image.fromarray(pixels)
        if sticker:
            ys, xs = np.nonzero(face.mask == 1)
            x, y, size = float(np.median(xs)), float(np.quantile(ys, 0.15)), picture.width / 14
            ImageDraw.Draw(picture).ellipse((x - size, y - size, x + size, y + size), fill=(250, 220, 30))
        name = f"{index:04d}.png"
        picture.save(folder / "photos" / name)
        rows.append((name, sticker, backdrop, ("train", "train", "train", "val", "test")[index % 5]))
    with (folder / "labels.csv").open("w", newline="") as opened:
        csv.writer(opened).writerows([("file", "sticker", "backdrop", "part"), *rows])
    (folder / "mine.yaml").write_text(SCHEMA)
    return folder / "mine.yaml"


def main() -> None:
    """Draws the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--count", type=int, default=200)
    args = parser.parse_args()
    print(draw_table(args.folder, args.count))


if __name__ == "__main__":
    main()
