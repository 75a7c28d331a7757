"""A real SLURM on this machine: jobs train as two tasks, are preempted, requeue and resume; arrays and sweeps run."""

import json
import os
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
CLUSTER = Path(__file__).with_name("slurm_cluster.sh")
TRAIN = ROOT / "launch/slurm/train.sh"
# The smallest training there is, so that the scheduler is what is tested: the alignment head over frozen encoders.
SMALL = ["--train.stage", "align", "--train.trainable", "knowledge/.*", "head/.*", "--train.log-every", "10"]

pytestmark = [
    pytest.mark.slurm,
    pytest.mark.slow,
    pytest.mark.timeout(900),
    pytest.mark.skipif(
        not all(map(shutil.which, ("slurmctld", "slurmd", "munged"))), reason="needs the packages slurm-wlm and munge"
    ),
]


@pytest.fixture(scope="module")
def cluster(tmp_path_factory):
    folder = tmp_path_factory.mktemp("slurm")
    done = subprocess.run([CLUSTER, "start", folder], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    environment = dict(os.environ)
    environment["SLURM_CONF"] = re.search(r"SLURM_CONF=(.*)", done.stdout)[1]
    environment |= {"JAX_PLATFORMS": "cpu", "PYTHONPATH": str(ROOT)}
    yield environment
    subprocess.run([CLUSTER, "stop", folder], timeout=120)


def call(cluster: dict, *command) -> str:
    done = subprocess.run([*map(str, command)], capture_output=True, text=True, env=cluster, cwd=ROOT, timeout=120)
    assert done.returncode == 0, (command, done.stdout, done.stderr)
    return done.stdout


def submit(cluster: dict, logs: Path, runs: Path, *words: str, tasks: int = 2, partition: str = "low", **flags) -> str:
    options = [f"--{name}={value}" for name, value in flags.items()]
    common = ["--python", sys.executable, "--log-dir", logs, "--partition", partition, "--tasks-per-node", tasks]
    return call(cluster, TRAIN, *common, *options, "--", *words, "--runs", runs, *SMALL).strip()


def wait_for(what, timeout: float = 240.0):
    deadline = time.monotonic() + timeout
    while time.monotonic() < deadline:
        found = what()
        if found:
            return found
        time.sleep(0.5)
    raise AssertionError("did not happen in time")


def ended(cluster: dict, job: str) -> bool:
    shown = subprocess.run(["scontrol", "show", "job", job], capture_output=True, text=True, env=cluster)
    state = re.search(r"JobState=(\w+)", shown.stdout)
    return shown.returncode != 0 or state[1] in ("COMPLETED", "FAILED", "CANCELLED", "TIMEOUT", "NODE_FAIL")


def steps_of(run: Path) -> list[int]:
    path = run / "metrics.jsonl"
    return [json.loads(line)["step"] for line in path.read_text().splitlines()] if path.exists() else []


def test_preempted_job_requeues_and_resumes(cluster, tmp_path):
    """Two tasks over CPU collectives; a job of higher priority takes the node in the middle."""
    logs, runs = tmp_path / "logs", tmp_path / "runs"
    words = ["tiny", "--name", "p", "--train.steps", "1500", "--train.checkpoint-every", "100000"]
    job = submit(cluster, logs, runs, *words)
    assert job in call(cluster, TRAIN, "--list")
    wait_for(lambda: len(steps_of(runs / "p")) > 3)
    call(cluster, "srun", "--partition=high", "--ntasks=4", "true")
    log = logs / f"fi-jax-train-{job}.out"
    wait_for(lambda: "requeueing" in log.read_text())
    stopped = int(re.search(r"stopped at step (\d+)", log.read_text())[1])
    assert 30 <= stopped < 1500
    # SLURM lets a requeued job wait for two minutes; the test does not.
    wait_for(lambda: "Restarts=1" in call(cluster, "scontrol", "show", "job", job))
    call(cluster, "scontrol", "update", f"JobId={job}", "StartTime=now")
    wait_for(lambda: ended(cluster, job))
    text = log.read_text()
    assert f"resumed at step {stopped}" in text and "done:" in text, text[-3000:]
    # No step is missing and none is there twice.
    assert steps_of(runs / "p") == list(range(10, 1501, 10))
    assert "done:" in call(cluster, TRAIN, "--log-dir", logs, "--logs", job)


def test_job_out_of_time_saves_first(cluster, tmp_path):
    """The notice before the time limit makes the job save and requeue; `--delete` ends it."""
    logs, runs = tmp_path / "logs", tmp_path / "runs"
    words = ["tiny", "--name", "t", "--train.steps", "1000000", "--train.checkpoint-every", "1000000"]
    # A minute is SLURM's shortest limit; its notice may come up to a minute earlier than asked for.
    job = submit(cluster, logs, runs, *words, tasks=1, time="0:01:30", notice=40)
    log = logs / f"fi-jax-train-{job}.out"
    wait_for(lambda: log.exists() and "requeueing" in log.read_text())
    stopped = int(re.search(r"stopped at step (\d+)", log.read_text())[1])
    assert (runs / "t" / "checkpoints" / str(stopped)).is_dir()
    call(cluster, TRAIN, "--delete", job)
    wait_for(lambda: ended(cluster, job))
    refused = subprocess.run([TRAIN, "--delete", "999999"], capture_output=True, text=True, env=cluster)
    assert refused.returncode == 2 and "not in the queue" in refused.stderr


def test_mistake_is_not_requeued(cluster, tmp_path):
    job = submit(cluster, tmp_path / "logs", tmp_path / "runs", "tiny", "--train.stepz", "3", tasks=1)
    wait_for(lambda: ended(cluster, job))
    text = (tmp_path / "logs" / f"fi-jax-train-{job}.out").read_text()
    assert "did you mean" in text and "requeueing" not in text


def test_sweep_runs_as_an_array(cluster, tmp_path):
    sweep = tmp_path / "seeds.py"
    flags = [*SMALL, "--train.steps", "5", "--train.log-every", "5"]
    sweep.write_text(
        "from fi_jax.sweeps.expressions import Sweep, grid\n\n\ndef sweep():\n"
        f"    return Sweep('tiny', grid({{'train.seed': [0, 1]}}), metric='head_bce', overrides={flags!r})\n"
    )
    command = [sys.executable, "-m", "fi_jax", "sweep", sweep, "--out", tmp_path / "out", "--where", "slurm"]
    said = call(cluster, *command, "--jobs", 2, "--slurm", "slurm_partition=low", "--slurm", "timeout_min=10")
    assert "submitted array" in said and "2 ok" in said, said
