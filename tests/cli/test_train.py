"""`fi-jax train` as a user runs it: processes of its own, on a folder of generated pictures named as UTKFace's."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file

from fi_jax.cli.main import main

ROOT = Path(__file__).parents[2]
STEPS = 8


def command(data: Path, name: str, *more: str) -> list[str]:
    return [
        *(sys.executable, "-m", "fi_jax", "train", "tiny", "--name", name),
        *("--data.vocabulary", "utkface", "--data.sources.0.name", "utkface", "--data.sources.0.root", str(data)),
        # Without the map no parser is needed, which is another module's test.
        *("--model.no-use-segmentation", "--data.questions-per-face", "2", "--data.segment-length", "128"),
        *("--data.batch-size", "4", "--train.steps", str(STEPS), "--train.checkpoint-every", "2"),
        *("--train.evaluate-every", "3", "--train.evaluate-faces", "2", *more),
    ]


def start(folder: Path, arguments: list[str], **more: str) -> subprocess.Popen:
    environment = {**os.environ, "JAX_PLATFORMS": "cpu", "PYTHONPATH": str(ROOT), **more}
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    return subprocess.Popen(arguments, cwd=folder, env=environment, **pipes)


def run(folder: Path, arguments: list[str]) -> tuple[int, str, str]:
    process = start(folder, arguments)
    out, err = process.communicate(timeout=400)
    return process.returncode, out, err


def lines_of(folder: Path, name: str = "loss") -> list[dict]:
    """The lines of a run's log that have a metric."""
    lines = map(json.loads, (folder / "metrics.jsonl").read_text().splitlines())
    return [line for line in lines if name in line]


def steps_of(folder: Path) -> list[int]:
    try:
        return [line["step"] for line in lines_of(folder)]
    except (FileNotFoundError, json.JSONDecodeError, TypeError):
        return []


def stop_after(process: subprocess.Popen, folder: Path, step: int, number: signal.Signals) -> tuple[int, str]:
    """Signals the process as soon as `step` stands in the log."""
    deadline = time.monotonic() + 300
    while process.poll() is None and step not in steps_of(folder) and time.monotonic() < deadline:
        time.sleep(0.02)
    process.send_signal(number)
    out, err = process.communicate(timeout=120)
    assert step in steps_of(folder), out + err
    return process.returncode, out


@pytest.fixture(scope="module")
def finished(tmp_path_factory, utkface_folder) -> Path:
    """The folder in which an undisturbed run has trained to the end."""
    folder = tmp_path_factory.mktemp("train")
    status, out, err = run(folder, command(utkface_folder, "whole"))
    assert status == 0, out + err
    return folder


@pytest.mark.slow
def test_a_run_leaves_what_is_promised(finished):
    folder = finished / "runs" / "whole"
    assert json.loads((folder / "config.json").read_text())["name"] == "whole"
    assert steps_of(folder) == list(range(1, STEPS + 1))
    lines = lines_of(folder)
    assert set(lines[0]) == {"step", "loss", "lm", "bce", "logic", "head_bce", "head_logic", "grad_norm"}
    assert all(np.isfinite(list(line.values())).all() for line in lines)
    assert lines[-1]["loss"] < lines[0]["loss"]
    judged = lines_of(folder, "val/accuracy")
    assert [line["step"] for line in judged] == [0, 3, 6, STEPS]
    assert {"val/llm/utkface/gender/accuracy", "val/head/utkface/age_years/mae_years", "val/best"} <= set(judged[0])
    assert judged[-1]["val/best"] == max(line["val/accuracy"] for line in judged)
    about = json.loads((folder / "best" / "model.json").read_text())
    assert [line["val/accuracy"] for line in judged if line["step"] == about["steps"]] == [judged[-1]["val/best"]]
    assert list((folder / "tensorboard").glob("events.*"))
    assert sorted(int(path.name) for path in (folder / "checkpoints").iterdir()) == [STEPS - 2, STEPS]
    leaves = load_file(folder / "model" / "weights.safetensors")
    assert "llm/layers/attn/q_proj/lora_b" in leaves and "llm/layers/attn/q_proj/kernel" not in leaves
    assert np.abs(leaves["llm/layers/attn/q_proj/lora_b"]).max() > 0


@pytest.mark.slow
def test_killed_and_resumed_equals_undisturbed_bit_for_bit(finished, utkface_folder):
    """Kill −9 in the middle, then SIGTERM, then to the end: the log and the weights are those of one run."""
    whole, folder = finished / "runs" / "whole", finished / "runs" / "cut"
    arguments = command(utkface_folder, "cut")
    status, _ = stop_after(start(finished, arguments), folder, 3, signal.SIGKILL)
    assert status == -signal.SIGKILL
    status, out = stop_after(start(finished, arguments), folder, 5, signal.SIGTERM)
    assert status == 75 and "the same command resumes there" in out
    stopped = steps_of(folder)[-1]
    shutil.copytree(folder, finished / "runs" / "short")
    status, out, err = run(finished, arguments)
    assert status == 0, out + err
    assert "resumed at step " in out
    assert (folder / "metrics.jsonl").read_bytes() == (whole / "metrics.jsonl").read_bytes()
    ours, theirs = (load_file(path / "model" / "weights.safetensors") for path in (folder, whole))
    assert ours.keys() == theirs.keys()
    for name, leaf in ours.items():
        np.testing.assert_array_equal(leaf, theirs[name], err_msg=name)
    # The other way to end a run that was stopped: its model as it is, without another step.
    status, out, err = run(finished, command(utkface_folder, "short", "--finish"))
    assert status == 0, out + err
    assert steps_of(finished / "runs" / "short")[-1] == stopped < STEPS
    assert json.loads((finished / "runs" / "short" / "model" / "model.json").read_text())["steps"] == stopped


@pytest.mark.slow
def test_pretrained_then_aligned(tmp_path, utkface_folder, monkeypatch, capsys):
    stage0 = ("--train.stage", "pretrain", "--model.decoder.num-layers", "1", "--model.decoder.hidden-size", "16")
    stage0 += ("--model.decoder.num-heads", "2", "--train.trainable", "image_encoder/.*", "decoder/.*")
    stage0 += ("--train.evaluate-every", "0")
    first = command(utkface_folder, "painter", *stage0, "--train.learning-rate", "3e-3", "--train.log-every", "1")
    # Stopped once, and resumed with the decoder that it had.
    process = start(tmp_path, first)
    status, out = stop_after(process, tmp_path / "runs" / "painter", 3, signal.SIGTERM)
    assert status != 0, out
    status, out, err = run(tmp_path, first)
    assert status == 0 and "resumed at step" in out, out + err
    lines = [json.loads(line) for line in (tmp_path / "runs/painter/metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == list(range(1, STEPS + 1))
    assert lines[-1]["pixels"] < lines[0]["pixels"]
    leaves = load_file(tmp_path / "runs/painter/model/weights.safetensors")
    parts = {path.split("/")[0] for path in leaves}
    assert "image_encoder" in parts and "decoder" not in parts

    second = command(utkface_folder, "aligned", "--train.stage", "align", "--data.mixup", "0.5", "--train.steps", "2")
    second += ["--train.init-from", "runs/painter", "--train.trainable", "image_encoder/.*", "knowledge/.*", "head/.*"]
    status, out, err = run(tmp_path, second)
    assert status == 0 and "image_encoder" not in out.split("newly initialised:")[1].splitlines()[0], out + err
    after = load_file(tmp_path / "runs/aligned/model/weights.safetensors")
    same = "image_encoder/position_embedding"
    assert np.abs(after[same] - leaves[same]).max() < 0.01
    # A model that was only pre-trained answers nothing, and says so.
    monkeypatch.chdir(tmp_path)
    assert main(["evaluate", "tiny", "--checkpoint", "runs/painter"]) == 2
    assert "only pre-trained" in capsys.readouterr().err


@pytest.mark.slow
def test_another_config_does_not_resume(finished, utkface_folder):
    before = sorted(path.name for path in (finished / "runs" / "whole" / "checkpoints").iterdir())
    status, _, err = run(finished, command(utkface_folder, "whole", "--train.learning-rate", "0.5"))
    assert status == 2
    assert err.count("\n") == 1 and "train.learning_rate (0.001 then, 0.5 now)" in err and "--name" in err
    assert sorted(path.name for path in (finished / "runs" / "whole" / "checkpoints").iterdir()) == before


@pytest.mark.slow
def test_the_finished_model_is_evaluated(finished, utkface_folder, monkeypatch):
    monkeypatch.chdir(finished)
    arguments = ["evaluate", "tiny", "--checkpoint", "runs/whole", "--out", "out", "--dataset", "utkface"]
    assert main([*arguments, "--data-root", str(utkface_folder), "--split", "all", "--limit", "6"]) == 0
    lines = [json.loads(line) for line in (finished / "out" / "predictions.jsonl").read_text().splitlines()]
    # Six faces; gender, race, age group and age; by the head and by the LLM.
    assert len(lines) == 6 * 4 * 2
    assert all(abs(sum(line["probabilities"].values()) - 1) < 1e-4 for line in lines)
    assert json.loads((finished / "out" / "metrics.json").read_text())


@pytest.fixture
def damaged(tmp_path, utkface_folder) -> Path:
    """The same pictures with two that cannot be read: no image, and cut short."""
    root = tmp_path / "damaged"
    shutil.copytree(utkface_folder, root)
    pictures = sorted((root / "UTKFace").iterdir())
    whole = pictures[0].read_bytes()
    pictures[0].write_bytes(whole[: len(whole) // 2])
    pictures[1].write_bytes(b"this is no picture")
    return root


@pytest.fixture
def refused(tmp_path, monkeypatch, capsys):
    """Runs a command in this process, which must refuse it, and returns the one line that it says."""

    def run_here(arguments: list[str]) -> str:
        monkeypatch.chdir(tmp_path)
        # The tests' processes have eight devices; the last flag wins, but for what a test is about.
        at = arguments.index("--data.batch-size")
        assert main([*arguments[3:at], "--data.batch-size", "16", *arguments[at + 2 :]]) == 2
        err = capsys.readouterr().err
        assert err.count("fi-jax: ") == 1
        assert not (tmp_path / "runs").exists()
        return err

    return run_here


def test_too_many_unreadable_pictures_refuse_to_start(refused, damaged):
    err = refused(command(damaged, "x", "--data.max-unreadable", "0.001"))
    assert "cannot be read" in err or "rejected" in err


def test_there_must_be_something_to_finish(refused, utkface_folder):
    assert "has no checkpoint to finish at" in refused(command(utkface_folder, "none", "--finish"))


@pytest.mark.parametrize(
    ("flags", "says"),
    [
        (["--data.sources.0.root", "nowhere"], "folder 'nowhere' does not exist"),
        (["--data.sources.0.root", "."], "utkface"),
        (["--data.sources.0.name", "utkfaces"], "did you mean 'utkface'"),
        (["--data.vocabulary", "utkfac"], "did you mean 'utkface'"),
        (["--data.batch-size", "6", "--train.accumulate", "4"], "not a multiple of train.accumulate"),
        (["--train.trainable", "lm/.*"], "pattern 'lm/.*' matches no parameter"),
        (["--weights.llm", "no/such/folder"], "no/such/folder"),
        (["--train.init-from", "runs/none"], "no model 'runs/none'"),
        (["--data.segment-length", "9"], "raise it to"),
    ],
)
def test_bad_input_is_one_line_and_leaves_nothing(refused, utkface_folder, flags, says):
    assert says in refused(command(utkface_folder, "x", *flags))
