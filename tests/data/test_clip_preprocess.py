"""Pictures and prompts against transformers' CLIP image processor and LLaVA processor."""

import numpy as np
import pytest
import transformers
from clip_preprocess import clip_pixels, llava_prompt, resize_and_crop
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken, Tokenizer, models, normalizers, processors
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

from fi_jax.errors import UserError

CHAT_TEMPLATE = (
    "{% for message in messages %}{{ message['role'].upper() + ': ' }}"
    "{% for content in message['content'] | selectattr('type', 'equalto', 'image') %}{{ '<image>\n' }}{% endfor %}"
    "{% for content in message['content'] | selectattr('type', 'equalto', 'text') %}{{ content['text'] + ' ' }}{% endfor %}"
    "{% endfor %}{% if add_generation_prompt %}{{ 'ASSISTANT:' }}{% endif %}"
)


def _processor(size):
    return CLIPImageProcessorPil(size={"shortest_edge": size}, crop_size={"height": size, "width": size})


@settings(max_examples=25, deadline=None)
@given(st.integers(7, 90), st.integers(7, 90), st.sampled_from([14, 28, 33]))
def test_pixels_equal_clips_processor(height, width, size):
    image = np.random.default_rng(height * 100 + width).integers(0, 256, (height, width, 3), dtype=np.uint8)
    theirs = _processor(size)(image, return_tensors="np", input_data_format="channels_last")["pixel_values"][0]
    ours = clip_pixels(image, size)
    # In units of the picture's 0..1 range, as the normalisation divides by about 0.27.
    np.testing.assert_allclose(ours, theirs.transpose(1, 2, 0), atol=0.27 / 255)


def test_a_photograph_equals_clips_processor_at_llavas_size():
    skimage = pytest.importorskip("skimage")
    image = skimage.data.astronaut()[:, 40:420]
    theirs = _processor(336)(image, return_tensors="np", input_data_format="channels_last")["pixel_values"][0]
    np.testing.assert_allclose(clip_pixels(image, 336), theirs.transpose(1, 2, 0), atol=1e-5)
    assert resize_and_crop(image, 336).dtype == np.uint8


def _tokenizer():
    """Llama's own form: SentencePiece-like BPE over "▁", bytes for the rest, a leading `<s>`."""
    pieces = [
        *("<unk>", "<s>", "</s>"),
        *(f"<0x{i:02X}>" for i in range(256)),
        "▁",
        *"USERASISTNT:abcdefghijklmnopqrstuvwxyzIW?",
    ]
    vocabulary = {piece: i for i, piece in enumerate(dict.fromkeys([*pieces, "is", "he", "▁is"]))}
    merges = [("i", "s"), ("h", "e"), ("▁", "is")]
    tokenizer = Tokenizer(models.BPE(vocabulary, merges, unk_token="<unk>", byte_fallback=True, fuse_unk=True))
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    tokenizer.add_special_tokens([AddedToken(token, special=True) for token in ("<s>", "</s>", "<unk>")])
    tokenizer.add_special_tokens([AddedToken("<image>", special=True, normalized=False)])
    tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    return tokenizer


@pytest.mark.parametrize("question", ["Is the person smiling?", "what is\nthis? élan 3", " is"])
def test_prompt_ids_equal_llavas_processor(question):
    tokenizer = _tokenizer()
    fast = transformers.PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>", unk_token="<unk>"
    )
    processor = transformers.LlavaProcessor(
        image_processor=_processor(28),
        tokenizer=fast,
        patch_size=14,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
        chat_template=CHAT_TEMPLATE,
    )
    content = [{"type": "image"}, {"type": "text", "text": question}]
    text = processor.apply_chat_template([{"role": "user", "content": content}], add_generation_prompt=True)
    image = np.zeros((40, 30, 3), np.uint8)
    theirs = np.array(processor(images=image, text=text)["input_ids"]).reshape(-1)
    ours = llava_prompt(tokenizer, question, 4)
    assert (ours == -1).sum() == 4
    np.testing.assert_array_equal(np.where(ours == -1, tokenizer.token_to_id("<image>"), ours), theirs)


def test_a_tokenizer_without_the_image_token_is_refused():
    tokenizer = Tokenizer(models.BPE({"a": 0}, []))
    with pytest.raises(UserError, match="no token '<image>'"):
        llava_prompt(tokenizer, "a", 2)
