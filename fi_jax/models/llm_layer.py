"""One layer of the language model: norms, grouped-query attention with RoPE, gated MLP."""

from typing import Any, NamedTuple, cast

import flax
import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name
from jaxtyping import Array, Bool, Float, Int

from fi_jax.config import LlmConfig
from fi_jax.models.attention import Implementation, PrefixLayout, cached_attention, picked_attention, split_attention
from fi_jax.models.layers import activation
from fi_jax.models.lora import Linear
from fi_jax.models.projections import project
from fi_jax.models.rope import rotate


class Kind(NamedTuple):
    """In what one layer differs from the next; numbers in a scan, else known when the program is made."""

    # Row of `Pass.cos` and `Pass.sin`, where they have several.
    rope: int | Int[Array, ""] = 0
    # Tokens that each token sees, itself included; None: all before it.
    window: int | Int[Array, ""] | None = None


class Pass(flax.struct.PyTreeNode):
    """What every layer of one pass shares."""

    # Of positions, `t` (training and prefill) or `b q s` (with a cache). Where layers differ, one table a kind of RoPE.
    cos: Float[Array, "... half"]
    sin: Float[Array, "... half"]
    # Of all layers that are not given one of their own.
    kind: Kind = flax.struct.field(pytree_node=False, default=Kind())
    # With a cache: tail slots that each new token sees.
    visible: Bool[Array, "b q s m"] | None = None
    # With a cache and windows: positions of the new tokens and of the tail's slots.
    positions: Int[Array, "b q s"] | None = None
    tail_positions: Int[Array, "b q m"] | None = None
    used: Int[Array, ""] | int = 0
    layout: PrefixLayout = flax.struct.field(pytree_node=False, default=PrefixLayout(0))
    keep_kv: bool = flax.struct.field(pytree_node=False, default=False)

    def of(self, kind: Kind | None) -> tuple[Float[Array, "... half"], Float[Array, "... half"], Kind]:
        """Cosines, sines and kind of one layer."""
        if kind is None:
            return self.cos, self.sin, self.kind
        return self.cos[kind.rope], self.sin[kind.rope], kind


class RMSNorm(nn.Module):
    """`x / sqrt(mean(x^2) + eps) * (offset + scale)`, computed in float32, returned in `dtype`."""

    eps: float
    dtype: Any = jnp.float32
    offset: float = 0.0

    @nn.compact
    def __call__(self, x: Float[Array, "... d"]) -> Float[Array, "... d"]:
        """Normalises the last axis."""
        start = nn.initializers.constant(1.0 - self.offset)
        scale = self.param("scale", start, (x.shape[-1],)).astype(jnp.float32)
        if self.offset:
            scale += self.offset
        x = x.astype(jnp.float32)
        return (x * jax.lax.rsqrt(jnp.mean(x * x, axis=-1, keepdims=True) + self.eps) * scale).astype(self.dtype)


def make_norm(c: LlmConfig, dtype: Any) -> RMSNorm:
    """An RMSNorm as the model's are."""
    return RMSNorm(c.rms_norm_eps, dtype, 1.0 if c.unit_offset_norms else 0.0)


class Attention(nn.Module):
    """Grouped-query self-attention with RoPE."""

    config: LlmConfig
    dtype: Any
    implementation: Implementation

    def setup(self):
        c = self.config
        shared = {"lora": c.lora, "dtype": self.dtype}
        qkv = shared | {"use_bias": c.attention_bias or c.qkv_bias}
        self.q_proj = Linear(c.num_heads * c.head_dim, **qkv)
        self.k_proj = Linear(c.num_kv_heads * c.head_dim, **qkv)
        self.v_proj = Linear(c.num_kv_heads * c.head_dim, **qkv)
        self.o_proj = Linear(c.hidden_size, use_bias=c.attention_bias, **shared)
        if c.qk_norm:
            self.q_norm, self.k_norm = make_norm(c, self.dtype), make_norm(c, self.dtype)

    def _queries(self, q, cos, sin):
        q = rotate(self.q_norm(q) if self.config.qk_norm else q, cos, sin)
        # What attends divides by the root of `head_dim`.
        size, wanted = self.config.head_dim, self.config.query_pre_attn_scalar
        return q * (size / wanted) ** 0.5 if wanted not in (0, size) else q

    def _keys(self, k, cos, sin):
        return rotate(self.k_norm(k) if self.config.qk_norm else k, cos, sin)

    def _project(self, x, cos, sin):
        q, k, v = (self._heads(a) for a in project(x, (self.q_proj, self.k_proj, self.v_proj)))
        q, k = self._queries(q, cos, sin), self._keys(k, cos, sin)
        return checkpoint_name(q, "query"), checkpoint_name(k, "key"), checkpoint_name(v, "value")

    def _heads(self, x):
        return x.reshape(*x.shape[:-1], -1, self.config.head_dim)

    def _output(self, out):
        return project(out.reshape(*out.shape[:-2], -1), (self.o_proj,))[0]

    def __call__(self, x, kind: Kind | None, shared: Pass):
        """Attends within `shared.layout`; returns the output `b t d` and keys and values `b g t d`."""
        cos, sin, kind = shared.of(kind)
        q, k, v = self._project(x, cos, sin)
        names = ("batch", "seq", "heads", None)
        q, k, v = (nn.with_logical_constraint(a, names) for a in (q, k, v))
        out = split_attention(
            *(q, k, v, shared.layout, self.implementation),
            window=kind.window,
            softcap=self.config.attention_softcap,
            full_prefix=self.config.bidirectional_prefix,
        )
        return self._output(out), (k.swapaxes(1, 2), v.swapaxes(1, 2)) if shared.keep_kv else None

    def pick(self, x, kind: Kind | None, shared: Pass, at: Int[Array, "b m"]):
        """The output at tokens `at` alone (`b m d`); keys and values come from all of `x`."""
        cos, sin, kind = shared.of(kind)
        (q,), kv = project(rows(x, at), (self.q_proj,)), project(x, (self.k_proj, self.v_proj))
        q, k, v = (self._heads(a) for a in (q, *kv))
        q = self._queries(q, cos[at], sin[at])
        k, v = checkpoint_name(self._keys(k, cos, sin), "key"), checkpoint_name(v, "value")
        softcap, full = self.config.attention_softcap, self.config.bidirectional_prefix
        out = picked_attention(q, k, v, shared.layout, at, window=kind.window, softcap=softcap, full_prefix=full)
        return self._output(out)

    def extend(self, x, layer, prefix_kv, tail_kv, kind: Kind | None, shared: Pass):
        """Appends `b q s d` to layer `layer` of the stacked tails (None: to this layer's own) and attends to both."""
        cos, sin, kind = shared.of(kind)
        q, k, v = self._project(x, cos, sin)
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
        visible, seen = cast(Array, shared.visible), None
        if kind.window is not None:
            new, tail = cast(Array, shared.positions)[..., None], cast(Array, shared.tail_positions)
            seen = new - jnp.arange(shared.layout.prefix) < kind.window
            visible &= new - tail[:, :, None] < kind.window
        out = cached_attention(
            q, prefix_k, prefix_v, tail_k, tail_v, visible, self.implementation,
            prefix_visible=seen, softcap=self.config.attention_softcap,
        )  # fmt: skip
        return self._output(out), tail_kv


class MLP(nn.Module):
    """Gated: `down(act(gate(x)) * up(x))`."""

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
        hidden = activation(self.config.hidden_act)(gate) * up
        if hidden.ndim == 3:
            hidden = nn.with_logical_constraint(hidden, ("batch", "seq", "mlp"))
        return project(hidden, (self.down_proj,))[0]


class Layer(nn.Module):
    """Pre-norm attention and MLP, each with a residual; with `output_norms` what each gives is normed too."""

    config: LlmConfig
    dtype: Any
    implementation: Implementation

    def setup(self):
        c = self.config
        self.input_norm = make_norm(c, self.dtype)
        self.post_attention_norm = make_norm(c, self.dtype)
        if c.output_norms:
            self.attention_output_norm, self.mlp_output_norm = make_norm(c, self.dtype), make_norm(c, self.dtype)
        self.attn = Attention(c, self.dtype, self.implementation)
        self.mlp = MLP(c, self.dtype)

    def _after_attention(self, x, out):
        return x + (self.attention_output_norm(out) if self.config.output_norms else out)

    def _feed_forward(self, x):
        out = self.mlp(self.post_attention_norm(x))
        return x + (self.mlp_output_norm(out) if self.config.output_norms else out)

    def __call__(self, x, kind: Kind | None, shared: Pass):
        """One step of the scan over layers: `x` is the carry `b t d`; keys and values are stacked when kept."""
        x = nn.with_logical_constraint(x, ("batch", "seq", "embed"))
        out, kv = self.attn(self.input_norm(x), kind, shared)
        return self._feed_forward(checkpoint_name(self._after_attention(x, out), "middle")), kv

    def pick(self, x, kind: Kind | None, shared: Pass, at: Int[Array, "b m"]):
        """The layer's output `b m d` at tokens `at` alone: what a last layer is asked for."""
        picked = rows(x, at)
        out = self.attn.pick(self.input_norm(x), kind, shared, at)
        return self._feed_forward(self._after_attention(picked, out))

    def extend(self, carry, layer_inputs, shared: Pass):
        """One step of the scan with a cache; the tails are carried so that they are updated in place."""
        x, tail_kv = carry
        layer, prefix_kv, kind = layer_inputs
        out, tail_kv = self.attn.extend(self.input_norm(x), layer, prefix_kv, tail_kv, kind, shared)
        return (self._feed_forward(self._after_attention(x, out)), tail_kv), None


def rows(x: Float[Array, "b t *rest"], at: Int[Array, "b m"]) -> Float[Array, "b m *rest"]:
    """Tokens `at` of each row."""
    return jnp.take_along_axis(x, at.reshape(*at.shape, *[1] * (x.ndim - 2)), axis=1)
