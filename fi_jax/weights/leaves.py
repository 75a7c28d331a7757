"""Flat {path: array} trees to and from one safetensors file, at full or reduced precision.

int8 leaves are stored with a float16 scale for every output channel (the last axis, separately for each stacked
layer), as "<path>" and "<path>.scale".
"""

import json
from pathlib import Path

import numpy as np

from fi_jax.errors import UserError

_SCALE = ".scale"


def quantise(leaf: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Returns int8 values and float16 scales of a leaf `... in out`; the error is at most half a step."""
    largest = np.abs(leaf.astype(np.float32)).max(axis=-2, keepdims=True)
    scale = np.maximum(largest / 127.0, 1e-7).astype(np.float16)
    # Rounded against the scale that is stored; float16 may round it down, hence the clip.
    values = np.clip(np.round(leaf / scale.astype(np.float32)), -127, 127).astype(np.int8)
    return values, scale


def save_leaves(
    path: Path, leaves: dict[str, np.ndarray], precision: str = "float32", metadata: dict | None = None
) -> None:
    """Writes leaves atomically. `precision`: float32, float16, or int8 (matrices int8, the rest float16)."""
    from safetensors.numpy import save_file

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
        elif leaf.dtype.kind == "f" and precision != "float32":
            stored[name] = leaf.astype(np.float16)
        else:
            # Not `ascontiguousarray`, which gives scalars an axis.
            stored[name] = np.asarray(leaf.astype(np.float32) if leaf.dtype.kind == "f" else leaf, order="C")
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(path.name + ".part")
    save_file(stored, temporary, metadata={"fi_jax": json.dumps(metadata or {})})
    temporary.replace(path)


def load_leaves(path: Path) -> dict[str, np.ndarray]:
    """Reads leaves back as float32 (integers stay as they are)."""
    from safetensors import SafetensorError
    from safetensors.numpy import load_file

    if not path.is_file():
        raise UserError(f"no weights at {path}")
    try:
        stored = load_file(path)
    except (SafetensorError, OSError) as error:
        raise UserError(f"{path} is not a readable safetensors file ({error}); fetch or train it again") from error
    leaves: dict[str, np.ndarray] = {}
    for name, leaf in stored.items():
        if name.endswith(_SCALE) and name.removesuffix(_SCALE) in stored:
            continue
        if leaf.dtype == np.int8 and name + _SCALE in stored:
            leaf = leaf.astype(np.float32) * stored[name + _SCALE].astype(np.float32)
        leaves[name] = leaf.astype(np.float32) if leaf.dtype.kind == "f" else leaf
    return leaves
