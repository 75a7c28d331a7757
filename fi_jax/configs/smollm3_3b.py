"""SmolLM3-3B in place of Vicuna, all else as `7b`: 51 GiB by `fi-jax plan`, one 80 GB GPU."""

from importlib import import_module

from fi_jax.config import Experiment, LlmConfig

# The name of a module cannot begin with a digit in an import statement.
_base = import_module("7b")

LLM = LlmConfig(
    vocab_size=128256,
    hidden_size=2048,
    intermediate_size=11008,
    num_layers=36,
    num_heads=16,
    num_kv_heads=4,
    head_dim=128,
    rope_theta=5e6,
    rms_norm_eps=1e-6,
    tie_embeddings=True,
    max_position_embeddings=65536,
    family="smollm3",
    # Every fourth layer is without RoPE.
    no_rope_layers=tuple(range(3, 36, 4)),
)


def config() -> Experiment:
    return _base.with_llm("smollm3_3b", LLM, "HuggingFaceTB/SmolLM3-3B", template="chatml")
