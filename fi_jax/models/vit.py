"""The vision transformer of CLIP, used for the photograph and, with weights of its own, for the segmentation map."""

from typing import NamedTuple, Protocol

import jax
import jax.numpy as jnp
import numpy as np
from einops import rearrange
from flax import linen as nn
from jaxtyping import Array, Float, Int

from fi_jax.config import LoraConfig, VitConfig
from fi_jax.models.flash import full_attention_flash
from fi_jax.models.layers import activation, drop_branch, layer_norm, rematerialise
from fi_jax.models.lora import Linear
from fi_jax.models.projections import project

# Up to so many layers the scan is unrolled in training: copies in and out of the loop are a third of a small tower's step
# on a GPU. Asking keeps the loop, which compiles sooner.
UNROLLED_LAYERS = 12


class VitOutput(NamedTuple):
    """What the encoder says of one image.

    `tokens`: hidden state `feature_layer` without the class token, neighbours merged (d' = d * merge**2).
    `pooled`: the class token (or the mean of the others, `VitConfig.pool`) after the last layer, through the final norm.
    """

    tokens: Float[Array, "b i d_merged"]
    pooled: Float[Array, "b d"]


class LayerShape(Protocol):
    """What a CLIP transformer layer asks of its tower's config (vision or text)."""

    @property
    def hidden_size(self) -> int: ...
    @property
    def intermediate_size(self) -> int: ...
    @property
    def num_heads(self) -> int: ...
    @property
    def hidden_act(self) -> str: ...
    @property
    def layer_norm_eps(self) -> float: ...
    @property
    def lora(self) -> LoraConfig: ...


class Attention(nn.Module):
    """Multi-head self-attention, bidirectional or causal. `flash`: by a kernel (`models.flash`), else by XLA."""

    config: LayerShape
    dtype: jnp.dtype
    causal: bool
    flash: bool

    @nn.compact
    def __call__(self, x: Float[Array, "b t d"]) -> Float[Array, "b t d"]:
        cfg = self.config
        layers = [_linear(cfg, cfg.hidden_size, name, self.dtype) for name in ("q_proj", "k_proj", "v_proj")]
        q, k, v = (rearrange(y, "b t (h d) -> b t h d", h=cfg.num_heads) for y in project(x, layers))
        if self.flash:
            y = full_attention_flash(q, k, v, self.causal)
        else:
            y = jax.nn.dot_product_attention(q, k, v, is_causal=self.causal)
        return project(rearrange(y, "b t h d -> b t (h d)"), [_linear(cfg, cfg.hidden_size, "out_proj", self.dtype)])[0]


class Mlp(nn.Module):
    """fc1, activation, fc2."""

    config: LayerShape
    dtype: jnp.dtype

    @nn.compact
    def __call__(self, x: Float[Array, "b t d"]) -> Float[Array, "b t d"]:
        cfg = self.config
        (y,) = project(x, [_linear(cfg, cfg.intermediate_size, "fc1", self.dtype)])
        return project(activation(cfg.hidden_act)(y), [_linear(cfg, cfg.hidden_size, "fc2", self.dtype)])[0]


class Layer(nn.Module):
    """One pre-norm transformer layer of CLIP. `drop` switches stochastic depth on."""

    config: LayerShape
    dtype: jnp.dtype
    drop: bool = False
    causal: bool = False
    flash: bool = False

    @nn.compact
    def __call__(self, x: Float[Array, "b t d"], rate: Float[Array, ""]) -> Float[Array, "b t d"]:
        def branch(y):
            return drop_branch(y, rate, self.make_rng("dropout")) if self.drop else y

        x = nn.with_logical_constraint(x, ("batch", "seq", "embed"))
        x = x + branch(
            Attention(self.config, self.dtype, self.causal, self.flash, name="attn")(
                layer_norm(self.config.layer_norm_eps, "norm1", self.dtype)(x)
            )
        )
        return x + branch(
            Mlp(self.config, self.dtype, name="mlp")(layer_norm(self.config.layer_norm_eps, "norm2", self.dtype)(x))
        )


class Vit(nn.Module):
    """CLIP's vision tower (Radford et al. 2021), layers stacked on axis 0 under `layers`.

    `dtype` is the compute type; `remat` is what the backward pass keeps of a layer (see `ModelConfig.remat`);
    `flash` computes attention by a kernel (`models.flash`).
    """

    config: VitConfig
    dtype: jnp.dtype = jnp.float32
    remat: str = "none"
    flash: bool = False

    @nn.compact
    def __call__(
        self, pixels: Float[Array, "b y x 3"], *, train: bool = False, keep: Int[Array, "b k"] | None = None
    ) -> VitOutput:
        """Encodes normalised pictures of `image_size` pixels; `train` needs the rng "dropout" where drop_path > 0.

        With `keep` only these patches of each picture are seen; `tokens` are then the last layer's, one a patch (`b k d`).
        """
        cfg = self.config
        if pixels.shape[1:] != (cfg.image_size, cfg.image_size, 3):
            raise ValueError(f"pictures of shape {pixels.shape} given to an encoder of image_size {cfg.image_size}")
        p, d = cfg.patch_size, cfg.hidden_size

        # The stride equals the patch, so the convolution is one matmul (faster than a convolution on CPUs).
        kernel = PatchEmbed(p, d, name="patch_embed")()
        patches = rearrange(pixels.astype(self.dtype), "b (y p) (x q) c -> b (y x) (p q c)", p=p, q=p)
        # Cut by faces: without a word, XLA would gather all pictures on every device and cut the width.
        x = nn.with_logical_constraint(patches @ kernel.reshape(-1, d).astype(self.dtype), ("batch", "seq", "embed"))

        cls = self.param("class_embedding", nn.initializers.normal(0.02), (d,))
        positions = self.param("position_embedding", sines_and_cosines, (cfg.grid**2 + 1, d))
        x = x + positions[1:].astype(self.dtype)
        if keep is not None:
            x = jnp.take_along_axis(x, keep[..., None], axis=1)
        cls = jnp.broadcast_to((cls + positions[0]).astype(self.dtype), (x.shape[0], 1, d))
        x = nn.with_logical_constraint(jnp.concatenate([cls, x], axis=1), ("batch", "seq", "embed"))
        x = layer_norm(cfg.layer_norm_eps, "pre_norm", self.dtype)(x)

        wanted = cfg.feature_layer % (cfg.num_layers + 1)
        drop = train and cfg.drop_path > 0
        loops = not train or cfg.num_layers > UNROLLED_LAYERS
        layers = rematerialise(Layer, self.remat, loops)(cfg, self.dtype, drop, flash=self.flash, name="layers")

        # Carrying the one wanted hidden state, outside the rematerialised layer, stores neither all of them
        # nor a second residual.
        def step(layer, carry, xs):
            x, selected = carry
            index, rate = xs
            x = layer(x, rate)
            return (x, jnp.where(index == wanted, x, selected)), None

        scan = nn.scan(
            step,
            variable_axes={"params": 0},
            split_rngs={"params": True, "dropout": True},
            length=cfg.num_layers,
            unroll=1 if loops else cfg.num_layers,
        )
        rates = jnp.linspace(0.0, cfg.drop_path, cfg.num_layers)
        (x, selected), _ = scan(layers, (x, x), (jnp.arange(1, cfg.num_layers + 1), rates))

        pooled = nn.with_logical_constraint(x[:, 0] if cfg.pool == "class" else x[:, 1:].mean(1), ("batch", "embed"))
        pooled = layer_norm(cfg.layer_norm_eps, "post_norm", self.dtype)(pooled)
        if keep is not None:
            return VitOutput(x[:, 1:], pooled)
        tokens = rearrange(
            selected[:, 1:], "b (y m x n) d -> b (y x) (m n d)", m=cfg.merge, n=cfg.merge, x=cfg.grid // cfg.merge
        )
        return VitOutput(tokens, pooled)


class PatchEmbed(nn.Module):
    """Holds the patch kernel `[p, p, 3, d]`; CLIP's patch embedding has no bias."""

    patch_size: int
    features: int

    @nn.compact
    def __call__(self) -> Float[Array, "p p 3 d"]:
        p = self.patch_size
        return self.param("kernel", nn.initializers.lecun_normal(), (p, p, 3, self.features))


def sines_and_cosines(key: Array | None, shape: tuple[int, int], dtype=jnp.float32) -> Float[Array, "n d"]:
    """Fresh position embeddings: two-dimensional sines and cosines (MoCo v3; Beyer et al. 2022), the class token's zero.

    Their size is that of the patches they are added to. CLIP's own start, normal(0.02), is invisible beside those:
    trained from nothing, the encoder would first have to grow it to know where a patch lies.
    """
    n, d = shape
    side = round((n - 1) ** 0.5)
    frequencies = 1.0 / 100.0 ** (np.arange(d // 4) / max(d // 4 - 1, 1))
    angles = np.arange(side)[:, None] * frequencies
    one = np.concatenate([np.sin(angles), np.cos(angles)], axis=1)
    rows, columns = np.repeat(one, side, axis=0), np.tile(one, (side, 1))
    both = np.concatenate([rows, columns], axis=1)
    return jnp.asarray(np.pad(both, ((1, 0), (0, d - both.shape[1]))), dtype)


def resize_position_embedding(embedding: Float[np.ndarray, "n d"], grid: int) -> Float[np.ndarray, "m d"]:
    """Resamples position embeddings (class token first) to a `grid` x `grid` picture, m = grid**2 + 1.

    Bicubic with a = -0.75 and half-pixel centres, as transformers' `interpolate_pos_encoding` does it.
    """
    embedding = np.asarray(embedding)
    old = round((len(embedding) - 1) ** 0.5)
    if old * old + 1 != len(embedding):
        raise ValueError(f"{len(embedding)} position embeddings are not a square grid and a class token")
    if old == grid:
        return embedding
    weights = _bicubic(old, grid)
    patches = embedding[1:].astype(np.float64).reshape(old, old, -1)
    resized = np.einsum("yi,xj,ijd->yxd", weights, weights, patches, optimize=True)
    return np.concatenate([embedding[:1], resized.reshape(grid * grid, -1).astype(embedding.dtype)])


def _bicubic(old: int, new: int) -> np.ndarray:
    """Weights `[new, old]` of one-dimensional bicubic interpolation, edges repeated."""
    a = -0.75
    centre = (np.arange(new) + 0.5) * old / new - 0.5
    left = np.floor(centre).astype(int)
    weights = np.zeros((new, old))
    for tap in range(-1, 3):
        t = np.abs(centre - (left + tap))
        near = (a + 2) * t**3 - (a + 3) * t**2 + 1
        far = a * (t**3 - 5 * t**2 + 8 * t - 4)
        np.add.at(weights, (np.arange(new), np.clip(left + tap, 0, old - 1)), np.where(t <= 1, near, far))
    return weights


def _linear(shape: LayerShape, features: int, name: str, dtype) -> Linear:
    # Trained from nothing, CLIP's small weights leave the class token the same for every picture for a long time.
    init = nn.initializers.xavier_uniform()
    return Linear(features, use_bias=True, lora=shape.lora, dtype=dtype, kernel_init=init, name=name)
