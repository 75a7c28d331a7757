"""Exported folders, in real PyTorch: the whole model answers the same, merged weights load alone, and all comes back."""

import importlib.util
import json
import os
import runpy
import shutil
import subprocess
import sys
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import NamedTuple

import jax
import numpy as np
import peft
import pytest
import safetensors.torch
import torch
import transformers
from fuzz import MUTATIONS
from PIL import Image
from safetensors.numpy import load_file, save_file

from fi_jax.cli.configs import load_config
from fi_jax.cli.main import main
from fi_jax.config import KnowledgeConfig, LoraConfig, VitConfig, WeightsConfig
from fi_jax.data.synthetic.face import draw_face
from fi_jax.faces.face_detector import find_faces, locate
from fi_jax.faces.parser import FaceParser, parse_crop, save_parser
from fi_jax.inference.answerer import Answerer, load_answerer
from fi_jax.inference.generation import generate
from fi_jax.knowledge.score_graph import Relations
from fi_jax.labels.question_bank import questions_for
from fi_jax.labels.registry import vocabulary as find_vocabulary
from fi_jax.models.face_insight import label_probs
from fi_jax.models.segformer import Segformer, SegformerConfig
from fi_jax.pictures.crop import crop_square, crop_square_mask
from fi_jax.pictures.decode import decode
from fi_jax.weights import leaf_table
from fi_jax.weights.assemble import assemble, param_shapes
from fi_jax.weights.bundle import TrainedModel, bundled_names, load_model, save_model
from fi_jax.weights.hf_config import read_llava_config, read_llm_config
from fi_jax.weights.stream import checkpoint_hash, find_files
from fi_jax.weights.tokenizers import byte_tokenizer


class Exported(NamedTuple):
    """A model, the folder it was exported to, our own answers' source, and what the command printed."""

    model: TrainedModel
    folder: object
    answerer: Answerer
    said: str


def _model(config, base=None) -> TrainedModel:
    """A model as if trained: every trained leaf random, LoRA B included."""
    vocabulary = find_vocabulary(config.data.vocabulary)
    rng = np.random.default_rng(0)
    trained = {}
    for path, shape in param_shapes(config.model).items():
        if path.startswith("llm/") and "/lora_" not in path:
            continue
        size = 0.3 if "lora" in path or len(shape.shape) < 2 else 1.5 / np.sqrt(shape.shape[-2])
        trained[path] = (rng.normal(size=shape.shape) * size + ("scale" in path)).astype(np.float32)
    if not base:
        # Answers of freshly initialised weights are all near one half: loud ones show differences.
        trained["llm/norm/scale"] = np.full(config.model.llm.hidden_size, 20, np.float32)
    n = len(vocabulary)
    prompts = rng.normal(size=(n, config.model.knowledge.prompt_size)).astype(np.float32)
    graph = rng.random((n, n)).astype(np.float32)
    graph /= graph.sum(1, keepdims=True)
    info = {"labels": list(vocabulary.names), "base": base or {}, "sources": ["synthetic_faces"]}
    info |= {"temperatures": {"attribute": 1.7}, "mirror": not base, "nearer": ["gender", "age_years", "Male"]}
    hears = config.model.knowledge.score_graph != "off"
    relations = Relations(*(rng.normal(size=size).astype(np.float32) for size in ((n, n), n))) if hears else None
    return TrainedModel(config, trained, prompts, graph, info, relations)


def _parser() -> FaceParser:
    """A small SegFormer as if trained, with logits at half the picture's side like the bundled one."""
    config = SegformerConfig(19, (1, 1), (8, 12), (1, 3), (4, 2), (5, 3), (2, 2), (2, 3), 10, "gelu_tanh")
    variables = jax.jit(Segformer(config).init)(jax.random.key(0), np.zeros((1, 32, 32, 3), np.float32))
    rng = np.random.default_rng(0)
    return FaceParser(
        config, 32, jax.tree.map(lambda x: np.asarray(x + rng.normal(size=x.shape) ** 2 * 0.3, np.float32), variables)
    )


def _export(model, folder, capture, *flags) -> Exported:
    save_parser(folder / "parser", _parser(), "float32")
    weights = replace(model.config.weights, parser=str(folder / "parser"))
    model = replace(model, config=replace(model.config, weights=weights))
    save_model(folder / "run" / "model", model)
    assert main(["export", str(folder / "run"), "--out", str(folder / "out"), *flags]) == 0
    return Exported(model, folder / "out", load_answerer(model), capture.readouterr().out if capture else "")


def _face(size=40):
    """Noise with the parts of a drawn face, of another size than the encoders' (32), so that both sides resize."""
    image, drawn = np.random.default_rng(0).integers(0, 256, (size, size, 3), dtype=np.uint8), draw_face(3, 0, size)
    return image, drawn.mask


def _in_torch(folder):
    """The exported file itself, as a user without this package imports it."""
    spec = importlib.util.spec_from_file_location("face_insight", folder / "face_insight.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.FaceInsight.from_folder(folder)


def _tiny(**changes):
    config = load_config("tiny", [])
    return replace(config, model=replace(config.model, **changes))


GEMMA3 = {
    "family": "gemma3_text", "qk_norm": True, "output_norms": True, "unit_offset_norms": True, "scale_embeddings": True,
    "hidden_act": "gelu_tanh", "query_pre_attn_scalar": 15.0, "sliding_window": 40, "sliding_layers": (0,),
    "sliding_rope_theta": 1000.0,
}  # fmt: skip


def _odd():
    """Gemma 3's layers, GQA, a head_dim of its own, tied embeddings, LoRA here and there, merged patches, another hidden state."""
    adapters = LoraConfig(2, 6.0, ("q_proj", "out_proj", "fc2"))
    vit = VitConfig(32, 4, 24, 40, 3, 3, hidden_act="gelu", feature_layer=-2, merge=2, lora=adapters)
    lora = LoraConfig(3, 10.0, ("q_proj", "down_proj"))
    llm = replace(_tiny().model.llm, num_heads=4, num_kv_heads=2, head_dim=20, tie_embeddings=True, lora=lora, **GEMMA3)
    knowledge = KnowledgeConfig(hidden_size=24, align_size=48, prompt_size=48, gated=False)
    return _tiny(image_encoder=vit, llm=llm, knowledge=knowledge)


def _dinov2():
    """Registers, layer scale, mean pooling beside SigLIP, each with pixels of its own and an adapter."""
    image = VitConfig(
        32, 8, 24, 48, 3, 3, hidden_act="gelu", pool="mean", registers=3, family="dinov2_with_registers",
        patch_bias=True, pre_norm=False, layer_scale=True, pixel_mean=(0.485, 0.456, 0.406), pixel_std=(0.2, 0.3, 0.4),
        lora=LoraConfig(2, 6.0, ("q_proj", "out_proj", "fc2")),
    )  # fmt: skip
    segmentation = VitConfig(
        32, 16, 24, 40, 2, 3, hidden_act="gelu_tanh", pool="mean", family="siglip_vision_model", class_token=False,
        patch_bias=True, pre_norm=False, norm_tokens=True, pixel_mean=(0.5, 0.5, 0.5), pixel_std=(0.5, 0.5, 0.5),
    )  # fmt: skip
    return _tiny(image_encoder=image, segmentation_encoder=segmentation)


def _without():
    """No segmentation, no graph network, no adapter; a language model whose files fuse layers."""
    llm = replace(_tiny().model.llm, lora=LoraConfig(), family="phi3")
    return _tiny(
        use_segmentation=False,
        llm=llm,
        knowledge=KnowledgeConfig(enabled=False, align_size=32, prompt_size=48, score_graph="lift"),
    )


@pytest.fixture(scope="module")
def odd(tmp_path_factory):
    return _export(_model(_odd()), tmp_path_factory.mktemp("odd"), None, "--merged")


@pytest.fixture(scope="module")
def dinov2(tmp_path_factory):
    return _export(_model(_dinov2()), tmp_path_factory.mktemp("dinov2"), None)


@pytest.fixture(scope="module")
def without(tmp_path_factory):
    return _export(_model(_without()), tmp_path_factory.mktemp("without"), None)


def _randomised(kind, config):
    """The same loud weights whatever ran before: transformers draws some itself."""
    torch.manual_seed(0)
    model = kind(config)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.15)
    return model


TEXT = {"vocab_size": 320, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4}


def _llava_base(folder):
    """In shards and float16, as the real one."""
    vision = {"hidden_size": 24, "intermediate_size": 40, "num_hidden_layers": 3, "num_attention_heads": 3}
    config = transformers.LlavaConfig(
        vision_config=transformers.CLIPVisionConfig(**vision, image_size=32, patch_size=8),
        text_config=transformers.LlamaConfig(**TEXT, num_key_value_heads=2),
        image_token_id=319,
    )
    _randomised(transformers.LlavaForConditionalGeneration, config).half().save_pretrained(
        folder, max_shard_size="60KB"
    )
    byte_tokenizer().save(str(folder / "tokenizer.json"))


@pytest.fixture(scope="module")
def llava(tmp_path_factory):
    folder = tmp_path_factory.mktemp("llava")
    _llava_base(folder / "base")
    read = read_llava_config(folder / "base")
    config = _tiny(image_encoder=read.image_encoder, llm=replace(read.llm, lora=LoraConfig(4, 10.0)))
    config = replace(config, weights=WeightsConfig(llava=str(folder / "base"), text_encoder="random"))
    base = {"llava": {"name": str(folder / "base"), "hash": checkpoint_hash(find_files(folder / "base"))}}
    return _export(_model(config, base), folder, None, "--merged")


@pytest.mark.slow
@pytest.mark.parametrize("variant", ["odd", "without", "llava", "dinov2"])
def test_pytorch_answers_the_same(variant, request):
    exported = request.getfixturevalue(variant)
    image, mask = _face()
    every = exported.answerer.answerable(questions_for(exported.answerer.vocabulary))
    # Long questions are a program of their own: compiled for one variant.
    questions = every if variant == "odd" else [q for q in every if q.is_binary][:10]
    ours = exported.answerer.answer(image[None], mask[None], questions)
    model = _in_torch(exported.folder)
    theirs = model.answer(image, mask)
    assert list(theirs) == [q.name for q in every]
    for i, question in enumerate(questions):
        assert tuple(theirs[question.name]) == question.options
        expected = ours.llm[0, i, : len(question.options)]
        np.testing.assert_allclose(list(theirs[question.name].values()), expected, atol=1e-3)
    assert np.ptp(ours.llm) > 0.3, "answers that are all alike show nothing"
    scores = np.asarray(label_probs(ours.label_scores, exported.answerer.constants.groups))[0]
    np.testing.assert_allclose(list(model.label_probabilities(image, mask).values()), scores, atol=1e-3)
    one = model.answer(image, mask, questions[0].text)
    np.testing.assert_allclose(list(one.values()), list(theirs[questions[0].name].values()), atol=1e-5)


@pytest.mark.slow
def test_free_form_text_is_the_same(odd):
    image, mask = _face()
    ours = generate(odd.answerer, image, mask, "Describe this face.", 12)
    assert ours and _in_torch(odd.folder).generate(image, mask, max_new_tokens=12) == ours


def test_segmentation_maps_are_the_same(odd):
    crop, _ = _face(50)
    ours, theirs = parse_crop(_parser(), crop), _in_torch(odd.folder).segment(crop)
    assert len(np.unique(ours)) > 3
    # A pixel on the border of two classes may fall either way.
    assert ours.shape == theirs.shape and (ours == theirs).mean() > 0.999


@pytest.mark.slow
def test_the_file_is_a_command(odd, tmp_path):
    Image.fromarray(_face()[0]).save(tmp_path / "crop.png")
    command = [
        sys.executable,
        str(odd.folder / "face_insight.py"),
        str(tmp_path / "crop.png"),
        "Isn't this person smiling?",
    ]
    done = subprocess.run(command, capture_output=True, text=True, timeout=240, cwd=tmp_path)
    assert set(json.loads(done.stdout)) == {"Yes", "No"}, done.stderr[-1000:]
    assert "answered: Is this person smiling? (not smiling)" in done.stderr


@pytest.mark.parametrize(
    ("text", "inverted"), [("Is she smiling?", False), ("is this person not smiling", True), ("SMILING", False)]
)
def test_the_exported_module_understands_the_words_that_ask_does(odd, text, inverted):
    image, mask = _face()
    model = _in_torch(odd.folder)
    own = model.answer(image, mask, "Smiling")
    assert model.answer(image, mask, text) == pytest.approx(
        dict(zip(own, reversed(own.values()))) if inverted else own, abs=1e-5
    )
    with pytest.raises(ValueError, match="no closed question 'What is the weather like'"):
        model.answer(image, mask, "What is the weather like")


def test_pictures_are_read_as_ask_reads_them(odd, tmp_path):
    """Turned, deep, transparent and in other colours: the exported file's own reader against ours."""
    read_picture = runpy.run_path(str(odd.folder / "face_pictures.py"))["read_picture"]
    rng = np.random.default_rng(0)
    colours = Image.fromarray(rng.integers(0, 256, (40, 30, 3), dtype=np.uint8))
    for turn in (1, 3, 6, 8, 9):
        exif = colours.getexif()
        exif[0x112] = turn
        colours.save(tmp_path / f"turned{turn}.jpg", exif=exif)
        colours.save(tmp_path / f"turned{turn}.webp", exif=exif)
    Image.fromarray(rng.integers(0, 256, (40, 30, 4), dtype=np.uint8)).save(tmp_path / "transparent.png")
    Image.fromarray(rng.integers(0, 65536, (40, 30), dtype=np.uint16)).save(tmp_path / "deep.png")
    colours.convert("CMYK").save(tmp_path / "print.jpg")
    colours.convert("P").save(tmp_path / "palette.png", transparency=3)
    for file in sorted(tmp_path.iterdir()):
        theirs, ours = read_picture(file), decode(file)
        assert theirs.shape == ours.shape and theirs.dtype == ours.dtype
        assert np.abs(theirs.astype(int) - ours).max() <= 1, file.name


@pytest.mark.parametrize("kind", ["PNG", "GIF", "WEBP", "TIFF", "BMP", "AVIF"])
def test_damaged_pictures_are_refused_by_the_exported_reader_too(kind, tmp_path):
    """Seeded damage: an error of the kind that its command prints as one line, or the pixels that `ask` sees."""
    from fi_jax.weights.torch_pictures import read_picture

    rng, file = np.random.default_rng(0), tmp_path / "x"
    soft = Image.fromarray(rng.integers(0, 256, (6, 6, 3), dtype=np.uint8)).resize((48, 48))
    soft.save(file, kind)
    whole, refused = file.read_bytes(), 0
    for _ in range(MUTATIONS // 2):
        data = bytearray(whole)
        place, length = int(rng.integers(min(len(data), 120))), int(2 ** rng.integers(0, 6))
        data[place : place + length] = rng.bytes(length) if rng.random() < 0.5 else b""
        file.write_bytes(data)
        try:
            theirs = read_picture(file)
        except (ValueError, OSError):
            refused += 1
            continue
        assert np.abs(theirs.astype(int) - decode(file)).max() <= 1
    assert refused > 0


@pytest.mark.parametrize("box", [None, (3, 6, 95, 91), (-30, -20, 90, 100)])
def test_faces_are_cut_as_ask_cuts_them(odd, box, monkeypatch):
    """In the box and aligned: the exported folder's own code against ours, on a face that was turned."""
    from fi_jax.faces.framing import align_face

    drawn = draw_face(0, 96)
    image = np.asarray(Image.fromarray(drawn.image).rotate(20, Image.Resampling.BILINEAR))
    turned = np.asarray(Image.fromarray(drawn.mask).rotate(20))
    mask = crop_square_mask(turned, box, 64)
    model = _in_torch(odd.folder)
    for frame in ("box", "aligned"):
        monkeypatch.setitem(model.settings, "frame", frame)
        crop, shown = model.frame(image, box, mask)
        size = model.settings["image_size"]
        assert crop.shape == (size, size, 3) and shown.shape == (size, size)
        if frame == "box":
            expected = crop_square(image, box, size)
        else:
            cut = partial(crop_square, image)
            expected, own, how = align_face(cut, mask, box, image.shape[:2], size)
            assert how == "aligned" and np.array_equal(shown, own)
        assert np.abs(crop.astype(int) - expected).max() <= 2


def test_what_is_no_crop_is_refused(odd, tmp_path):
    Image.fromarray(_face()[0][:30]).save(tmp_path / "wide.png")
    command = [sys.executable, str(odd.folder / "face_insight.py"), str(tmp_path / "wide.png"), "Smiling"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=240, cwd=tmp_path)
    assert done.returncode == 2 and "wide.png is 40x30; give a square crop of one face" in done.stderr
    image, mask = _face()
    model = _in_torch(odd.folder)
    for picture, map_ in ((image[:30], mask), (image / 255, mask), (image, mask + 30), (image, mask[None])):
        with pytest.raises(ValueError, match="must be"):
            model.answer(picture, map_, "Smiling")


def test_a_full_disk_leaves_nothing(odd, tmp_path, monkeypatch, capsys):
    def full(*_, **__):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("safetensors.numpy.save_file", full)
    for command in ("export", "pack"):
        assert main([command, str(odd.folder.parent / "run"), "--out", str(tmp_path / command)]) == 2
        assert "No space left on device" in capsys.readouterr().err
    assert main(["import", str(odd.folder), "--out", str(tmp_path / "import")]) == 2
    assert list(tmp_path.iterdir()) == []


def test_the_folder_explains_itself(odd, without, llava):
    common = {
        "README.md",
        "config.json",
        "face_insight.json",
        "face_insight.py",
        "face_alignment.py",
        "face_knowledge.py",
        "face_insight.safetensors",
        "face_pictures.py",
        "model.json",
        "phrases.json",
        "question_matching.py",
        "rules.json",
        "tokenizer.json",
    }
    for exported, folders in (
        (odd, {"adapter", "base", "merged", "parser"}),
        (without, {"base"}),
        (llava, {"adapter", "merged", "parser"}),
    ):
        assert {path.name for path in exported.folder.iterdir()} == common | folders
        card = (exported.folder / "README.md").read_text()
        settings = json.loads((exported.folder / "face_insight.json").read_text())
        assert settings["base"]["hash"] in card
        assert {f"`{name}/`" in card for name in folders} == {True}
        assert ("`adapter/`" in card) == ("adapter" in folders)
    for name in (
        "face_insight.py",
        "face_knowledge.py",
        "face_pictures.py",
        "face_alignment.py",
        "question_matching.py",
    ):
        source = (odd.folder / name).read_text()
        assert "import fi_jax" not in source and "from fi_jax" not in source
    # A group can read it.
    assert all(path.stat().st_mode & 0o044 == 0o044 for path in odd.folder.rglob("*"))
    rules = json.loads((odd.folder / "rules.json").read_text())
    assert rules and all(rule["source"] and rule["reads"] for rule in rules)


def test_another_base_is_refused(odd, tmp_path):
    shutil.copytree(odd.folder, tmp_path / "copy")
    file = tmp_path / "copy" / "base" / "model.safetensors"
    data = bytearray(file.read_bytes())
    data[-1] ^= 1
    file.write_bytes(data)
    with pytest.raises(ValueError, match="another base"):
        _in_torch(tmp_path / "copy")


def _logits(model, tokens):
    with torch.no_grad():
        return model.eval()(tokens).logits.numpy()


def test_merged_equals_base_and_adapter_and_needs_transformers_alone(odd):
    folder = odd.folder
    merged, info = transformers.AutoModelForCausalLM.from_pretrained(folder / "merged", output_loading_info=True)
    assert not info["missing_keys"] and not info["unexpected_keys"]
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder / "merged")
    assert tokenizer("Yes", add_special_tokens=False)["input_ids"] == byte_tokenizer().encode("Yes").ids
    assert merged.config.eos_token_id == byte_tokenizer().encode("\n").ids[0]
    base = transformers.AutoModelForCausalLM.from_pretrained(folder / "base")
    tokens = torch.tensor(np.random.default_rng(0).integers(0, 300, (1, 500)))
    before, expected = _logits(base, tokens), _logits(peft.PeftModel.from_pretrained(base, folder / "adapter"), tokens)
    np.testing.assert_allclose(_logits(merged, tokens), expected, atol=1e-3)
    assert np.abs(before - expected).max() > 0.1


def test_merged_onto_a_llava_is_that_llava_with_what_was_trained(llava):
    base = llava.folder.parent / "base"
    changed = set()
    for file in base.glob("*.safetensors"):
        before, after = load_file(file), load_file(llava.folder / "merged" / file.name)
        assert {k: (v.shape, v.dtype) for k, v in before.items()} == {k: (v.shape, v.dtype) for k, v in after.items()}
        changed |= {key for key in before if not np.array_equal(before[key], after[key])}
    # The tower, the connector and every adapted layer; neither embeddings, norms nor head of the LLM.
    assert any("multi_modal_projector" in key for key in changed) and any("vision_tower" in key for key in changed)
    of_llm = {key for key in changed if "language_model" in key or "lm_head" in key}
    assert len(of_llm) == 2 * 7 and all("_proj" in key for key in of_llm)
    load = transformers.LlavaForConditionalGeneration.from_pretrained
    merged, info = load(llava.folder / "merged", dtype=torch.float32, output_loading_info=True)
    assert not info["missing_keys"] and not info["unexpected_keys"]
    # peft's own merge in float32, rounded to the file's float16, to the last bit but for the order of a sum.
    adapted = peft.PeftModel.from_pretrained(load(base, dtype=torch.float32), llava.folder / "adapter")
    theirs, ours = adapted.merge_and_unload().state_dict(), merged.state_dict()
    for key in (key for key in ours if "language_model.layers" in key):
        np.testing.assert_allclose(ours[key].numpy(), theirs[key].numpy(), rtol=2**-10, atol=2**-14)
    trained = llava.model.leaves["image_encoder/layers/mlp/fc1/kernel"][1].T.astype(np.float16).astype(np.float32)
    (key,) = (key for key in merged.state_dict() if key.endswith("layers.1.mlp.fc1.weight"))
    np.testing.assert_array_equal(merged.state_dict()[key].numpy(), trained)


def test_merged_onto_a_llama_folder(tmp_path, capsys):
    _randomised(transformers.LlamaForCausalLM, transformers.LlamaConfig(**TEXT)).save_pretrained(tmp_path / "base")
    byte_tokenizer().save(str(tmp_path / "base" / "tokenizer.json"))
    llm = replace(read_llm_config(tmp_path / "base"), lora=LoraConfig(2, 6.0, ("v_proj", "gate_proj")))
    config = replace(_tiny(llm=llm), weights=WeightsConfig(llm=str(tmp_path / "base"), text_encoder="random"))
    base = {"llm": {"name": str(tmp_path / "base"), "hash": checkpoint_hash(find_files(tmp_path / "base"))}}
    exported = _export(_model(config, base), tmp_path, capsys, "--merged")
    assert "carries neither image, segmentation nor knowledge tokens" in exported.said
    assert not (exported.folder / "base").exists()
    load = transformers.AutoModelForCausalLM.from_pretrained
    tokens = torch.tensor(np.random.default_rng(0).integers(0, 300, (1, 100)))
    adapted = peft.PeftModel.from_pretrained(load(tmp_path / "base"), exported.folder / "adapter")
    np.testing.assert_allclose(_logits(load(exported.folder / "merged"), tokens), _logits(adapted, tokens), atol=1e-3)


def test_there_and_back_is_bit_equal(odd, tmp_path, capsys):
    """JAX -> PyTorch -> JAX in float32, through the modules and files of torch and peft, by the command for it."""
    shutil.copytree(odd.folder, tmp_path / "copy")
    module = _in_torch(tmp_path / "copy")
    safetensors.torch.save_file(module.state_dict(), tmp_path / "copy" / "face_insight.safetensors")
    base = transformers.AutoModelForCausalLM.from_pretrained(odd.folder / "base")
    peft.PeftModel.from_pretrained(base, odd.folder / "adapter").save_pretrained(tmp_path / "adapter")
    command = [
        "import",
        str(tmp_path / "copy"),
        "--adapter",
        str(tmp_path / "adapter"),
        "--out",
        str(tmp_path / "back"),
    ]
    assert main(command) == 0
    assert "an adapter of rank 3 on q_proj, down_proj" in capsys.readouterr().out
    back, model = load_model(tmp_path / "back"), odd.model
    assert back.config == model.config and back.info == model.info
    assert np.array_equal(back.graph, model.graph) and np.array_equal(back.prompts, model.prompts)
    assert back.leaves.keys() == model.leaves.keys()
    for path, leaf in back.leaves.items():
        np.testing.assert_array_equal(leaf, model.leaves[path], err_msg=path)


def test_what_does_not_come_back_is_said(odd, tmp_path, capsys):
    def said(*flags):
        assert main(["import", *flags, "--out", str(tmp_path / "back")]) == 2
        return capsys.readouterr().err

    assert "is no folder that fi-jax export wrote" in said(str(tmp_path))
    shutil.copytree(odd.folder, tmp_path / "copy")
    tensors = load_file(tmp_path / "copy" / "face_insight.safetensors")
    tensors["head.bias"], tensors["nose.weight"] = np.zeros(2, np.float32), tensors.pop("head.log_scale")
    del tensors["image_encoder.tower.encoder.layers.1.mlp.fc1.weight"]
    save_file(tensors, tmp_path / "copy" / "face_insight.safetensors")
    wrong = said(str(tmp_path / "copy"))
    for part in (
        "missing: ",
        "image_encoder.tower.encoder.layers.1.mlp.fc1.weight [40, 24]",
        "head.log_scale []",
        "unexpected: nose.weight []",
        "of another shape: head.bias [2] instead of []",
    ):
        assert part in wrong
    save_file({"image_encoder.patch_embed.weight": np.zeros(1)}, tmp_path / "copy" / "face_insight.safetensors")
    assert "was exported by fi_jax 0.1" in said(str(tmp_path / "copy"))
    adapter = tmp_path / "copy" / "adapter" / "adapter_model.safetensors"
    save_file(load_file(adapter), adapter, {"base_hash": "ab" * 32})
    assert "another base" in said(str(tmp_path / "copy"))
    assert not (tmp_path / "back").exists()


def test_the_exported_base_is_the_models_own(odd):
    from fi_jax.weights.huggingface import load_llm

    _, params, _ = load_llm(odd.folder / "base", dtype="float32")
    leaves, _ = assemble(odd.model.config, odd.model.leaves)
    np.testing.assert_array_equal(params["layers"]["mlp"]["up_proj"]["kernel"], leaves["llm/layers/mlp/up_proj/kernel"])
    np.testing.assert_array_equal(params["norm"]["scale"], odd.model.leaves["llm/norm/scale"])


def test_the_table_has_every_parameter_of_the_model_and_no_other():
    for config in (_odd(), _without(), load_config("nano", [])):
        rows = leaf_table.torch_leaves(config.model) + leaf_table.under("llm", leaf_table.llm_leaves(config.model.llm))
        assert {leaf.path: leaf.shape for leaf in rows} == {
            path: shape.shape for path, shape in param_shapes(config.model).items()
        }


def test_an_existing_folder_is_left_alone(odd, tmp_path, capsys):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine").write_text("")
    assert main(["export", str(odd.folder.parent / "run"), "--out", str(tmp_path / "out")]) == 2
    assert "exists already" in capsys.readouterr().err
    assert [path.name for path in tmp_path.rglob("*")] == ["out", "mine"]


@pytest.fixture(scope="module")
def trained(tmp_path_factory, utkface_folder):
    """A run of `fi-jax train` on generated pictures: the one of tests/cli/test_train.py, so that both compile once."""
    folder = tmp_path_factory.mktemp("trained")
    root = Path(__file__).parents[2]
    environment = os.environ | {"PYTHONPATH": str(root)}
    command = [
        *(sys.executable, "-m", "fi_jax", "train", "tiny", "--name", "whole"),
        *("--data.vocabulary", "utkface", "--data.sources.0.name", "utkface"),
        *("--data.sources.0.root", str(utkface_folder), "--model.no-use-segmentation"),
        *("--data.questions-per-face", "2", "--data.segment-length", "128", "--data.batch-size", "4"),
        *("--train.steps", "8", "--train.checkpoint-every", "2"),
    ]
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr[-2000:]
    return folder / "runs" / "whole"


def _answers_as_ask_does(run, out, picture, box, capsys):
    """`fi-jax ask PICTURE --all` and the folder that `fi-jax export RUN` wrote say the same about its face."""
    assert main(["export", str(run), "--out", str(out)]) == 0
    capsys.readouterr()
    flags = ["--box", box] if box else []
    assert main(["ask", str(picture), "--checkpoint", str(run), "--all", "--race", "--json", *flags]) == 0
    ours = {answer["question"]: answer for answer in json.loads(capsys.readouterr().out)["answers"]}
    image = decode(picture)
    model = _in_torch(out)
    where = locate(image, find_faces, box, 0, str(picture)).box
    crop, mask = model.frame(image, where)
    if model.settings.get("frame") != "aligned":
        # Two libraries scale pictures and round apart by 1 of 255 (`pictures.resize`); the answers are compared on one's.
        own = crop_square(image, where, model.settings["image_size"])
        assert np.abs(crop.astype(int) - own).max() <= 1
        crop, mask = own, model.segment(own)
    theirs = model.answer(crop, mask)
    assert theirs.keys() == ours.keys()
    for name, said in theirs.items():
        expected = ours[name]["probabilities"]
        np.testing.assert_allclose(list(said.values()), list(expected.values()), atol=1e-3)
        top = np.sort(list(expected.values()))[-2:]
        assert max(said, key=said.get) == ours[name]["answer"] or top[1] - top[0] < 2e-3


@pytest.mark.slow
def test_a_trained_run_answers_as_ask_does(trained, tmp_path, capsys):
    Image.fromarray(draw_face(0, 60).image).save(tmp_path / "face.png")
    _answers_as_ask_does(trained, tmp_path / "out", tmp_path / "face.png", "full", capsys)


@pytest.mark.slow
@pytest.mark.skipif("nano" not in bundled_names(), reason="no bundled model 'nano' yet")
def test_nano_answers_as_ask_does_about_a_photograph(tmp_path, capsys):
    import skimage

    Image.fromarray(skimage.data.astronaut()).save(tmp_path / "photo.png")
    _answers_as_ask_does("nano", tmp_path / "out", tmp_path / "photo.png", "", capsys)
