"""A Llama-architecture language model: layers in a scan or unrolled, shared prefixes, and a cache of them."""

from collections.abc import Callable
from typing import Any, Literal, cast

import flax
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax.ad_checkpoint import checkpoint_name
from jaxtyping import Array, Bool, Float, Int

from fi_jax.config import LlamaConfig, ModelConfig, RopeScaling
from fi_jax.models.attention import Implementation, PrefixLayout, cached_attention, picked_attention, split_attention
from fi_jax.models.lora import Linear
from fi_jax.models.precision import Quantised, Rows, quantise_frozen, quantise_tokens
from fi_jax.models.projections import project

Remat = Literal["none", "dots", "full"]


class KVCache(flax.struct.PyTreeNode):
    """Keys and values of one prefix a face, and of `q` continuations (tails) of it; positions are already applied.

    With `q` = 1 it is the usual cache; with `q` = 32 the prefix is stored and read once for 32 questions.
    Only the tail is written after the prefill, so a decoding loop carries and donates the tail alone.
    Where the layers are unrolled (`Llama.scan_layers` false), keys and values are tuples of one array a layer
    instead of stacks: a step then reads each where it lies, and no layer's slice is copied.
    """

    # `Rows` of such arrays where the prefix is kept in 8 bits.
    prefix_k: Float[Array, "l b g p d"] | tuple[Float[Array, "b g p d"] | Rows, ...] | Rows | None
    prefix_v: Float[Array, "l b g p d"] | tuple[Float[Array, "b g p d"] | Rows, ...] | Rows | None
    tail_k: Float[Array, "l b q g m d"] | tuple[Float[Array, "b q g m d"], ...] | None
    tail_v: Float[Array, "l b q g m d"] | tuple[Float[Array, "b q g m d"], ...] | None
    # Slots that hold a real token; padding of unequal questions stays false.
    tail_valid: Bool[Array, "b q m"]
    # Slots written so far, the same for every continuation.
    used: Int[Array, ""]


class _Pass(flax.struct.PyTreeNode):
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


def rope_frequencies(head_dim: int, theta: float, scaling: RopeScaling) -> Float[np.ndarray, "half"]:
    """Radians a position of each pair of dimensions, as Hugging Face's default, linear and llama3 RoPE."""
    frequencies = 1.0 / theta ** (np.arange(0, head_dim, 2, dtype=np.float64) / head_dim)
    if scaling.kind == "linear":
        frequencies /= scaling.factor
    elif scaling.kind == "llama3":
        turns = frequencies * scaling.original_max_position_embeddings / (2 * np.pi)
        smooth = (turns - scaling.low_freq_factor) / (scaling.high_freq_factor - scaling.low_freq_factor)
        smooth = np.clip(smooth, 0, 1)
        frequencies = frequencies * (smooth + (1 - smooth) / scaling.factor)
    return frequencies.astype(np.float32)


def _rotate(
    x: Float[Array, "... t h d"], cos: Float[Array, "... t half"], sin: Float[Array, "... t half"]
) -> Float[Array, "... t h d"]:
    """Applies RoPE to both halves of the last axis (Hugging Face's half-split convention), in float32."""
    low, high = jnp.split(x.astype(jnp.float32), 2, axis=-1)
    cos, sin = cos[..., None, :], sin[..., None, :]
    return jnp.concatenate([low * cos - high * sin, high * cos + low * sin], axis=-1).astype(x.dtype)


class Attention(nn.Module):
    """Grouped-query self-attention with RoPE."""

    config: LlamaConfig
    dtype: Any
    implementation: Implementation

    def setup(self):
        c = self.config
        shared = {"use_bias": c.attention_bias, "lora": c.lora, "dtype": self.dtype}
        self.q_proj = Linear(c.num_heads * c.head_dim, **shared)
        self.k_proj = Linear(c.num_kv_heads * c.head_dim, **shared)
        self.v_proj = Linear(c.num_kv_heads * c.head_dim, **shared)
        self.o_proj = Linear(c.hidden_size, **shared)

    def _project(self, x, shared: _Pass):
        q, k, v = (self._heads(a) for a in project(x, (self.q_proj, self.k_proj, self.v_proj)))
        q, k = _rotate(q, shared.cos, shared.sin), _rotate(k, shared.cos, shared.sin)
        return checkpoint_name(q, "query"), checkpoint_name(k, "key"), checkpoint_name(v, "value")

    def _heads(self, x):
        return x.reshape(*x.shape[:-1], -1, self.config.head_dim)

    def _output(self, out):
        return project(out.reshape(*out.shape[:-2], -1), (self.o_proj,))[0]

    def __call__(self, x, shared: _Pass):
        """Attends within `shared.layout`; returns the output `b t d` and keys and values `b g t d`."""
        q, k, v = self._project(x, shared)
        names = ("batch", "seq", "heads", None)
        q, k, v = (nn.with_logical_constraint(a, names) for a in (q, k, v))
        out = split_attention(q, k, v, shared.layout, self.implementation)
        return self._output(out), (k.swapaxes(1, 2), v.swapaxes(1, 2)) if shared.keep_kv else None

    def pick(self, x, shared: _Pass, at: Int[Array, "b m"]):
        """The output at tokens `at` alone (`b m d`); keys and values come from all of `x`."""
        (q,), kv = project(_rows(x, at), (self.q_proj,)), project(x, (self.k_proj, self.v_proj))
        q, k, v = (self._heads(a) for a in (q, *kv))
        q = _rotate(q, shared.cos[at], shared.sin[at])
        k = checkpoint_name(_rotate(k, shared.cos, shared.sin), "key")
        return self._output(picked_attention(q, k, checkpoint_name(v, "value"), shared.layout, at))

    def extend(self, x, layer, prefix_kv, tail_kv, shared: _Pass):
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

    config: LlamaConfig
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

    config: LlamaConfig
    dtype: Any
    implementation: Implementation

    def setup(self):
        c = self.config
        self.input_norm = RMSNorm(c.rms_norm_eps, self.dtype)
        self.post_attention_norm = RMSNorm(c.rms_norm_eps, self.dtype)
        self.attn = Attention(c, self.dtype, self.implementation)
        self.mlp = MLP(c, self.dtype)

    def __call__(self, x, _, shared: _Pass):
        """One step of the scan over layers: `x` is the carry `b t d`; keys and values are stacked when kept."""
        x = nn.with_logical_constraint(x, ("batch", "seq", "embed"))
        out, kv = self.attn(self.input_norm(x), shared)
        x = checkpoint_name(x + out, "middle")
        return x + self.mlp(self.post_attention_norm(x)), kv

    def pick(self, x, shared: _Pass, at: Int[Array, "b m"]):
        """The layer's output `b m d` at tokens `at` alone: what a last layer is asked for."""
        x = _rows(x, at) + self.attn.pick(self.input_norm(x), shared, at)
        return x + self.mlp(self.post_attention_norm(x))

    def extend(self, carry, layer_inputs, shared: _Pass):
        """One step of the scan with a cache; the tails are carried so that they are updated in place."""
        x, tail_kv = carry
        layer, prefix_kv = layer_inputs
        out, tail_kv = self.attn.extend(self.input_norm(x), layer, prefix_kv, tail_kv, shared)
        x = x + out
        return (x + self.mlp(self.post_attention_norm(x)), tail_kv), None


def _rows(x: Float[Array, "b t *rest"], at: Int[Array, "b m"]) -> Float[Array, "b m *rest"]:
    """Tokens `at` of each row."""
    return jnp.take_along_axis(x, at.reshape(*at.shape, *[1] * (x.ndim - 2)), axis=1)


# What the backward pass of a layer needs besides the layer's input, so that no product with a frozen kernel is
# computed twice. Saving "every matrix product" instead would keep an adapted layer's y = x W and its (x A) B apart:
# twice the memory, for a sum that is all the backward pass reads.
_SAVED = ("query", "key", "value", "middle", "gate", "up", "lora_low", "row_scale", "attention_out", "attention_lse")


def _remat_policy(remat: Remat):
    if remat == "full":
        return jax.checkpoint_policies.nothing_saveable
    return jax.checkpoint_policies.save_only_these_names(*_SAVED)


class Llama(nn.Module):
    """Embeddings in, hidden states or logits out. Parameters: see docs/architecture.md, `llm/`."""

    config: LlamaConfig
    dtype: Any = jnp.float32
    remat: Remat = "none"
    attention: Implementation = "xla"
    # False: the layers are unrolled, one after the other. Slower to compile; but no kernel and nothing that the
    # backward pass keeps is copied in or out of a stack (kernels, if they come one by one: `unstack_layers`), and the
    # last layer does no more than it is asked for.
    scan_layers: bool = True
    kv_precision: Literal["bf16", "int8"] = "bf16"

    def setup(self):
        c = self.config
        layer = Layer
        if self.remat != "none":
            layer = nn.remat(layer, policy=_remat_policy(self.remat), prevent_cse=False, methods=["__call__"])
        scanned = nn.scan(
            layer,
            variable_axes={"params": 0},
            split_rngs={"params": True},
            in_axes=(0, nn.broadcast),
            length=c.num_layers,
            methods=["__call__", "extend"],
        )
        # Named embed_tokens as an attribute because `embed` is the method; the parameter path is `embed`.
        self.embed_tokens = nn.Embed(
            c.vocab_size, c.hidden_size, dtype=self.dtype, embedding_init=nn.initializers.normal(0.02), name="embed"
        )
        self.layers = scanned(c, self.dtype, self.attention)
        self.norm = RMSNorm(c.rms_norm_eps, self.dtype)
        if not c.tie_embeddings:
            self.lm_head = Linear(c.vocab_size, dtype=self.dtype)

    def embed(self, tokens: Int[Array, "b t"]) -> Float[Array, "b t d"]:
        """Looks tokens up; negative ids (slots) get the vector of token 0, for the caller to replace."""
        return self.embed_tokens(jnp.maximum(tokens, 0))

    def __call__(
        self,
        x: Float[Array, "b t d"],
        layout: PrefixLayout,
        at: Int[Array, "b m"] | None = None,
    ) -> Float[Array, "b n d"]:
        """Returns the hidden states after the final norm; with `at`, those of these tokens alone (`b m d`)."""
        return self._forward(x, layout, keep_kv=False, at=at)[0]

    def logits(self, hidden: Float[Array, "... d"]) -> Float[Array, "... v"]:
        """Scores of every token, float32. Pass answer positions only: `v` is large."""
        if self.config.tie_embeddings:
            kernel = self.embed_tokens.embedding.astype(self.dtype)
            return jnp.einsum("...d,vd->...v", hidden.astype(self.dtype), kernel, preferred_element_type=jnp.float32)
        return self.lm_head(hidden).astype(jnp.float32)

    def prefill(
        self,
        x: Float[Array, "b p d"],
        tail_length: int,
        continuations: int = 1,
    ) -> tuple[Float[Array, "b p d"], KVCache]:
        """Runs a prefix; returns its hidden states and a cache with `continuations` empty tails of `tail_length`."""
        b, p = x.shape[:2]
        hidden, (k, v) = self._forward(x, PrefixLayout(p), keep_kv=True)
        c = self.config
        shape, dtype = (b, continuations, c.num_kv_heads, tail_length, c.head_dim), jax.tree.leaves(k)[0].dtype
        if self.kv_precision == "int8":
            k, v = jax.tree.map(quantise_tokens, (k, v))

        def empty():
            if self.scan_layers:
                return jnp.zeros((c.num_layers, *shape), dtype)
            return tuple(jnp.zeros(shape, dtype) for _ in range(c.num_layers))

        tail_valid = jnp.zeros((b, continuations, tail_length), bool)
        return hidden, KVCache(k, v, empty(), empty(), tail_valid, jnp.zeros((), jnp.int32))

    def extend(
        self,
        x: Float[Array, "b q s d"],
        positions: Int[Array, "b q s"],
        valid: Bool[Array, "b q s"],
        cache: KVCache,
    ) -> tuple[Float[Array, "b q s d"], KVCache]:
        """Appends `s` tokens to every tail: a question's text, or with `s` = 1 one step of decoding.

        Padding may stand anywhere; it takes a slot and is never seen. Writing beyond the tail's length is the
        caller's mistake and overwrites its last slots.
        """
        s, m = x.shape[2], cache.tail_valid.shape[2]
        tail_valid = jax.lax.dynamic_update_slice(cache.tail_valid, valid, (0, 0, cache.used))
        causal = jnp.arange(m) <= cache.used + jnp.arange(s)[:, None]
        shared = self._pass(positions, visible=tail_valid[:, :, None, :] & causal, used=cache.used)
        # `Any`: stacks where the layers run in a scan, tuples of one a layer where not.
        tails: Any = (cache.tail_k, cache.tail_v)
        prefix: Any = (cache.prefix_k, cache.prefix_v)
        x = x.astype(self.dtype)
        if self.scan_layers:
            inputs = (jnp.arange(self.config.num_layers), prefix)
            (x, (tail_k, tail_v)), _ = self.layers.extend((x, tails), inputs, shared)
        else:
            written, layer = [], self._layer("extend")
            for params, own_tails, own_prefix in zip(self._layer_params(), zip(*tails), zip(*prefix), strict=True):
                (x, new), _ = layer(params, (x, own_tails), (None, own_prefix), shared)
                written.append(new)
            tail_k, tail_v = zip(*written, strict=True)
        cache = cache.replace(tail_k=tail_k, tail_v=tail_v, tail_valid=tail_valid, used=cache.used + s)
        return self.norm(x), cache

    def _pass(self, positions, **rest) -> _Pass:
        c = self.config
        frequencies = rope_frequencies(c.head_dim, c.rope_theta, c.rope_scaling)
        angles = jnp.asarray(positions, jnp.float32)[..., None] * frequencies
        return _Pass(jnp.cos(angles), jnp.sin(angles), **rest)

    def _forward(self, x, layout, keep_kv, at=None):
        shared = self._pass(layout.positions, layout=layout, keep_kv=keep_kv)
        x = x.astype(self.dtype)
        if self.scan_layers or self.is_initializing():
            x, kv = self.layers(x, None, shared)
            x = x if at is None else _rows(x, at)
        else:
            *params, last = self._layer_params()
            kept, layer = [], self._layer("__call__")
            for own in params:
                x, kv = layer(own, x, None, shared)
                kept.append(kv)
            if at is None:
                x, kv = layer(last, x, None, shared)
                kept.append(kv)
            else:
                x = self._layer("pick")(last, x, shared, at)
            kv = tuple(zip(*kept, strict=True)) if keep_kv else None
        x = nn.with_logical_constraint(x, ("batch", "seq", "embed"))
        return self.norm(x), kv

    def _layer(self, method: str) -> Callable:
        """A layer as a function of its parameters; it keeps for its backward pass what `remat` says."""
        layer = Layer(self.config, self.dtype, self.attention, parent=None)

        def run(params, *arguments):
            return layer.apply({"params": params}, *arguments, method=method)

        if self.remat == "none" or method == "extend":
            return run
        # Without a loop nothing but a barrier keeps XLA from merging what is computed again with its first time,
        # which would keep everything.
        return jax.checkpoint(run, policy=_remat_policy(self.remat), prevent_cse=True)

    def _layer_params(self) -> list[dict]:
        stacked = self.variables["params"]["layers"]
        cut = jax.tree.map(lambda leaf: leaf if _is_unstacked(leaf) else _unstack(leaf), stacked, is_leaf=_is_leaf)
        return [
            jax.tree.map(lambda leaf, i=i: leaf[i], cut, is_leaf=_is_unstacked) for i in range(self.config.num_layers)
        ]


def unstack_layers(leaves: dict[str, Any], scan_layers: bool = False, prefix: str = "llm/") -> dict[str, Any]:
    """Cuts every stacked leaf of an LLM's layers into a tuple of one array a layer, unless the layers are scanned.

    `leaves` are flat and given up: each is taken out as it is cut, so that no more than one is held twice. `prefix` is
    where the LLM's paths begin. What is no leaf of a layer stays as it is.
    """
    if scan_layers:
        return leaves
    cut = {}
    for path in list(leaves):
        leaf = leaves.pop(path)
        cut[path] = tuple(leaf) if path.startswith(f"{prefix}layers/") else leaf
    return cut


def prepare_frozen(leaves: dict[str, Any], model: ModelConfig, *, differentiated: bool = True) -> dict[str, Any]:
    """Frozen leaves as the model reads them: kernels in `frozen_precision`, layers apart where they are unrolled.

    `leaves` are flat and given up. `differentiated`: whether gradients go through the kernels to their inputs.
    """
    leaves = unstack_layers(leaves, model.scan_layers)
    return quantise_frozen(leaves, model.frozen_precision, differentiated)


def make_llm(model: ModelConfig, remat: Remat = "none") -> Llama:
    """The language model of a FaceInsight, alone."""
    return Llama(
        model.llm,
        dtype=jnp.dtype(model.dtype),
        remat=remat,
        attention=model.attention,
        scan_layers=model.scan_layers,
        kv_precision=model.kv_precision,
    )


def _is_unstacked(leaf: Any) -> bool:
    return isinstance(leaf, tuple)


def _is_leaf(leaf: Any) -> bool:
    return isinstance(leaf, tuple | Quantised)


def _unstack(leaf: Any) -> tuple[Any, ...]:
    if isinstance(leaf, Quantised):
        return tuple(jax.tree.map(lambda x, i=i: x[i], leaf) for i in range(leaf.scale.shape[0]))
    return _unstack_array(leaf)


@jax.custom_vjp
def _unstack_array(leaf: Float[Array, "l *rest"]) -> tuple[Float[Array, "*rest"], ...]:
    # JAX would sum as many gradients of the whole stack, each with one layer in it.
    return tuple(leaf[i] for i in range(leaf.shape[0]))


def _unstack_forward(leaf):
    return _unstack_array(leaf), None


def _unstack_backward(_, cotangents):
    return (jnp.stack(cotangents),)


_unstack_array.defvjp(_unstack_forward, _unstack_backward)
