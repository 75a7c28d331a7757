"""The batch contract: the arrays that pass from data and prompting to the model and the losses; the ids of prefix slots.

Letters: `b` faces, `n` labels of the vocabulary, `p` prefix tokens, `q` questions (segments) a face, `s` tokens of one
segment, `k` options of one question, `m` positions of the token loss. Padding is on the right.
"""

from typing import TypedDict

from jaxtyping import Bool, Float, Int, UInt8
from numpy import ndarray

# Negative token ids of a prefix are slots, filled in order by the tokens of each modality.
IMAGE_SLOT, SEGMENTATION_SLOT, KNOWLEDGE_SLOT = -1, -2, -3


class Batch(TypedDict, total=False):
    """A plain dict of numpy or jax arrays; `data.pipeline` makes the first six, `prompting.sequences` the others."""

    # Square crops.
    image: UInt8[ndarray, "b y x 3"]
    # Segmentation classes 0..18 (CelebAMask-HQ's order), same geometry as `image`.
    mask: UInt8[ndarray, "b y x"]
    # Targets in [0, 1], and whether each is known; unknown labels are masked everywhere.
    labels: Float[ndarray, "b n"]
    known: Bool[ndarray, "b n"]
    # 0 for padding faces that fill up the last batch.
    weight: Float[ndarray, "b"]
    # Place in the global batch: a face's draw of questions depends on it, not on the host.
    row: Int[ndarray, "b"]
    # Place in the data set; −1 for a face that fills a batch up.
    index: Int[ndarray, "b"]

    # Token ids; slots stand where the modalities' tokens go.
    prefix_tokens: Int[ndarray, "b p"]
    # One question (and, for free-form, its answer) a segment; `segment_valid`: what is no padding.
    segment_tokens: Int[ndarray, "b q s"]
    segment_valid: Bool[ndarray, "b q s"]
    # Index in the segment whose logits predict the answer token.
    answer_position: Int[ndarray, "b q"]
    # Token id of each option (−1 is padding), the label it asserts (−1 for none), and the target distribution over the
    # options (all zero when unknown or free-form).
    option_tokens: Int[ndarray, "b q k"]
    option_labels: Int[ndarray, "b q k"]
    option_targets: Float[ndarray, "b q k"]
    # Which of the builder's questions a segment asks; −1 where it is empty or free-form.
    question_index: Int[ndarray, "b q"]
    # Token loss of free-form answers (and of some closed ones): index into the flattened `q·s` segment axis (−1 is the
    # prefix's last token), next token, weight (0 is padding).
    lm_positions: Int[ndarray, "b m"]
    lm_targets: Int[ndarray, "b m"]
    lm_weights: Float[ndarray, "b m"]
