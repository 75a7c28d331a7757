"""CLIP's text tower (Radford et al. 2021): label prompts in, one vector a prompt out."""

from dataclasses import dataclass
from typing import Literal, NamedTuple

import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Float, Int

from fi_jax.config import LoraConfig
from fi_jax.models.layers import layer_norm
from fi_jax.models.lora import Linear
from fi_jax.models.vit import Layer


@dataclass(frozen=True)
class ClipTextConfig:
    """Shape of the tower. Defaults: the text side of CLIP ViT-L/14."""

    vocab_size: int = 49408
    hidden_size: int = 768
    intermediate_size: int = 3072
    num_layers: int = 12
    num_heads: int = 12
    max_position_embeddings: int = 77
    hidden_act: Literal["quick_gelu", "gelu", "gelu_tanh"] = "quick_gelu"
    layer_norm_eps: float = 1e-5
    # Width of the space shared with pictures; 0 where the checkpoint has no projection.
    projection_size: int = 768
    # The first such token of a row is pooled. 2 is what configs of the first releases say by mistake; it
    # means the largest token id of the row.
    eos_token_id: int = 49407
    lora: LoraConfig = LoraConfig()


class ClipTextOutput(NamedTuple):
    """`hidden`: states after the final norm; `pooled`: the state at the end-of-text token; `projected`: pooled, projected."""

    hidden: Float[Array, "b t d"]
    pooled: Float[Array, "b d"]
    projected: Float[Array, "b e"] | None


class ClipText(nn.Module):
    """The tower. Paths: `token_embedding`, `position_embedding`, `layers/…` (as the ViT's), `final_norm`, `text_projection`."""

    config: ClipTextConfig
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, tokens: Int[Array, "b t"]) -> ClipTextOutput:
        """Encodes rows of token ids, each with an end-of-text token; padding after it changes nothing."""
        cfg = self.config
        if tokens.shape[1] > cfg.max_position_embeddings:
            raise ValueError(f"{tokens.shape[1]} tokens given to a tower of {cfg.max_position_embeddings} positions")
        init = nn.initializers.normal(0.02)
        embedding = self.param("token_embedding", init, (cfg.vocab_size, cfg.hidden_size))
        positions = self.param("position_embedding", init, (cfg.max_position_embeddings, cfg.hidden_size))
        x = jnp.take(embedding, tokens, axis=0).astype(self.dtype) + positions[: tokens.shape[1]].astype(self.dtype)

        layers = Layer(cfg, self.dtype, causal=True, name="layers")
        scan = nn.scan(
            lambda layer, x, _: (layer(x, jnp.float32(0)), None),
            variable_axes={"params": 0},
            split_rngs={"params": True},
            length=cfg.num_layers,
        )
        x, _ = scan(layers, x, None)
        hidden = layer_norm(cfg.layer_norm_eps, "final_norm", self.dtype)(x)

        end = tokens.argmax(-1) if cfg.eos_token_id == 2 else (tokens == cfg.eos_token_id).argmax(-1)
        pooled = jnp.take_along_axis(hidden, end[:, None, None], axis=1)[:, 0]
        projected = None
        if cfg.projection_size:
            projected = Linear(cfg.projection_size, dtype=self.dtype, name="text_projection")(pooled)
        return ClipTextOutput(hidden, pooled, projected)
