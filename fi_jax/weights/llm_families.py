"""Language models of transformers: the `config.json` of each family <-> `LlmConfig`.

A new family whose parts are all there is an entry of `FAMILIES`.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from typing import Any, Literal

from fi_jax.config import LlmConfig, LoraConfig, RopeScaling
from fi_jax.errors import UserError, require_choice
from fi_jax.weights.json_fields import Fields

# Our names -> Hugging Face's, where they differ in every family.
_NAMES = {
    "num_layers": "num_hidden_layers",
    "num_heads": "num_attention_heads",
    "num_kv_heads": "num_key_value_heads",
    "tie_embeddings": "tie_word_embeddings",
    "attention_softcap": "attn_logit_softcapping",
    "logit_softcap": "final_logit_softcapping",
}
_ACTIVATIONS: dict[str, Literal["silu", "gelu_tanh"]] = {"silu": "silu", "gelu_pytorch_tanh": "gelu_tanh"}
_MOST_LAYERS = 1000
_LAYER_TYPES = ("full_attention", "sliding_attention")
# What changes a layer and that some family does not have: refused where the family at hand does not read it.
_EXPERTS = ("num_local_experts", "num_experts", "n_routed_experts")
_FOREIGN = (
    *_EXPERTS,
    *("no_rope_layers", "no_rope_layer_interval", "sliding_window", "layer_types"),
    *("attn_logit_softcapping", "final_logit_softcapping", "query_pre_attn_scalar", "partial_rotary_factor"),
    *("use_bidirectional_attention", "attention_bias", "mlp_bias"),
)


@dataclass(frozen=True)
class Family:
    """What the models of one `model_type` have."""

    # transformers' class of the causal language model.
    architecture: str
    # Fields of its config.json under our names, with the defaults of transformers. 0 is "none".
    defaults: Mapping[str, Any]
    # Options that all its models have, unsaid in their config.json.
    fixed: Mapping[str, Any] = field(default_factory=dict)
    # Whether layer i has the sliding window, where no `layer_types` says it; None: the family has no windows.
    slides: Callable[[Fields, int], bool] | None = None
    # Its config.json lists `layer_types`.
    typed_layers: bool = False
    # The window holds only where the config sets this flag.
    window_flag: str = ""
    # Every n-th layer has no RoPE, where `no_rope_layers` does not say it (1: it has); 0: the family has no such layers.
    no_rope_interval: int = 0
    rope_theta: float = 10000.0
    # RoPE's base of layers with a window; 0: the same.
    sliding_rope_theta: float = 0.0
    # RoPE may turn a part of a head.
    partial_rope: bool = False
    act_name: str = "hidden_act"
    # Its files hold q, k and v, and gate and up, as one tensor each.
    fused: bool = False
    # GGUF's name of it; "" where `gguf` has none. Some files there have the rows of q and k interleaved, for llama.cpp's
    # first form of RoPE.
    gguf: str = ""
    interleaved: bool = False


def _all(*_) -> bool:
    return True


_LLAMA = {
    "vocab_size": 32000, "hidden_size": 4096, "intermediate_size": 11008, "num_layers": 32, "num_heads": 32,
    "rms_norm_eps": 1e-6, "tie_embeddings": False, "attention_bias": False, "mlp_bias": False,
    "max_position_embeddings": 2048,
}  # fmt: skip
_BASE = {name: default for name, default in _LLAMA.items() if not name.endswith("_bias")}
_QWEN2 = _BASE | {
    "vocab_size": 151936, "intermediate_size": 22016, "num_kv_heads": 32, "max_position_embeddings": 32768,
    "sliding_window": 4096,
}  # fmt: skip
_MISTRAL = _BASE | {
    "intermediate_size": 14336, "num_kv_heads": 8, "max_position_embeddings": 131072, "sliding_window": 4096,
}  # fmt: skip
_GEMMA = _BASE | {
    "vocab_size": 256000, "hidden_size": 3072, "intermediate_size": 24576, "num_layers": 28, "num_heads": 16,
    "num_kv_heads": 16, "head_dim": 256, "max_position_embeddings": 8192, "tie_embeddings": True,
    "attention_bias": False, "hidden_act": "gelu_pytorch_tanh",
}  # fmt: skip
_GEMMA2 = _GEMMA | {
    "hidden_size": 2304, "intermediate_size": 9216, "num_layers": 26, "num_heads": 8, "num_kv_heads": 4,
    "query_pre_attn_scalar": 256.0, "sliding_window": 4096, "logit_softcap": 30.0, "attention_softcap": 50.0,
}  # fmt: skip
_IS_GEMMA = {"unit_offset_norms": True, "scale_embeddings": True}


def _qwen_slides(config: Fields, layer: int) -> bool:
    return layer >= config.integer("max_window_layers", 28, least=0)


FAMILIES: dict[str, Family] = {
    "llama": Family("LlamaForCausalLM", _LLAMA, gguf="llama", interleaved=True),
    "mistral": Family("MistralForCausalLM", _MISTRAL, slides=_all, interleaved=True),
    "ministral": Family("MinistralForCausalLM", _MISTRAL, slides=_all, typed_layers=True),
    "qwen2": Family(
        "Qwen2ForCausalLM",
        _QWEN2,
        {"qkv_bias": True},
        slides=_qwen_slides,
        typed_layers=True,
        window_flag="use_sliding_window",
        gguf="qwen2",
    ),
    "qwen3": Family(
        "Qwen3ForCausalLM",
        _QWEN2 | {"head_dim": 128, "attention_bias": False},
        {"qk_norm": True},
        slides=_qwen_slides,
        typed_layers=True,
        window_flag="use_sliding_window",
        gguf="qwen3",
    ),
    "smollm3": Family(
        "SmolLM3ForCausalLM",
        _LLAMA
        | {
            "vocab_size": 128256, "hidden_size": 2048, "num_layers": 36, "num_heads": 16, "num_kv_heads": 4,
            "tie_embeddings": True, "max_position_embeddings": 32768, "sliding_window": 0,
        },
        slides=lambda config, layer: layer in _no_rope_layers(config, FAMILIES["smollm3"], layer + 1),
        typed_layers=True,
        window_flag="use_sliding_window",
        no_rope_interval=4,
        rope_theta=2000000.0,
        gguf="smollm3",
        interleaved=True,
    ),
    "gemma": Family("GemmaForCausalLM", _GEMMA, _IS_GEMMA, gguf="gemma"),
    "gemma2": Family(
        "Gemma2ForCausalLM",
        _GEMMA2,
        _IS_GEMMA | {"output_norms": True},
        slides=lambda _, layer: layer % 2 == 0,
        typed_layers=True,
        act_name="hidden_activation",
        gguf="gemma2",
    ),
    "gemma3_text": Family(
        "Gemma3ForCausalLM",
        _GEMMA2
        | {"vocab_size": 262208, "max_position_embeddings": 131072, "logit_softcap": 0.0, "attention_softcap": 0.0},
        _IS_GEMMA | {"output_norms": True, "qk_norm": True},
        slides=lambda config, layer: (layer + 1) % config.integer("sliding_window_pattern", 6) > 0,
        typed_layers=True,
        rope_theta=1000000.0,
        sliding_rope_theta=10000.0,
        act_name="hidden_activation",
        gguf="gemma3",
    ),
    "phi3": Family(
        "Phi3ForCausalLM",
        _BASE
        | {
            "vocab_size": 32064, "hidden_size": 3072, "intermediate_size": 8192, "rms_norm_eps": 1e-5,
            "max_position_embeddings": 4096, "sliding_window": 0,
        },
        slides=_all,
        partial_rope=True,
        fused=True,
        gguf="phi3",
    ),
}  # fmt: skip


def read_llm(config: Fields) -> LlmConfig:
    """Reads a language model's `config.json`.

    Raises:
      UserError: an unknown family, or a field that changes what is computed and that the family does not have.
    """
    kind = config.text("model_type")
    if kind not in FAMILIES:
        experts = [name for name in _EXPERTS if config.get(name)]
        what = f" with {experts[0]}, a mixture of experts," if experts else ""
        raise UserError(
            f"{config.where}: model_type is '{kind}'{what} which cannot be read (known: {', '.join(FAMILIES)})"
        )
    family = FAMILIES[kind]
    refuse_quantised(config)
    values = {name: _read(config, name, default) for name, default in _plain_fields(family).items()}
    act = config.text(family.act_name, config.text("hidden_act", family.defaults.get("hidden_act", "silu")))
    # Gemma's first releases said "gelu" and meant this one.
    act = "gelu_pytorch_tanh" if family.fixed.get("scale_embeddings") and act == "gelu" else act
    require_choice(f"{config.where}: {family.act_name}", act, _ACTIVATIONS)
    heads, width = values["num_heads"], values["hidden_size"]
    if width % heads and not (config.get("head_dim") or "head_dim" in family.defaults):
        raise UserError(f"{config.where}: hidden_size {width} is not a multiple of num_attention_heads {heads}")
    if values["num_layers"] > _MOST_LAYERS:
        raise UserError(
            f"{config.where}: num_hidden_layers is {values['num_layers']}; no model has more than {_MOST_LAYERS}"
        )
    window, sliding = _windows(config, family, values["num_layers"])
    rope, sliding_rope = _ropes(config, family)
    theta = rope.number("rope_theta", config.number("rope_theta", family.rope_theta))
    partial = rope.share("partial_rotary_factor", config.share("partial_rotary_factor", 1.0))
    _refuse_foreign(config, family, partial)
    head_dim = config.integer("head_dim", family.defaults.get("head_dim", width // heads))
    return LlmConfig(
        **{**values, **family.fixed},
        family=kind,
        num_kv_heads=config.integer("num_key_value_heads", family.defaults.get("num_kv_heads", heads)),
        head_dim=head_dim,
        hidden_act=_ACTIVATIONS[act],
        rope_theta=theta,
        rope_scaling=_scaling(rope, config, values["max_position_embeddings"], int(head_dim * partial) // 2),
        partial_rotary_factor=partial,
        no_rope_layers=_no_rope_layers(config, family, values["num_layers"]),
        sliding_window=window,
        sliding_layers=sliding,
        sliding_rope_theta=sliding_rope if sliding else 0.0,
    )


def refuse_quantised(config: Fields) -> None:
    """Raises `UserError` for a checkpoint whose tensors are quantised (bitsandbytes, AWQ, GPTQ, fp8, ...)."""
    if config.get("quantization_config"):
        raise UserError(f"{config.where}: quantization_config is set; use the unquantised checkpoint or its GGUF")


def _plain_fields(family: Family) -> dict[str, Any]:
    special = ("num_kv_heads", "head_dim", "hidden_act", "sliding_window")
    return {name: default for name, default in family.defaults.items() if name not in special}


def _read(config: Fields, name: str, default: Any) -> Any:
    theirs = _NAMES.get(name, name)
    # Absent is the default; null is none.
    if name.endswith("softcap") and config.values.get(theirs, default or None) is None:
        return 0.0
    return config.like(theirs, default)


def _windows(config: Fields, family: Family, num_layers: int) -> tuple[int, tuple[int, ...]]:
    """Reads the window and the layers that have it: 0 and none where it holds nowhere."""
    if family.slides is None or (family.window_flag and not config.flag(family.window_flag, False)):
        return 0, ()
    window = config.values.get("sliding_window", family.defaults["sliding_window"])
    window = config.integer("sliding_window", window) if window else 0
    types = config.texts("layer_types") if family.typed_layers else []
    for kind in types:
        require_choice(f"{config.where}: layer_types", kind, _LAYER_TYPES)
    if types and len(types) != num_layers:
        raise UserError(f"{config.where}: layer_types lists {len(types)} of {num_layers} layers")
    layers = range(num_layers) if window else ()
    slides = tuple(i for i in layers if (types[i] == _LAYER_TYPES[1] if types else family.slides(config, i)))
    return (window, slides) if slides else (0, ())


def _no_rope_layers(config: Fields, family: Family, num_layers: int) -> tuple[int, ...]:
    if not family.no_rope_interval:
        return ()
    given = config.get("no_rope_layers")
    if given is None:
        every = config.integer("no_rope_layer_interval", family.no_rope_interval)
        return tuple(i for i in range(num_layers) if (i + 1) % every == 0)
    if not isinstance(given, list) or len(given) < num_layers or not all(flag in (0, 1) for flag in given):
        raise UserError(f"{config.where}: no_rope_layers must be a list of 0 and 1, one a layer")
    return tuple(i for i in range(num_layers) if not given[i])


def _ropes(config: Fields, family: Family) -> tuple[Fields, float]:
    """Reads RoPE's parameters, and the base of layers with a window."""
    # `rope_parameters` is transformers 5's name; before, theta stood beside `rope_scaling`.
    rope = config.group("rope_parameters" if config.get("rope_parameters") else "rope_scaling")
    if not family.sliding_rope_theta:
        return rope, 0.0
    own = rope.group("sliding_attention")
    if (kind := own.text("rope_type", "default")) != "default":
        raise UserError(f"{own.where}: rope_type scales RoPE by '{kind}' (known: default)")
    theta = own.number("rope_theta", config.number("rope_local_base_freq", family.sliding_rope_theta))
    return (rope.group("full_attention") if "full_attention" in rope.values else rope), theta


def _scaling(rope: Fields, config: Fields, longest: int, pairs: int) -> RopeScaling:
    kind = rope.text("rope_type", rope.text("type", "default"))
    if kind == "default":
        return RopeScaling()
    if kind == "linear":
        return RopeScaling("linear", rope.number("factor"))
    if kind == "llama3":
        return RopeScaling(
            "llama3",
            rope.number("factor"),
            rope.number("low_freq_factor"),
            rope.number("high_freq_factor"),
            rope.integer("original_max_position_embeddings"),
        )
    if kind in ("longrope", "su"):
        return _longrope(rope, config, longest, pairs)
    raise UserError(f"{rope.where}: rope_type scales RoPE by '{kind}' (known: default, linear, llama3, longrope)")


def _longrope(rope: Fields, config: Fields, longest: int, pairs: int) -> RopeScaling:
    """LongRoPE (Ding et al. 2024), with the factor of cosines and sines that transformers takes where none is given."""
    given = rope.integer("original_max_position_embeddings", longest)
    original = config.integer("original_max_position_embeddings", given)
    factor = rope.number("factor", longest / original)
    computed = 1.0 if factor <= 1 else math.sqrt(1 + math.log(factor) / math.log(original))
    return RopeScaling(
        "longrope",
        factor,
        original_max_position_embeddings=original,
        short_factor=rope.numbers("short_factor", pairs),
        long_factor=rope.numbers("long_factor", pairs),
        attention_factor=rope.number("attention_factor", computed),
    )


def _refuse_foreign(config: Fields, family: Family, partial_rotary_factor: float) -> None:
    known = {_NAMES.get(name, name) for name in family.defaults}
    known |= {"layer_types"} if family.typed_layers else set()
    known |= {"no_rope_layers", "no_rope_layer_interval"} if family.no_rope_interval else set()
    known |= {"partial_rotary_factor"} if family.partial_rope or partial_rotary_factor == 1 else set()
    foreign = [name for name in _FOREIGN if config.get(name) and name not in known]
    foreign += ["partial_rotary_factor"] if "partial_rotary_factor" not in known | set(foreign) else []
    if foreign:
        kind = config.text("model_type")
        raise UserError(f"{config.where}: {', '.join(foreign)} is set, which a '{kind}' does not have here")


def write_llm(config: LlmConfig) -> dict[str, Any]:
    """Returns the model's fields of `config.json`, with RoPE under the names of transformers 4 and 5.

    Raises:
      UserError: the config has what its family cannot say.
    """
    require_choice("model.llm.family", config.family, FAMILIES)
    family = FAMILIES[config.family]
    written: dict[str, Any] = {"architectures": [family.architecture], "model_type": config.family}
    for name in (*_plain_fields(family), "num_kv_heads", "head_dim"):
        value = getattr(config, name)
        theirs = _NAMES.get(name, name)
        written[theirs] = None if name.endswith("softcap") and value == 0 else value
        if name == "query_pre_attn_scalar":
            written[theirs] = int(value or config.head_dim)
    written[family.act_name] = {ours: theirs for theirs, ours in _ACTIVATIONS.items()}[config.hidden_act]
    if family.slides is not None:
        written["sliding_window"] = config.sliding_window or None
    if family.window_flag:
        written[family.window_flag] = bool(config.sliding_window)
    if family.typed_layers:
        written["layer_types"] = [_LAYER_TYPES[i in config.sliding_layers] for i in range(config.num_layers)]
    if family.no_rope_interval:
        written["no_rope_layers"] = [int(i not in config.no_rope_layers) for i in range(config.num_layers)]
    written |= _write_rope(config, family)
    _require_same(read_llm(Fields(written, f"the config.json of a '{config.family}'")), config)
    return written


def _write_rope(config: LlmConfig, family: Family) -> dict[str, Any]:
    scaling, theta = asdict(config.rope_scaling), config.rope_theta
    kind = scaling.pop("kind")
    used = {
        "default": (),
        "linear": ("factor",),
        "llama3": ("factor", "low_freq_factor", "high_freq_factor", "original_max_position_embeddings"),
        "longrope": (
            *("factor", "original_max_position_embeddings", "short_factor", "long_factor", "attention_factor"),
        ),
    }[kind]
    rope = {"rope_type": kind, "rope_theta": theta} | {name: scaling[name] for name in used}
    rope = {name: list(value) if isinstance(value, tuple) else value for name, value in rope.items()}
    written: dict[str, Any] = {"rope_theta": theta, "rope_scaling": None if kind == "default" else rope}
    if family.partial_rope:
        written["partial_rotary_factor"] = rope["partial_rotary_factor"] = config.partial_rotary_factor
        written["original_max_position_embeddings"] = (
            config.rope_scaling.original_max_position_embeddings
            if kind == "longrope"
            else config.max_position_embeddings
        )
    if not family.sliding_rope_theta:
        return written | {"rope_parameters": rope}
    local = config.sliding_rope_theta or family.sliding_rope_theta
    both = {"full_attention": rope, "sliding_attention": {"rope_type": "default", "rope_theta": local}}
    return written | {"rope_local_base_freq": local, "rope_parameters": both}


def _require_same(read: LlmConfig, config: LlmConfig) -> None:
    read = replace(read, lora=LoraConfig())
    config = replace(config, lora=LoraConfig())
    wrong = [one.name for one in fields(config) if getattr(read, one.name) != getattr(config, one.name)]
    if wrong:
        raise UserError(
            f"model.llm.{wrong[0]} is {getattr(config, wrong[0])}, which a '{config.family}' of transformers cannot say; "
            "set model.llm.family to one that can"
        )
