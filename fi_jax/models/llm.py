"""A decoder-only language model: layers in a scan or unrolled, shared prefixes, and a cache of them."""

from collections.abc import Callable
from typing import Any, Literal

import flax
import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from fi_jax.config import LlmConfig, ModelConfig
from fi_jax.models.attention import Implementation, PrefixLayout, soft_cap
from fi_jax.models.layer_stack import layer_params
from fi_jax.models.llm_layer import Kind, Layer, Pass, make_norm, rows
from fi_jax.models.lora import Linear
from fi_jax.models.precision import Rows, quantise_tokens
from fi_jax.models.rope import rope_of_layer, rope_table

Remat = Literal["none", "dots", "full"]


class KVCache(flax.struct.PyTreeNode):
    """Keys and values of one prefix a face, and of `q` continuations (tails) of it; positions are already applied.

    With `q` = 1 it is the usual cache; with `q` = 32 the prefix is stored and read once for 32 questions.
    Only the tail is written after the prefill, so a decoding loop carries and donates the tail alone.
    Where the layers are unrolled (`Llm.scan_layers` false), keys and values are tuples of one array a layer
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


# What the backward pass of a layer needs besides the layer's input, so that no product with a frozen kernel is
# computed twice. Saving "every matrix product" instead would keep an adapted layer's y = x W and its (x A) B apart:
# twice the memory, for a sum that is all the backward pass reads.
_SAVED = ("query", "key", "value", "middle", "gate", "up", "lora_low", "row_scale", "attention_out", "attention_lse")


def _remat_policy(remat: Remat):
    if remat == "full":
        return jax.checkpoint_policies.nothing_saveable
    return jax.checkpoint_policies.save_only_these_names(*_SAVED)


class Llm(nn.Module):
    """Embeddings in, hidden states or logits out. Parameters: see docs/architecture.md, `llm/`."""

    config: LlmConfig
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
            split_rngs={"params": True, "dropout": True},
            in_axes=(0, nn.broadcast),
            length=c.num_layers,
            methods=["__call__", "extend"],
        )
        # Named embed_tokens as an attribute because `embed` is the method; the parameter path is `embed`.
        self.embed_tokens = nn.Embed(
            c.vocab_size, c.hidden_size, dtype=self.dtype, embedding_init=nn.initializers.normal(0.02), name="embed"
        )
        self.layers = scanned(c, self.dtype, self.attention)
        self.norm = make_norm(c, self.dtype)
        if not c.tie_embeddings:
            self.lm_head = Linear(c.vocab_size, dtype=self.dtype)

    def embed(self, tokens: Int[Array, "b t"]) -> Float[Array, "b t d"]:
        """Looks tokens up; negative ids (slots) get the vector of token 0, for the caller to replace."""
        x = self.embed_tokens(jnp.maximum(tokens, 0))
        return x * jnp.asarray(self.config.hidden_size**0.5, x.dtype) if self.config.scale_embeddings else x

    def __call__(
        self,
        x: Float[Array, "b t d"],
        layout: PrefixLayout,
        at: Int[Array, "b m"] | None = None,
    ) -> Float[Array, "b n d"]:
        """Returns the hidden states after the final norm; with `at`, those of these tokens alone (`b m d`)."""
        return self._forward(x, layout, layout.prefix + layout.length, at=at)[0]

    def logits(self, hidden: Float[Array, "... d"]) -> Float[Array, "... v"]:
        """Scores of every token, float32. Pass answer positions only: `v` is large."""
        if self.config.tie_embeddings:
            kernel = self.embed_tokens.embedding.astype(self.dtype)
            scores = jnp.einsum("...d,vd->...v", hidden.astype(self.dtype), kernel, preferred_element_type=jnp.float32)
        else:
            scores = self.lm_head(hidden).astype(jnp.float32)
        return soft_cap(scores, self.config.logit_softcap)

    def prefill(
        self,
        x: Float[Array, "b p d"],
        tail_length: int,
        continuations: int = 1,
    ) -> tuple[Float[Array, "b p d"], KVCache]:
        """Runs a prefix; returns its hidden states and a cache with `continuations` empty tails of `tail_length`."""
        p = x.shape[1]
        hidden, (k, v) = self._forward(x, PrefixLayout(p), p + tail_length, keep_kv=True)
        if self.kv_precision == "int8":
            k, v = jax.tree.map(quantise_tokens, (k, v))
        return hidden, self._cache(k, v, x.shape[0], tail_length, continuations)

    def branch(self, cache: KVCache, tail: int, length: int, tail_length: int, continuations: int) -> KVCache:
        """A cache whose prefix goes on with the first `length` tokens of one tail, and has `continuations` empty tails.

        Of caches in 8 bits there is no such branch.
        """

        def joined(prefix, tails):
            return jnp.concatenate((prefix, tails[..., tail, :, :length, :]), axis=-2)

        k, v = jax.tree.map(joined, (cache.prefix_k, cache.prefix_v), (cache.tail_k, cache.tail_v))
        return self._cache(k, v, cache.tail_valid.shape[0], tail_length, continuations)

    def _cache(self, k, v, b: int, tail_length: int, continuations: int) -> KVCache:
        """Keys and values of a prefix, and empty tails."""
        c = self.config
        shape = (b, continuations, c.num_kv_heads, tail_length, c.head_dim)

        def empty():
            if self.scan_layers:
                return jnp.zeros((c.num_layers, *shape), self.dtype)
            return tuple(jnp.zeros(shape, self.dtype) for _ in range(c.num_layers))

        tail_valid = jnp.zeros((b, continuations, tail_length), bool)
        return KVCache(k, v, empty(), empty(), tail_valid, jnp.zeros((), jnp.int32))

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
        # `Any`: stacks where the layers run in a scan, tuples of one a layer where not.
        tails: Any = (cache.tail_k, cache.tail_v)
        prefix: Any = (cache.prefix_k, cache.prefix_v)
        p = jax.tree.leaves(prefix)[0].shape[-2]
        visible = tail_valid[:, :, None, :] & causal
        shared, kinds = self._pass(positions, PrefixLayout(p), p + m, visible=visible, used=cache.used)
        if self.config.sliding_window:
            shared = shared.replace(positions=positions, tail_positions=p - 1 + jnp.cumsum(tail_valid, axis=-1))
        x = x.astype(self.dtype)
        if self.scan_layers:
            inputs = (jnp.arange(self.config.num_layers), prefix, _stacked(kinds, p + m))
            (x, (tail_k, tail_v)), _ = self.layers.extend((x, tails), inputs, shared)
        else:
            written, layers = [], {kind: self._layer("extend", kind) for kind in set(kinds)}
            by_layer = zip(self._params_by_layer(), kinds, zip(*tails), zip(*prefix), strict=True)
            for params, kind, own_tails, own_prefix in by_layer:
                (x, new), _ = layers[kind](params, {}, (x, own_tails), (None, own_prefix), shared)
                written.append(new)
            tail_k, tail_v = zip(*written, strict=True)
        cache = cache.replace(tail_k=tail_k, tail_v=tail_v, tail_valid=tail_valid, used=cache.used + s)
        return self.norm(x), cache

    def _pass(self, positions, layout, length, **rest) -> tuple[Pass, list[Kind | None]]:
        """What the layers of a sequence of at most `length` tokens share, and each one's kind (None: all are alike)."""
        c = self.config
        of_layer = [rope_of_layer(c, i) for i in range(c.num_layers)]
        ropes = list(dict.fromkeys(of_layer))
        positions = jnp.asarray(positions, jnp.float32)
        tables = [rope_table(rope, c.rotary_size, positions, length) for rope in ropes]
        # A window as long as the sequence hides nothing.
        windows = {i: c.sliding_window for i in c.sliding_layers if c.sliding_window < length}
        kinds = [Kind(ropes.index(rope), windows.get(i)) for i, rope in enumerate(of_layer)]
        if len(set(kinds)) == 1:
            return Pass(*tables[0], kind=kinds[0], layout=layout, **rest), [None] * c.num_layers
        cos, sin = (jnp.stack(table) for table in zip(*tables, strict=True))
        return Pass(cos, sin, layout=layout, **rest), list(kinds)

    def _forward(self, x, layout, length, keep_kv=False, at=None):
        shared, kinds = self._pass(layout.positions, layout, length, keep_kv=keep_kv)
        x = x.astype(self.dtype)
        if self.scan_layers or self.is_initializing():
            x, kv = self.layers(x, _stacked(kinds, length), shared)
            x = x if at is None else rows(x, at)
        else:
            *params, last = zip(self._params_by_layer(), self._rngs_by_layer(), strict=True)
            # One function a kind: layers of a kind are traced once.
            kept, layers = [], {kind: self._layer("__call__", kind) for kind in set(kinds)}
            for own, kind in zip(params, kinds, strict=False):
                x, kv = layers[kind](*own, x, shared)
                kept.append(kv)
            if at is None:
                x, kv = layers[kinds[-1]](*last, x, shared)
                kept.append(kv)
            else:
                x = self._layer("pick", kinds[-1])(*last, x, shared, at)
            kv = tuple(zip(*kept, strict=True)) if keep_kv else None
        x = nn.with_logical_constraint(x, ("batch", "seq", "embed"))
        return self.norm(x), kv

    def _params_by_layer(self) -> list[dict]:
        return layer_params(self.variables["params"]["layers"], self.config.num_layers)

    def _rngs_by_layer(self) -> list[dict]:
        """What adapters draw from; nothing outside training."""
        count = self.config.num_layers
        if not self.config.lora.dropout or not self.has_rng("dropout"):
            return [{}] * count
        return [{"dropout": key} for key in jax.random.split(self.make_rng("dropout"), count)]

    def _layer(self, method: str, kind: Kind | None = None) -> Callable:
        """A layer of one kind as a function of its parameters and what it draws from; it keeps for its backward pass what
        `remat` says.
        """
        layer = Layer(self.config, self.dtype, self.attention, parent=None)

        def run(params, rngs, x, *rest):
            # The kind stands last where a scan goes through other things too.
            rest = ((*rest[0], kind), *rest[1:]) if method == "extend" else (kind, *rest)
            return layer.apply({"params": params}, x, *rest, method=method, rngs=rngs)

        if self.remat == "none" or method == "extend":
            return run
        # Without a loop nothing but a barrier keeps XLA from merging what is computed again with its first time,
        # which would keep everything.
        return jax.checkpoint(run, policy=_remat_policy(self.remat), prevent_cse=True)


def _stacked(kinds: list[Kind | None], length: int) -> Kind | None:
    """The layers' kinds as a scan goes through them; None where they are alike."""
    differing = [kind for kind in kinds if kind is not None]
    if not differing:
        return None
    windows = [length if kind.window is None else kind.window for kind in differing]
    hidden = jnp.array(windows) if min(windows) < length else None
    return Kind(jnp.array([kind.rope for kind in differing]), hidden)


def make_llm(model: ModelConfig, remat: Remat = "none") -> Llm:
    """The language model of a FaceInsight, alone."""
    return Llm(
        model.llm,
        dtype=jnp.dtype(model.dtype),
        remat=remat,
        attention=model.attention,
        scan_layers=model.scan_layers,
        kv_precision=model.kv_precision,
    )
