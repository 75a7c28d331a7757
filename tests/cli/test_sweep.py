"""`fi-jax sweep` from the command line: mistakes before any compute, and real runs that end, fail, stop and go on."""

import json
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pandas as pd
import pytest

from fi_jax.cli.main import main

ROOT = Path(__file__).parents[2]
# The smallest real training there is: the alignment stage with frozen encoders.
OVERRIDES = (
    "--train.stage",
    "align",
    "--train.steps",
    "4",
    "--train.log-every",
    "2",
    "--train.trainable",
    "knowledge/.*",
    "head/.*",
)
RATES = "grid({'train.learning_rate': [1e-3, 1e-2]})"


def sweep_file(folder: Path, points: str = RATES, metric: str = "head_bce", config: str = "tiny") -> Path:
    path = folder / "rates.py"
    path.write_text(
        "from fi_jax.experiments.expressions import *\n\n\ndef sweep():\n"
        f"    return Sweep(config={config!r}, points={points}, metric={metric!r}, overrides={OVERRIDES!r})\n"
    )
    return path


@pytest.mark.parametrize(
    ("points", "says"),
    [
        ("grid({'train.learning_rat': [1.0]})", "did you mean 'train.learning_rate'"),
        ("grid({'train.steps': [0]})", "must be positive"),
        ("search({'train.steps': uniform(1, 2)}, trials=2)", "type int"),
        ("grid({'train.steps': 3})", "list of values"),
        ("1 / 0", "ZeroDivisionError"),
        ("None", "points is None"),
    ],
)
def test_mistakes_are_one_line_before_any_compute(tmp_path, capsys, points, says):
    status = main(["sweep", str(sweep_file(tmp_path, points)), "--out", str(tmp_path / "out")])
    error = capsys.readouterr().err
    assert status == 2 and error.count("\n") == 1 and re.search(says, error), error
    assert not (tmp_path / "out").exists()


def test_other_mistakes(tmp_path, capsys):
    file = str(sweep_file(tmp_path))
    assert main(["sweep", str(tmp_path / "no.py")]) == 2
    assert main(["sweep", file, "--jobs", "0"]) == 2
    assert main(["sweep", file, "--slurm", "partition"]) == 2
    assert main(["sweep", str(sweep_file(tmp_path, config="tinny"))]) == 2
    assert "did you mean 'tiny'" in capsys.readouterr().err


def test_dry_run_lists_the_points(tmp_path, capsys):
    assert main(["sweep", str(sweep_file(tmp_path)), "--dry-run", "--out", str(tmp_path / "out")]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 3 and "train.learning_rate=0.01" in lines[1]
    assert not (tmp_path / "out").exists()


def start(*arguments: str) -> subprocess.Popen:
    command = [sys.executable, "-m", "fi_jax", "sweep", *arguments]
    return subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def finished(out: Path) -> dict:
    """The trials that ended well, and when."""
    from fi_jax.experiments.store import Store, status_of

    trials = Store(out).points().items()
    return {point: (trial.number, trial.datetime_complete) for point, trial in trials if status_of(trial) == "ok"}


@pytest.mark.slow
def test_sweep_stops_goes_on_and_isolates_failures(tmp_path, capsys):
    from fi_jax.cli.configs import load_config

    # The last point fails: no parameter matches its pattern.
    points = "chain(grid({'train.learning_rate': [1e-3, 1e-2]}), grid({'train.trainable': [('nothing/.*',)]}))"
    out = tmp_path / "out"
    arguments = (str(sweep_file(tmp_path, points)), "--out", str(out))
    first = start(*arguments)
    while first.poll() is None and not (out.is_dir() and finished(out)):
        time.sleep(0.2)
    first.send_signal(signal.SIGTERM)
    said = first.communicate(timeout=120)
    assert first.returncode == 75, said
    kept = finished(out)
    assert kept
    second = start(*arguments)
    said = second.communicate(timeout=300)
    assert second.returncode == 1, said
    assert kept.items() <= finished(out).items()
    frame = pd.read_parquet(out / "table.parquet")
    assert frame["status"].tolist() == ["ok", "ok", "failed"]
    assert "nothing/" in frame["error"].iloc[2]
    assert (out / "plot.png").stat().st_size > 1000
    # The best config stands alone and is the best point's.
    best = json.loads((out / "runs" / frame["point"][0] / "config.json").read_text())
    assert load_config(str(out / "best.py")).train.learning_rate == best["train"]["learning_rate"]
    # Done is done: nothing is run again.
    assert main(["sweep", *arguments]) == 1
    assert "3 points, 0 to run" in capsys.readouterr().out
    # Another sweep may not use the folder.
    assert main(["sweep", str(sweep_file(tmp_path, points, metric="loss")), "--out", str(out)]) == 2
    assert "holds another sweep (metric differ)" in capsys.readouterr().err


@pytest.mark.slow
def test_search_shares_one_study(tmp_path):
    points = "search({'train.learning_rate': log_uniform(1e-4, 1e-1)}, trials=3)"
    arguments = (str(sweep_file(tmp_path, points)), "--out", str(tmp_path / "out"))
    both = [start(*arguments), start(*arguments)]
    said = [process.communicate(timeout=300) for process in both]
    assert [process.returncode for process in both] == [0, 0], said
    frame = pd.read_csv(tmp_path / "out" / "table.csv")
    assert frame["status"].eq("ok").all() and len(frame) == 3


@pytest.mark.slow
def test_members_of_one_program(tmp_path):
    """Two groups (the stage's length is no number), three points; a run folder each."""
    points = "grid({'train.learning_rate': [1e-3, 1e-2]}) + grid({'train.steps': [6]})"
    said, error = start(
        str(sweep_file(tmp_path, points)), "--out", str(tmp_path / "out"), "--where", "members"
    ).communicate(timeout=300)
    frame = pd.read_csv(tmp_path / "out" / "table.csv")
    assert frame["status"].eq("ok").all() and len(frame) == 3, (said, error)
    assert said.count("in one program") == 2
    for point in frame["point"]:
        assert (tmp_path / "out" / "runs" / point / "model" / "weights.safetensors").is_file()
