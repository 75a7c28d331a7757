"""One layer of the language model: norms, grouped-query attention with RoPE, gated MLP."""

from typing import Any, cast

import flax
import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name
from jaxtyping import Array, Bool, Float, Int

from fi_jax.config import LlmConfig
from fi_jax.models.attention import Implementation, PrefixLayout, cached_attention, picked_attention, split_attention
from fi_jax.models.lora import Linear
from fi_jax.models.projections import project
from fi_jax.models.rope import rotate


class Pass(flax.struct.PyTreeNode):
    """What every layer of one pass shares."""

    # Of positions, `t` (training and prefill) or `b q s` (with a cache).
    cos: Float[Array, "... d"]
    sin: Float[Array, "... d"]
    # With a cache: tail slots that each new token sees.
    visible: Bool[Array, "b q s m"] | None = None
    used: Int[Array, ""] | int = 0
    layout: PrefixLayout = flax.struct.field(pytree_node=False, default=PrefixLayout(0))
    keep_kv: bool = flax.struct.field(pytree_node=False, default=False)


class RMSNorm(nn.Module):
    """`x / sqrt(mean(x^2) + eps) * scale`, computed in float32, returned in `dtype`."""

    eps: float
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: Float[Array, "... d"]) -> Float[Array, "... d"]:
        """Normalises the last axis."""
        scale = self.param("scale", nn.initializers.ones, (x.shape[-1],)).astype(jnp.float32)
        x = x.astype(jnp.float32)
        return (x * jax.lax.rsqrt(jnp.mean(x * x, axis=-1, keepdims=True) + self.eps) * scale).astype(self.dtype)


class Attention(nn.Module):
    """Grouped-query self-attention with RoPE."""

    config: LlmConfig
    dtype: Any
    implementation: Implementation

    def setup(self):
        c = self.config
        shared = {"use_bias": c.attention_bias, "lora": c.lora, "dtype": self.dtype}
        self.q_proj = Linear(c.num_heads * c.head_dim, **shared)
        self.k_proj = Linear(c.num_kv_heads * c.head_dim, **shared)
        self.v_proj = Linear(c.num_kv_heads * c.head_dim, **shared)
        self.o_proj = Linear(c.hidden_size, **shared)

    def _project(self, x, shared: Pass):
        q, k, v = (self._heads(a) for a in project(x, (self.q_proj, self.k_proj, self.v_proj)))
        q, k = rotate(q, shared.cos, shared.sin), rotate(k, shared.cos, shared.sin)
        return checkpoint_name(q, "query"), checkpoint_name(k, "key"), checkpoint_name(v, "value")

    def _heads(self, x):
        return x.reshape(*x.shape[:-1], -1, self.config.head_dim)

    def _output(self, out):
        return project(out.reshape(*out.shape[:-2], -1), (self.o_proj,))[0]

    def __call__(self, x, shared: Pass):
        """Attends within `shared.layout`; returns the output `b t d` and keys and values `b g t d`."""
        q, k, v = self._project(x, shared)
        names = ("batch", "seq", "heads", None)
        q, k, v = (nn.with_logical_constraint(a, names) for a in (q, k, v))
        out = split_attention(q, k, v, shared.layout, self.implementation)
        return self._output(out), (k.swapaxes(1, 2), v.swapaxes(1, 2)) if shared.keep_kv else None

    def pick(self, x, shared: Pass, at: Int[Array, "b m"]):
        """The output at tokens `at` alone (`b m d`); keys and values come from all of `x`."""
        (q,), kv = project(rows(x, at), (self.q_proj,)), project(x, (self.k_proj, self.v_proj))
        q, k, v = (self._heads(a) for a in (q, *kv))
        q = rotate(q, shared.cos[at], shared.sin[at])
        k = checkpoint_name(rotate(k, shared.cos, shared.sin), "key")
        return self._output(picked_attention(q, k, checkpoint_name(v, "value"), shared.layout, at))

    def extend(self, x, layer, prefix_kv, tail_kv, shared: Pass):
        """Appends `b q s d` to layer `layer` of the stacked tails (None: to this layer's own) and attends to both."""
        q, k, v = self._project(x, shared)
        at = () if layer is None else (layer,)
        start = (*at, 0, 0, 0, shared.used, 0)
        tail_kv = tuple(
            jax.lax.dynamic_update_slice(tail, new.swapaxes(2, 3)[(None,) * len(at)].astype(tail.dtype), start)
            for tail, new in zip(tail_kv, (k, v), strict=True)
        )
        if layer is None:
            tail_k, tail_v = tail_kv
        else:
            tail_k, tail_v = (jax.lax.dynamic_index_in_dim(tail, layer, keepdims=False) for tail in tail_kv)
        prefix_k, prefix_v = prefix_kv
        out = cached_attention(q, prefix_k, prefix_v, tail_k, tail_v, cast(Array, shared.visible), self.implementation)
        return self._output(out), tail_kv


class MLP(nn.Module):
    """SwiGLU: `down(silu(gate(x)) * up(x))`."""

    config: LlmConfig
    dtype: Any

    def setup(self):
        c = self.config
        shared = {"use_bias": c.mlp_bias, "lora": c.lora, "dtype": self.dtype}
        self.gate_proj = Linear(c.intermediate_size, **shared)
        self.up_proj = Linear(c.intermediate_size, **shared)
        self.down_proj = Linear(c.hidden_size, **shared)

    def __call__(self, x: Float[Array, "... d"]) -> Float[Array, "... d"]:
        """Acts on the last axis."""
        gate, up = project(x, (self.gate_proj, self.up_proj), ("gate", "up"))
        hidden = nn.silu(gate) * up
        if hidden.ndim == 3:
            hidden = nn.with_logical_constraint(hidden, ("batch", "seq", "mlp"))
        return project(hidden, (self.down_proj,))[0]


class Layer(nn.Module):
    """Pre-norm attention and MLP, each with a residual."""

    config: LlmConfig
    dtype: Any
    implementation: Implementation

    def setup(self):
        c = self.config
        self.input_norm = RMSNorm(c.rms_norm_eps, self.dtype)
        self.post_attention_norm = RMSNorm(c.rms_norm_eps, self.dtype)
        self.attn = Attention(c, self.dtype, self.implementation)
        self.mlp = MLP(c, self.dtype)

    def __call__(self, x, _, shared: Pass):
        """One step of the scan over layers: `x` is the carry `b t d`; keys and values are stacked when kept."""
        x = nn.with_logical_constraint(x, ("batch", "seq", "embed"))
        out, kv = self.attn(self.input_norm(x), shared)
        x = checkpoint_name(x + out, "middle")
        return x + self.mlp(self.post_attention_norm(x)), kv

    def pick(self, x, shared: Pass, at: Int[Array, "b m"]):
        """The layer's output `b m d` at tokens `at` alone: what a last layer is asked for."""
        x = rows(x, at) + self.attn.pick(self.input_norm(x), shared, at)
        return x + self.mlp(self.post_attention_norm(x))

    def extend(self, carry, layer_inputs, shared: Pass):
        """One step of the scan with a cache; the tails are carried so that they are updated in place."""
        x, tail_kv = carry
        layer, prefix_kv = layer_inputs
        out, tail_kv = self.attn.extend(self.input_norm(x), layer, prefix_kv, tail_kv, shared)
        x = x + out
        return (x + self.mlp(self.post_attention_norm(x)), tail_kv), None


def rows(x: Float[Array, "b t *rest"], at: Int[Array, "b m"]) -> Float[Array, "b m *rest"]:
    """Tokens `at` of each row."""
    return jnp.take_along_axis(x, at.reshape(*at.shape, *[1] * (x.ndim - 2)), axis=1)
