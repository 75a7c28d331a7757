"""All parameters of a model: from a trained run, a base, or fresh; the same on every mesh and in every order."""

import json
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding

from fi_jax.config import LoraConfig, MeshConfig
from fi_jax.errors import UserError
from fi_jax.parallel.mesh import make_mesh
from fi_jax.parallel.rules import logical_axes, place_parameter
from fi_jax.weights import gguf, leaf_table
from fi_jax.weights.assemble import assemble, init_leaves, label_prompts, load_base, param_shapes
from fi_jax.weights.bundle import TrainedModel, is_llm_adapter, load_model, save_model
from fi_jax.weights.hf_write import export_llm
from fi_jax.weights.huggingface import load_llm
from fi_jax.weights.peft import export_peft
from fi_jax.weights.stream import checkpoint_hash, find_files
from fi_jax.weights.tokenizers import byte_tokenizer


@pytest.fixture(scope="module")
def fresh(small):
    return assemble(small.config)


def test_every_parameter_has_its_shape_and_place(small, fresh):
    leaves, info = fresh
    shapes = param_shapes(small.config.model)
    assert list(leaves) == list(shapes) and info == {}
    for path, leaf in leaves.items():
        assert leaf.shape == shapes[path].shape and np.isfinite(leaf).all(), path
        assert len(logical_axes(path, leaf.ndim)) in (0, leaf.ndim)


def test_adapters_start_at_zero_and_nothing_else_does(fresh):
    for path, leaf in fresh[0].items():
        zero = path.endswith(("lora_b", "bias")) and path != "head/bias"
        assert bool((np.asarray(leaf) == 0).all()) == zero, path


def test_a_leaf_does_not_depend_on_which_others_are_made(small, fresh):
    wanted = ["head/out/kernel", "llm/layers/attn/q_proj/lora_a"]
    alone = init_leaves(small.config.model, wanted, small.config.train.seed)
    assert list(alone) == wanted
    for path in wanted:
        np.testing.assert_array_equal(alone[path], fresh[0][path])


def test_the_seed_decides(small, fresh):
    wanted = ["head/out/kernel"]
    other = init_leaves(small.config.model, wanted, small.config.train.seed + 1)
    assert (np.asarray(other[wanted[0]]) != fresh[0][wanted[0]]).any()


def test_trained_leaves_win_and_the_rest_is_fresh(small, fresh):
    trained = {"head/log_scale": np.float32(7), "head/out/kernel": np.full((12, 12), 0.5, np.float32)}
    leaves, _ = assemble(small.config, trained)
    for path, leaf in leaves.items():
        np.testing.assert_array_equal(leaf, trained.get(path, fresh[0][path]), err_msg=path)


def test_a_mesh_gets_the_same_values(small, fresh):
    mesh = make_mesh(MeshConfig(2, 2, 2), jax.devices()[:8])
    leaves, _ = assemble(small.config, {"head/log_scale": np.float32(7)}, mesh)
    assert list(leaves) == list(fresh[0])
    for path, leaf in leaves.items():
        assert leaf.sharding.mesh.shape == {"data": 2, "fsdp": 2, "tensor": 2}
        np.testing.assert_array_equal(leaf, 7 if path == "head/log_scale" else fresh[0][path], err_msg=path)
    kernel = leaves["llm/layers/mlp/up_proj/kernel"]
    assert kernel.addressable_shards[0].data.size == kernel.size // 4


def test_the_base_is_cast_and_the_rest_is_not(small):
    config = replace(small.config, train=replace(small.config.train, frozen_dtype="bfloat16"))
    leaves, _ = assemble(config)
    for path, leaf in leaves.items():
        half = path.startswith("llm/") and "lora" not in path
        assert leaf.dtype == (jnp.bfloat16 if half else jnp.float32), path


def test_misfits_are_all_named_at_once(small):
    with pytest.raises(UserError) as error:
        assemble(small.config, {"head/bias": np.zeros(1), "head/nose": np.zeros(2)})
    told = str(error.value)
    assert "head/bias: (1,) given, () in the model" in told and "head/nose: not a parameter of the model" in told
    assert "\n" not in told


def test_a_lora_target_that_names_no_layer_is_refused(small):
    model = small.config.model
    for part in ("llm", "image_encoder"):
        lora = LoraConfig(2, targets=("q_proj", "v_prj"))
        wrong = replace(model, **{part: replace(getattr(model, part), lora=lora)})
        with pytest.raises(UserError, match=f"model.{part}.lora.targets names v_prj, .*did you mean 'v_proj'"):
            param_shapes(wrong)
    # The default of an encoder names the LLM's layers as well.
    param_shapes(replace(model, image_encoder=replace(model.image_encoder, lora=LoraConfig(2))))


def test_another_sized_base_is_refused_before_a_weight_is_read(small, tmp_path):
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "llama", "vocab_size": 49152}))
    config = replace(small.config, weights=replace(small.config.weights, llm=str(tmp_path)))
    with pytest.raises(
        UserError, match="llm checkpoint does not fit the config: vocab_size is 49152 in the checkpoint"
    ):
        assemble(config)


@pytest.fixture(scope="module")
def on_a_base(small, tmp_path_factory):
    """The small config over a Hugging Face folder of its LLM's shape, and a PEFT adapter for that."""
    folder = tmp_path_factory.mktemp("base")
    bare = replace(small.config.model.llm, lora=LoraConfig())
    leaves = {path.removeprefix("llm/"): leaf for path, leaf in small.leaves.items() if path.startswith("llm/")}
    export_llm({path: leaf for path, leaf in leaves.items() if "lora" not in path}, bare, folder / "llm")
    adapters = {path: np.full_like(leaf, 0.25) for path, leaf in leaves.items() if "lora" in path}
    digest = checkpoint_hash(find_files(folder / "llm"))
    export_peft(adapters, small.config.model.llm, folder / "peft", base_name="it", base_hash=digest)
    weights = replace(small.config.weights, llm=str(folder / "llm"), adapter=str(folder / "peft"))
    return replace(small.config, weights=weights)


def test_an_adapter_of_peft_starts_ours_and_takes_the_place_of_an_earlier_one(small, on_a_base, caplog):
    caplog.set_level("INFO", "fi_jax")
    trained = {path: np.asarray(leaf) for path, leaf in small.leaves.items()}
    leaves, info = assemble(on_a_base, trained, announce=True)
    assert info.keys() == {"llm", "adapter"} and len(info["adapter"]["hash"]) == 64
    assert [line.split(":")[0] for line in caplog.messages] == ["llm", "adapter"]
    for path, leaf in leaves.items():
        np.testing.assert_array_equal(leaf, 0.25 if is_llm_adapter(path) else small.leaves[path], err_msg=path)


@pytest.mark.parametrize(("trainable", "dtype"), [((".*/lora_[ab]",), jnp.bfloat16), (("llm/norm/.*",), jnp.float32)])
def test_a_gguf_comes_in_float32_only_where_it_is_itself_trained(small, monkeypatch, trainable, dtype):
    monkeypatch.setattr(gguf, "read_config", lambda _: replace(small.config.model.llm, lora=LoraConfig()))
    monkeypatch.setattr(gguf, "read_params", lambda _, dtype: {"norm": {"scale": np.ones(32, dtype)}})
    monkeypatch.setattr("fi_jax.weights.assemble.file_sha256", lambda _: "ab")
    config = replace(
        small.config,
        weights=replace(small.config.weights, llm="x.gguf"),
        train=replace(small.config.train, trainable=trainable, frozen_dtype="bfloat16"),
    )
    assert small.config.model.llm.lora.rank and load_base(config).leaves["llm/norm/scale"].dtype == dtype


def test_a_base_in_shards_is_the_same(small, tmp_path):
    llm = {path.removeprefix("llm/"): leaf for path, leaf in small.leaves.items() if path.startswith("llm/")}
    for name, most in (("whole", 1 << 30), ("cut", 4000)):
        export_llm(llm, small.config.model.llm, tmp_path / name, shard_bytes=most)
    assert len(find_files(tmp_path / "whole")) == 1 and len(find_files(tmp_path / "cut")) > 3
    whole, cut = (load_llm(tmp_path / name, dtype="float32")[1] for name in ("whole", "cut"))
    jax.tree.map(np.testing.assert_array_equal, whole, cut)


def test_a_model_that_holds_its_adapter_asks_for_no_other(small, on_a_base, tmp_path):
    info = {"base": {"llm": {"hash": "a"}, "adapter": {"hash": "b"}}}
    lora = {path: np.asarray(leaf) for path, leaf in small.leaves.items() if is_llm_adapter(path)}
    for leaves, kept in ((lora, False), ({}, True)):
        save_model(tmp_path / str(kept), TrainedModel(on_a_base, leaves, np.zeros((2, 2)), np.eye(2), info))
        read = load_model(tmp_path / str(kept))
        assert bool(read.config.weights.adapter) == ("adapter" in read.info["base"]) == kept


def test_an_adapter_that_does_not_fit_is_one_message(on_a_base, tmp_path):
    llm = on_a_base.model.llm
    other = replace(on_a_base, model=replace(on_a_base.model, llm=replace(llm, lora=LoraConfig(4, 8.0, ("q_proj",)))))
    with pytest.raises(
        UserError, match=r"set --model.llm.lora.rank 2 --model.llm.lora.alpha 8 --model.llm.lora.targets"
    ):
        assemble(other)
    export_llm(
        {
            leaf.path: np.zeros(leaf.shape, np.float32)
            for leaf in leaf_table.without_adapters(leaf_table.llm_leaves(llm))
        },
        replace(llm, lora=LoraConfig()),
        tmp_path,
    )
    with pytest.raises(UserError, match="was trained on it with hash .*; name its own base"):
        assemble(replace(on_a_base, weights=replace(on_a_base.weights, llm=str(tmp_path))))


def test_a_checkpoint_goes_straight_to_its_place_on_the_mesh_and_what_is_trained_comes_in_float32(on_a_base):
    mesh = make_mesh(MeshConfig(2, 2, 2), jax.devices()[:8])
    train = replace(on_a_base.train, trainable=("llm/layers/mlp/.*",), frozen_dtype="bfloat16")
    leaves = load_base(replace(on_a_base, train=train), mesh).leaves
    whole = load_base(on_a_base).leaves
    for path, leaf in leaves.items():
        if is_llm_adapter(path):
            continue
        assert leaf.dtype == (jnp.float32 if "/mlp/" in path else jnp.bfloat16)
        assert leaf.sharding == NamedSharding(mesh, place_parameter(path, leaf.shape, mesh).spec)
        np.testing.assert_array_equal(leaf, np.asarray(whole[path]).astype(leaf.dtype), err_msg=path)
    assert (
        leaves["llm/layers/mlp/up_proj/kernel"].addressable_shards[0].data.size
        == whole["llm/layers/mlp/up_proj/kernel"].size // 4
    )


def test_prompts_by_the_llm_tell_labels_apart_whatever_the_padding(small):
    model = replace(small.config.model, knowledge=replace(small.config.model.knowledge, prompt_size=32))
    weights = replace(small.config.weights, text_encoder="llm")
    config = replace(small.config, model=model, weights=weights)
    prompts = label_prompts(config, small.leaves, small.vocabulary, byte_tokenizer())
    assert prompts.shape == (len(small.vocabulary), 32) and prompts.dtype == np.float32
    np.testing.assert_allclose(prompts.mean(0), 0, atol=1e-5)
    np.testing.assert_allclose(prompts.std(), 1, atol=1e-3)
    distances = np.linalg.norm(prompts[:, None] - prompts[None], axis=-1) + 10 * np.eye(len(prompts))
    assert distances.min() > 1e-2
    # Adapters have no part in it.
    moved = {path: leaf + 1 if "lora" in path else leaf for path, leaf in small.leaves.items()}
    np.testing.assert_array_equal(label_prompts(config, moved, small.vocabulary, byte_tokenizer()), prompts)


def test_prompts_of_another_width_are_refused(small):
    config = replace(small.config, weights=replace(small.config.weights, text_encoder="llm"))
    with pytest.raises(UserError, match="gives 32 features but model.knowledge.prompt_size is 20"):
        label_prompts(config, small.leaves, small.vocabulary, byte_tokenizer())
