"""`fi-jax evaluate` and `fi-jax ablate` as a user runs them, in this process, on models of random weights."""

import json
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from fi_jax.cli.main import main
from fi_jax.config import Experiment, SourceConfig
from fi_jax.config_tree import to_dict
from fi_jax.experiments.points import config_source
from fi_jax.labels.registry import vocabulary
from fi_jax.weights.assemble import assemble
from fi_jax.weights.bundle import TrainedModel, save_model

ROOT = Path(__file__).parents[2]
SYNTHETIC = "count=24"


@pytest.fixture(autouse=True)
def _here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def small(name: str, utkface: Path, stage: str) -> Experiment:
    from small_model import small_config

    base = small_config()
    sources = (SourceConfig("utkface", str(utkface)), SourceConfig("synthetic_faces", SYNTHETIC))
    return replace(
        base,
        name=name,
        model=replace(base.model, use_segmentation=False),
        data=replace(base.data, vocabulary="utkface", batch_size=8, sources=sources),
        train=replace(base.train, stage=stage, steps=2, log_every=1),
    )


def write_config(config: Experiment) -> str:
    path = Path(f"{config.name}.py")
    path.write_text(config_source(to_dict(config), "A small one."))
    return str(path)


def write_model(config: Experiment, sources: list[str]) -> str:
    """A model of random weights that says it learnt from `sources`."""
    words = vocabulary(config.data.vocabulary)
    leaves, base = assemble(config)
    kept = {path: np.asarray(leaf) for path, leaf in leaves.items() if not path.startswith("llm/") or "lora_" in path}
    prompts = np.random.default_rng(0).normal(size=(len(words), config.model.knowledge.prompt_size))
    info = {"labels": list(words.names), "base": base, "sources": sources}
    folder = Path("models") / "-".join([config.name, *sources])
    save_model(
        folder, TrainedModel(config, kept, prompts.astype(np.float32), np.eye(len(words), dtype=np.float32), info)
    )
    return str(folder)


def entries(out: str) -> dict[tuple[str, str, str], dict]:
    summary = json.loads(Path(out, "metrics.json").read_text())
    return {(e["dataset"], e["setting"], e["source"]): e for e in summary["entries"]}


def run(*arguments: str) -> int:
    return main([*map(str, arguments)])


def test_both_settings_of_two_sets_by_two_models_in_one_table(utkface_folder, capsys):
    config = small("both", utkface_folder, "instruct")
    models = [write_model(config, ["utkface"]), write_model(config, ["synthetic_faces"])]
    asked = ["evaluate", write_config(config), "--limit", 3, "--split", "all", "--free-form", "--out", "out"]
    assert run(*asked, "--checkpoint", *models) == 0
    said = capsys.readouterr()
    assert "holds faces that the model learnt from" in said.err
    assert "UTKFace (fine-tuned), synthetic faces (training-free): models/both-utkface, trained on UTKFace." in said.out
    assert "could not be read, counted as wrong (UTKFace, fine-tuned): gender" in said.out
    found = entries("out")
    settings = ("training-free", "fine-tuned")
    sets = ("utkface", "synthetic_faces")
    assert set(found) == {(d, s, w) for d in sets for s in settings for w in ("head", "llm", "free")}
    records = json.loads(Path("out/table.json").read_text())
    assert {(r["dataset"], r["setting"]) for r in records} == {(d, s) for d in sets for s in settings}
    assert "| UTKFace | gender | accuracy |" in Path("out/table.md").read_text()
    assert Path("out/table.csv").read_text().startswith("dataset,task,metric")
    lines = [json.loads(line) for line in Path("out/predictions.jsonl").read_text().splitlines()]
    free = [line for line in lines if line["source"] == "free"]
    assert len(free) * 3 == len(lines) and all("text" in line and not line["probabilities"] for line in free)

    # Again: nothing is asked a second time; a part that is gone is made again, alone and as it was.
    parts = sorted(Path("out/parts").glob("*.jsonl"))
    before, stamps = Path("out/predictions.jsonl").read_bytes(), {p: p.stat().st_mtime_ns for p in parts}
    parts[0].unlink()
    assert run(*asked, "--checkpoint", *models) == 0
    assert {p for p in parts if p.stat().st_mtime_ns != stamps[p]} == {parts[0]}
    assert Path("out/predictions.jsonl").read_bytes() == before


@pytest.mark.slow
def test_leave_one_out_trains_what_fills_the_blank_cells(utkface_folder, capsys):
    """Two stages: neither the model that fills a cell, nor the one it starts from, has seen the set."""
    first = small("first", utkface_folder, "align")
    config = replace(small("second", utkface_folder, "align"), train=replace(first.train, init_from="models/first"))
    both = ["utkface", "synthetic_faces"]
    Path(write_model(first, both)).rename("models/first")
    model = write_model(config, both)
    asked = ["evaluate", write_config(config), "--checkpoint", model, "--head-only", "--limit", 3, "--split", "all"]
    assert run(*asked, "--out", "blank") == 0
    assert "Blank, no model given may fill it: UTKFace (training-free), synthetic" in capsys.readouterr().out
    assert {key[1] for key in entries("blank")} == {"fine-tuned"}

    assert run(*asked, "--out", "full", "--leave-one-out") == 0
    assert "Blank" not in capsys.readouterr().out
    assert {key[:2] for key in entries("full")} == {(d, s) for d in both for s in ("fine-tuned", "training-free")}
    for left_out, kept in (both, both[::-1]):
        for stage in ("first", "second"):
            info = json.loads(Path(f"runs/{stage}_without_{left_out}/model/model.json").read_text())
            assert info["sources"] == [kept]
    cells = json.loads(Path("full/metrics.json").read_text())["meta"]["cells"]
    trained_on = {(cell["dataset"], cell["setting"]): cell["trained_on"] for cell in cells}
    assert trained_on["utkface", "training-free"] == ["synthetic_faces"]

    # Started again, nothing is trained.
    assert run(*asked, "--out", "full", "--leave-one-out") == 0
    assert "training " not in capsys.readouterr().out.replace("training-free", "")
    # One set alone leaves nothing to train on, which is said before anything is trained.
    alone = ["--dataset", "utkface", "--data-root", utkface_folder, "--data.sources.0.split", "val"]
    config = replace(config, name="alone", data=replace(config.data, sources=config.data.sources[:1]))
    assert run("evaluate", write_config(config), "--checkpoint", model, *alone, "--leave-one-out") == 2
    assert "without it nothing is left" in capsys.readouterr().err


def test_a_model_of_hugging_face_by_the_same_protocol(utkface_folder, capsys):
    pytest.importorskip("torch")
    sys.path.insert(0, str(ROOT / "tests" / "evaluation"))
    from test_other_models import tiny_llava

    tiny_llava(Path("llava"))
    sets = ["--dataset", "utkface", "--data-root", utkface_folder, "--split", "all", "--limit", 2]
    assert run("evaluate", "--model", "hf:llava", *sets, "--free-form", "--out", "out") == 0
    assert set(entries("out")) == {("utkface", "training-free", source) for source in ("llm", "free")}
    assert "hf:llava, trained on none of these sets, as far as is known" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ([], "needs CONFIG"),
        (["--model", "nano"], "takes hf:NAME"),
        (["--model", "hf:x", "--checkpoint", "y"], "neither --checkpoint"),
        (["--model", "hf:x", "--head-only"], "no alignment head"),
        (["--model", "hf:x"], "give --dataset and --data-root"),
        (["tiny", "--dataset", "utkface"], "--dataset utkface needs --data-root"),
        (["tiny", "--dataset", "utkface", "expw", "--data-root", "x"], "2 data sets but 1 folders"),
        (["tiny", "--dataset", "expw", "expw", "--data-root", "x", "y"], "named twice"),
        (["tiny", "--checkpoint", "nowhere"], "no model 'nowhere'"),
        (["tiny", "--limit", "-1"], "--limit must not be negative"),
        (["tiny", "--out", __file__], "is a file; give a folder"),
    ],
)
def test_mistakes_are_one_line(arguments, says, capsys):
    assert run("evaluate", *arguments) == 2
    err = capsys.readouterr().err
    assert says in err and err.count("\n") == 1


def test_without_torch_the_extra_is_named(monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "torch", None)
    sets = ["--dataset", "synthetic_faces", "--data-root", SYNTHETIC]
    assert run("evaluate", "--model", "hf:x", *sets) == 2
    assert "pip install 'fi_jax[torch]'" in capsys.readouterr().err


@pytest.mark.slow
def test_ablation_over_frozen_encoders_in_one_table(utkface_folder, capsys):
    config = small("frozen", utkface_folder, "instruct")
    arguments = ["ablate", write_config(config), "--frozen", write_model(config, ["utkface"]), "--split", "val"]
    arguments += ["--only", "no_ccm", "no_lcm", "tau_0.2", "--out", "out", "--limit", 5]
    assert run(*arguments, "--seeds", 0, 1) == 0
    said = capsys.readouterr().out
    assert "8 points, 8 to run" in said
    # Numbers share a program, seeds too; without CCM the network is another one.
    assert said.count("training ") == 2
    table = Path("out/ablation.md").read_text()
    rows = [line for line in table.splitlines() if line.startswith("| ") and "±" in line]
    assert [row.split(" | ")[0][2:] for row in rows] == ["full", "without CCM", "without LCM", "τ = 0.2"]
    assert "UTKFace: gender, accuracy" in table and "frozen" in table and "2 seeds" in table
    points = json.loads(Path("out/ablation.json").read_text())["points"]
    assert len({json.dumps(point["scores"]) for point in points}) > 1

    # More seeds only add to it; the same again runs nothing.
    assert run(*arguments, "--seeds", 0, 1, 2) == 0
    assert "12 points, 4 to run" in capsys.readouterr().out
    assert run(*arguments, "--seeds", 0, 1, 2) == 0
    assert "12 points, 0 to run" in capsys.readouterr().out
    assert "3 seeds" in Path("out/ablation.md").read_text()
    assert Path("out/ablation.csv").read_text().splitlines()[0].endswith("mean,deviation,seeds")


@pytest.mark.slow
def test_ablation_that_trains_each_variant_as_the_config_says(utkface_folder, capsys):
    config = small("whole", utkface_folder, "align")
    arguments = ["ablate", write_config(config), "--only", "no_lcm", "--seeds", 0, "--out", "out", "--limit", 5]
    assert run(*arguments, "--split", "val") == 0
    assert "training full-seed0, no_lcm-seed0" in capsys.readouterr().out
    assert len(list(Path("out/runs").glob("*/model/weights.safetensors"))) == 2
    table = Path("out/ablation.md").read_text()
    assert "without LCM" in table and "one seed, so no deviation" in table


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--only", "no_segmentatio"], "did you mean 'no_segmentation'"),
        (["--only", "semantic"], "is already"),
        (["--train-limit", "-5"], "--train-limit not negative"),
        (["--dataset", "utkface"], "--dataset and --data-root go together"),
        (["--frozen", "nowhere"], "no model 'nowhere'"),
        (["--seeds", "1", "1"], "names a seed twice"),
    ],
)
def test_mistakes_of_an_ablation_are_one_line(arguments, says, capsys):
    assert run("ablate", "tiny", *arguments) == 2
    err = capsys.readouterr().err
    assert says in err and err.count("\n") == 1


@pytest.mark.parametrize("name", ["table.csv", "metrics.json", "predictions.jsonl"])
def test_files_of_others_are_not_replaced(name, tmp_path, capsys):
    """A table of one's own beside the pictures, say."""
    (tmp_path / name).write_text("image,label\n")
    command = ["evaluate", "tiny", "--out", ".", "--dataset", "synthetic_faces", "--data-root", "count=4"]
    assert main(command) == 2 and (tmp_path / name).read_text() == "image,label\n"
    assert f"'{name}' exists and was not written by this command" in capsys.readouterr().err
