"""Makes the kernels of a language model int8 for inference: one scale an output channel, activations as they are.

qwix (Google, Apache-2.0) calibrates, rounds and holds the pair. Its way into a model, interception, passes over
`x @ W` without a word, so `models.lora.Linear` multiplies by the pair itself.
"""

import functools
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from fi_jax.config import LoraConfig
from fi_jax.errors import UserError
from fi_jax.models.lora import Kernel, merge_lora


def require_qwix() -> None:
    """Raises `UserError` where qwix is not installed."""
    try:
        import qwix  # noqa: F401
    except ImportError as error:
        raise UserError("int8 weights need qwix; pip install 'fi_jax[int8]'") from error


def quantize_llm(params: Mapping[str, Any], lora: LoraConfig) -> dict[str, Any]:
    """Folds the adapters of a `Llama` into its kernels and makes those of its layers int8.

    Embeddings and `lm_head` stay: they are 2 % of a 7B model's bytes a token, and every answer is read off them.
    Scanned (`layers`) and written out (`layers_0`, …) parameters both do; so does `jax.eval_shape`.

    Args:
      params: the language model's own tree.
      lora: its adapters; the result is for a `Llama` without any (rank 0).

    Raises:
      UserError: qwix is not installed.
    """
    require_qwix()
    return {name: _quantized(leaf, lora) if name.startswith("layers") else leaf for name, leaf in params.items()}


def _quantized(tree: Any, lora: LoraConfig) -> Any:
    if not isinstance(tree, Mapping):
        return tree
    if "kernel" not in tree:
        return {name: _quantized(leaf, lora) for name, leaf in tree.items()}
    # Merged one kernel at a time and in float32: what is rounded to int8 was rounded to nothing else before.
    adapters = {name: leaf for name, leaf in tree.items() if name.startswith("lora_")}
    rest = {name: leaf for name, leaf in tree.items() if name not in ("kernel", *adapters)}
    return {**rest, "kernel": _int8(tree["kernel"], adapters, lora)}


@functools.partial(jax.jit, static_argnums=2)
def _int8(kernel: Float[Array, "... i o"], adapters: dict[str, Array], lora: LoraConfig) -> Kernel:
    import qwix

    kernel = merge_lora({"kernel": kernel.astype(jnp.float32), **adapters}, lora)["kernel"]
    channels = [axis for axis in range(kernel.ndim) if axis != kernel.ndim - 2]
    return qwix.quantize(kernel, jnp.int8, channelwise_axes=channels)
