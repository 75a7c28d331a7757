"""What `benchmarks/members_lora.py` and `benchmarks/scaling.py` compute from what they measured."""

import importlib.util
import json
from pathlib import Path

import pytest

from fi_jax.cli.configs import load_config
from fi_jax.experiments.points import apply
from fi_jax.training.members import check_members, differing_fields, shares_encoders

ROOT = Path(__file__).parents[2]


def script(name: str):
    spec = importlib.util.spec_from_file_location(name, ROOT / "benchmarks" / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_steady_seconds_leave_out_what_comes_before_the_first_logged_step():
    lines = [(3.0, "reading"), (60.0, "step 5/20  loss 1.0"), (61.0, "step 10/20  loss 1.0"), (63.0, "step 20/20  l")]
    assert script("members_lora").steady(lines) == pytest.approx(3.0 / 15)
    assert script("members_lora").steady(lines[:2]) == 0.0


def test_difference_of_logs():
    difference = script("members_lora").difference
    alone = [{"step": 1, "loss": 2.0, "lm": 0.5}, {"step": 2, "loss": 10.0, "lm": 0.5}]
    ours = [{"step": 1, "loss": 2.0, "lm": 0.501}, {"step": 2, "loss": 10.1, "lm": 0.5}]
    found = difference(ours, alone)
    assert found["first"] == pytest.approx(0.001) and found["all"] == pytest.approx(0.01)
    assert found["at"] == "loss at step 2"
    with pytest.raises(SystemExit):
        difference(ours[:1], alone)


@pytest.mark.parametrize("name", ["nano", "tiny"])
def test_its_members_can_share_a_program_and_the_encoders(name):
    from argparse import Namespace

    lora = script("members_lora")
    args = Namespace(steps=20, faces=4, questions=2, count=40, log_every=5, train_encoders=False)
    config = lora._config(args, load_config(name), "elsewhere")
    configs = [apply(config, point) for point in lora._points(config, 8)]
    check_members(configs)
    assert {"train.learning_rate", "model.llm.lora.alpha"} <= set(differing_fields(configs))
    assert ("train.seed" in differing_fields(configs)) == (name == "nano")
    assert len({one.train.learning_rate for one in configs}) == 8
    assert shares_encoders(config, {"llm/layers/attn/q_proj/lora_a": None})


def test_scaling_efficiency_and_failures(capsys):
    scaling = script("scaling")
    one = {"asked": "one device", "devices": 1, "batch": 8, "s": 0.5, "tokens_s": 100.0, "peak_gib": 1.0, "device": "x"}
    two = {**one, "asked": "data=2", "devices": 2, "batch": 16, "tokens_s": 190.0}
    failed = {"asked": "fsdp=2", "error": "out of memory"}

    def report(lines):
        return scaling.report([scaling.row("bf16", line, lines[0]) for line in lines])

    assert report([one, two]) == 0
    assert json.loads(capsys.readouterr().out.splitlines()[-1])["rows"][1]["efficiency"] == 0.95
    assert report([one, failed]) == 1
    assert report([failed, two]) == 1
    assert scaling.axis_sizes("data+fsdp", 8) == {"data": 2, "fsdp": 4}
