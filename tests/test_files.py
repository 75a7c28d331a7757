import os
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest
from PIL import Image
from skimage import data

import fi_jax
from fi_jax.errors import UserError
from fi_jax.files import cache_folder, refuse_overwrite
from fi_jax.weights.hub import resolve_folder


def test_inputs_and_files_of_others_are_not_overwritten(tmp_path):
    photo, link, map_, new = (tmp_path / name for name in ("photo.png", "link.png", "map.png", "new.png"))
    photo.write_bytes(b"pixels")
    map_.write_bytes(b"made by fi-jax")
    link.symlink_to(photo)
    os.link(photo, tmp_path / "hard.png")
    refuse_overwrite([new, map_], [photo, tmp_path / "missing"], b"fi-jax")
    for output in (photo, link, tmp_path / "hard.png"):
        with pytest.raises(UserError, match="is read and would be overwritten"):
            refuse_overwrite([new, output], [photo])
    with pytest.raises(UserError, match="was not written by this command"):
        refuse_overwrite([photo], mark=b"fi-jax")
    with pytest.raises(UserError, match="is a folder"):
        refuse_overwrite([tmp_path])


def test_no_home_and_a_user_that_the_system_does_not_know(monkeypatch):
    """As in containers; `Path.home` raises there, and so does `expanduser`."""

    def unknown(uid):
        raise KeyError(f"getpwuid(): uid not found: {uid}")

    monkeypatch.setattr("pwd.getpwuid", unknown)
    for name in ("HOME", "FI_JAX_CACHE"):
        monkeypatch.delenv(name, raising=False)
    with pytest.raises(RuntimeError):
        Path.home()
    assert cache_folder() == Path(tempfile.gettempdir()) / f"fi_jax-cache-{os.getuid()}"

    def nowhere():
        raise FileNotFoundError("No usable temporary directory found")

    with monkeypatch.context() as read_only:
        read_only.setattr("tempfile.gettempdir", nowhere)
        assert cache_folder() == Path(f"/tmp/fi_jax-cache-{os.getuid()}")
    with pytest.raises(UserError, match="~/model"):
        resolve_folder("~/model")
    monkeypatch.setenv("FI_JAX_CACHE", "elsewhere")
    assert cache_folder() == Path("elsewhere")


UNKNOWN_USER = ["unshare", "--user", "--map-user=54321"]


def may_be_unknown() -> bool:
    try:
        return subprocess.run([*UNKNOWN_USER, "true"], capture_output=True).returncode == 0
    except OSError:
        return False


@pytest.mark.skipif(not may_be_unknown(), reason="cannot become a user that the system does not know")
def test_ask_without_home_user_and_cache(tmp_path):
    """As in a container that may write nowhere: what would be kept is made anew."""
    Image.fromarray(data.astronaut()).save(tmp_path / "photo.png")
    gone = ("HOME", "FI_JAX_CACHE", "USER")
    environment = {name: value for name, value in os.environ.items() if name not in gone}
    command = [*UNKNOWN_USER, sys.executable, "-m", "fi_jax", "ask", "photo.png", "Is she smiling?", "--head"]
    environment |= {"FI_JAX_CACHE": "/proc/nowhere", "PYTHONPATH": str(Path(fi_jax.__file__).parents[1])}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 0 and done.stdout.startswith("Yes ("), done.stderr
    assert "Traceback" not in done.stderr and "Warning" not in done.stderr, done.stderr
