"""Detection of launchers from their variables, and two real processes that join, stop, die and hang."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fi_jax.errors import UserError
from fi_jax.parallel.hosts import Cluster, detect, first_node, tasks_on_node
from fi_jax.parallel.preemption import REQUEUE_STATUS, STALLED_STATUS, PreemptionFlag

PROGRAM = Path(__file__).with_name("two_processes.py")
ROOT = Path(__file__).parents[2]
SLURM = {
    "SLURM_JOB_ID": "17",
    "SLURM_STEP_ID": "0",
    "SLURM_STEP_NODELIST": "gpu[07-09]",
    "SLURM_STEP_NUM_TASKS": "6",
    "SLURM_STEP_TASKS_PER_NODE": "2(x3)",
    "SLURM_PROCID": "3",
    "SLURM_LOCALID": "1",
    "SLURM_NODEID": "1",
}


def test_alone():
    assert detect({}) is None
    # In a batch script, outside srun: several tasks are planned but this process is not one of them.
    assert detect({"SLURM_JOB_ID": "1", "SLURM_NTASKS": "4", "SLURM_PROCID": "0"}) is None
    assert detect({**SLURM, "FI_JAX_CLUSTER": "none"}) is None
    assert detect({"JOB_COMPLETION_INDEX": "3"}) is None


def test_slurm():
    assert detect(SLURM) == Cluster("slurm", "gpu07:61457", 6, 3, None)
    assert detect({**SLURM, "SLURM_GPUS_ON_NODE": "2"}).local_device_ids == (1,)
    assert detect({**SLURM, "CUDA_VISIBLE_DEVICES": "0,1,2,3"}).local_device_ids == (2, 3)
    # A GPU of its own is the only one the task sees, whatever its local number.
    assert detect({**SLURM, "CUDA_VISIBLE_DEVICES": "0", "SLURM_GPUS_ON_NODE": "2"}).local_device_ids is None
    one_a_node = {**SLURM, "SLURM_STEP_TASKS_PER_NODE": "1(x6)", "SLURM_GPUS_ON_NODE": "8"}
    assert detect(one_a_node).local_device_ids is None
    with pytest.raises(UserError, match="2 tasks on a node with 3 GPUs"):
        detect({**SLURM, "SLURM_GPUS_ON_NODE": "3"})


@pytest.mark.parametrize(
    ("variables", "gpus"),
    [
        # --gpus-per-task=2 on a node of four: each task sees its own two.
        ({"CUDA_VISIBLE_DEVICES": "0,1", "SLURM_GPUS_ON_NODE": "4", "SLURM_GPUS_PER_TASK": "2"}, None),
        ({"CUDA_VISIBLE_DEVICES": "0,1", "SLURM_GPUS_PER_TASK": "h100:2"}, None),
        ({"CUDA_VISIBLE_DEVICES": "0,1", "SLURM_TRES_PER_TASK": "cpu=8,gres/gpu:2"}, None),
        ({"CUDA_VISIBLE_DEVICES": "0,1", "SLURM_TRES_PER_TASK": "gres/gpu=2,cpu=8"}, None),
        ({"CUDA_VISIBLE_DEVICES": "0,1", "SLURM_TRES_PER_TASK": "cpu=2"}, (1,)),
        ({"CUDA_VISIBLE_DEVICES": "0,1", "SLURM_TRES_PER_TASK": "cpu=2,gres/gpu:a100-sxm4.80gb=2"}, None),
        # The same without binding (--gpu-bind=none): all see all four, and share them.
        ({"CUDA_VISIBLE_DEVICES": "0,1,2,3", "SLURM_GPUS_ON_NODE": "4", "SLURM_GPUS_PER_TASK": "2"}, (2, 3)),
        # --gpu-bind=single:1 or per_task without a count.
        ({"CUDA_VISIBLE_DEVICES": "2,3", "SLURM_GPUS_ON_NODE": "4"}, None),
        ({"CUDA_VISIBLE_DEVICES": ""}, None),
    ],
)
def test_slurm_tasks_that_see_their_own_gpus(variables, gpus):
    assert detect({**SLURM, **variables}).local_device_ids == gpus


def test_four_tasks_with_two_gpus_each():
    four = {**SLURM, "SLURM_STEP_NUM_TASKS": "4", "SLURM_STEP_TASKS_PER_NODE": "4", "SLURM_NODEID": "0"}
    own = {"CUDA_VISIBLE_DEVICES": "0,1", "SLURM_GPUS_ON_NODE": "8", "SLURM_GPUS_PER_TASK": "2", "SLURM_LOCALID": "3"}
    assert detect({**four, **own}).local_device_ids is None
    with pytest.raises(UserError, match="4 tasks on a node with 2 GPUs"):
        detect({**four, "CUDA_VISIBLE_DEVICES": "0,1"})
    with pytest.raises(UserError, match="2 tasks on a node with 1 GPUs"):
        detect({**SLURM, "CUDA_VISIBLE_DEVICES": "0", "SLURM_GPUS_ON_NODE": "1"})
    with pytest.raises(UserError, match="SLURM_LOCALID is 2 but this node has 2 tasks"):
        detect({**SLURM, "CUDA_VISIBLE_DEVICES": "0,1", "SLURM_LOCALID": "2"})


def test_steps_of_a_job_have_their_own_port():
    assert detect(SLURM).coordinator != detect({**SLURM, "SLURM_STEP_ID": "1"}).coordinator


@pytest.mark.parametrize(
    ("nodes", "first"),
    [
        ("node001", "node001"),
        ("node001,host2", "node001"),
        ("node[001-015],host2", "node001"),
        ("node[001,007-015]", "node001"),
        ("rack[1-2]-ib,x", "rack1-ib"),
    ],
)
def test_first_node(nodes, first):
    assert first_node(nodes) == first


@given(st.lists(st.tuples(st.integers(1, 8), st.integers(1, 4)), min_size=1, max_size=4))
def test_tasks_on_node(runs):
    pattern = ",".join(f"{tasks}(x{nodes})" if nodes > 1 else str(tasks) for tasks, nodes in runs)
    flat = [tasks for tasks, nodes in runs for _ in range(nodes)]
    assert [tasks_on_node(pattern, node) for node in range(len(flat))] == flat


def test_kubernetes_and_tpu():
    env = {"FI_JAX_COORDINATOR": "job-0-0.job:8476", "FI_JAX_NUM_PROCESSES": "4", "JOB_COMPLETION_INDEX": "2"}
    assert detect(env) == Cluster("env", "job-0-0.job:8476", 4, 2)
    assert detect({"TPU_WORKER_HOSTNAMES": "a,b"}) == Cluster("tpu")
    assert detect({"TPU_WORKER_HOSTNAMES": "localhost"}) is None
    assert detect({"FI_JAX_CLUSTER": "tpu"}) == Cluster("tpu")
    # Two slices of one host each are two processes.
    slices = {"MEGASCALE_NUM_SLICES": "2", "MEGASCALE_SLICE_ID": "1", "MEGASCALE_COORDINATOR_ADDRESS": "a:8080"}
    assert detect({"TPU_WORKER_HOSTNAMES": "localhost", **slices}) == Cluster("tpu")
    assert detect({"MEGASCALE_NUM_SLICES": "1"}) is None


@pytest.mark.parametrize(
    ("env", "says"),
    [
        ({"FI_JAX_COORDINATOR": "host"}, "host:port"),
        ({"FI_JAX_COORDINATOR": "host:1"}, "FI_JAX_NUM_PROCESSES is not"),
        ({"FI_JAX_COORDINATOR": "host:1", "FI_JAX_NUM_PROCESSES": "2"}, "FI_JAX_PROCESS_ID is not set"),
        ({"FI_JAX_COORDINATOR": "host:1", "FI_JAX_NUM_PROCESSES": "2", "FI_JAX_PROCESS_ID": "2"}, "0..1"),
        ({"FI_JAX_COORDINATOR": "host:1", "FI_JAX_NUM_PROCESSES": "two"}, "whole number"),
        ({"FI_JAX_CLUSTER": "tpus"}, "did you mean 'tpu'"),
        ({"SLURM_STEP_NUM_TASKS": "2", "SLURM_PROCID": "0"}, "SLURM_STEP_NODELIST is not"),
        ({**SLURM, "SLURM_PROCID": ""}, "SLURM_PROCID is not"),
        ({**SLURM, "CUDA_VISIBLE_DEVICES": "0,1", "SLURM_LOCALID": "-1"}, "SLURM_LOCALID is -1"),
        ({"MEGASCALE_NUM_SLICES": "2", "MEGASCALE_SLICE_ID": "0"}, "MEGASCALE_COORDINATOR_ADDRESS is not set"),
        (
            {"MEGASCALE_NUM_SLICES": "2", "MEGASCALE_SLICE_ID": "2", "MEGASCALE_COORDINATOR_ADDRESS": "a"},
            "MEGASCALE_SLICE_ID is 2",
        ),
        ({"MEGASCALE_NUM_SLICES": "two"}, "whole number"),
    ],
)
def test_incomplete_environment(env, says):
    with pytest.raises(UserError, match=says):
        detect(env)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1, signal.SIGHUP])
def test_one_process_stops_at_the_next_step(number):
    before = signal.signal(number, signal.SIG_DFL)
    with PreemptionFlag() as flag:
        assert not flag.reached(0)
        for _ in range(2):
            os.kill(os.getpid(), number)
        assert flag.reached(1)
        assert flag.exit_status == REQUEUE_STATUS
    assert signal.signal(number, before) is signal.SIG_DFL


def test_under_nohup_a_terminal_that_goes_stops_nothing():
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    with PreemptionFlag() as flag:
        os.kill(os.getpid(), signal.SIGHUP)
        assert not flag.reached(1)
    signal.signal(signal.SIGHUP, before)


def test_second_ctrl_c_interrupts():
    # A shell's background jobs start with SIGINT ignored, and Python keeps it so.
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    with pytest.raises(KeyboardInterrupt), PreemptionFlag() as flag:
        os.kill(os.getpid(), signal.SIGINT)
        assert flag.reached(1) and flag.exit_status == 130
        os.kill(os.getpid(), signal.SIGINT)
        time.sleep(1)
    signal.signal(signal.SIGINT, before)


def start(folder: Path, *arguments: str, only: int | None = None) -> list[subprocess.Popen]:
    folder.mkdir(exist_ok=True)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    common = {
        **os.environ,
        "FI_JAX_COORDINATOR": f"127.0.0.1:{port}",
        "FI_JAX_NUM_PROCESSES": "2",
        "FI_JAX_HEARTBEAT_SECONDS": "10",
        "FI_JAX_CONNECT_SECONDS": "60" if only is None else "3",
        "JAX_PLATFORMS": "cpu",
        "JAX_NUM_CPU_DEVICES": "2",
        "PYTHONPATH": str(ROOT),
    }
    return [
        subprocess.Popen(
            [sys.executable, PROGRAM, folder, *arguments],
            env={**common, "FI_JAX_PROCESS_ID": str(i)},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for i in ((0, 1) if only is None else (only,))
    ]


def finish(processes: list[subprocess.Popen]) -> tuple[list[int], list[str], list[str]]:
    results = [process.communicate(timeout=120) for process in processes]
    return [p.returncode for p in processes], [out for out, _ in results], [err for _, err in results]


def wait_for_steps(processes: list[subprocess.Popen], folder: Path, steps: int = 3) -> None:
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline and all(process.poll() is None for process in processes):
        with_steps = [path for path in folder.glob("step*") if int(path.read_text() or 0) >= steps]
        if len(with_steps) == 2:
            return
        time.sleep(0.1)
    raise AssertionError(f"the processes did not get going: {finish(processes)}")


def last_json(text: str) -> dict:
    return json.loads(text.strip().splitlines()[-1])


@pytest.mark.parametrize("mode", ["", "interleaved"])
def test_two_processes_share_the_work(tmp_path, mode):
    codes, outs, errors = finish(start(tmp_path / "f", "3", mode))
    assert codes == [0, 0], errors
    assert [last_json(out)["rows"] for out in outs] == [[0, 4], [4, 8]]
    assert not list((tmp_path / "f").glob(".shared*"))


@pytest.mark.parametrize(("mode", "says"), [("odd", "config differs"), ("own-folder", "is not shared")])
def test_processes_that_do_not_belong_together(tmp_path, mode, says):
    codes, _, errors = finish(start(tmp_path / "f", "3", mode))
    assert codes == [2, 2]
    for text in errors:
        assert [says in line for line in text.splitlines() if line.startswith("error:")] == [True]


@pytest.mark.parametrize(("number", "victim"), [(signal.SIGTERM, 1), (signal.SIGUSR1, 0)])
def test_notice_to_one_stops_all_at_the_same_step(tmp_path, number, victim):
    processes = start(tmp_path / "f", "5000")
    wait_for_steps(processes, tmp_path / "f")
    processes[victim].send_signal(number)
    codes, outs, errors = finish(processes)
    assert codes == [REQUEUE_STATUS, REQUEUE_STATUS], errors
    assert last_json(outs[0])["stopped"] == last_json(outs[1])["stopped"]


@pytest.mark.parametrize("victim", [0, 1])
def test_dead_process_ends_the_other(tmp_path, victim):
    processes = start(tmp_path / "f", "5000")
    wait_for_steps(processes, tmp_path / "f")
    processes[victim].kill()
    begin = time.monotonic()
    codes, _, errors = finish(processes)
    # The heartbeat time (10 s here) plus 30 s is what we promise; a closed socket is noticed much sooner.
    assert time.monotonic() - begin < 40
    assert codes[1 - victim] not in (0, REQUEUE_STATUS)
    assert "lost another process" in errors[1 - victim] or "another task died" in errors[1 - victim]


def test_hung_process_ends_the_job(tmp_path):
    begin = time.monotonic()
    codes, _, errors = finish(start(tmp_path / "f", "5000", "hang"))
    assert time.monotonic() - begin < 60
    assert STALLED_STATUS in codes and 0 not in codes
    assert any("no step finished within 3 s" in text for text in errors)


@pytest.mark.parametrize(("present", "says"), [(0, "process 0 of 2 (env) waits at"), (1, "could not reach process 0")])
def test_missing_process_is_said(tmp_path, present, says):
    processes = start(tmp_path / "f", "3", only=present)
    codes, _, errors = finish(processes)
    assert codes != [0]
    assert says in errors[0], errors
    if present == 1:
        assert codes == [2]
