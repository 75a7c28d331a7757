"""FaceInsight assembled: two encoders, three connectors, one LLM, the knowledge graph and its alignment head.

Structure after the paper's figure 1; the alignment head, the gated knowledge tokens and the shared-prefix
sequence are ours (docs/architecture.md).
"""

from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from fi_jax.config import KnowledgeConfig, ModelConfig
from fi_jax.knowledge.choices import Groups, score_log_probs
from fi_jax.knowledge.gcn import PromptGcn
from fi_jax.knowledge.logic import Facts
from fi_jax.knowledge.score_graph import Relations, ScoreGraph, with_facts
from fi_jax.models.attention import PrefixLayout
from fi_jax.models.batch import IMAGE_SLOT, KNOWLEDGE_SLOT, SEGMENTATION_SLOT
from fi_jax.models.connector import Connector
from fi_jax.models.llm import make_llm
from fi_jax.models.lora import Linear
from fi_jax.models.masked import PatchDecoder
from fi_jax.models.vit import Vit


class Constants(NamedTuple):
    """Arrays that are computed, not trained: T_p^0, Ĉ, the head's choices. Always arguments, never parameters."""

    prompts: Float[Array | np.ndarray, "n d0"]
    graph: Float[Array | np.ndarray, "n n"]
    # The options of each choice (`knowledge.choices.head_groups`); None where the head is Bernoulli.
    groups: Groups | None = None
    # None where no messages pass between scores (`knowledge.score_graph`).
    relations: Relations | None = None


class Faces(NamedTuple):
    """What the encoders say about a batch of faces."""

    image_tokens: Float[Array, "b i di"]
    image_pooled: Float[Array, "b di"]
    segmentation_tokens: Float[Array, "b j dj"] | None
    segmentation_pooled: Float[Array, "b dj"] | None


class Alignment(NamedTuple):
    """Faces against label prompts: `scores` are logits s_i; `prompts` is T_p^L; `probs` what the scores say.

    `own` are the scores before messages passed between them, where they do.
    """

    scores: Float[Array, "b n"]
    prompts: Float[Array, "n e"]
    probs: Float[Array, "b n"]
    own: Float[Array, "b n"] | None = None


class Sequence(NamedTuple):
    """One shared-prefix sequence a face, as embeddings (see `models.attention.PrefixLayout`)."""

    embeddings: Float[Array, "b t d"]
    layout: PrefixLayout


class AlignmentHead(nn.Module):
    """s_i = exp(t) · cos(f(I, I_s), T_p^L,i) + b, with f a two-layer MLP over both pooled features (ours).

    Where the config has a graph of scores, messages pass between them (`knowledge.score_graph`).
    """

    config: KnowledgeConfig
    dtype: jnp.dtype

    @nn.compact
    def __call__(
        self, faces: Faces, prompts: Float[Array, "n e"], constants: Constants, facts: Facts | None = None
    ) -> tuple[Float[Array, "b n"], Float[Array, "b n"] | None]:
        """Returns the logits of every label for every face, in float32, and those before messages passed (None: none do).

        `facts` are what is stated of the faces.
        """
        width = self.config.align_size
        hidden = Linear(width, name="image", dtype=self.dtype)(faces.image_pooled)
        if faces.segmentation_pooled is not None:
            hidden += Linear(width, name="segmentation", dtype=self.dtype)(faces.segmentation_pooled)
        hidden = nn.with_logical_constraint(hidden, ("batch", "embed"))
        f = Linear(width, name="out", dtype=self.dtype)(nn.gelu(hidden)).astype(jnp.float32)
        f = nn.with_logical_constraint(f, ("batch", "embed"))
        log_scale = self.param("log_scale", nn.initializers.constant(jnp.log(10.0)), (), jnp.float32)
        bias = self.param("bias", nn.initializers.constant(-1.5), (), jnp.float32)
        cosine = _unit(f) @ _unit(prompts.astype(jnp.float32)).T
        if constants.groups is not None:
            # It cancels in a softmax. The rounding that its gradient there would be, Adam makes as large as a step.
            bias = jnp.where(jnp.asarray(constants.groups).any(0), jax.lax.stop_gradient(bias), bias)
        scores = jnp.exp(log_scale) * cosine + bias
        if constants.relations is None:
            return scores, None
        graph = ScoreGraph(self.config, name="relations")
        return graph(scores, prompts, constants.relations, constants.groups, facts), scores


def label_probs(scores: Float[Array, "b n"], groups: Groups | None) -> Float[Array, "b n"]:
    """Probability of every label by the alignment head: σ(s_i), or the softmax of a choice."""
    return nn.sigmoid(scores) if groups is None else jnp.exp(score_log_probs(scores, groups).yes)


def _unit(x: Float[Array, "... e"]) -> Float[Array, "... e"]:
    # The floor keeps the gradient finite where a vector is zero.
    return x * jax.lax.rsqrt(jnp.maximum(jnp.sum(x * x, -1, keepdims=True), 1e-12))


class FaceInsight(nn.Module):
    """The whole model. Every method is pure; the batch keys are those of docs/architecture.md."""

    config: ModelConfig

    def setup(self):
        """Makes the parts under their names in the parameter tree."""
        config = self.config
        dtype, flash = jnp.dtype(config.dtype), config.attention == "flash"
        self.image_encoder = Vit(config.image_encoder, dtype=dtype, remat=config.remat, flash=flash)
        self.image_connector = Connector(
            config.llm.hidden_size, dtype, config.image_connector, newline=config.image_newline
        )
        if config.use_segmentation:
            self.segmentation_encoder = Vit(config.segmentation_encoder, dtype=dtype, remat=config.remat, flash=flash)
            self.segmentation_connector = Connector(config.llm.hidden_size, dtype=dtype)
        self.knowledge = PromptGcn(config.knowledge, dtype=dtype)
        self.knowledge_connector = Connector(config.llm.hidden_size, dtype=dtype)
        self.head = AlignmentHead(config.knowledge, dtype=dtype)
        if config.decoder.num_layers:
            self.decoder = PatchDecoder(config.decoder, config.image_encoder, dtype=dtype, flash=flash)
        self.llm = make_llm(config, config.remat)

    def encode(
        self, pixels: Float[Array, "b y x 3"], map_pixels: Float[Array, "b y2 x2 3"], train: bool = False
    ) -> Faces:
        """Encodes normalised pictures and colour-coded segmentation maps."""
        image = self.image_encoder(pixels, train=train)
        if not self.config.use_segmentation:
            return Faces(image.tokens, image.pooled, None, None)
        segmentation = self.segmentation_encoder(map_pixels, train=train)
        return Faces(image.tokens, image.pooled, segmentation.tokens, segmentation.pooled)

    def reconstruct(
        self, pixels: Float[Array, "b y x 3"], keep: Int[Array, "b k"], train: bool = False
    ) -> Float[Array, "b i c"]:
        """Reconstructs all patches from the visible ones (stage `pretrain`; see `models.masked`)."""
        return self.decoder(self.image_encoder(pixels, train=train, keep=keep).tokens, keep)

    def align(self, faces: Faces, constants: Constants, facts: Facts | None = None) -> Alignment:
        """Scores every label by the alignment head over the refined prompts; what is known of a face stands."""
        prompts = self.knowledge(constants.prompts, constants.graph)
        scores, own = self.head(faces, prompts, constants, facts)
        return Alignment(scores, prompts, with_facts(label_probs(scores, constants.groups), facts), own)

    def sequence(self, faces: Faces, alignment: Alignment, batch: dict[str, Array]) -> Sequence:
        """Joins the prefix (text, image, segmentation and knowledge tokens) and the question segments."""
        prefix, segments = batch["prefix_tokens"], batch["segment_tokens"]
        b, q, s = segments.shape
        embedded = self.embed_prefix(prefix, faces, alignment), self.llm.embed(segments.reshape(b, q * s))
        x = nn.with_logical_constraint(jnp.concatenate(embedded, axis=1), ("batch", "seq", "embed"))
        return Sequence(x, PrefixLayout(prefix.shape[1], q, s))

    def embed_prefix(self, tokens: Int[Array, "b p"], faces: Faces, alignment: Alignment) -> Float[Array, "b p d"]:
        """Embeds prefix tokens, with the slots filled by connector outputs in order."""
        x = self.llm.embed(jnp.maximum(tokens, 0))
        x = _fill(x, tokens == IMAGE_SLOT, self.image_connector(faces.image_tokens))
        if faces.segmentation_tokens is not None:
            x = _fill(x, tokens == SEGMENTATION_SLOT, self.segmentation_connector(faces.segmentation_tokens))
        return _fill(x, tokens == KNOWLEDGE_SLOT, self.knowledge_tokens(alignment))

    def knowledge_tokens(self, alignment: Alignment) -> Float[Array, "b n d"]:
        """Refined prompts, each gated by its label's probability, so that it speaks of this face, through their connector (ours).

        The gate stands before the connector: a gate on the connector's output would only scale the token, and the
        LLM's first RMSNorm divides that scale out again.
        """
        prompts = alignment.prompts[None]
        if self.config.knowledge.gated:
            prompts = prompts * alignment.probs[..., None].astype(prompts.dtype)
        tokens = self.knowledge_connector(prompts)
        return jnp.broadcast_to(tokens, (alignment.scores.shape[0], *tokens.shape[1:]))

    def answers(
        self, sequence: Sequence, batch: dict[str, Array]
    ) -> tuple[Float[Array, "b q k"], Float[Array, "b m v"]]:
        """Runs the LLM and asks it where answers are due; nothing else goes through the LM head.

        Returns the logits of each question's option tokens, and full next-token logits at `lm_positions` (indices into
        the flattened segments; none where the batch has no such key).
        """
        options, layout = batch["option_tokens"], sequence.layout
        b, q, _ = options.shape
        free = batch.get("lm_positions", jnp.zeros((b, 0), jnp.int32))
        due = jnp.concatenate([batch["answer_position"] + layout.length * jnp.arange(q), free], axis=1)
        hidden = self.llm(sequence.embeddings, layout, layout.prefix + due.astype(jnp.int32))
        closed = jnp.take_along_axis(self.llm.logits(hidden[:, :q]), jnp.maximum(options, 0), axis=-1)
        return jnp.where(options >= 0, closed, -1e9), self.llm.logits(hidden[:, q:])

    def llm_hidden(self, tokens: Int[Array, "b t"]) -> Float[Array, "b t d"]:
        """The LLM over plain text, padded on the right (for pooled prompts T_p^0 and text-only checks)."""
        return self.llm(self.llm.embed(tokens), PrefixLayout(tokens.shape[1]))

    def __call__(self, batch: dict[str, Array], constants: Constants, train: bool = False):
        """Touches every parameter once (for `init`): returns scores, option logits and answer logits."""
        if self.config.decoder.num_layers:
            self.reconstruct(batch["pixels"], jnp.zeros((batch["pixels"].shape[0], 1), jnp.int32), train)
        faces = self.encode(batch["pixels"], batch["map_pixels"], train)
        alignment = self.align(faces, constants)
        sequence = self.sequence(faces, alignment, batch)
        return alignment.scores, *self.answers(sequence, batch)


def _fill(x: Float[Array, "b p d"], slots: Bool[Array, "b p"], tokens: Float[Array, "b i d"]) -> Float[Array, "b p d"]:
    """Writes the k-th token into the k-th slot of each row; tokens beyond the last slot are dropped.

    A scatter without repeated rows: its gradient is a gather, where that of a gather would add atomically. Under vmap,
    so that the partitioner sees that faces do not mix; else it gathers the tokens of all devices on each.
    """
    p, i = slots.shape[1], tokens.shape[1]
    k = jnp.arange(i)
    at = jnp.sum(jnp.cumsum(slots, axis=1)[:, None, :] <= k[:, None], axis=-1)
    at = jnp.where(at < p, at, p + k)

    def row(x, at, tokens):
        return x.at[at].set(tokens, mode="drop", unique_indices=True, indices_are_sorted=True)

    return jax.vmap(row)(x, at, tokens.astype(x.dtype))
