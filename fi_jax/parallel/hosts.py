"""Many processes as one: which launcher started us, joining the others, and what happens when one dies or hangs.

Environment variables, for launchers that are neither SLURM nor a TPU pod (they win over detection):

    FI_JAX_COORDINATOR        host:port of process 0
    FI_JAX_NUM_PROCESSES      processes in all
    FI_JAX_PROCESS_ID         this one, from 0 (default: JOB_COMPLETION_INDEX, which Kubernetes sets)
    FI_JAX_CLUSTER            "tpu" (a TPU pod), "none" (stay alone); default: detect
    FI_JAX_HEARTBEAT_SECONDS  silence after which a process counts as dead (default 60)
    FI_JAX_CONNECT_SECONDS    how long to wait for all processes at the start (default 300)

Several TPU slices are one job through MEGASCALE_NUM_SLICES, MEGASCALE_SLICE_ID and MEGASCALE_COORDINATOR_ADDRESS.
"""

import contextlib
import hashlib
import os
import re
import socket
import sys
import time
import traceback
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from fi_jax.errors import UserError, require_choice

# Silence after which a process counts as dead; the job has ended at most 30 s after that.
HEARTBEAT_SECONDS = 60
CONNECT_SECONDS = 300
# Coordinator ports lie above Linux's ephemeral range (32768-60999), so no client socket takes one by chance.
_FIRST_PORT, _NUM_PORTS = 61440, 4096
# How the transports say that a peer is gone: gloo, NCCL, the coordination service.
_LOST = re.compile(r"gloo|nccl|connection (closed|reset|refused)|coordination service|heartbeat|unavailable", re.I)


@dataclass(frozen=True)
class Hosts:
    """This process's place among `count` processes; `index` 0 writes what only one may write."""

    index: int = 0
    count: int = 1
    launcher: str = "none"

    @property
    def is_first(self) -> bool:
        """Whether this process writes logs, tables and other single files."""
        return self.index == 0


@dataclass(frozen=True)
class Cluster:
    """How to join: what `jax.distributed.initialize` needs; `None` fields are found by JAX itself."""

    launcher: Literal["env", "slurm", "tpu"]
    coordinator: str | None = None
    num_processes: int | None = None
    process_id: int | None = None
    # GPUs of this node that are this process's; `None` for all that are visible.
    local_device_ids: tuple[int, ...] | None = None


def detect(env: Mapping[str, str]) -> Cluster | None:
    """Reads the launcher from environment variables; `None` when this process is alone. Raises `UserError`."""
    choice = env.get("FI_JAX_CLUSTER", "")
    if choice:
        require_choice("FI_JAX_CLUSTER", choice, ("tpu", "none"))
    if choice == "none":
        return None
    if "FI_JAX_COORDINATOR" in env:
        return _from_variables(env)
    # SLURM_STEP_*: only `srun` sets them. In the batch script itself a plain `python` is alone and must not wait.
    if _integer(env, "SLURM_STEP_NUM_TASKS", 1) > 1:
        return _from_slurm(env)
    if choice == "tpu" or "," in env.get("TPU_WORKER_HOSTNAMES", "") or _integer(env, "MEGASCALE_NUM_SLICES", 1) > 1:
        _check_slices(env)
        return Cluster("tpu")
    return None


def initialise(env: Mapping[str, str] | None = None) -> Hosts:
    """Joins the other processes, once, before any other use of JAX. Alone, it does nothing.

    Raises `UserError` when the environment is incomplete or the others cannot be reached in time. Afterwards a
    process that dies ends all others within the heartbeat time plus 30 s.
    """
    env = os.environ if env is None else env
    cluster = detect(env)
    if cluster is None:
        return Hosts()
    import jax

    heartbeat = _integer(env, "FI_JAX_HEARTBEAT_SECONDS", HEARTBEAT_SECONDS)
    connect = _integer(env, "FI_JAX_CONNECT_SECONDS", CONNECT_SECONDS)
    if cluster.coordinator is not None:
        _announce(cluster, cluster.coordinator, connect)
    jax.config.update("jax_cpu_collectives_implementation", "gloo")
    jax.distributed.initialize(
        coordinator_address=cluster.coordinator,
        num_processes=cluster.num_processes,
        process_id=cluster.process_id,
        local_device_ids=cluster.local_device_ids,
        cluster_detection_method=None if cluster.launcher == "tpu" else "deactivate",
        initialization_timeout=connect,
        heartbeat_timeout_seconds=heartbeat,
        # The last barrier: a process that waits here for a dead one must not wait for minutes.
        shutdown_timeout_seconds=max(30, heartbeat),
    )
    return Hosts(jax.process_index(), jax.process_count(), cluster.launcher)


def _announce(cluster: Cluster, coordinator: str, seconds: int) -> None:
    """Says who waits for whom, and fails in one line where JAX would abort with a C++ stack trace."""
    who = f"process {cluster.process_id} of {cluster.num_processes} ({cluster.launcher})"
    if cluster.process_id == 0:
        # Should a process never come, JAX aborts after this time; this line is then the readable part.
        print(f"{who} waits at {coordinator} up to {seconds} s for all to join", file=sys.stderr, flush=True)
        return
    host, _, port = coordinator.rpartition(":")
    deadline = time.monotonic() + seconds
    while True:
        try:
            socket.create_connection((host.strip("[]"), int(port)), timeout=5).close()
            return
        except OSError as error:
            if time.monotonic() > deadline:
                raise UserError(
                    f"{who} could not reach process 0 at {coordinator} within {seconds} s ({error}); "
                    "check that process 0 runs and that its port is open between the hosts"
                ) from None
            time.sleep(0.5)


def _check_slices(env: Mapping[str, str]) -> None:
    """Several TPU slices as one: JAX reads these variables, and waits for ever when one of them is wrong."""
    slices = _integer(env, "MEGASCALE_NUM_SLICES", 1)
    missing = [n for n in ("MEGASCALE_COORDINATOR_ADDRESS", "MEGASCALE_SLICE_ID") if not env.get(n)]
    if slices > 1 and missing:
        raise UserError(f"MEGASCALE_NUM_SLICES is {slices} but {missing[0]} is not set; every slice needs it")
    if not 0 <= _integer(env, "MEGASCALE_SLICE_ID", 0) < slices:
        raise UserError(
            f"MEGASCALE_SLICE_ID is {env['MEGASCALE_SLICE_ID']}; with {slices} slices it must lie below that"
        )


def _from_variables(env: Mapping[str, str]) -> Cluster:
    coordinator = env["FI_JAX_COORDINATOR"]
    if not re.fullmatch(r".+:\d+", coordinator):
        raise UserError(f"FI_JAX_COORDINATOR is '{coordinator}'; it must be host:port")
    if "FI_JAX_NUM_PROCESSES" not in env:
        raise UserError("FI_JAX_COORDINATOR is set but FI_JAX_NUM_PROCESSES is not; set it to the number of processes")
    count = _integer(env, "FI_JAX_NUM_PROCESSES", 1)
    if "FI_JAX_PROCESS_ID" not in env and "JOB_COMPLETION_INDEX" not in env:
        raise UserError(f"FI_JAX_PROCESS_ID is not set; give each of the {count} processes its number, from 0")
    index = _integer(env, "FI_JAX_PROCESS_ID", _integer(env, "JOB_COMPLETION_INDEX", 0))
    if not 0 <= index < count:
        raise UserError(
            f"FI_JAX_PROCESS_ID is {index}; with FI_JAX_NUM_PROCESSES={count} it must lie in 0..{count - 1}"
        )
    return Cluster("env", coordinator, count, index)


def _from_slurm(env: Mapping[str, str]) -> Cluster:
    # Without its number every task would be the first.
    for name in ("SLURM_STEP_NODELIST", "SLURM_PROCID"):
        if not env.get(name):
            raise UserError(f"SLURM_STEP_NUM_TASKS is set but {name} is not; start fi-jax by srun")
    job, step = _integer(env, "SLURM_JOB_ID", 0), _integer(env, "SLURM_STEP_ID", 0)
    port = _FIRST_PORT + (job + 101 * step) % _NUM_PORTS
    return Cluster(
        "slurm",
        f"{first_node(env['SLURM_STEP_NODELIST'])}:{port}",
        _integer(env, "SLURM_STEP_NUM_TASKS", 1),
        _integer(env, "SLURM_PROCID", 0),
        _slurm_gpus(env),
    )


def first_node(node_list: str) -> str:
    """Returns the first host of a SLURM node list: `gpu[007-012,020],login1` → `gpu007`."""
    match = re.match(r"([^,\[]+)(?:\[([^\],-]+)[^\]]*\]([^,\[]*))?", node_list)
    if match is None:
        raise UserError(f"SLURM_STEP_NODELIST is '{node_list}'; it names no host")
    return "".join(part or "" for part in match.groups())


def _slurm_gpus(env: Mapping[str, str]) -> tuple[int, ...] | None:
    """The GPUs of this task; None for all that it sees. JAX's own detection gives a task with a whole node its first."""
    tasks = tasks_on_node(env.get("SLURM_STEP_TASKS_PER_NODE", "1"), _integer(env, "SLURM_NODEID", 0))
    on_node = _integer(env, "SLURM_GPUS_ON_NODE", 0)
    visible = on_node
    if "CUDA_VISIBLE_DEVICES" in env:
        visible = len([name for name in env["CUDA_VISIBLE_DEVICES"].split(",") if name])
    # --gpus-per-task and --gpu-bind let a task see its own GPUs alone, numbered from 0.
    resources = (
        f"gpu:{env['SLURM_GPUS_PER_TASK']}" if env.get("SLURM_GPUS_PER_TASK") else env.get("SLURM_TRES_PER_TASK")
    )
    per_task = re.search(r"\bgpu[:=](?:[^,:=]+[:=])?(\d+)(?:,|$)", resources or "")
    own = visible * tasks == on_node or per_task is not None and int(per_task[1]) == visible
    if tasks == 1 or not visible or own or visible == 1 and not on_node:
        return None
    if visible % tasks:
        raise UserError(
            f"{tasks} tasks on a node with {visible} GPUs; use one task a GPU or one task a node (or --gpus-per-task)"
        )
    local = _integer(env, "SLURM_LOCALID", 0)
    if not 0 <= local < tasks:
        raise UserError(f"SLURM_LOCALID is {local} but this node has {tasks} tasks; start fi-jax by srun alone")
    share = visible // tasks
    return tuple(range(local * share, (local + 1) * share))


def tasks_on_node(pattern: str, node: int) -> int:
    """Reads SLURM's `2(x3),1` (three nodes of two tasks, then one of one) for one node."""
    counts = []
    for part in pattern.split(","):
        match = re.fullmatch(r"(\d+)(?:\(x(\d+)\))?", part.strip())
        if match is None:
            raise UserError(f"SLURM_STEP_TASKS_PER_NODE is '{pattern}'; expected the form 2(x3),1")
        counts += [int(match[1])] * int(match[2] or 1)
    return counts[min(node, len(counts) - 1)]


def _integer(env: Mapping[str, str], name: str, default: int) -> int:
    value = env.get(name, "")
    try:
        return int(value) if value else default
    except ValueError:
        raise UserError(f"{name} is '{value}'; it must be a whole number") from None


def from_first(value: Any, hosts: Hosts) -> Any:
    """Returns process 0's array on every process; every process must call it with one of the same shape."""
    if hosts.count == 1:
        return value
    from jax.experimental import multihost_utils

    return multihost_utils.broadcast_one_to_all(value)


def check_same(what: str, text: str, hosts: Hosts) -> None:
    """Raises `UserError` on every process unless all hold the same `text` (config, file list, version)."""
    if hosts.count == 1:
        return
    import numpy as np
    from jax.experimental import multihost_utils

    digest = np.frombuffer(hashlib.sha256(text.encode()).digest(), np.uint32)
    everyone = np.asarray(multihost_utils.process_allgather(digest)).reshape(hosts.count, -1)
    odd = [i for i in range(hosts.count) if not np.array_equal(everyone[i], everyone[0])]
    if odd:
        raise UserError(f"{what} differs between processes: {odd} disagree with process 0; start all of them alike")


def check_shared(folder: Path, hosts: Hosts, timeout: float = 30.0) -> None:
    """Raises `UserError` on every process unless all see the same `folder`.

    Process 0 leaves a marker there; the others have `timeout` seconds to see it (network file systems lag).
    """
    if hosts.count == 1:
        return
    import numpy as np
    from jax.experimental import multihost_utils

    nonce = from_first(np.frombuffer(os.urandom(8), np.uint32), hosts)
    marker = folder / f".shared-{''.join(f'{word:08x}' for word in np.asarray(nonce))}"
    if hosts.is_first:
        folder.mkdir(parents=True, exist_ok=True)
        marker.touch()
    multihost_utils.sync_global_devices("shared folder marker")
    seen = _wait_for(marker, timeout)
    everyone = np.asarray(multihost_utils.process_allgather(np.asarray(seen))).reshape(-1)
    if hosts.is_first:
        marker.unlink(missing_ok=True)
    if not everyone.all():
        blind = np.flatnonzero(~everyone).tolist()
        raise UserError(f"folder '{folder}' is not shared: processes {blind} do not see it; use one on a shared disk")


def _wait_for(path: Path, timeout: float) -> bool:
    deadline = time.monotonic() + timeout
    while not path.exists():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.2)
    return True


@contextlib.contextmanager
def ends_together(hosts: Hosts) -> Iterator[None]:
    """Around the work of one process among many: an unexpected error here ends this process at once.

    Python's normal way out waits at a last barrier for processes that may be dead or stuck in a collective with us.
    Leaving at once lets the others notice within seconds. `UserError`s, which all processes raise alike, pass
    through. Alone, it does nothing.
    """
    try:
        yield
    except Exception as error:
        if hosts.count == 1 or isinstance(error, UserError):
            raise
        if _LOST.search(str(error)):
            print(
                f"error: process {hosts.index} of {hosts.count} lost another process ({str(error).splitlines()[0]}); "
                "look for the first error in the other logs, then restart: the run resumes from its last checkpoint",
                file=sys.stderr,
            )
        else:
            traceback.print_exc()
            print(f"error: process {hosts.index} of {hosts.count} failed; the others end with it", file=sys.stderr)
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(1)
