"""A table of one's own from the first command to the last: described, trained on, evaluated, asked about."""

import csv
import json
from pathlib import Path

import pytest
from PIL import Image

from fi_jax.cli.main import main
from fi_jax.data.synthetic.face import draw_face
from fi_jax.weights.bundle import load_model

COLOURS = {"red": (220, 20, 20), "blue": (20, 20, 220)}


@pytest.fixture(scope="module")
def table(tmp_path_factory) -> Path:
    """Drawn faces with a frame of one of two colours and, on some, a yellow badge: labels that no vocabulary has."""
    folder = tmp_path_factory.mktemp("own")
    (folder / "photos").mkdir()
    with (folder / "labels.csv").open("w", newline="") as file:
        rows = csv.writer(file)
        rows.writerow(["file", "badge", "frame", "sex"])
        for i in range(24):
            face = draw_face(7, i, 64)
            image, frame = face.image.copy(), ("red", "blue")[i % 2]
            image[:5] = image[-5:] = image[:, :5] = image[:, -5:] = COLOURS[frame]
            if i % 3 == 0:
                image[40:56, 6:22] = (255, 230, 0)
            Image.fromarray(image).save(folder / "photos" / f"{i:02d}.png")
            rows.writerow([f"{i:02d}.png", "yes" if i % 3 == 0 else "no", frame, "M" if face.labels["Male"] else "F"])
    return folder


@pytest.mark.slow
def test_from_a_table_to_answers(table, monkeypatch, capsys):
    monkeypatch.chdir(table)
    assert main(["dataset", "init", "labels.csv", "--images", "photos", "--out", "own.yaml", "--name", "own"]) == 0
    schema = Path("own.yaml")
    schema.write_text(schema.read_text().replace("What is the frame?", "What colour is the frame?"))
    source = ("--data.sources.0.name", "table:own.yaml", "--data.sources.0.root", "")
    source += ("--data.batch-size", "8", "--train.warmup-steps", "1")
    first = ("--name", "first", "--data.vocabulary", "tables", "--train.stage", "align")
    assert main(["train", "tiny", *source, *first, "--train.steps", "2"]) == 0
    assert load_model("runs/first").info["labels"] == ["Male", "Female", "badge", "frame:blue", "frame:red"]
    capsys.readouterr()
    # The labels of the model before, and all of ours beside them.
    more = ("--name", "second", "--data.vocabulary", "faces+tables", "--train.init-from", "runs/first")
    assert main(["train", "tiny", *source, *more, "--train.steps", "2"]) == 0
    assert "labels that 'runs/first' does not know start fresh" in capsys.readouterr().out
    model = load_model("runs/second")
    assert "Smiling" in model.info["labels"] and model.info["sources"] == ["own"]
    assert abs(model.graph.sum(1) - 1).max() < 1e-5
    # The model holds the schema: the file may go.
    schema.rename("moved.yaml")
    evaluate = ["evaluate", "tiny", "--checkpoint", "runs/second", "--dataset", "table:moved.yaml", "--split", "all"]
    assert main([*evaluate, "--head-only", "--out", "out"]) == 0
    (entry,) = json.loads(Path("out/metrics.json").read_text())["entries"]
    assert entry["setting"] == "fine-tuned" and entry["faces"] == 24
    assert {"attribute", "gender", "choice:frame"} <= set(entry["tasks"])
    capsys.readouterr()
    ask = ["ask", "photos/00.png", "What colour is the frame?", "--box", "full", "--checkpoint", "runs/second"]
    assert main([*ask, "--head", "--json"]) == 0
    (answer,) = json.loads(capsys.readouterr().out)["answers"]
    assert answer["question"] == "frame" and set(answer["probabilities"]) == {"red", "blue"}
    # A description is made of built-in labels; those of one's own do not get in its way.
    describe = ["ask", "photos/00.png", "--box", "full", "--checkpoint", "runs/second", "--head"]
    assert main(describe) == 0
    out = ["predict", "photos", "--out", "answers.csv", "--whole", "--head", "--checkpoint", "runs/second"]
    assert main([*out, "--questions", "badge", "frame"]) == 0
    assert len(Path("answers.csv").read_text().splitlines()) == 1 + 24
