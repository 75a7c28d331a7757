"""Own faces from start to end: draws a table with two labels that the bundled model does not know (`cover`, over nose and
mouth, and `backdrop`, one of three colours), fine-tunes on it, predicts, evaluates and reports; says minutes, accuracy, and how far the
built-in answers moved; with --data, whose folder holds the releases, also how right the built-in answers are, before and after.

    python benchmarks/own_table.py FOLDER --count 200 --data data

Everything lies in FOLDER: photos, labels.csv, mine.yaml, runs/mine, out, report and summary.json.
"""

import argparse
import csv
import json
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

import fi_jax
from fi_jax.api import Model
from fi_jax.data.synthetic.face import draw_face

BACKDROPS = {"red": (196, 40, 40), "green": (40, 160, 60), "blue": (40, 70, 200)}
# Validation faces of each release that the built-in answers are judged by.
RELEASES = {"expw": 160, "utkface": 160, "celeba": 64}
SCHEMA = """\
name: mine
table: labels.csv
images: photos
picture: file
split: part
labels:
  cover:
    type: yes/no
    question: Does this person wear a face cover?
    also: ["Is the mouth covered?"]
    prompt: A face with a cover over nose and mouth.
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
        backdrop, covered = list(BACKDROPS)[int(rng.integers(3))], int(rng.random() < 0.5)
        pixels = np.where((face.mask == 0)[..., None], np.array(BACKDROPS[backdrop], np.uint8), face.image)
        picture = Image.fromarray(pixels)
        if covered:
            # Over nose, mouth and chin: the lower half of the skin.
            ys, xs = np.nonzero(face.mask == 1)
            left, right = np.quantile(xs, (0.08, 0.92))
            top, bottom = np.quantile(ys, 0.5), ys.max() + 1
            ImageDraw.Draw(picture).rounded_rectangle((left, top, right, bottom), 8, fill=(225, 235, 245))
        name = f"{index:04d}.png"
        picture.save(folder / "photos" / name)
        rows.append((name, covered, backdrop, ("train", "train", "train", "val", "test")[index % 5]))
    with (folder / "labels.csv").open("w", newline="") as opened:
        csv.writer(opened).writerows([("file", "cover", "backdrop", "part"), *rows])
    (folder / "mine.yaml").write_text(SCHEMA)
    return folder / "mine.yaml"


def probabilities(model: Model, photos: list[Path], questions: list[str], by: str) -> list[np.ndarray]:
    """Each question's probabilities of all photos."""
    faces = [found[0] for found in model.predict(photos, questions=questions, by=by, whole=True)]
    return [np.array([face.answers[i].probabilities for face in faces]) for i in range(len(questions))]


def moved(before: Model, after: Model, photos: list[Path], by: str) -> dict[str, float]:
    """How far the answers that `before` knows are from its own: the mean change of probability, and answers changed."""
    questions = [question.name for question in before.choose_questions(None)]
    pairs = list(zip(*(probabilities(model, photos, questions, by) for model in (before, after)), strict=True))
    return {
        "mean_change": float(np.mean([np.abs(a - b).mean() for a, b in pairs])),
        "answers_changed": float(np.mean([(a.argmax(-1) != b.argmax(-1)).mean() for a, b in pairs])),
    }


def old_answers(model: str | Path, data: Path, out: Path) -> dict[str, float]:
    """How right a model's answers about validation faces of releases are, by head and LLM."""
    values: dict[str, float] = {}
    for name, faces in RELEASES.items():
        judged = fi_jax.evaluate(model, {name: data / name}, out / name, split="val", limit=faces, batch_size=16)
        values |= {" ".join(key): value for key, value in judged.values().items()}
    return values


def main() -> None:
    """Runs all of it and prints the summary."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--count", type=int, default=200, help="faces in the table (default: 200)")
    parser.add_argument("--steps", type=int, help="steps of the LLM's adapters (default: the config's)")
    parser.add_argument("--head-only", action="store_true", help="let the alignment head alone predict and be judged")
    parser.add_argument("--data", type=Path, help="folder of the releases (default: old answers are not judged)")
    args = parser.parse_args()
    schema = draw_table(args.folder, args.count)
    begin = time.monotonic(), time.process_time()
    changes = {"name": "mine", "data.sources": [{"name": f"table:{schema}"}]}
    changes |= {} if args.steps is None else {"train.steps": args.steps, "train.warmup_steps": 0}
    run = fi_jax.train(fi_jax.load_config("finetune", changes), args.folder / "runs")
    minutes = {"minutes": (time.monotonic() - begin[0]) / 60, "cpu_minutes": (time.process_time() - begin[1]) / 60}
    sources = ["head"] if args.head_only else ["head", "llm"]
    judged = fi_jax.evaluate(run.folder, {f"table:{schema}": ""}, args.folder / "out", head_only=args.head_only)
    photos = sorted((args.folder / "photos").iterdir())[4::5]
    before, after = fi_jax.load("nano"), fi_jax.load(run.folder)
    row = next(after.predict(photos, questions=["cover", "backdrop"], by=sources[-1], whole=True))[0].to_row()
    summary = {
        "faces": args.count,
        "training": minutes,
        "values": {" ".join(name): value for name, value in judged.values().items()},
        # The LLM answers fifty questions a face: ten faces are enough.
        "built_in_answers": {by: moved(before, after, photos if by == "head" else photos[:10], by) for by in sources},
        "first_prediction": row,
    }
    if args.data:
        models: dict[str, str | Path] = {"before": "nano", "after": run.folder}
        summary["old_answers"] = {
            when: old_answers(model, args.data, args.folder / "old" / when) for when, model in models.items()
        }
    (args.folder / "summary.json").write_text(json.dumps(summary, indent=1))
    report = [sys.executable, "-m", "fi_jax", "report", str(args.folder / "out"), str(run.folder)]
    subprocess.run([*report, "--out", str(args.folder / "report")], check=True)
    print(json.dumps(summary, indent=1))


if __name__ == "__main__":
    main()
