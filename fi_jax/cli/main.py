"""`fi-jax COMMAND …`: finds the command, runs it, and turns a user's mistake into one line and exit 2."""

import argparse
import ast
import errno
import importlib
import io
import logging
import os
import sys
from pathlib import Path

from fi_jax import __version__
from fi_jax.errors import UserError, did_you_mean

# Command → module of `fi_jax.cli`. A module has `add_arguments(parser)` and `run(args) -> int`, and imports
# nothing heavy at its top, so that `--help` answers at once.
COMMANDS = {
    "train": "train",
    "evaluate": "evaluate",
    "ablate": "ablate",
    "ask": "ask",
    "predict": "predict",
    "segment": "segment",
    "dataset": "dataset",
    "prepare": "prepare",
    "export": "export",
    "pack": "pack",
    "import": "import_model",
    "sweep": "sweep",
    "plan": "plan",
    "graph": "graph",
    "figure": "figure",
    "report": "report",
    "train-parser": "train_parser",
    "bench": "bench",
    "demo-server": "demo_server",
}

# Libraries that come with an extra (pyproject.toml).
_EXTRAS = {
    "torch": "torch",
    "transformers": "torch",
    "peft": "torch",
    "matplotlib": "report",
    "jinja2": "report",
    "markupsafe": "report",
    "optuna": "sweeps",
    "submitit": "sweeps",
    "pyarrow": "tables",
    "wandb": "wandb",
    "tensorflow_datasets": "tfds",
    "starlette": "demo",
    "uvicorn": "demo",
    "h11": "demo",
}
# Full, read-only and forbidden disks, whatever file it was.
_NOT_OURS = {errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EPERM, errno.EFBIG}


class _Console(logging.Handler):
    """Prints what the library logs, plainly: information on today's stdout, warnings on stderr (beside `--json`)."""

    def emit(self, record: logging.LogRecord) -> None:
        stream = sys.stderr if record.levelno >= logging.WARNING else sys.stdout
        try:
            print(self.format(record), file=stream, flush=True)
        except OSError as error:
            if error.errno != errno.EIO:
                raise
            # The terminal is gone. What is to be saved comes first (SIGHUP), and nobody reads on.
            os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())


def _log_to_console() -> None:
    log = logging.getLogger("fi_jax")
    log.handlers, log.propagate = [_Console()], False
    log.setLevel(logging.INFO)


def _summary(module: str) -> str:
    """First line of a command's docstring, read without importing it."""
    source = (Path(__file__).parent / f"{module}.py").read_text()
    return (ast.get_docstring(ast.parse(source)) or "").split("\n")[0]


def _overview() -> str:
    width = max(map(len, COMMANDS))
    lines = [f"  {command:<{width}}  {_summary(module)}" for command, module in COMMANDS.items()]
    return "\n".join(
        [
            f"fi-jax {__version__}: FaceInsight in JAX",
            "",
            "usage: fi-jax COMMAND …   (fi-jax COMMAND --help says more)",
            "",
            *lines,
        ]
    )


def _hide_libtpu() -> None:
    """Keeps JAX from libtpu on a machine without a TPU: it would look for one, and print pages about it."""
    vendors = Path("/sys/bus/pci/devices").glob("*/vendor")
    if "tpu" not in os.environ.get("JAX_PLATFORMS", "") and not any(v.read_text().strip() == "0x1ae0" for v in vendors):
        sys.modules.setdefault("libtpu", None)  # type: ignore[arg-type]


def main(argv: list[str] | None = None) -> int:
    """Runs one command; returns the exit status (0 success, 2 a user's mistake)."""
    argv = sys.argv[1:] if argv is None else argv
    # A name of a file may be no text, and a terminal may lack letters: they are printed as \udcff.
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")
    _log_to_console()
    _hide_libtpu()
    if not argv or argv[0] in ("-h", "--help"):
        print(_overview())
        return 0
    if argv[0] == "--version":
        print(__version__)
        return 0
    # A dead pipe (`| head`) is not a fault.
    try:
        if argv[0] not in COMMANDS:
            raise UserError(f"unknown command '{argv[0]}'{did_you_mean(argv[0], COMMANDS)} (fi-jax --help lists them)")
        return _run(argv[0], COMMANDS[argv[0]], argv[1:])
    except UserError as error:
        print(f"fi-jax: {error}", file=sys.stderr)
        return 2
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141
    except ModuleNotFoundError as error:
        missing = (error.name or "").split(".")[0]
        if missing not in _EXTRAS:
            raise
        print(
            f"fi-jax: {argv[0]} needs {missing}: pip install 'fi_jax[{_EXTRAS[missing]}]' (in a checkout: pip install "
            f"'.[{_EXTRAS[missing]}]')",
            file=sys.stderr,
        )
        return 2
    except OSError as error:
        if error.errno not in _NOT_OURS and error.filename is None:
            raise
        where = f" '{error.filename}'" if error.filename else ""
        print(
            f"fi-jax: cannot read or write{where} ({error.strerror}); free space or name another place", file=sys.stderr
        )
        return 2
    except KeyboardInterrupt:
        print("fi-jax: interrupted", file=sys.stderr)
        return 130


def _run(command: str, module_name: str, arguments: list[str]) -> int:
    module = importlib.import_module(f"fi_jax.cli.{module_name}")
    parser = _Parser(
        prog=f"fi-jax {command}", description=module.__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    module.add_arguments(parser)
    if getattr(module, "TAKES_OVERRIDES", False):
        args, overrides = parser.parse_known_args(arguments)
        args.overrides = overrides
    else:
        args = parser.parse_args(arguments)
    return module.run(args)


class _Parser(argparse.ArgumentParser):
    def error(self, message: str):
        guess = ""
        if message.startswith("unrecognized arguments: "):
            flags = [flag for action in self._actions for flag in action.option_strings]
            word, *_ = message.removeprefix("unrecognized arguments: ").split() or [""]
            guess = did_you_mean(word, flags)
            if not guess and word.startswith("-"):
                guess = "; write ./-name for a file whose name begins with '-'"
        elif message.endswith("expected one argument"):
            guess = "; write --flag=VALUE for a value that begins with '-'"
        raise UserError(f"{self.prog.removeprefix('fi-jax ')}: {message}{guess} (see {self.prog} --help)")
