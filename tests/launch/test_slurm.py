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


def submit(cluster: dict, logs: Path, *words: str, tasks: int = 2, python: str | Path = sys.executable, **flags) -> str:
    options = {"partition": "low", "tasks-per-node": tasks, "python": python, "log-dir": logs, **flags}
    given = [f"--{name}={value}" for name, value in options.items()]
    return call(cluster, TRAIN, *given, "--", *words).strip()


def stand_in(path: Path, text: str) -> Path:
    """A program that stands where Python does, for tests of the job script alone."""
    path.write_text(f"#!/bin/bash\n{text}\n")
    path.chmod(0o755)
    return path


def wait_for(what, timeout: float = 600.0):
    deadline = time.monotonic() + timeout
    while time.monotonic() < deadline:
        found = what()
        if found:
            return found
        time.sleep(0.5)
    raise AssertionError("did not happen in time")


def shown(cluster: dict, job: str) -> dict[str, str]:
    """What SLURM says of a job."""
    return dict(re.findall(r"(\w+)=(\S*)", call(cluster, "scontrol", "show", "job", job)))


def end_of(cluster: dict, job: str) -> str:
    """Waits until a job is neither waiting nor running, and returns its state."""
    last = ("COMPLETED", "FAILED", "CANCELLED", "TIMEOUT", "NODE_FAIL")
    return wait_for(lambda: (state := shown(cluster, job)["JobState"]) in last and state)


def restart_now(cluster: dict, job: str) -> None:
    """SLURM lets a requeued job wait for two minutes; tests do not.

    But within the second in which it was stopped a node refuses it ("Job credential revoked"), and the job has failed.
    """
    wait_for(lambda: shown(cluster, job)["Restarts"] == "1")
    call(cluster, "scontrol", "update", f"JobId={job}", "StartTime=now+2")


def said(log: Path) -> str:
    """What a job wrote so far."""
    return log.read_text() if log.exists() else ""


def steps_of(run: Path) -> list[int]:
    path = run / "metrics.jsonl"
    return [json.loads(line)["step"] for line in path.read_text().splitlines()] if path.exists() else []


@pytest.fixture(scope="module")
def short_of_time(cluster, tmp_path_factory):
    """A job that will run out of time, started first: a minute is SLURM's shortest limit. Its number and its log."""
    logs = tmp_path_factory.mktemp("time")
    program = stand_in(logs / "program", "trap 'echo saving; exit 75' TERM\nwhile :; do sleep 0.1; done")
    # In the partition whose jobs are not preempted. The notice may come up to a minute earlier than asked for.
    job = submit(cluster, logs, "x", tasks=1, python=program, partition="high", time="0:01:30", notice=40)
    return job, logs / f"fi-jax-train-{job}.out"


def test_preempted_job_requeues_and_resumes(cluster, short_of_time, tmp_path):
    """Two tasks over CPU collectives; a job of higher priority takes the node in the middle."""
    logs, runs = tmp_path / "logs", tmp_path / "runs"
    steps = ["--train.steps", "600", "--train.checkpoint-every", "100000"]
    job = submit(cluster, logs, "tiny", "--name", "p", *steps, "--runs", runs, *SMALL)
    assert job in call(cluster, TRAIN, "--list")
    wait_for(lambda: len(steps_of(runs / "p")) > 3)
    call(cluster, "srun", "--partition=high", "--ntasks=4", "true")
    log = logs / f"fi-jax-train-{job}.out"
    wait_for(lambda: "requeueing" in said(log))
    stopped = int(re.search(r"stopped at step (\d+)", log.read_text())[1])
    assert 30 <= stopped < 600
    restart_now(cluster, job)
    state, text = end_of(cluster, job), log.read_text()
    assert state == "COMPLETED" and f"resumed at step {stopped}" in text and "done:" in text, (state, text[-3000:])
    # No step is missing and none is there twice.
    assert steps_of(runs / "p") == list(range(10, 601, 10))
    assert "done:" in call(cluster, TRAIN, "--log-dir", logs, "--logs", job)


def test_deleted_job_stays_deleted(cluster, tmp_path):
    """It saves and asks to be started again, as for every SIGTERM, but nobody wants it back."""
    program = stand_in(tmp_path / "program", "trap 'echo saving; exit 75' TERM\necho up\nwhile :; do sleep 0.1; done")
    job = submit(cluster, tmp_path, "x", python=program)
    log = tmp_path / f"fi-jax-train-{job}.out"
    wait_for(lambda: said(log).count("up\n") == 2)
    call(cluster, TRAIN, "--delete", job)
    assert end_of(cluster, job) == "CANCELLED" and shown(cluster, job)["Restarts"] == "0"
    assert "saving" in log.read_text() and "requeueing" not in log.read_text()
    refused = subprocess.run([TRAIN, "--delete", "999999"], capture_output=True, text=True, env=cluster)
    assert refused.returncode == 2 and "not in the queue" in refused.stderr


def test_job_preempted_while_it_starts_requeues(cluster, tmp_path):
    """SIGTERM comes before fi-jax listens for it and kills it."""
    job = submit(cluster, tmp_path, "x", python=stand_in(tmp_path / "program", "echo up\nexec sleep 600"))
    log = tmp_path / f"fi-jax-train-{job}.out"
    wait_for(lambda: said(log).count("up\n") == 2)
    call(cluster, "srun", "--partition=high", "--ntasks=4", "true")
    wait_for(lambda: shown(cluster, job)["Restarts"] == "1")
    call(cluster, TRAIN, "--delete", job)
    assert end_of(cluster, job) == "CANCELLED"


def test_one_job_of_an_array_requeues_alone(cluster, tmp_path):
    """SLURM gives the last job of an array the number of the whole array."""
    program = stand_in(tmp_path / "program", '[ "$4" = stays ] || exit 75\nsleep 600')
    (tmp_path / "commands").write_text("train stays\ntrain goes\n")
    options = ["--partition", "low", "--python", program, "--log-dir", tmp_path, "--commands", tmp_path / "commands"]
    job = call(cluster, TRAIN.with_name("array.sh"), *options).strip()
    wait_for(lambda: shown(cluster, f"{job}_1").get("Restarts") == "1")
    stays = shown(cluster, f"{job}_0")
    assert (stays["JobState"], stays["Restarts"]) == ("RUNNING", "0")
    call(cluster, TRAIN, "--delete", job)
    assert end_of(cluster, f"{job}_0") == "CANCELLED"


def test_mistake_is_not_requeued(cluster, tmp_path):
    job = submit(cluster, tmp_path, "tiny", "--train.stepz", "3", tasks=1)
    assert end_of(cluster, job) == "FAILED"
    text = (tmp_path / f"fi-jax-train-{job}.out").read_text()
    assert "did you mean" in text and "requeueing" not in text


def test_sweep_runs_as_an_array(cluster, tmp_path):
    sweep = tmp_path / "seeds.py"
    flags = [*SMALL, "--train.steps", "5", "--train.log-every", "5"]
    sweep.write_text(
        "from fi_jax.experiments.expressions import Sweep, grid\n\n\ndef sweep():\n"
        f"    return Sweep('tiny', grid({{'train.seed': [0, 1]}}), metric='head_bce', overrides={flags!r})\n"
    )
    command = [sys.executable, "-m", "fi_jax", "sweep", sweep, "--out", tmp_path / "out", "--where", "slurm"]
    said = call(cluster, *command, "--jobs", 2, "--slurm", "slurm_partition=low", "--slurm", "timeout_min=10")
    assert "submitted array" in said and "2 ok" in said, said


def test_job_out_of_time_is_told_before(cluster, short_of_time):
    """The notice before the time limit makes the job save and requeue."""
    job, log = short_of_time
    wait_for(lambda: "requeueing" in said(log))
    assert "saving" in log.read_text() and "TIME LIMIT" not in log.read_text()
    wait_for(lambda: shown(cluster, job)["Restarts"] == "1")
    call(cluster, TRAIN, "--delete", job)
    assert end_of(cluster, job) == "CANCELLED"
