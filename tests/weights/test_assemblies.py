"""Checkpoints of pictures and text as they are: transformers' logits for one view, its tokens, its answers."""

import json
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
import transformers
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers.models.llava_next import modeling_llava_next
from transformers.models.llava_onevision import modeling_llava_onevision

from fi_jax.cli.configs import load_config
from fi_jax.cli.main import main
from fi_jax.errors import UserError
from fi_jax.inference.answerer import Answerer, load_answerer
from fi_jax.inference.attribution import attribute
from fi_jax.inference.generation import generate, generate_many
from fi_jax.labels.question_bank import question
from fi_jax.labels.registry import vocabulary
from fi_jax.models.attention import PrefixLayout
from fi_jax.models.batch import IMAGE_SLOT
from fi_jax.models.connector import Connector
from fi_jax.models.llm import Llm
from fi_jax.models.vit import Vit
from fi_jax.prompting.sequences import SequenceBuilder, Slots
from fi_jax.weights.bundle import load_model
from fi_jax.weights.hf_config import read_llava_config, read_vit_config
from fi_jax.weights.huggingface import load_llava, load_vision
from fi_jax.weights.tokenizers import load_template, read_own_template

SIDE = 28
CLIP = {
    "model_type": "clip_vision_model", "hidden_size": 24, "intermediate_size": 40, "num_hidden_layers": 3,
    "num_attention_heads": 3, "image_size": SIDE, "patch_size": 7,
}  # fmt: skip
# 30 pixels are 4 patches of 7, and 2 pixels more.
SIGLIP = CLIP | {"model_type": "siglip_vision_model", "image_size": 30, "vision_use_head": False}
TEXT = {
    "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "pad_token_id": 0,
}  # fmt: skip

# The chat templates of llava-hf's own folders, without their comments.
LLAVA = (
    "{% for message in messages %}{% if message['role'] != 'system' %}{{ message['role'].upper() + ': '}}{% endif %}"
    "{% for content in message['content'] | selectattr('type', 'equalto', 'image') %}{{ '<image>\n' }}{% endfor %}"
    "{% if message['role'] != 'assistant' %}"
    "{% for content in message['content'] | selectattr('type', 'equalto', 'text') %}{{ content['text'] + ' '}}{% endfor %}"
    "{% else %}{% for content in message['content'] | selectattr('type', 'equalto', 'text') %}"
    "{% generation %}{{ content['text'] + ' '}}{% endgeneration %}{% endfor %}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ 'ASSISTANT:' }}{% endif %}"
)
MISTRAL = (
    "{{ bos_token }}{% for message in messages %}{% if message['role'] == 'user' %}{{ '[INST] ' }}"
    "{% for content in message['content'] | selectattr('type', 'equalto', 'image') %}{{ '<image>\n' }}{% endfor %}"
    "{% for content in message['content'] | selectattr('type', 'equalto', 'text') %}{{ content['text'] }}{% endfor %}"
    "{{ ' [/INST]' }}{% else %}{{ ' ' + message['content'][0]['text'] + eos_token }}{% endif %}{% endfor %}"
)
CHATML = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + ' ' }}"
    "{% for content in message['content'] | selectattr('type', 'equalto', 'image') %}{{ '<image>' }}{% endfor %}"
    "{% for content in message['content'] | selectattr('type', 'equalto', 'text') %}{{ '\n' + content['text'] }}{% endfor %}"
    "{{ '<|im_end|>' }}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
WORDS = ["Is this person smiling? Yes No", "What is this person's gender? A) female B) male", "USER: ASSISTANT: [INST]"]


def _pieces(kind: str) -> Tokenizer:
    """A tokenizer like Llama's (word starts marked, opens a text itself) or like Qwen's (bytes, opens nothing)."""
    special = ["<pad>", "<s>", "</s>", "<image>", "<|im_start|>", "<|im_end|>"]
    made = Tokenizer(models.BPE(unk_token="<pad>"))
    alphabet = [chr(i) for i in range(32, 127)]
    if kind == "metaspace":
        made.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first", split=False)
        made.decoder = decoders.Metaspace(prepend_scheme="first")
    else:
        made.pre_tokenizer, made.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
        alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=400, special_tokens=special, initial_alphabet=[*alphabet, "\n", "▁"], show_progress=False
    )
    made.train_from_iterator([*WORDS, *(f" {word}" for text in WORDS for word in text.split())] * 20, trainer)
    if kind == "metaspace":
        made.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    return made


def _tokenizer(folder, kind: str, chat: str | None, **special) -> transformers.PreTrainedTokenizerFast:
    fast = transformers.PreTrainedTokenizerFast(
        tokenizer_object=_pieces(kind), **{"bos_token": "<s>", "eos_token": "</s>", "pad_token": "<pad>", **special}
    )
    fast.chat_template = chat
    fast.save_pretrained(folder)
    return fast


def _checkpoint(folder, name: str):
    """A tiny random checkpoint of a kind, with its tokenizer, and transformers' model."""
    chat, kind, special = {
        "llava": (LLAVA, "metaspace", {}),
        "llava_next": (MISTRAL, "metaspace", {}),
        "llava_onevision": (CHATML, "bytes", {"bos_token": None, "eos_token": "<|im_end|>"}),
        "paligemma": (None, "metaspace", {}),
    }[name]
    vocab = len(_tokenizer(folder, kind, chat, **special))
    text = TEXT | {"vocab_size": vocab}
    whole, text = {
        "llava": ("Llava", text | {"model_type": "llama"}),
        "llava_next": ("LlavaNext", text | {"model_type": "mistral", "sliding_window": None}),
        "llava_onevision": ("LlavaOnevision", text | {"model_type": "qwen2"}),
        "paligemma": ("PaliGemma", text | {"model_type": "gemma", "head_dim": 10}),
    }[name]
    tower = CLIP if name in ("llava", "llava_next") else SIGLIP
    extra = {"projection_dim": 32} if name == "paligemma" else {}
    config = getattr(transformers, f"{whole}Config")(
        vision_config=tower, text_config=text, image_token_index=3, image_token_id=3, **extra
    )
    torch.manual_seed(0)
    model = getattr(transformers, f"{whole}ForConditionalGeneration")(config)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.15)
    model.eval().save_pretrained(folder)
    return model


@pytest.fixture(scope="module", params=["llava", "llava_next", "llava_onevision", "paligemma"])
def checkpoint(request, tmp_path_factory):
    folder = tmp_path_factory.mktemp(request.param)
    return request.param, folder, _checkpoint(folder, request.param)


@pytest.fixture(autouse=True)
def _one_view(monkeypatch):
    for module in (modeling_llava_next, modeling_llava_onevision):
        monkeypatch.setattr(module, "image_size_to_num_patches", lambda **_: 1)


def _theirs(name: str, model, pixels, tokens, prefix: int | None = None) -> np.ndarray:
    """transformers' logits for one view; of a PaliGemma, the tokens after `prefix` are an answer."""
    values = torch.tensor(pixels.transpose(0, 3, 1, 2))
    inputs = {"input_ids": torch.tensor(tokens), "pixel_values": values}
    if name in ("llava_next", "llava_onevision"):
        inputs |= {"pixel_values": values[:, None], "image_sizes": torch.tensor([[SIDE, SIDE]] * len(values))}
    if name == "paligemma":
        inputs["token_type_ids"] = torch.zeros_like(inputs["input_ids"])
        inputs["token_type_ids"][:, prefix:] = 1
    with torch.no_grad():
        return model(**inputs).logits.numpy()


def test_logits_equal_transformers_for_one_view(checkpoint):
    name, folder, model = checkpoint
    config, params, report = load_llava(folder, dtype="float32")
    assert not report.unused or (name == "paligemma" and set(report.unused) <= {"lm_head.weight"})
    rng = np.random.default_rng(0)
    side = config.image_encoder.image_size
    pixels = rng.normal(size=(1, side, side, 3)).astype(np.float32)
    tokens = rng.integers(4, 100, (1, 40))
    count = config.image_encoder.num_tokens + config.image_newline
    tokens[0, 2 : 2 + count] = 3
    connector = Connector(32, kind=config.image_connector, newline=config.image_newline)
    llm, prefix = Llm(config.llm), 30
    layout = PrefixLayout(prefix, 1, 10)

    @jax.jit
    def ours(params):
        image = Vit(config.image_encoder).apply({"params": params["image_encoder"]}, pixels).tokens
        image = connector.apply({"params": params["image_connector"]}, image)

        def run(llm):
            x = llm.embed(jnp.asarray(tokens)).at[:, 2 : 2 + count].set(image)
            return llm.logits(llm(x, layout))

        return llm.apply({"params": params["llm"]}, method=run)

    np.testing.assert_allclose(ours(params), _theirs(name, model, pixels, tokens, prefix), atol=1e-4)


def test_the_tower_alone_comes_out_of_each(checkpoint):
    _, folder, _ = checkpoint
    config, params, _ = load_vision(folder)
    whole = load_llava(folder, dtype="float32")[1]
    jax.tree.map(np.testing.assert_array_equal, params, whole["image_encoder"])
    assert read_vit_config(folder) == config


def _spelled(folder, text: str) -> tuple[SequenceBuilder, list[int]]:
    """The tokens of one question about a picture of five tokens, slots as the image token."""
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    own = read_own_template(folder, tokenizer)
    builder = SequenceBuilder(tokenizer, own, vocabulary("all"), [], Slots(5, 0, 0), num_segments=1)
    ids = [*map(int, builder.prefix), *builder.question_ids(text)]
    return builder, [3 if token == IMAGE_SLOT else token for token in ids]


def test_tokens_equal_the_processors_and_a_sequence_is_opened_once(checkpoint):
    name, folder, _ = checkpoint
    fast = transformers.AutoTokenizer.from_pretrained(folder)
    text = "Is this person smiling?"
    builder, ours = _spelled(folder, text)
    if name == "paligemma":
        # What its processor writes.
        wanted = fast("<image>" * 5 + f"<s>{text}\n", add_special_tokens=False)["input_ids"]
    else:
        content = [{"type": "image"}, {"type": "text", "text": text}]
        written = fast.apply_chat_template(
            [{"role": "user", "content": content}], add_generation_prompt=True, tokenize=False
        )
        opened = {"add_special_tokens": False} if written.startswith("<s>") else {}
        wanted = fast(written.replace("<image>", "<image>" * 5), **opened)["input_ids"]
    assert ours == wanted
    assert ours.count(1) == (0 if name == "llava_onevision" else 1)
    end = {"llava_onevision": "<|im_end|>"}.get(name, "</s>")
    assert builder.end_id == fast.convert_tokens_to_ids(end)


# Gemma 3's own, what it says to wrong messages left out. It marks a picture otherwise than by the picture's token.
GEMMA = (
    "{{ bos_token }}{%- for message in messages -%}"
    "{%- set role = 'model' if message['role'] == 'assistant' else message['role'] -%}"
    "{{ '<start_of_turn>' + role + '\n' }}{%- if message['content'] is string -%}{{ message['content'] | trim }}"
    "{%- else -%}{%- for item in message['content'] -%}{%- if item['type'] == 'image' -%}{{ '<start_of_image>' }}"
    "{%- else -%}{{ item['text'] | trim }}{%- endif -%}{%- endfor -%}{%- endif -%}{{ '<end_of_turn>\n' }}{%- endfor -%}"
    "{%- if add_generation_prompt -%}{{ '<start_of_turn>model\n' }}{%- endif -%}"
)


def test_the_llm_of_a_checkpoint_with_pictures_is_spelled_as_it_is_alone(tmp_path):
    """`gemma3_4b` has the language model of Gemma 3, and an encoder of its own."""
    fast = _tokenizer(tmp_path, "bytes", GEMMA)
    fast.add_special_tokens({"additional_special_tokens": ["<start_of_turn>", "<end_of_turn>"]})
    fast.save_pretrained(tmp_path)
    described = {"model_type": "gemma3", "image_token_index": 3, "text_config": {}, "vision_config": {}}
    (tmp_path / "config.json").write_text(json.dumps(described))
    tokenizer = Tokenizer.from_file(str(tmp_path / "tokenizer.json"))
    with pytest.raises(UserError, match="does not write the picture"):
        read_own_template(tmp_path, tokenizer)
    own = load_config("gemma3_4b")
    own = replace(own, weights=replace(own.weights, llm=str(tmp_path)))
    builder = SequenceBuilder(
        tokenizer, load_template(own, tokenizer), vocabulary("all"), [], Slots(0, 0, 0), num_segments=1
    )
    text = "Is this person smiling?"
    asked = [{"role": "user", "content": text}]
    wanted = fast.apply_chat_template(asked, add_generation_prompt=True, tokenize=False)
    assert [*builder.prefix, *builder.question_ids(text)] == fast(wanted, add_special_tokens=False)["input_ids"]
    assert builder.end_id == fast.convert_tokens_to_ids("<end_of_turn>")


def test_a_checkpoint_without_a_usable_template_is_refused(tmp_path):
    _checkpoint(tmp_path, "llava_next")
    tokenizer = Tokenizer.from_file(str(tmp_path / "tokenizer.json"))
    file = tmp_path / "chat_template.jinja"
    for source, says in (
        ("{{ raise_exception('no pictures') }}", "cannot be used .no pictures"),
        ("{% for %}", "cannot be used"),
        ("{{ messages[0].content[1].text }}", "does not write the picture"),
    ):
        file.write_text(source)
        with pytest.raises(UserError, match=says):
            read_own_template(tmp_path, tokenizer)
    file.unlink()
    with pytest.raises(UserError, match="has no chat template"):
        read_own_template(tmp_path, tokenizer)


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"vision_feature_select_strategy": "full"}, "vision_feature_select_strategy is 'full'"),
        ({"vision_feature_layer": [-2, -1]}, "joins several layers"),
        ({"vision_config": {"model_type": "siglip2_vision_model"}}, "model_type 'siglip2_vision_model'"),
        ({"text_config": {"model_type": "mixtral"}}, "model_type is 'mixtral'"),
        ({"quantization_config": {"quant_method": "bitsandbytes"}}, "quantization_config is set"),
        ({"model_type": "qwen2_5_vl"}, "is a 'qwen2_5_vl' checkpoint; wanted: llava"),
    ],
)
def test_what_is_not_computed_is_refused_by_its_field(tmp_path, changes, says):
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "llava_next"} | changes))
    with pytest.raises(UserError, match=says):
        read_llava_config(tmp_path)


@pytest.fixture(scope="module")
def untrained(tmp_path_factory) -> tuple[Answerer, object]:
    folder = tmp_path_factory.mktemp("untrained")
    model = _checkpoint(folder, "llava_onevision")
    return load_answerer(load_model(folder)), model


FACE = np.random.default_rng(1).integers(0, 256, (1, 30, 30, 3), dtype=np.uint8)
MAP = np.zeros((1, 30, 30), np.uint8)
PIXELS = (FACE / 255.0 - 0.5).astype(np.float32) / 0.5


def _equals_transformers(answerer: Answerer, name: str, model) -> None:
    """Each option's likelihood behind picture and question, by transformers' own pass over all of them."""
    questions = [question("Smiling"), question("gender")]
    answers = answerer.answer(FACE, MAP, questions)
    assert answers.head is None and answers.label_scores is None
    builder = answerer.builder(())
    for i, asked in enumerate(questions):
        ids = [*builder.prefix, *builder.question_ids(asked.text)]
        likelihoods = []
        for answer in map(builder.answer_ids, asked.answers):
            tokens = np.array([[3 if token == IMAGE_SLOT else token for token in (*ids, *answer)]])
            said = torch.tensor(_theirs(name, model, PIXELS, tokens, len(ids))[0]).log_softmax(-1)
            likelihoods.append(sum(said[len(ids) - 1 + k, token] for k, token in enumerate(answer)))
        expected = torch.stack(likelihoods).softmax(-1)
        np.testing.assert_allclose(answers.llm[0, i, : len(expected)], expected, atol=1e-4)


def test_a_checkpoint_is_asked_as_it_is(untrained):
    answerer, model = untrained
    _equals_transformers(answerer, "llava_onevision", model)
    with pytest.raises(UserError, match="has no alignment head"):
        answerer.answer(FACE, MAP, [question("Smiling")], by_llm=False)


def test_picture_and_question_of_a_paligemma_see_each_other(tmp_path):
    """Closed answers and greedy text are those of transformers, whose prefix is picture and question together."""
    model = _checkpoint(tmp_path, "paligemma")
    answerer = load_answerer(load_model(tmp_path))
    assert answerer.asks_in_prefix
    _equals_transformers(answerer, "paligemma", model)
    p = answerer.answer(FACE, MAP, [question("gender")]).llm[0, 0]
    explained = attribute(answerer, FACE[0], MAP[0], question("gender"), 0, steps=1)
    assert explained.log_odds == pytest.approx(float(np.log(p[0] / p[1])), abs=1e-3)
    texts = ["Is this person smiling?"] * 2
    builder = answerer.builder(())
    for text, ours in zip(texts, generate_many(answerer, FACE, MAP, texts, 3)[0], strict=True):
        ids = [3 if token == IMAGE_SLOT else int(token) for token in (*builder.prefix, *builder.question_ids(text))]
        told = ids
        for _ in range(3):
            said = _theirs("paligemma", model, PIXELS, np.array([told]), len(ids))[0, -1]
            told = [*told, int(said.argmax())]
        assert ours == answerer.tokenizer.decode(told[len(ids) :], skip_special_tokens=True).strip()


def test_options_of_several_tokens_are_scored_by_their_likelihood(untrained):
    answerer, _ = untrained
    asked = question("gender")
    assert answerer._has_short_answers(asked)
    short = answerer.answer(FACE, MAP, [asked]).llm[0, 0]
    answerer._one_token[asked] = False
    try:
        np.testing.assert_allclose(answerer.answer(FACE, MAP, [asked]).llm[0, 0], short, atol=1e-5)
    finally:
        answerer._one_token.clear()
    longer = replace(asked, name="longer", answers=("female male", "male female"))
    p = answerer.answer(FACE, MAP, [longer]).llm[0, 0]
    assert not answerer._has_short_answers(longer) and p.sum() == pytest.approx(1, abs=1e-5)


def test_the_command_asks_a_checkpoint(untrained, tmp_path, capsys, monkeypatch):
    from PIL import Image

    answerer, _ = untrained
    assert isinstance(generate(answerer, FACE[0], MAP[0], "Describe this face.", 4), str)
    Image.fromarray(FACE[0]).save(tmp_path / "face.png")
    folder = answerer.config.weights.llava
    command = ["ask", str(tmp_path / "face.png"), "Is this person smiling?", "--checkpoint", folder]
    assert main([*command, "--box", "full", "--json"]) == 0
    answer = json.loads(capsys.readouterr().out)["answers"][0]
    assert answer["answer"] in ("Yes", "No")
    assert main([*command, "--box", "full", "--head"]) == 2
    monkeypatch.chdir(folder)
    assert load_model(".").config.weights.llava == "."
