"""Accidents of `fi-jax train` as a user has them: each is one line and exit 2, and nothing good is lost."""

import json
import shutil
import signal
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from test_train import command, run, start, steps_of, stop_after

HEAD = ("--train.stage", "align", "--train.trainable", "knowledge/.*", "head/.*")


def one_line(err: str) -> str:
    lines = [line for line in err.splitlines() if line.startswith("fi-jax: ")]
    assert len(lines) == 1 and "Traceback" not in err, err
    return lines[0]


@pytest.fixture
def data(tmp_path, utkface_folder) -> Path:
    root = tmp_path / "data"
    shutil.copytree(utkface_folder, root)
    return root


def again(data: Path, *more: str) -> list[str]:
    return command(data, "half", *HEAD, "--train.steps", "3000", "--train.checkpoint-every", "100", *more)


@pytest.fixture(scope="module")
def stopped(tmp_path_factory, utkface_folder) -> Path:
    """The runs' folder, with a run that was stopped half-way."""
    folder = tmp_path_factory.mktemp("stopped")
    status, out = stop_after(start(folder, again(utkface_folder)), folder / "runs" / "half", 150, signal.SIGTERM)
    assert status == 75, out
    return folder / "runs"


@pytest.fixture
def half(tmp_path, data, stopped) -> Path:
    """A copy of the run that was stopped, beside a copy of its pictures."""
    shutil.copytree(stopped, tmp_path / "runs")
    return tmp_path / "runs" / "half"


@pytest.mark.slow
def test_what_is_not_finite_never_replaces_a_good_checkpoint(tmp_path, data):
    """A rate that soon overflows, between two logged steps; twice, then --finish."""
    arguments = command(data, "nan", *HEAD, "--train.learning-rate", "1e30", "--train.log-every", "50")
    arguments += ["--train.warmup-steps", "5", "--train.steps", "60", "--train.checkpoint-every", "1"]
    for _ in range(2):
        status, out, err = run(tmp_path, arguments)
        assert status == 2, out + err
        assert "not finite at step " in one_line(err) and "--name" in err and "--finish" in err
        kept = sorted(int(path.name) for path in (tmp_path / "runs/nan/checkpoints").iterdir())
        assert kept and not (tmp_path / "runs/nan/model").exists()
    status, out, err = run(tmp_path, [*arguments, "--finish"])
    assert status == 0, out + err
    from safetensors.numpy import load_file

    assert all(np.isfinite(leaf).all() for leaf in load_file(tmp_path / "runs/nan/model/weights.safetensors").values())
    assert json.loads((tmp_path / "runs/nan/model/model.json").read_text())["steps"] == kept[-1]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda root: sorted((root / "UTKFace").iterdir())[3].unlink(), "had 24 faces and has "),
        (lambda root: _rename(sorted((root / "UTKFace").iterdir())[3]), "other "),
        (lambda root: _add_bytes(sorted((root / "UTKFace").iterdir())), "other pictures"),
    ],
)
def test_data_that_changed_need_a_flag(half, data, change, says):
    folder = half.parents[1]
    change(data)
    before = sorted(path.name for path in (half / "checkpoints").iterdir())
    status, out, err = run(folder, again(data))
    assert status == 2 and "--accept-changed-data" in one_line(err), out + err
    assert sorted(path.name for path in (half / "checkpoints").iterdir()) == before


def _rename(path: Path) -> None:
    """Another age, as UTKFace's names tell it."""
    age, rest = path.name.split("_", 1)
    path.rename(path.with_name(f"{int(age) + 1}_{rest}"))


def _add_bytes(paths: list[Path]) -> None:
    for path in paths:
        path.write_bytes(path.read_bytes() + b"\0")


@pytest.mark.slow
def test_resume_elsewhere_and_with_changed_data_by_flag(half, data):
    folder = half.parents[1]
    shutil.move(data, folder / "moved")
    arguments = again(folder / "moved", "--train.log-every", "1")
    status, out = stop_after(start(folder, arguments), half, steps_of(half)[-1] + 20, signal.SIGTERM)
    assert status == 75 and "resumed at step" in out
    sorted((folder / "moved" / "UTKFace").iterdir())[3].unlink()
    arguments += ["--accept-changed-data"]
    status, out = stop_after(start(folder, arguments), half, steps_of(half)[-1] + 20, signal.SIGTERM)
    assert status == 75 and "resumed at step" in out


@pytest.mark.slow
def test_two_runs_in_one_folder_and_a_killed_one(half, data):
    folder = half.parents[1]
    first = start(folder, again(data))
    target = steps_of(half)[-1] + 5
    deadline = time.monotonic() + 200
    while steps_of(half)[-1:] < [target] and first.poll() is None and time.monotonic() < deadline:
        time.sleep(0.05)
    status, out, err = run(folder, again(data))
    assert status == 2 and f"process {first.pid} on" in one_line(err), out + err
    assert first.poll() is None
    first.kill()
    first.communicate()
    # After kill −9 the same command goes on.
    status, out = stop_after(start(folder, again(data)), half, steps_of(half)[-1] + 5, signal.SIGTERM)
    assert status == 75 and "resumed at step" in out


@pytest.mark.slow
def test_a_damaged_log_and_checkpoint_do_not_stop_a_resume(half, data):
    folder = half.parents[1]
    with (half / "metrics.jsonl").open("a") as log:
        log.write("null\n[]\n{\n")
    last = max((half / "checkpoints").iterdir(), key=lambda path: int(path.name))
    for file in last.rglob("*"):
        if file.is_file() and file.stat().st_size > 1000:
            file.write_bytes(file.read_bytes()[:500])
    status, out = stop_after(start(folder, again(data)), half, int(last.name) + 5, signal.SIGTERM)
    assert status == 75 and "resumed at step 100" in out
    assert [path.name.split("-")[0] for path in (half / "damaged").iterdir()] == [last.name]


@pytest.mark.slow
@pytest.mark.parametrize("limit", [3_000, 30_000])
def test_a_full_disk_is_one_line_and_ends_at_once(half, data, limit):
    """No file may grow beyond a limit: as on a full disk, writing fails (in the log, and in a checkpoint)."""
    folder = half.parents[1]
    code = (
        "import resource, sys; from fi_jax.cli.main import main; import signal;"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN);"
        f"resource.setrlimit(resource.RLIMIT_FSIZE, ({limit}, {limit})); sys.exit(main(sys.argv[1:]))"
    )
    # Programs that it compiles are not kept: the limit would leave a part of each, for all later tests.
    arguments = ["env", "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS=1000", sys.executable, "-c", code, *again(data)[3:]]
    kept = {path.name for path in (half / "checkpoints").iterdir()}
    status, out, err = run(folder, arguments)
    assert status == 2, out + err
    line = one_line(err)
    assert "cannot write" in line and "repeat the command" in line and "Error" not in err
    assert {path.name for path in (half / "checkpoints").iterdir()} & kept


@pytest.mark.slow
def test_a_signal_is_answered_while_the_first_step_compiles(tmp_path, data):
    arguments = command(data, "early", "--train.steps", "3000")
    environment = {"FI_JAX_CACHE": str(tmp_path / "empty")}
    process = start(tmp_path, arguments, **environment)
    deadline = time.monotonic() + 200
    while not (tmp_path / "runs/early/config.json").exists() and time.monotonic() < deadline:
        time.sleep(0.05)
    time.sleep(1.0)
    process.send_signal(signal.SIGTERM)
    line = process.stderr.readline()
    while line and "SIGTERM" not in line:
        line = process.stderr.readline()
    assert "SIGTERM: will save after this step and stop" in line and not steps_of(tmp_path / "runs/early")
    out, err = process.communicate(timeout=200)
    assert process.returncode == 75, out + err


@pytest.mark.slow
def test_workers_end_with_a_killed_run(tmp_path, data):
    arguments = command(data, "w", *HEAD, "--train.steps", "100000", "--data.workers", "2")
    process = start(tmp_path, arguments)
    deadline = time.monotonic() + 200
    while not steps_of(tmp_path / "runs/w") and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.05)
    workers = descendants(process.pid)
    assert len(workers) >= 2
    shared: set[Path] = set()
    while not shared and time.monotonic() < deadline:
        shared = set().union(*(shared_memory(pid) for pid in (process.pid, *workers)))
    assert shared
    process.kill()
    process.communicate()
    deadline = time.monotonic() + 15
    while (any(map(alive, workers)) or any(path.exists() for path in shared)) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert not [pid for pid in workers if alive(pid)]
    assert not [path for path in shared if path.exists()]


def shared_memory(pid: int) -> set[Path]:
    """The blocks of shared memory that a process has open at this moment."""
    try:
        lines = Path(f"/proc/{pid}/maps").read_text().splitlines()
    except OSError:
        return set()
    return {Path(line[line.index("/dev/shm/") :]) for line in lines if "/dev/shm/" in line and "(deleted)" not in line}


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except OSError:
        return False


def descendants(pid: int) -> list[int]:
    try:
        children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
        threads = [Path(p, "children").read_text().split() for p in Path(f"/proc/{pid}/task").iterdir()]
    except OSError:
        return []
    found = sorted({int(child) for child in children} | {int(child) for part in threads for child in part})
    return [*found, *(inner for child in found for inner in descendants(child))]
