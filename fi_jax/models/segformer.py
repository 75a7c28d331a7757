"""SegFormer (Xie et al. 2021): the face parser's network."""

from dataclasses import dataclass
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np
from einops import rearrange
from flax import linen as nn
from jaxtyping import Array, Float

from fi_jax.errors import UserError
from fi_jax.models.layers import activation, drop_branch, layer_norm


@dataclass(frozen=True)
class SegformerConfig:
    """Shape of a SegFormer; one entry a stage in each tuple. Defaults: B0."""

    num_labels: int = 19
    depths: tuple[int, ...] = (2, 2, 2, 2)
    hidden_sizes: tuple[int, ...] = (32, 64, 160, 256)
    num_heads: tuple[int, ...] = (1, 2, 5, 8)
    sr_ratios: tuple[int, ...] = (8, 4, 2, 1)
    patch_sizes: tuple[int, ...] = (7, 3, 3, 3)
    strides: tuple[int, ...] = (4, 2, 2, 2)
    mlp_ratios: tuple[int, ...] = (4, 4, 4, 4)
    decoder_hidden_size: int = 256
    hidden_act: Literal["quick_gelu", "gelu", "gelu_tanh"] = "gelu"
    # transformers ignores its own `layer_norm_eps` (1e-6) and uses PyTorch's default, as every checkpoint expects.
    layer_norm_eps: float = 1e-5
    # Stochastic depth rate of the last block (linear from 0), at training time.
    drop_path: float = 0.1

    def __post_init__(self):
        per_stage = ("hidden_sizes", "num_heads", "sr_ratios", "patch_sizes", "strides", "mlp_ratios")
        for name in per_stage:
            if len(getattr(self, name)) != len(self.depths):
                raise UserError(
                    f"segformer.{name} has {len(getattr(self, name))} entries for {len(self.depths)} stages"
                )
        for width, heads in zip(self.hidden_sizes, self.num_heads, strict=True):
            if width % heads:
                raise UserError(f"segformer.hidden_sizes {width} is not a multiple of num_heads {heads}")

    @property
    def size_multiple(self) -> int:
        """Picture sides that every stage divides without a remainder are multiples of this."""
        return int(np.lcm.reduce([int(np.prod(self.strides[: i + 1])) * r for i, r in enumerate(self.sr_ratios)]))


class EfficientAttention(nn.Module):
    """Self-attention whose keys and values come from a map reduced `sr_ratio` times along each side."""

    config: SegformerConfig
    stage: int
    dtype: jnp.dtype

    @nn.compact
    def __call__(self, x: Float[Array, "b y x d"]) -> Float[Array, "b y x d"]:
        cfg, (_, height, width, d) = self.config, x.shape
        heads, ratio = cfg.num_heads[self.stage], cfg.sr_ratios[self.stage]
        reduced = x
        if ratio > 1:
            reduced = _conv(d, ratio, ratio, 0, "sr", self.dtype)(x)
            reduced = layer_norm(cfg.layer_norm_eps, "sr_norm", self.dtype)(reduced)

        def project(name, value):
            y = nn.Dense(d, dtype=self.dtype, name=name)(value)
            return rearrange(y, "b y x (h d) -> b (y x) h d", h=heads)

        y = jax.nn.dot_product_attention(project("q_proj", x), project("k_proj", reduced), project("v_proj", reduced))
        y = rearrange(y, "b (y x) h d -> b y x (h d)", y=height, x=width)
        return nn.Dense(d, dtype=self.dtype, name="out_proj")(y)


class MixFfn(nn.Module):
    """fc1, 3x3 depthwise convolution (which tells positions), activation, fc2."""

    config: SegformerConfig
    stage: int
    dtype: jnp.dtype

    @nn.compact
    def __call__(self, x: Float[Array, "b y x d"]) -> Float[Array, "b y x d"]:
        d = x.shape[-1]
        hidden = d * self.config.mlp_ratios[self.stage]
        x = nn.Dense(hidden, dtype=self.dtype, name="fc1")(x)
        x = DepthwiseConv(self.dtype, name="dwconv")(x)
        x = activation(self.config.hidden_act)(x)
        return nn.Dense(d, dtype=self.dtype, name="fc2")(x)


class DepthwiseConv(nn.Module):
    """3x3 depthwise convolution, as nine shifted products: on CPUs many times faster than XLA's grouped one."""

    dtype: jnp.dtype

    @nn.compact
    def __call__(self, x: Float[Array, "b y x d"]) -> Float[Array, "b y x d"]:
        _, height, width, d = x.shape
        kernel = self.param("kernel", nn.initializers.lecun_normal(), (3, 3, 1, d)).astype(self.dtype)
        bias = self.param("bias", nn.initializers.zeros, (d,)).astype(self.dtype)
        padded = jnp.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)))
        shifted = (padded[:, i : i + height, j : j + width] * kernel[i, j, 0] for i in range(3) for j in range(3))
        return sum(shifted, start=bias)


class Block(nn.Module):
    """One layer of one stage; `rate` is its stochastic depth at training time."""

    config: SegformerConfig
    stage: int
    rate: float
    dtype: jnp.dtype

    @nn.compact
    def __call__(self, x: Float[Array, "b y x d"], *, train: bool) -> Float[Array, "b y x d"]:
        def branch(y):
            return drop_branch(y, jnp.float32(self.rate), self.make_rng("dropout")) if train and self.rate else y

        y = layer_norm(self.config.layer_norm_eps, "norm1", self.dtype)(x)
        x = x + branch(EfficientAttention(self.config, self.stage, self.dtype, name="attn")(y))
        y = layer_norm(self.config.layer_norm_eps, "norm2", self.dtype)(x)
        return x + branch(MixFfn(self.config, self.stage, self.dtype, name="mlp")(y))


class Segformer(nn.Module):
    """SegFormer for semantic segmentation, transformers' `SegformerForSemanticSegmentation`.

    Collections: `params`, and `batch_stats` (running mean and variance of the decode head's norm), which
    `train=True` updates: pass `mutable=["batch_stats"]` and the rng "dropout".
    Parameter paths: `stage_{i}/{patch_embed,patch_norm,block_{j},norm}`, `head/{proj_{i},fuse,batch_norm,classifier}`.
    """

    config: SegformerConfig
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, pixels: Float[Array, "b y x 3"], train: bool = False) -> Float[Array, "b y4 x4 c"]:
        """Returns float32 class logits at a quarter of the picture's size, from ImageNet-normalised pixels."""
        cfg = self.config
        rates = np.linspace(0.0, cfg.drop_path, sum(cfg.depths))
        x, maps, done = pixels.astype(self.dtype), [], 0
        for i, depth in enumerate(cfg.depths):
            x = Stage(cfg, i, tuple(float(r) for r in rates[done : done + depth]), self.dtype, name=f"stage_{i}")(
                x, train=train
            )
            maps.append(x)
            done += depth
        return DecodeHead(cfg, self.dtype, name="head")(maps, train=train).astype(jnp.float32)


class Stage(nn.Module):
    """Overlapping patch embedding, blocks, norm: one resolution of the pyramid."""

    config: SegformerConfig
    index: int
    rates: tuple[float, ...]
    dtype: jnp.dtype

    @nn.compact
    def __call__(self, x: Float[Array, "b y x c"], *, train: bool) -> Float[Array, "b y2 x2 d"]:
        cfg, i = self.config, self.index
        patch = cfg.patch_sizes[i]
        x = _conv(cfg.hidden_sizes[i], patch, cfg.strides[i], patch // 2, "patch_embed", self.dtype)(x)
        x = layer_norm(cfg.layer_norm_eps, "patch_norm", self.dtype)(x)
        for j, rate in enumerate(self.rates):
            x = Block(cfg, i, rate, self.dtype, name=f"block_{j}")(x, train=train)
        return layer_norm(cfg.layer_norm_eps, "norm", self.dtype)(x)


class DecodeHead(nn.Module):
    """All-MLP decoder: project, upsample and fuse the maps of all stages, then classify."""

    config: SegformerConfig
    dtype: jnp.dtype

    @nn.compact
    def __call__(self, maps: list[Float[Array, "b y x d"]], *, train: bool) -> Float[Array, "b y x c"]:
        cfg = self.config
        b, height, width, _ = maps[0].shape
        d = cfg.decoder_hidden_size
        # The fusing projection acts on the maps joined from the last stage to the first, as the released weights
        # expect. It is linear, so each map's part is taken before that map is made larger: many times fewer products.
        fuse = _Kernel((len(maps) * d, d), name="fuse")().astype(self.dtype)
        x = jnp.zeros((), self.dtype)
        for i, feature in enumerate(maps):
            place = (len(maps) - 1 - i) * d
            y = nn.Dense(d, dtype=self.dtype, name=f"proj_{i}")(feature) @ fuse[place : place + d]
            x += jax.image.resize(y, (b, height, width, d), "bilinear", antialias=False)
        x = nn.BatchNorm(
            use_running_average=not train, momentum=0.9, epsilon=1e-5, dtype=self.dtype, name="batch_norm"
        )(x)
        x = nn.Dropout(0.1, deterministic=not train)(jax.nn.relu(x))
        return nn.Dense(cfg.num_labels, dtype=self.dtype, name="classifier")(x)


class _Kernel(nn.Module):
    """A kernel that its parent applies in parts."""

    shape: tuple[int, int]

    @nn.compact
    def __call__(self) -> Float[Array, "i o"]:
        return self.param("kernel", nn.initializers.lecun_normal(), self.shape)


def _conv(features: int, size: int, stride: int, padding: int, name: str, dtype) -> nn.Conv:
    return nn.Conv(features, (size, size), (stride, stride), padding, dtype=dtype, name=name)
