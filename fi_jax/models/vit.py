"""The vision transformer, used for the photograph and, with weights of its own, for the segmentation map.

One module with options (`VitConfig`) is CLIP's, SigLIP's and DINOv2's: all are pre-norm layers over patches.
"""

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

    `tokens`: hidden state `feature_layer` of the patches, neighbours merged (d' = d * merge**2).
    `pooled`: the class token (or the mean of the patches, `VitConfig.pool`) after the last layer, through the final norm.
    """

    tokens: Float[Array, "b i d_merged"]
    pooled: Float[Array, "b d"]


class LayerShape(Protocol):
    """What a layer asks of its tower's config (vision or CLIP's text)."""

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
    """One pre-norm transformer layer. `drop` switches stochastic depth on, `scale` DINOv2's layer scale."""

    config: LayerShape
    dtype: jnp.dtype
    drop: bool = False
    causal: bool = False
    flash: bool = False
    scale: bool = False

    @nn.compact
    def __call__(self, x: Float[Array, "b t d"], rate: Float[Array, ""]) -> Float[Array, "b t d"]:
        def branch(y, number):
            if self.scale:
                y = y * self.param(f"layer_scale{number}", nn.initializers.ones, y.shape[-1:]).astype(y.dtype)
            return drop_branch(y, rate, self.make_rng("dropout")) if self.drop else y

        x = nn.with_logical_constraint(x, ("batch", "seq", "embed"))
        x = x + branch(
            Attention(self.config, self.dtype, self.causal, self.flash, name="attn")(
                layer_norm(self.config.layer_norm_eps, "norm1", self.dtype)(x)
            ),
            1,
        )
        return x + branch(
            Mlp(self.config, self.dtype, name="mlp")(layer_norm(self.config.layer_norm_eps, "norm2", self.dtype)(x)), 2
        )


class Vit(nn.Module):
    """A vision tower (CLIP's by default: Radford et al. 2021), layers stacked on axis 0 under `layers`.

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
        kernel, bias = PatchEmbed(p, d, cfg.patch_bias, name="patch_embed")()
        side = cfg.grid * p
        if side < cfg.image_size:
            # SigLIP's 384 pixels are 27 patches of 14, and 6 pixels that no patch sees.
            pixels = pixels[:, :side, :side]
        patches = rearrange(pixels.astype(self.dtype), "b (y p) (x q) c -> b (y x) (p q c)", p=p, q=p)
        # Cut by faces: without a word, XLA would gather all pictures on every device and cut the width.
        x = nn.with_logical_constraint(patches @ kernel.reshape(-1, d).astype(self.dtype), ("batch", "seq", "embed"))
        if bias is not None:
            x = x + bias.astype(self.dtype)

        init = nn.initializers.normal(0.02)
        cls = self.param("class_embedding", init, (d,)) if cfg.class_token else None
        own = int(cfg.class_token)
        positions = self.param("position_embedding", _positions(cfg), (own + cfg.grid**2, d))
        x = x + positions[own:].astype(self.dtype)
        if keep is not None:
            x = jnp.take_along_axis(x, keep[..., None], axis=1)
        first = [] if cls is None else [(cls + positions[0]).astype(self.dtype)]
        if cfg.registers:
            first.append(self.param("registers", init, (cfg.registers, d)).astype(self.dtype))
        first = [jnp.broadcast_to(tokens, (x.shape[0], tokens.size // d, d)) for tokens in first]
        x = nn.with_logical_constraint(jnp.concatenate([*first, x], axis=1), ("batch", "seq", "embed"))
        if cfg.pre_norm:
            x = layer_norm(cfg.layer_norm_eps, "pre_norm", self.dtype)(x)

        wanted = cfg.feature_layer % (cfg.num_layers + 1)
        drop = train and cfg.drop_path > 0
        loops = not train or cfg.num_layers > UNROLLED_LAYERS
        layers = rematerialise(Layer, self.remat, loops)(
            cfg, self.dtype, drop, flash=self.flash, scale=cfg.layer_scale, name="layers"
        )

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

        extra = cfg.extra_tokens
        pooled = x[:, 0] if cfg.pool == "class" else x[:, extra:].mean(1)
        final_norm = layer_norm(cfg.layer_norm_eps, "post_norm", self.dtype)
        pooled = final_norm(nn.with_logical_constraint(pooled, ("batch", "embed")))
        if keep is not None:
            return VitOutput(x[:, extra:], pooled)
        tokens = final_norm(selected[:, extra:]) if cfg.norm_tokens else selected[:, extra:]
        tokens = rearrange(
            tokens, "b (y m x n) d -> b (y x) (m n d)", m=cfg.merge, n=cfg.merge, x=cfg.grid // cfg.merge
        )
        return VitOutput(tokens, pooled)


class PatchEmbed(nn.Module):
    """Holds the patch kernel and, where there is one, its bias."""

    patch_size: int
    features: int
    use_bias: bool

    @nn.compact
    def __call__(self) -> tuple[Float[Array, "p p 3 d"], Float[Array, "d"] | None]:
        p, d = self.patch_size, self.features
        kernel = self.param("kernel", nn.initializers.lecun_normal(), (p, p, 3, d))
        return kernel, self.param("bias", nn.initializers.zeros, (d,)) if self.use_bias else None


def _positions(cfg: VitConfig):
    """How fresh position embeddings start: `sines_and_cosines`, without the class token's row where there is none."""
    grid = cfg.grid**2

    def init(key, shape):
        return sines_and_cosines(key, (grid + 1, shape[1]))[1 - int(cfg.class_token) :]

    return init


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


def resize_position_embedding(embedding: Float[np.ndarray, "n d"], config: VitConfig) -> Float[np.ndarray, "m d"]:
    """Resamples position embeddings (a class token first, where there is one) to the config's picture size.

    As transformers' `interpolate_pos_encoding` does it for each family: bicubic with half-pixel centres; with registers
    (and with them alone) anti-aliased.
    """
    embedding, first, grid = np.asarray(embedding), int(config.class_token), config.grid
    old = round((len(embedding) - first) ** 0.5)
    if old * old + first != len(embedding):
        raise ValueError(f"{len(embedding)} position embeddings are not a square grid{' and a class token' * first}")
    if old == grid:
        return embedding
    weights = _antialiased(old, grid) if config.registers else _bicubic(old, grid)
    patches = embedding[first:].astype(np.float64).reshape(old, old, -1)
    resized = np.einsum("yi,xj,ijd->yxd", weights, weights, patches, optimize=True)
    return np.concatenate([embedding[:first], resized.reshape(grid * grid, -1).astype(embedding.dtype)])


def _cubic(t: np.ndarray, a: float) -> np.ndarray:
    """Keys' cubic kernel at distances `t`."""
    t = np.abs(t)
    near = (a + 2) * t**3 - (a + 3) * t**2 + 1
    far = a * (t**3 - 5 * t**2 + 8 * t - 4)
    return np.where(t <= 1, near, np.where(t < 2, far, 0.0))


def _bicubic(old: int, new: int) -> np.ndarray:
    """Weights `[new, old]` of one-dimensional bicubic interpolation (a = -0.75), edges repeated."""
    centre = (np.arange(new) + 0.5) * old / new - 0.5
    left = np.floor(centre).astype(int)
    weights = np.zeros((new, old))
    for tap in range(-1, 3):
        at = left + tap
        np.add.at(weights, (np.arange(new), np.clip(at, 0, old - 1)), _cubic(centre - at, -0.75))
    return weights


def _antialiased(old: int, new: int) -> np.ndarray:
    """The same anti-aliased: the kernel (a = -0.5) widens when shrinking, and is cut and normalised at the edges."""
    scale = max(old / new, 1.0)
    centre = (np.arange(new) + 0.5) * old / new
    weights = _cubic((np.arange(old) + 0.5 - centre[:, None]) / scale, -0.5)
    return weights / weights.sum(1, keepdims=True)


def _linear(shape: LayerShape, features: int, name: str, dtype) -> Linear:
    # Trained from nothing, CLIP's small weights leave the class token the same for every picture for a long time.
    init = nn.initializers.xavier_uniform()
    return Linear(features, use_bias=True, lora=shape.lora, dtype=dtype, kernel_init=init, name=name)
