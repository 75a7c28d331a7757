"""Flat {path: array} trees to and from one safetensors file, at full or reduced precision.

int8 leaves are stored with a float16 scale for every output channel (the last axis, separately for each stacked
layer), as "<path>" and "<path>.scale".
"""

from collections.abc import Mapping
from pathlib import Path

import numpy as np

from fi_jax.errors import UserError
from fi_jax.files import atomic_path

_SCALE = ".scale"


def quantise(leaf: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Returns int8 values and float16 scales of a leaf `... in out`; the error is at most half a step."""
    largest = np.abs(leaf.astype(np.float32)).max(axis=-2, keepdims=True)
    scale = np.maximum(largest / 127.0, 1e-7).astype(np.float16)
    # Rounded against the scale that is stored; float16 may round it down, hence the clip.
    values = np.clip(np.round(leaf / scale.astype(np.float32)), -127, 127).astype(np.int8)
    return values, scale


def save_leaves(path: Path, leaves: dict[str, np.ndarray], precision: str = "float32") -> None:
    """Writes leaves atomically. `precision`: float32, float16, or int8 (matrices int8, the rest float16)."""
    stored: dict[str, np.ndarray] = {}
    for name, leaf in leaves.items():
        leaf = np.asarray(leaf)
        if not np.issubdtype(leaf.dtype, np.floating) and leaf.dtype.kind == "V":
            leaf = leaf.astype(np.float32)
        if (
            precision == "int8"
            and leaf.ndim >= 2
            and leaf.size >= 4096
            and name.endswith(("kernel", "lora_a", "lora_b"))
        ):
            stored[name], stored[name + _SCALE] = quantise(leaf)
        # Graphs are small, and their rows sum to 1.
        elif leaf.dtype.kind == "f" and precision != "float32" and name != "constants/graph":
            stored[name] = leaf.astype(np.float16)
        else:
            # Not `ascontiguousarray`, which gives scalars an axis.
            stored[name] = np.asarray(leaf.astype(np.float32) if leaf.dtype.kind == "f" else leaf, order="C")
    write_safetensors(path, stored)


def load_leaves(path: Path) -> dict[str, np.ndarray]:
    """Reads leaves back as float32 (integers stay as they are)."""
    stored, _ = read_safetensors(path)
    leaves: dict[str, np.ndarray] = {}
    for name, leaf in stored.items():
        if name.endswith(_SCALE) and name.removesuffix(_SCALE) in stored:
            continue
        if leaf.dtype == np.int8 and name + _SCALE in stored:
            scale = stored[name + _SCALE]
            if scale.shape != (*leaf.shape[:-2], 1, *leaf.shape[-1:]):
                raise UserError(f"{path} is damaged: {name} {leaf.shape} has scales {scale.shape}")
            leaf = leaf.astype(np.float32) * scale.astype(np.float32)
        # bfloat16 is of kind V.
        leaves[name] = leaf.astype(np.float32) if leaf.dtype.kind in "fV" else leaf
    return leaves


def write_safetensors(path: Path, tensors: Mapping[str, np.ndarray], metadata: Mapping[str, str] | None = None) -> None:
    """Writes a safetensors file whole or not at all, readable by whom the umask allows; errors as `files.atomic_path`."""
    from safetensors import SafetensorError
    from safetensors.numpy import save_file

    with atomic_path(path) as temporary:
        temporary.touch()
        mode = temporary.stat().st_mode
        try:
            save_file(dict(tensors), temporary, metadata={"format": "pt", **(metadata or {})})
        except SafetensorError as error:
            raise UserError(f"cannot write '{path}' ({error})") from error
        # The library makes its files the owner's alone.
        temporary.chmod(mode)


def read_safetensors(path: Path) -> tuple[dict[str, np.ndarray], dict[str, str]]:
    """Reads a safetensors file, its tensors and its metadata; one that is missing or damaged is a `UserError`."""
    import ml_dtypes  # noqa: F401 (numpy then knows bfloat16)
    from safetensors import SafetensorError, safe_open

    if not path.is_file():
        raise UserError(f"no weights at {path}")
    try:
        with safe_open(path, framework="np") as opened:
            return {key: opened.get_tensor(key) for key in opened.keys()}, opened.metadata() or {}  # noqa: SIM118
    # The library has a type of its own for most damage; numpy has others for what it cannot hold.
    except (SafetensorError, OSError, TypeError, ValueError, KeyError, AttributeError) as error:
        raise UserError(f"{path} is not a readable safetensors file ({error}); fetch or train it again") from error
