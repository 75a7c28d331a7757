"""The log of a run on damaged lines and full disks, and who may write into its folder."""

import errno
import json
import os
import socket
import struct
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from tensorboardX.proto.event_pb2 import Event

from fi_jax.config import Experiment, TrainConfig
from fi_jax.errors import UserError
from fi_jax.training import run_folder
from fi_jax.training.run_folder import LOCK, RunLog, check_unlocked, diverged_at, locked


def test_lines_are_rewound_and_damaged_ones_dropped(tmp_path):
    lines = [
        '{"step": 1, "loss": 2.0}',
        "null",
        "[1]",
        '{"loss": 1}',
        '{"step": "x"}',
        '{"step": 9}',
        '{"step": 2, "lo',
    ]
    (tmp_path / "metrics.jsonl").write_bytes("\n".join(lines).encode() + b"\n\xff\xfe\n")
    log = RunLog(tmp_path, Experiment(), start_step=4)
    log.write(5, {"loss": 1.5, "lm": float("nan")})
    log.close()
    kept = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert kept == [{"step": 1, "loss": 2.0}, {"step": 5, "loss": 1.5, "lm": None}]
    assert list((tmp_path / "tensorboard").glob("events.out.tfevents.*"))


def test_tensorboard_reads_the_curves(tmp_path):
    log = RunLog(tmp_path, Experiment(), 0)
    log.write(1, {"loss": 2.0})
    log.write(2, {"loss": 1.0})
    log.close()
    (file,) = (tmp_path / "tensorboard").iterdir()
    data, at, points = file.read_bytes(), 0, []
    while at < len(data):
        # Length, its check, the event, its check.
        (size,) = struct.unpack_from("<Q", data, at)
        event = Event.FromString(data[at + 12 : at + 12 + size])
        points += [(event.step, value.tag, value.simple_value) for value in event.summary.value]
        at += 16 + size
    assert [point for point in points if point[1] == "loss"] == [(1, "loss", 2.0), (2, "loss", 1.0)]


def test_weights_and_biases_gets_the_same_lines_offline(tmp_path, monkeypatch):
    pytest.importorskip("wandb", reason="the extra fi_jax[wandb] is not installed")
    monkeypatch.setenv("WANDB_MODE", "offline")
    for start, lines in ((0, {1: 2.0, 2: 1.0}), (2, {3: 0.5})):
        log = RunLog(tmp_path, Experiment(name="mine", train=TrainConfig(wandb="faces")), start)
        for step, loss in lines.items():
            log.write(step, {"loss": loss})
        log.close()
    # Two starts of one run: two files under one name.
    found = sorted((tmp_path / "wandb").glob("offline-run-*/run-*.wandb"))
    assert len(found) == 2 and len({file.name for file in found}) == 1
    assert b"loss" in found[0].read_bytes()
    assert len((tmp_path / "metrics.jsonl").read_text().splitlines()) == 3


def test_a_log_loads_no_torch(tmp_path):
    """tensorboardX would: seconds of every start."""
    text = f"""
import sys
from pathlib import Path
from fi_jax.config import Experiment
from fi_jax.training.run_folder import RunLog
RunLog(Path({str(tmp_path)!r}), Experiment(), 0).write(1, {{"loss": 2.0}})
print("torch" in sys.modules)
"""
    assert subprocess.run([sys.executable, "-c", text], capture_output=True, text=True).stdout == "False\n"
    assert list((tmp_path / "tensorboard").glob("events.*"))


@pytest.mark.parametrize("part", ["_file", "_board"])
def test_a_full_disk_ends_the_log_at_once(tmp_path, part):
    log = RunLog(tmp_path, Experiment(), 0)
    log.write(1, {"loss": 2.0})
    full = Path("/dev/full").open("w")  # noqa: SIM115
    if part == "_file":
        log._file.close()
        log._file = full
    else:
        writer = log._board._py_recordio_writer
        writer._writer.close()
        writer._writer = full.buffer
    begin = time.monotonic()
    with pytest.raises(UserError, match="cannot write the log of .*No space left.*resumes"):
        log.write(2, {"loss": 1.0})
    log.close()
    assert time.monotonic() - begin < 5


def test_whether_a_run_diverged_stands_in_its_log(tmp_path):
    assert diverged_at(tmp_path) == 0
    for text, step in (('{"step": 3, "loss": 1.0}', 0), ('{"step": 4, "loss": null}', 4), ("null", 0), ("", 0)):
        (tmp_path / "metrics.jsonl").write_text(text)
        assert diverged_at(tmp_path) == step


def test_a_folder_is_locked_while_it_is_trained_in(tmp_path):
    with locked([tmp_path / "a", tmp_path / "b"]):
        for folder in ("a", "b"):
            with pytest.raises(UserError, match=f"process {os.getpid()} on {socket.gethostname()} trains in"):
                check_unlocked(tmp_path / folder)
        with pytest.raises(UserError, match="another --name"), locked([tmp_path / "b"]):
            pass
    check_unlocked(tmp_path / "a")
    assert not list(tmp_path.rglob(LOCK))


def test_a_lock_that_cannot_be_had_lets_the_others_go(tmp_path):
    with locked([tmp_path / "b"]):
        with pytest.raises(UserError), locked([tmp_path / "a", tmp_path / "b"]):
            pass
        assert not (tmp_path / "a" / LOCK).exists() and (tmp_path / "b" / LOCK).exists()


def test_a_killed_owner_holds_nothing(tmp_path):
    text = f"""
import sys, time
from pathlib import Path
from fi_jax.training.run_folder import locked
with locked([Path({str(tmp_path)!r})]):
    print("held", flush=True)
    time.sleep(60)
"""
    owner = subprocess.Popen([sys.executable, "-c", text], stdout=subprocess.PIPE, text=True)
    assert owner.stdout.readline() == "held\n"
    with pytest.raises(UserError, match=f"process {owner.pid} on"):
        check_unlocked(tmp_path)
    owner.kill()
    begin = time.monotonic()
    # Before its parent has noticed, too.
    with locked([tmp_path]):
        assert time.monotonic() - begin < 2
    owner.wait()


def test_another_process_with_the_number_of_a_dead_owner_is_no_owner(tmp_path):
    (tmp_path / LOCK).write_text(json.dumps({**run_folder._me(), "start": "1"}))
    with locked([tmp_path]):
        pass


@pytest.mark.parametrize("lives", [True, False])
def test_an_owner_elsewhere_is_watched_for_signs_of_life(tmp_path, monkeypatch, lives):
    monkeypatch.setattr(run_folder, "_SILENCE", 60.0 if lives else 1.0)
    lock = tmp_path / LOCK
    lock.write_text(json.dumps({"host": "elsewhere", "space": "", "pid": 7, "start": "1"}))
    check_unlocked(tmp_path)
    if not lives:
        with locked([tmp_path]):
            assert json.loads(lock.read_text())["pid"] == os.getpid()
        return
    timer = threading.Timer(0.2, os.utime, [lock])
    timer.start()
    with pytest.raises(UserError, match=f"process 7 on elsewhere trains in .*delete {lock}"), locked([tmp_path]):
        pass
    assert lock.exists()


@pytest.mark.parametrize("text", ["", "null", "{", '{"pid": "x"}'])
def test_a_damaged_lock_is_taken_over_when_it_stays_silent(tmp_path, monkeypatch, text):
    monkeypatch.setattr(run_folder, "_SILENCE", 1.0)
    (tmp_path / LOCK).write_text(text)
    with locked([tmp_path]):
        pass


def test_a_lock_that_a_full_disk_does_not_take_is_one_line_and_leaves_none(tmp_path, monkeypatch):
    def full(content, file):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(run_folder.json, "dump", full)
    with pytest.raises(UserError, match=r"cannot write '.*lock.json' \(No space left"), locked([tmp_path]):
        pass
    assert not (tmp_path / LOCK).exists()
