"""Other models through the same protocol: tiny random LLaVA and PaliGemma, scored as their own forward pass says."""

import json
import sys
from pathlib import Path

import numpy as np
import pytest

from fi_jax.cli.main import main
from fi_jax.data.datasets import find_dataset
from fi_jax.errors import UserError
from fi_jax.evaluation.other_models import OtherModel, load_other_model
from fi_jax.labels.question_bank import question

torch = pytest.importorskip("torch")

WORDS = ["<pad>", "<s>", "</s>", "<unk>", "<image>", "Yes", "No", "USER", ":", "ASSISTANT", *"ABCDEFG?."]
WORDS += ["Is", "this", "person", "smiling", "What", "with"]
PICTURES = np.random.default_rng(0).integers(0, 255, (2, 40, 40, 3), dtype=np.uint8)


def tokenizer(**special):
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    made = Tokenizer(models.WordLevel({w: i for i, w in enumerate(WORDS)}, unk_token="<unk>"))
    made.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.WhitespaceSplit(), pre_tokenizers.Punctuation()])
    fast = PreTrainedTokenizerFast(
        tokenizer_object=made, pad_token="<pad>", bos_token="<s>", eos_token="</s>", unk_token="<unk>", **special
    )
    fast.add_special_tokens({"additional_special_tokens": ["<image>"]})
    return fast


def tiny_llava(folder):
    from transformers import (
        CLIPImageProcessor,
        CLIPVisionConfig,
        LlamaConfig,
        LlavaConfig,
        LlavaForConditionalGeneration,
        LlavaProcessor,
    )

    torch.manual_seed(0)
    vision = CLIPVisionConfig(
        hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=2, image_size=28, patch_size=14
    )
    text = LlamaConfig(
        vocab_size=32,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=2,
    )
    model = LlavaForConditionalGeneration(LlavaConfig(vision_config=vision, text_config=text, image_token_index=4))
    size = {"height": 28, "width": 28}
    processor = LlavaProcessor(
        CLIPImageProcessor(size={"shortest_edge": 28}, crop_size=size), tokenizer(), patch_size=14,
        vision_feature_select_strategy="default", num_additional_image_tokens=1,
    )  # fmt: skip
    model.save_pretrained(folder)
    processor.save_pretrained(folder)


def tiny_paligemma(folder):
    from transformers import (
        GemmaConfig,
        PaliGemmaConfig,
        PaliGemmaForConditionalGeneration,
        PaliGemmaProcessor,
        SiglipImageProcessor,
        SiglipVisionConfig,
    )

    torch.manual_seed(1)
    vision = SiglipVisionConfig(
        hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=2, image_size=28, patch_size=14
    )
    vision.projection_dim = 32
    pieces = tokenizer()
    images = SiglipImageProcessor(size={"height": 28, "width": 28})
    images.image_seq_length = 4
    processor = PaliGemmaProcessor(images, pieces)
    text = GemmaConfig(
        vocab_size=len(processor.tokenizer), hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=2,
        num_key_value_heads=1, head_dim=16, pad_token_id=0,
    )  # fmt: skip
    model = PaliGemmaForConditionalGeneration(
        PaliGemmaConfig(vision_config=vision, text_config=text, image_token_index=4, projection_dim=32)
    )
    model.save_pretrained(folder)
    processor.save_pretrained(folder)


@pytest.fixture(scope="module", params=[tiny_llava, tiny_paligemma])
def other(request, tmp_path_factory) -> OtherModel:
    folder = tmp_path_factory.mktemp("model")
    request.param(folder)
    return load_other_model(f"hf:{folder}", batch_size=3)


def test_probabilities_are_distributions_over_each_questions_options(other):
    asked = [question("Smiling"), question("gender"), question("expression"), question("Bald")]
    answers = other.answer(PICTURES, None, asked)
    assert answers.head is None and answers.llm.shape == (2, 4, 7)
    np.testing.assert_allclose(answers.llm.sum(-1), 1, atol=1e-5)
    assert (answers.llm[:, 0, 2:] == 0).all() and (answers.llm[:, 2] > 0).all()
    assert np.abs(answers.llm[0] - answers.llm[1]).max() > 1e-6, "the picture matters"


def test_scores_are_the_models_own_log_likelihoods(other):
    asked = question("Smiling")
    (scores,) = other._scores(PICTURES[0], [asked])
    from PIL import Image

    inputs = other.processor(images=Image.fromarray(PICTURES[0]), text=other.prompt(asked), return_tensors="pt")
    with torch.no_grad():
        last = other.model(**inputs).logits[0, -1].log_softmax(-1)
    places = [other.tokenizer.convert_tokens_to_ids(answer) for answer in asked.answers]
    np.testing.assert_allclose(scores, last[places].numpy(), atol=1e-5)


def test_batching_and_padding_change_nothing(other):
    asked = [question("Smiling"), question("gender"), question("Bald")]
    together = other._scores(PICTURES[0], asked)
    for one, scores in zip(asked, together):
        np.testing.assert_allclose(other._scores(PICTURES[0], [one])[0], scores, atol=1e-4)


def test_long_answers_equal_short_ones_where_both_apply(other):
    asked = question("Smiling")
    (scores,) = other._scores(PICTURES[0], [asked])
    tokens = [(other.tokenizer.convert_tokens_to_ids(answer),) for answer in asked.answers]
    np.testing.assert_allclose(other._long_scores(PICTURES[0], asked, tokens), scores, atol=1e-5)
    longer = other._long_scores(PICTURES[0], asked, [tokens[0] * 2, tokens[1]])
    assert longer[0] < scores[0], "every further token costs likelihood"


TEXT = {
    "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2,
    "num_key_value_heads": 2, "pad_token_id": 0,
}  # fmt: skip
CHAT = (
    "{% for m in messages %}USER: {% for c in m.content %}"
    "{{ 'PICTURE' if c.type == 'image' else c.text }}{% endfor %}{% endfor %} ASSISTANT:"
)


def _with(*names, **special):
    made = tokenizer(extra_special_tokens=special)
    made.add_special_tokens({"additional_special_tokens": [*names, *special.values()]})
    return made


def tiny_idefics3(folder):
    from transformers import Idefics3Config, Idefics3ForConditionalGeneration, Idefics3Processor
    from transformers.models.idefics3.image_processing_pil_idefics3 import Idefics3ImageProcessorPil

    edge = {"longest_edge": 28}
    images = Idefics3ImageProcessorPil(size=edge, max_image_size=edge, do_image_splitting=False)
    pieces = _with("<fake_token_around_image>", "<image>", "<global-img>", "<end_of_utterance>")
    processor = Idefics3Processor(images, pieces, image_seq_len=1, chat_template=CHAT.replace("PICTURE", "<image>"))
    processor.save_pretrained(folder)
    vision = {
        "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2, "image_size": 28,
        "patch_size": 14,
    }  # fmt: skip
    text = TEXT | {"model_type": "llama", "vocab_size": len(pieces)}
    return Idefics3ForConditionalGeneration(
        Idefics3Config(vision_config=vision, text_config=text, image_token_id=processor.image_token_id, scale_factor=2)
    )


def _qwen(folder, version: str, vision, **text):
    """Files and model of a Qwen-VL, whose pictures are 28 x 28 pixels: four patches of 14, one token."""
    import transformers
    from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

    names = ("<|image_pad|>", "<|video_pad|>", "<|vision_start|>", "<|vision_end|>")
    pieces = _with(*names)
    pieces.chat_template = CHAT.replace("PICTURE", "<|vision_start|><|image_pad|><|vision_end|>")
    pieces.save_pretrained(folder)
    Qwen2VLImageProcessorPil(min_pixels=28 * 28, max_pixels=28 * 28, patch_size=14).save_pretrained(folder)
    image, video, start, end = map(pieces.convert_tokens_to_ids, names)
    rope = {"rope_type": "default", "mrope_section": [2, 3, 3]}
    config = getattr(transformers, f"{version}Config")(
        vision_config=vision | {"depth": 2, "hidden_size": 32, "num_heads": 2, "patch_size": 14, "out_hidden_size": 32},
        text_config=TEXT | {"vocab_size": len(pieces), "rope_parameters": rope} | text,
        image_token_id=image, video_token_id=video, vision_start_token_id=start, vision_end_token_id=end,
    )  # fmt: skip
    return getattr(transformers, f"{version}ForConditionalGeneration")(config)


def tiny_qwen2_5_vl(folder):
    return _qwen(folder, "Qwen2_5_VL", {"intermediate_size": 64, "fullatt_block_indexes": [1], "window_size": 28})


def tiny_qwen3_vl(folder):
    vision = {"intermediate_size": 64, "num_position_embeddings": 16, "deepstack_visual_indexes": [0]}
    return _qwen(folder, "Qwen3VL", vision, head_dim=16)


def tiny_internvl(folder):
    from transformers import InternVLConfig, InternVLForConditionalGeneration
    from transformers.models.got_ocr2.image_processing_pil_got_ocr2 import GotOcr2ImageProcessorPil

    pieces = _with(
        start_image_token="<img>", end_image_token="</img>", context_image_token="<IMG_CONTEXT>", video_token="<video>"
    )
    pieces.chat_template = CHAT.replace("PICTURE", "<IMG_CONTEXT>")
    pieces.save_pretrained(folder)
    GotOcr2ImageProcessorPil(size={"height": 28, "width": 28}).save_pretrained(folder)
    (folder / "processor_config.json").write_text(
        json.dumps({"processor_class": "InternVLProcessor", "image_seq_length": 1})
    )
    vision = {
        "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2, "image_size": 28,
        "patch_size": 14,
    }  # fmt: skip
    return InternVLForConditionalGeneration(
        InternVLConfig(
            vision_config=vision, text_config=TEXT | {"model_type": "qwen2", "vocab_size": len(pieces)},
            image_token_id=pieces.convert_tokens_to_ids("<IMG_CONTEXT>"), image_seq_length=1,
        )
    )  # fmt: skip


@pytest.mark.parametrize("make", [tiny_idefics3, tiny_qwen2_5_vl, tiny_qwen3_vl, tiny_internvl])
def test_a_model_without_a_form_of_ours_is_evaluated_as_its_own_forward_pass_says(
    make, utkface_folder, tmp_path, monkeypatch
):
    """Asked by the command line, about two faces; then one answer against transformers' own logits."""
    monkeypatch.chdir(tmp_path)
    torch.manual_seed(0)
    model = make(tmp_path).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)
    model.save_pretrained(tmp_path)
    command = ["evaluate", "--model", f"hf:{tmp_path}", "--dataset", "utkface", "--data-root", str(utkface_folder)]
    assert main([*command, "--split", "all", "--limit", "2", "--out", "out"]) == 0
    lines = [json.loads(line) for line in Path("out", "predictions.jsonl").read_text().splitlines()]
    rows = [line for line in lines if "probabilities" in line]
    assert len({row["image"] for row in rows}) == 2
    for row in rows:
        # Rounded in the file.
        assert row["answer"] and sum(row["probabilities"].values()) == pytest.approx(1, abs=1e-4)
    other = load_other_model(f"hf:{tmp_path}", batch_size=2)
    asked = [question("Smiling"), question("gender"), question("Bald")]
    answers = other.answer(PICTURES, None, asked)
    assert np.abs(answers.llm[0] - answers.llm[1]).max() > 1e-6, "the picture matters"
    inputs = other._inputs(PICTURES[0], [other.prompt(asked[0])])
    with torch.no_grad():
        last = model(**inputs).logits[0, -1]
    places = [other.tokenizer.convert_tokens_to_ids(answer) for answer in asked[0].answers]
    np.testing.assert_allclose(answers.llm[0, 0, :2], last[places].softmax(-1).numpy(), atol=1e-5)


def test_the_models_own_chat_format_is_used(other):
    plain = other.prompt(question("Smiling"))
    assert question("Smiling").text in plain and "Yes or No" in plain
    other.processor.chat_template = "{% for m in messages %}<s>{% for c in m.content %}{{ '<image>' if c.type == 'image' else c.text }}{% endfor %}{% endfor %}A:"
    try:
        assert other.prompt(question("gender")).startswith("<s><image>What is")
        assert "letter" in other.prompt(question("gender"))
    finally:
        other.processor.chat_template = None


def test_a_sequence_is_opened_once(tmp_path):
    """By the template, by the tokenizer, or by both: one such token."""
    from tokenizers import processors

    tiny_llava(tmp_path)
    other = load_other_model(f"hf:{tmp_path}")
    backend = other.tokenizer.backend_tokenizer
    backend.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    for start in ("", "<s>"):
        (ids,) = other._inputs(PICTURES[0], [f"{start}USER: <image>\nIs this person smiling?"])["input_ids"]
        assert ids[0] == 1 and (ids == 1).sum() == 1


def test_a_package_that_a_model_needs_is_named(tmp_path, monkeypatch):
    from transformers import AutoProcessor, LlavaConfig

    LlavaConfig().save_pretrained(tmp_path)

    def needs(*_, **__):
        raise ImportError("AutoImageProcessor requires the Torchvision library\nbut it was not found")

    monkeypatch.setattr(AutoProcessor, "from_pretrained", needs)
    with pytest.raises(UserError, match=r"needs a package .*requires the Torchvision library but it was not found"):
        load_other_model(f"hf:{tmp_path}")


def test_every_question_can_be_asked_and_the_head_cannot(other):
    assert len(other.answerable(find_dataset("utkface").questions)) == 4
    with pytest.raises(UserError, match="no alignment head"):
        other.answer(PICTURES, None, [question("Smiling")], by_llm=False)


def test_bad_names_are_one_clear_line(tmp_path, monkeypatch):
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(UserError, match="no image–text model"):
        load_other_model(f"hf:{tmp_path}")
    monkeypatch.setitem(sys.modules, "torch", None)
    with pytest.raises(UserError, match="needs PyTorch"):
        load_other_model("hf:anything")
