"""Our leaves as a PyTorch `state_dict` and back: names, layouts and stacking, bit for bit (no torch needed).

image_encoder/layers/attn/q_proj/kernel [l, in, out]  <->  image_encoder.layers.{i}.attn.q_proj.weight [out, in]
image_encoder/patch_embed/kernel [p, p, 3, d]         <->  image_encoder.patch_embed.weight [d, 3, p, p]
…/norm1/scale                                         <->  ….norm1.weight
…/lora_a [in, r], …/lora_b [r, out]                   <->  ….lora_a.weight [r, in], ….lora_b.weight [out, r]
"""

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from fi_jax.errors import UserError

_WEIGHTS = ("kernel", "scale", "lora_a", "lora_b")


def _key(path: str) -> str:
    module, _, name = path.replace("/", ".").rpartition(".")
    if name in ("lora_a", "lora_b"):
        return f"{module}.{name}.weight"
    return f"{module}.weight" if name in _WEIGHTS else f"{module}.{name}".lstrip(".")


def _transposed(path: str, value: np.ndarray, back: bool) -> np.ndarray:
    name = path.rpartition("/")[2]
    if name == "kernel" and value.ndim == 4:
        return value.transpose((2, 3, 1, 0) if back else (3, 2, 0, 1))
    return value.T if name in ("kernel", "lora_a", "lora_b") else value


def _parts(path: str, shape: tuple[int, ...]) -> Iterator[tuple[int | None, str]]:
    if "/layers/" not in path:
        yield None, _key(path)
        return
    for i in range(shape[0]):
        yield i, _key(path.replace("/layers/", f"/layers/{i}/"))


def to_state(leaves: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Returns `{key: tensor}` of flat leaves; stacked layers become one key a layer. Types are kept."""
    return {
        key: np.asarray(_transposed(path, leaf if i is None else leaf[i], back=False), order="C")
        for path, leaf in leaves.items()
        for i, key in _parts(path, leaf.shape)
    }


def from_state(state: Mapping[str, np.ndarray], shapes: Mapping[str, Any]) -> dict[str, np.ndarray]:
    """Returns the flat leaves of a state dict: the inverse of `to_state`.

    Args:
      shapes: path -> something with a `.shape`, for every leaf that is wanted.

    Raises:
      UserError: missing, unexpected or misshapen keys, all named at once.
    """
    leaves, wrong, used = {}, [], set()
    for path, wanted in shapes.items():
        parts = []
        for i, key in _parts(path, wanted.shape):
            used.add(key)
            if key not in state:
                wrong.append(f"{key} is missing")
                continue
            part = _transposed(path, np.asarray(state[key]), back=True)
            expected = wanted.shape if i is None else wanted.shape[1:]
            if part.shape != tuple(expected):
                wrong.append(f"{key} has shape {list(state[key].shape)}")
            parts.append(part)
        if not wrong:
            leaves[path] = np.asarray(np.stack(parts) if "/layers/" in path else parts[0], order="C")
    wrong += [f"{key} is unexpected" for key in state if key not in used]
    if wrong:
        raise UserError(f"the PyTorch weights do not fit the model: {', '.join(wrong)}")
    return leaves
