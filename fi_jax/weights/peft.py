"""LoRA adapters of the LLM as PEFT keeps them (`adapter_config.json`, `adapter_model.safetensors`), both ways."""

import json
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from fi_jax.config import LlamaConfig, LoraConfig
from fi_jax.errors import UserError
from fi_jax.weights.hf_config import read_json
from fi_jax.weights.stream import file_hash

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
# Ways to start an adapter that take what it holds out of the base's own weights.
_CHANGES_BASE = ("pissa", "olora", "corda", "loftq")
# Our folder of a layer's module -> Hugging Face's.
_PARTS = {"attn": "self_attn", "mlp": "mlp"}
_KEY = re.compile(
    r"(?:.*\.)?(?P<tower>language_model\.(?:model\.)?|model\.)layers\.(?P<layer>\d+)\.(?P<part>self_attn|mlp)\.(?P<name>\w+)\.lora_(?P<side>[AB])(?:\.default)?\.weight"
)


@dataclass(frozen=True)
class Adapter:
    """An imported adapter: `leaves` are flat ("layers/attn/q_proj/lora_a" -> `l in r`), ready below `llm/`."""

    lora: LoraConfig
    leaves: dict[str, np.ndarray]
    # What adapter_config.json calls the base.
    base: str
    # Hashes of contents that the base may have (`export_peft` writes them); empty for an adapter made elsewhere.
    base_hashes: tuple[str, ...] = ()
    # SHA-256 (hex) of the weights file.
    hash: str = ""


def adapter_tensors(leaves: Mapping[str, np.ndarray], *, in_llava: bool = False) -> dict[str, np.ndarray]:
    """Returns PEFT's tensors, float32: per layer `lora_A.weight` `[r, in]` and `lora_B.weight` `[out, r]`.

    A layer whose A and B are both zero has no adapter (see `import_peft`) and is left out.

    Args:
      leaves: flat leaves below `llm/`; others than `lora_a` and `lora_b` are ignored.
      in_llava: names the LLM as it stands inside transformers' LLaVA.
    """
    prefix = "base_model.model.model." + ("language_model." if in_llava else "")
    tensors = {}
    for path, a in leaves.items():
        if not path.endswith("/lora_a"):
            continue
        b = leaves[path.removesuffix("a") + "b"]
        _, part, name, _ = path.split("/")
        for layer, (a_i, b_i) in enumerate(zip(a, b, strict=True)):
            if not (np.any(a_i) or np.any(b_i)):
                continue
            key = f"{prefix}layers.{layer}.{_PARTS[part]}.{name}"
            tensors[f"{key}.lora_A.weight"] = np.ascontiguousarray(a_i.T, dtype=np.float32)
            tensors[f"{key}.lora_B.weight"] = np.ascontiguousarray(b_i.T, dtype=np.float32)
    return tensors


def export_peft(
    leaves: Mapping[str, np.ndarray],
    lora: LoraConfig,
    folder: Path,
    *,
    base_name: str,
    base_hash: str,
    made_from_hash: str = "",
    in_llava: bool = False,
) -> None:
    """Writes an adapter folder that `peft.PeftModel.from_pretrained` loads.

    Args:
      leaves: flat leaves below `llm/` ("layers/attn/q_proj/lora_a", …).
      base_name: what transformers' `from_pretrained` takes: a Hub name or a folder.
      base_hash: names the base's contents (`stream.checkpoint_hash`); kept in the weights' metadata.
      made_from_hash: of what the base was made from, where it is a copy of our own making (a GGUF file's).
      in_llava: the base is a LLaVA, whose vision tower has layers of the same names.

    Raises:
      UserError: the model has no adapter.
    """
    from safetensors.numpy import save_file

    tensors = adapter_tensors(leaves, in_llava=in_llava)
    if not tensors:
        raise UserError("the model has no LoRA adapter to export (llm.lora.rank is 0, or no layer has one)")
    found = [match for match in map(_KEY.fullmatch, tensors) if match]
    names = sorted({match["name"] for match in found})
    modules = sorted({key.removeprefix("base_model.model.").rpartition(".lora_")[0] for key in tensors})
    num_layers = next(iter(leaves.values())).shape[0]
    everywhere = len(modules) == len(names) * num_layers
    # The shortest exact statement: names alone would also match a LLaVA's vision tower or layers left out.
    targets: Any = names
    if in_llava and everywhere:
        targets = rf".*language_model\.layers\.\d+\.(self_attn|mlp)\.({'|'.join(names)})"
    elif not everywhere:
        targets = modules
    config = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": base_name,
        "r": lora.rank,
        "lora_alpha": lora.alpha,
        "target_modules": targets,
        "lora_dropout": 0.0,
        "bias": "none",
        "fan_in_fan_out": False,
        "inference_mode": True,
    }
    folder.mkdir(parents=True, exist_ok=True)
    (folder / CONFIG).write_text(json.dumps(config, indent=2) + "\n")
    metadata = {"format": "pt", "base_name": base_name, "base_hash": base_hash, "made_from_hash": made_from_hash}
    save_file(tensors, folder / WEIGHTS, metadata)


def import_peft(folder: Path, config: LlamaConfig) -> Adapter:
    """Reads an adapter that PEFT trained, as leaves of our LLM of shape `config`.

    Layers without an adapter get zeros for A and B: they stay without one, under training too, since each is the
    other's gradient. Modules of unequal rank are padded with zeros to the largest, and modules of an unequal
    alpha/rank have the difference folded into B; otherwise values are bit-equal to the file's.

    Raises:
      UserError: not a LoRA adapter of such an LLM; all keys that do not fit are named at once.
    """
    from safetensors import SafetensorError, safe_open
    from safetensors.numpy import load_file

    settings = read_json(folder / CONFIG)
    _require_plain_lora(settings, folder)
    try:
        tensors = load_file(folder / WEIGHTS)
        with safe_open(folder / WEIGHTS, framework="np") as opened:
            metadata = opened.metadata() or {}
    except FileNotFoundError:
        raise UserError(f"{folder} has no {WEIGHTS}; save the adapter with safe_serialization=True") from None
    except (SafetensorError, OSError) as error:
        raise UserError(f"{folder / WEIGHTS} is damaged or truncated ({error}); copy it again") from None

    shapes = _linear_shapes(config)
    sides: dict[tuple[str, int], dict[str, np.ndarray]] = {}
    wrong = []
    for key, tensor in tensors.items():
        match = _KEY.fullmatch(key)
        if match is None or match["name"] not in shapes or "vision" in key:
            wrong.append(f"{key} {list(tensor.shape)}")
            continue
        layer, size_in, size_out = int(match["layer"]), *shapes[match["name"]]
        whole, rank_axis = (size_in, 1) if match["side"] == "A" else (size_out, 0)
        if layer >= config.num_layers or tensor.ndim != 2 or tensor.shape[rank_axis] != whole:
            wrong.append(f"{key} {list(tensor.shape)}")
            continue
        sides.setdefault((match["name"], layer), {})[match["side"]] = np.asarray(tensor, np.float32).T
    wrong += [f"{name} of layer {layer} has one side only" for (name, layer), pair in sides.items() if len(pair) < 2]
    if wrong or not sides:
        raise UserError(
            f"{folder} is no LoRA adapter of this language model: {', '.join(wrong) or 'no adapter tensor'}"
        )

    scales = {at: _scale(settings, at, pair["A"].shape[1]) for at, pair in sides.items()}
    rank = max(pair["A"].shape[1] for pair in sides.values())
    # The scale of the largest rank, so that an adapter of one rank and one alpha comes through untouched.
    largest = next(at for at, pair in sides.items() if pair["A"].shape[1] == rank)
    reference = scales[largest]
    alpha = reference * rank if settings.get("use_rslora") else _alpha(settings, largest)
    names = sorted({name for name, _ in sides})
    leaves = {}
    for name in names:
        size_in, size_out = shapes[name]
        a = np.zeros((config.num_layers, size_in, rank), np.float32)
        b = np.zeros((config.num_layers, rank, size_out), np.float32)
        for layer in range(config.num_layers):
            pair = sides.get((name, layer))
            if pair is not None:
                own = pair["A"].shape[1]
                a[layer, :, :own] = pair["A"]
                factor = scales[name, layer] / reference
                b[layer, :own] = pair["B"] if factor == 1 else pair["B"] * np.float32(factor)
        part = "attn" if name in ("q_proj", "k_proj", "v_proj", "o_proj") else "mlp"
        leaves[f"layers/{part}/{name}/lora_a"], leaves[f"layers/{part}/{name}/lora_b"] = a, b
    lora = LoraConfig(rank, float(alpha), tuple(names))
    hashes = tuple(metadata[name] for name in ("base_hash", "made_from_hash") if metadata.get(name))
    return Adapter(
        lora, leaves, str(settings.get("base_model_name_or_path") or ""), hashes, file_hash(folder / WEIGHTS)
    )


def _require_plain_lora(settings: Mapping[str, Any], folder: Path) -> None:
    unknown = []
    if settings.get("peft_type") != "LORA":
        unknown.append(f"peft_type {settings.get('peft_type')}")
    unknown += [
        name
        for name in (
            *("use_dora", "use_qalora", "fan_in_fan_out", "lora_bias", "modules_to_save", "layer_replication"),
            *("target_parameters", "trainable_token_indices", "alora_invocation_tokens"),
        )
        if settings.get(name)
    ]
    start = str(settings.get("init_lora_weights"))
    if start.startswith(_CHANGES_BASE):
        unknown.append(f"init_lora_weights {start}, which changes the base")
    if settings.get("bias", "none") != "none":
        unknown.append(f"bias {settings['bias']}")
    if unknown:
        raise UserError(f"{folder / CONFIG} asks for {', '.join(unknown)}; only plain LoRA can be imported")


def _scale(settings: Mapping[str, Any], at: tuple[str, int], rank: int) -> float:
    """alpha / rank of one module."""
    alpha = _alpha(settings, at)
    return alpha / math.sqrt(rank) if settings.get("use_rslora") else alpha / rank


def _alpha(settings: Mapping[str, Any], at: tuple[str, int]) -> float:
    """alpha of one module, with PEFT's per-module exceptions."""
    name, layer = at
    alpha = settings.get("lora_alpha", 8)
    part = "self_attn" if name in ("q_proj", "k_proj", "v_proj", "o_proj") else "mlp"
    module = f"layers.{layer}.{part}.{name}"
    for pattern, value in (settings.get("alpha_pattern") or {}).items():
        if re.match(rf"(.*\.)?({pattern})$", f"model.{module}"):
            return value
    return alpha


def _linear_shapes(config: LlamaConfig) -> dict[str, tuple[int, int]]:
    d, q, kv = config.hidden_size, config.num_heads * config.head_dim, config.num_kv_heads * config.head_dim
    return {
        "q_proj": (d, q),
        "k_proj": (d, kv),
        "v_proj": (d, kv),
        "o_proj": (q, d),
        "gate_proj": (d, config.intermediate_size),
        "up_proj": (d, config.intermediate_size),
        "down_proj": (config.intermediate_size, d),
    }
