"""`fi-jax plan` from the command line."""

import json

import pytest

from fi_jax.cli.main import main
from fi_jax.cli.plan import read_mesh
from fi_jax.errors import UserError


def test_mesh_text():
    assert read_mesh("data=8,tensor=2") == {"data": 8, "fsdp": 1, "tensor": 2}
    assert read_mesh("") == {"data": 1, "fsdp": 1, "tensor": 1}


@pytest.mark.parametrize("text", ["dta=8", "data", "data=-1", "data=x", "data=0", "data=4,data=2"])
def test_wrong_mesh_text(text):
    with pytest.raises(UserError):
        read_mesh(text)


def run(arguments: list[str]) -> tuple[int, str, str]:
    """In a process of its own: the command sets the number of devices."""
    import os
    import subprocess
    import sys
    from pathlib import Path

    root = Path(__file__).parents[2]
    done = subprocess.run(
        [sys.executable, "-m", "fi_jax", "plan", *arguments],
        capture_output=True,
        text=True,
        cwd=root,
        env={**os.environ, "PYTHONPATH": str(root)},
    )
    return done.returncode, done.stdout, done.stderr


def test_plan_without_compiling():
    status, out, err = run(["nano", "--mesh", "data=2", "--no-compile", "--memory-gib", "10", "--json"])
    made = json.loads(out)
    assert status == 1 and made["fits"] is False and made["advice"], err
    assert made["training_bytes"] > sum(made["per_device_bytes"].values())
    status, out, _ = run(["nano", "--mesh", "data=2", "--no-compile", "--memory-gib", "100"])
    assert status == 0 and "fits into 100 GiB" in out


def test_batch_that_does_not_divide_is_one_line():
    status, _, err = run(["tiny", "--mesh", "data=3", "--no-compile"])
    assert status == 2 and "set data.batch_size to a multiple of 3" in err and err.count("\n") == 1


@pytest.mark.slow
def test_plan_counts_collectives():
    flags = ["--data.vocabulary", "expw", "--data.questions-per-face", "2", "--data.segment-length", "8"]
    status, out, err = run(["tiny", "--mesh", "data=2,fsdp=2", "--json", *flags])
    made = {one["kind"]: one["bytes"] for one in json.loads(out)["collectives"]}
    assert status == 0, err
    # Gradients are summed over the devices, and the layers' parameters gathered from the fsdp axis.
    assert made["all-reduce"] > 0 and made["all-gather"] > 0


def test_help_is_there(capsys):
    with pytest.raises(SystemExit):
        main(["plan", "--help"])
    assert "--memory-gib" in capsys.readouterr().out
