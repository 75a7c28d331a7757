"""The short form of `benchmarks/kill_test.py`: kill −9 in the middle, twice, and resume with 2 → 1 → 2 processes."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_two_kills_change_nothing(tmp_path):
    command = [sys.executable, ROOT / "benchmarks/kill_test.py", "--kills", "2", "--processes", "2,1", "--seed", "3"]
    settings = ["--steps", "80", "--every", "5", "--folder", tmp_path]
    env = {**os.environ, "JAX_PLATFORMS": "cpu"}
    done = subprocess.run([*map(str, [*command, *settings])], capture_output=True, text=True, env=env, cwd=ROOT)
    assert done.returncode == 0, (done.stdout, done.stderr, (tmp_path / "log").read_text()[-3000:])
    assert "2 kills in 3 starts: the same result" in done.stdout
    # Every start but the first went on from a checkpoint, or found none because it died too early to make one.
    assert (tmp_path / "log").read_text().count("resumed at step") >= 1
