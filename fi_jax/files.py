"""Files written whole or not at all, their hashes, and the folder where slow findings are kept between runs."""

import contextlib
import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Iterable, Iterator
from functools import lru_cache
from pathlib import Path
from typing import Any

from fi_jax.errors import UserError


def cache_folder() -> Path:
    """Returns the cache folder: `$FI_JAX_CACHE`, else `~/.cache/fi_jax`, else one in the folder for temporary files.

    It need not exist, nor be writable.
    """
    if named := os.environ.get("FI_JAX_CACHE"):
        return Path(named)
    try:
        return Path.home() / ".cache" / "fi_jax"
    except RuntimeError:  # No HOME, and a user that the system does not know (containers).
        return temporary_folder() / f"fi_jax-cache-{os.getuid()}"


def temporary_folder() -> Path:
    """Returns the folder for temporary files; where none can be written to (a read-only container), `/tmp`."""
    try:
        return Path(tempfile.gettempdir())
    except FileNotFoundError:
        return Path("/tmp")


@contextlib.contextmanager
def atomic_path(path: Path) -> Iterator[Path]:
    """Yields a temporary path in `path`'s folder (made if missing); what is written there replaces `path` at the end.

    When the block fails, nothing is left behind and `path` is as it was. The temporary path has `path`'s suffix.

    Raises:
      UserError: the folder cannot be made or written to, or the disk is full.
    """
    path = Path(path)
    temporary = path.with_name(f".{path.stem[:40]}.{os.getpid()}-{os.urandom(4).hex()}{path.suffix}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield temporary
        temporary.replace(path)
    except OSError as error:
        raise UserError(
            f"cannot write '{path}' ({error.strerror or error}); free space or choose another place, and repeat the command"
        ) from error
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)


@contextlib.contextmanager
def atomic_folder(folder: Path) -> Iterator[Path]:
    """Yields a temporary folder beside `folder`, which it becomes at the end, readable as the umask allows.

    When the block fails, nothing is left behind.

    Raises:
      UserError: `folder` exists already (and is not empty), or cannot be made.
    """
    folder = Path(folder)
    require_new(folder)
    work = folder.with_name(f".{folder.name}.{os.getpid()}-{os.urandom(4).hex()}")
    try:
        work.mkdir(parents=True)
        yield work
        if folder.exists():
            folder.rmdir()
        work.rename(folder)
    except OSError as error:
        raise UserError(f"cannot write '{folder}' ({error.strerror or error})") from error
    finally:
        shutil.rmtree(work, ignore_errors=True)


def require_new(folder: Path) -> None:
    """Raises `UserError` where a folder is to be made and something is already (an empty folder may be)."""
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise UserError(f"{folder} exists already; name another folder or remove it")


def write_bytes(path: Path, data: bytes) -> None:
    """Writes a file, making its folder; it appears whole or not at all. Errors are those of `atomic_path`."""
    with atomic_path(path) as temporary:
        temporary.write_bytes(data)


def write_text(path: Path, text: str) -> None:
    """Writes UTF-8 text as `write_bytes` does."""
    write_bytes(path, text.encode())


def write_json(path: Path, content: Any, indent: int | None = None) -> None:
    """Writes JSON as `write_bytes` does; indented JSON ends with a newline."""
    write_text(path, json.dumps(content, indent=indent) + ("\n" if indent else ""))


def read_json(path: Path, remedy: str = "") -> Any:
    """Returns what a JSON file holds. The caller checks its shape.

    Raises:
      UserError: the file is missing, cannot be read, is not JSON, or is nested too deep; `remedy` says what to do.
    """
    remedy = f"; {remedy}" if remedy else ""
    try:
        return json.loads(Path(path).read_text("utf-8"))
    except OSError as error:
        raise UserError(f"'{path}' cannot be read ({error.strerror}){remedy}") from None
    except (ValueError, RecursionError):
        raise UserError(f"'{path}' is damaged: it is not JSON{remedy}") from None


def inside(folder: Path | str, name: str) -> Path:
    """Returns `folder / name` for a name that was read from a file and must not lead out of the folder.

    Raises:
      UserError: the name is not text, is empty or absolute, or has a part "..".
    """
    parts = name.replace("\\", "/").split("/") if isinstance(name, str) else [".."]
    if not name or parts[0] == "" or ".." in parts or "\0" in name or Path(name).is_absolute():
        raise UserError(f"the name {name!r} would lead out of '{folder}'; the file that holds it is damaged")
    return Path(folder) / name


def refuse_overwrite(outputs: Iterable[Path], inputs: Iterable[Path] = (), mark: bytes = b"") -> None:
    """Checks, before any work, that writing `outputs` destroys nothing that a user did not mean to replace.

    Args:
      outputs: the files to be written.
      inputs: the files that are read; links are followed.
      mark: where given, a file that exists may be replaced only if its first 4 or last 64 KiB hold these bytes: the
        command's own.

    Raises:
      UserError: an output is an input, a folder, or somebody else's file.
    """
    inputs = [Path(path) for path in inputs]
    for path in map(Path, outputs):
        if not path.exists():
            continue
        if path.is_dir():
            raise UserError(f"'{path}' is a folder; give the name of a file to write")
        if any(source.exists() and path.samefile(source) for source in inputs):
            raise UserError(f"'{path}' is read and would be overwritten; write to another place")
        if mark and mark not in _ends(path):
            raise UserError(
                f"'{path}' exists and was not written by this command; delete it, or write to another place"
            )


def _ends(path: Path) -> bytes:
    try:
        with path.open("rb") as opened:
            head = opened.read(4096)
            opened.seek(max(opened.seek(0, os.SEEK_END) - 65_536, 0))
            return head + opened.read(65_536)
    except OSError as error:
        raise UserError(f"cannot read '{path}', which would be replaced ({error.strerror or error})") from error


def require_writable(folder: Path) -> None:
    """Checks, before any work, that files can be written into `folder`, which need not exist yet. Makes nothing.

    Raises:
      UserError: it is a file or lies in one, or cannot be written to.
    """
    place = Path(folder).absolute()
    while not os.path.exists(place):  # noqa: PTH110 (Path.exists raises where a folder above cannot be entered)
        place = place.parent
    if not place.is_dir():
        raise UserError(f"'{place}' is a file; give a folder")
    if not os.access(place, os.W_OK | os.X_OK):
        raise UserError(f"cannot write into '{place}'; give another folder")


def sha256(data: bytes | str) -> str:
    """Returns the SHA-256 of bytes, or of a text's UTF-8, in hexadecimal."""
    return hashlib.sha256(data.encode() if isinstance(data, str) else data).hexdigest()


def file_sha256(path: Path) -> str:
    """Returns the SHA-256 of a file's content in hexadecimal; the file is read in pieces."""
    with Path(path).open("rb") as opened:
        return hashlib.file_digest(opened, "sha256").hexdigest()


def seal(path: Path) -> None:
    """Writes `<path>.sha256` beside a file, for `is_intact`."""
    write_text(Path(f"{path}.sha256"), file_sha256(path) + "\n")


def is_intact(path: Path) -> bool:
    """Says whether a file is there and has the content that `seal` saw. A file is hashed once a process."""
    try:
        sealed = Path(f"{path}.sha256").read_text().strip()
        stat = Path(path).stat()
    except (OSError, UnicodeDecodeError):
        return False
    return _digest(str(path), stat.st_size, stat.st_mtime_ns) == sealed


@lru_cache(maxsize=256)
def _digest(path: str, size: int, time: int) -> str:
    return file_sha256(Path(path))
