"""CLIP's vision tower as OpenAI published it, and as FaRL (Zheng et al. 2022, trained on faces) still is: a PyTorch file.

Its tensors are given the names that transformers has for them, so that the leaf table reads them as any other tower.
"""

import re
from pathlib import Path

import numpy as np

from fi_jax.config import VitConfig
from fi_jax.errors import UserError

SUFFIXES = (".pt", ".pth")
# Of OpenAI's towers every head is so wide; the file does not say it.
_HEAD_SIZE = 64
_RENAMES = {
    "class_embedding": "embeddings.class_embedding",
    "positional_embedding": "embeddings.position_embedding.weight",
    "conv1.weight": "embeddings.patch_embedding.weight",
    "ln_pre.": "pre_layrnorm.",
    "ln_post.": "post_layernorm.",
    "transformer.resblocks.": "encoder.layers.",
    ".ln_1.": ".layer_norm1.",
    ".ln_2.": ".layer_norm2.",
    ".attn.out_proj.": ".self_attn.out_proj.",
    ".mlp.c_fc.": ".mlp.fc1.",
    ".mlp.c_proj.": ".mlp.fc2.",
}


def read_openai_clip(file: Path) -> tuple[VitConfig, dict[str, np.ndarray], tuple[str, ...]]:
    """Reads the vision tower of a `.pt` or `.pth` file (FaRL's, or a saved `state_dict` of OpenAI's CLIP).

    Returns:
      The config that the shapes say; tensors under transformers' names, float32; keys of the file that were left out.

    Raises:
      UserError: PyTorch is missing, or the file is damaged or holds something else.
    """
    try:
        import torch
    except ImportError:
        raise UserError(f"reading {file.name} needs PyTorch; pip install 'fi_jax[torch]'") from None
    try:
        # Tensors alone: an unpickler that runs code is never used.
        stored = torch.load(file, map_location="cpu", weights_only=True)
    # The unpickler has no type of its own for damage.
    except Exception as error:
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0][:160]
        raise UserError(f"{file} is no PyTorch file of plain tensors ({reason})") from None
    stored = stored.get("state_dict", stored) if isinstance(stored, dict) else {}
    visual = {
        key.removeprefix("visual."): value.float().numpy()
        for key, value in stored.items()
        if key.startswith("visual.") and isinstance(value, torch.Tensor)
    }
    kernel, positions = visual.get("conv1.weight"), visual.get("positional_embedding")
    if kernel is None or positions is None or kernel.ndim != 4 or positions.ndim != 2:
        raise UserError(f"{file} holds no vision tower of CLIP's (visual.conv1.weight, visual.positional_embedding)")
    tensors = {name: tensor for key, value in visual.items() for name, tensor in _named(key, value)}
    width, patch = kernel.shape[0], kernel.shape[-1]
    layers = {int(found[1]) for name in tensors if (found := re.match(r"encoder\.layers\.(\d+)\.", name))}
    hidden = tensors.get("encoder.layers.0.mlp.fc1.bias", np.zeros(1))
    config = VitConfig(
        image_size=patch * round((len(positions) - 1) ** 0.5),
        patch_size=patch,
        hidden_size=width,
        intermediate_size=len(hidden),
        num_layers=max(len(layers), 1),
        num_heads=max(width // _HEAD_SIZE, 1),
        feature_layer=-2 if len(layers) > 1 else -1,
    )
    # Its projection into the space shared with texts is not used.
    tensors.pop("proj", None)
    unused = (*(key for key in stored if not key.startswith("visual.")), *(["visual.proj"] if "proj" in visual else []))
    return config, tensors, unused


def _named(key: str, value: np.ndarray) -> list[tuple[str, np.ndarray]]:
    """transformers' name of a tensor of OpenAI's; q, k and v, which are one there, apart."""
    if found := re.fullmatch(r"transformer\.resblocks\.(\d+)\.attn\.in_proj_(weight|bias)", key):
        names = (f"encoder.layers.{found[1]}.self_attn.{part}_proj.{found[2]}" for part in "qkv")
        return list(zip(names, np.split(value, 3), strict=True))
    for theirs, ours in _RENAMES.items():
        key = key.replace(theirs, ours)
    return [(key, value)]
