"""What all tests share: eight CPU devices, a compile cache, hypothesis' settings, real data, and one small model."""

import contextlib
import ctypes
import gc
import os
from pathlib import Path

import jax
import numpy as np
import pytest
from hypothesis import HealthCheck, settings
from jaxtyping import install_import_hook
from PIL import Image

# Every annotated shape of the package is checked when a test calls or traces the function.
install_import_hook("fi_jax", "shape_checks.check")

ROOT = Path(__file__).parent.parent
SHARED_DATA = ROOT / ".." / "shared" / "data"

# Compiling takes longer than what is compiled runs: XLA optimises little, and keeps every program, so that neither the
# next module nor the next `make test` compiles it again. By the environment: processes that tests start inherit it.
CACHE = Path(os.environ.setdefault("FI_JAX_CACHE", str(ROOT / ".cache" / "tests")))
os.environ["JAX_COMPILATION_CACHE_DIR"] = str(CACHE / "xla")
os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0"
os.environ["JAX_DISABLE_MOST_OPTIMIZATIONS"] = "1"
# XLA's older emitters make the same kernels for a CPU in 0.6 of the time.
os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} --xla_cpu_use_fusion_emitters=false".strip()
jax.config.update("jax_compilation_cache_dir", str(CACHE / "xla"))
jax.config.update("jax_persistent_cache_min_compile_time_secs", 0)
jax.config.update("jax_disable_most_optimizations", True)
# By config, not XLA_FLAGS: processes that tests start must not inherit it.
if "host_platform_device_count" not in os.environ.get("XLA_FLAGS", ""):
    jax.config.update("jax_num_cpu_devices", 8)

settings.register_profile(
    "fi_jax",
    # The first example of a test compiles.
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow],
    derandomize="CI" in os.environ,
    print_blob=True,
)
settings.load_profile("fi_jax")


def pytest_collection_modifyitems(items):
    if (SHARED_DATA / "README.md").is_file():
        return
    skip = pytest.mark.skip(reason="the research data sets (../shared/data) are not here")
    for item in items:
        if "real_data" in item.keywords:
            item.add_marker(skip)


@pytest.fixture(autouse=True, scope="module")
def _free_compiled_programs():
    """Compiled programs of one module are not kept for the next: a process stays below 4 GB."""
    yield
    jax.clear_caches()
    gc.collect()
    # What is free goes back to the system, which glibc would otherwise keep.
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL("libc.so.6").malloc_trim(0)


def smooth_picture(seed: int, size: int) -> np.ndarray:
    """A smooth random picture; different seeds are not twins."""
    low = np.random.default_rng(seed).integers(0, 256, (6, 6, 3), dtype=np.uint8)
    return np.asarray(Image.fromarray(low).resize((size, size), Image.Resampling.BICUBIC))


@pytest.fixture(scope="session")
def utkface_folder(tmp_path_factory) -> Path:
    """Thirty generated pictures named as UTKFace names them, in its own layout."""
    root = tmp_path_factory.mktemp("utkface")
    (root / "UTKFace").mkdir()
    for i in range(30):
        name = f"{(i * 7) % 90}_{i % 2}_{i % 5}_201701161745{i:05d}.jpg.chip.jpg"
        Image.fromarray(smooth_picture(i, 48)).save(root / "UTKFace" / name)
    return root


@pytest.fixture(scope="session")
def small():
    """The small model (`small_model.Small`); read-only."""
    # Late: most tests do without it.
    from small_model import make_small

    return make_small()
