"""The command line itself: commands, help, exit statuses, one-line mistakes."""

import ast
import logging
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from fi_jax import __version__
from fi_jax.cli import main as cli

FOLDER = Path(cli.__file__).parent


def test_no_command_lists_them(capsys):
    assert cli.main([]) == 0
    shown = capsys.readouterr().out
    assert "train" in shown and "usage: fi-jax COMMAND" in shown
    assert cli.main(["--version"]) == 0
    assert capsys.readouterr().out.strip() == __version__


@pytest.mark.parametrize("command", sorted(cli.COMMANDS))
def test_every_command_has_help(command, capsys):
    with pytest.raises(SystemExit) as stop:
        cli.main([command, "--help"])
    assert stop.value.code == 0
    assert f"fi-jax {command}" in capsys.readouterr().out


@pytest.mark.parametrize("module", sorted(set(cli.COMMANDS.values())))
def test_every_command_exists(module):
    assert (FOLDER / f"{module}.py").is_file()


@pytest.mark.parametrize("file", sorted(FOLDER.glob("*.py")), ids=lambda file: file.stem)
def test_commands_import_nothing_heavy_at_the_top(file):
    top = [node for node in ast.parse(file.read_text()).body if isinstance(node, ast.Import | ast.ImportFrom)]
    names = {alias.name for node in top if isinstance(node, ast.Import) for alias in node.names}
    names |= {node.module for node in top if isinstance(node, ast.ImportFrom)}
    heavy = {"jax", "flax", "torch", "transformers", "matplotlib", "grain", "orbax", "tyro", "numpy"}
    assert not {name.split(".")[0] for name in names} & heavy


@pytest.mark.parametrize(("level", "name"), [(logging.INFO, "stdout"), (logging.WARNING, "stderr")])
def test_a_terminal_that_is_gone_stops_nothing(level, name, monkeypatch):
    """What was to be said at a step must not keep the step from being saved."""
    leader, terminal = os.openpty()
    os.close(leader)
    with open(terminal, "w") as gone:  # noqa: PTH123 - a descriptor
        monkeypatch.setattr(sys, name, gone)
        for _ in range(2):
            cli._Console().emit(logging.makeLogRecord({"msg": "step 1", "levelno": level}))


def test_help_is_quick():
    """Without jax, in a process of its own; CPU time, since other processes share the machine."""
    import resource

    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    started = time.monotonic()
    subprocess.run([sys.executable, "-m", "fi_jax", "train", "--help"], check=True, capture_output=True)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    spent = after.ru_utime - before.ru_utime + after.ru_stime - before.ru_stime
    assert min(spent, time.monotonic() - started) < 1.0


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["trian"], "unknown command 'trian'; did you mean 'train'"),
        (["train"], "train: the following arguments are required: config"),
        (["train", "tinny"], "no config 'tinny' (known: "),
        (["train", "no/such/file.py"], "no config file no/such/file.py"),
        (["train", "tiny", "--train.lerning-rate", "1"], "did you mean '--train.learning_rate'"),
        (["train", "tiny", "--train.steps", "many"], "--train.steps"),
        (["ask"], "ask: the following arguments are required: PICTURE|QUESTION"),
        (["ask", "nothing.jpg"], "nothing.jpg"),
        (["ask", "x.jpg", "--jsno"], "did you mean '--json'"),
        (["ask", "x.jpg", "-y.jpg"], "write ./-name"),
        (["pack", "runs/x", "", "--out", "y"], "pack: unrecognized arguments:  (see"),
        (["ask", "x.jpg", "--box", "-9,0,9,9"], "write --flag=VALUE"),
        (["ask", "x.jpg", "--known", "gender=male", "--known", "gender=female"], "gender has two answers"),
        (["evaluate", "tiny", "--checkpoint", "no/run"], "no model 'no/run'"),
        (["evaluate", "tiny", "--dataset", "utkface"], "--dataset utkface needs --data-root"),
        (["evaluate", "tiny", "--dataset", "utkface", "--data-root", "a", "b"], "1 data sets but 2 folders"),
    ],
)
def test_a_mistake_is_one_line_and_2(arguments, says, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert cli.main(arguments) == 2
    told = capsys.readouterr()
    assert told.err.startswith("fi-jax: ") and says in told.err
    assert told.err.count("\n") == 1 and "Traceback" not in told.err
    assert not list(tmp_path.iterdir())


def test_fields_lists_what_can_be_overridden(capsys):
    assert cli.main(["train", "tiny", "--train.steps", "7", "--fields"]) == 0
    shown = capsys.readouterr().out.splitlines()
    assert "--train.steps 7" in shown and "--model.llm.lora.rank 4" in shown


def test_a_closed_pipe_is_no_fault():
    shown = subprocess.run(
        f"{sys.executable} -m fi_jax train tiny --fields | head -1", shell=True, capture_output=True, text=True
    )
    assert shown.stdout.count("\n") == 1 and "Traceback" not in shown.stderr
