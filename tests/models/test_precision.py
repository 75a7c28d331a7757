"""Kernels in 8 bits: products and gradients near float32's, one quantisation an input, both layouts alike."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import linen as nn

from fi_jax.config import LlmConfig, LoraConfig, MeshConfig
from fi_jax.models.attention import PrefixLayout
from fi_jax.models.few_rows import few_rows_products
from fi_jax.models.layer_stack import unstack_layers
from fi_jax.models.llm import Llm
from fi_jax.models.lora import Linear
from fi_jax.models.precision import Quantised, quantise_frozen, quantise_kernel
from fi_jax.models.projections import project
from fi_jax.models.rounding import round_rows
from fi_jax.parallel.mesh import make_mesh
from fi_jax.parallel.rules import logical_axes
from fi_jax.trees import flatten, unflatten

# Relative error of the norm: of e4m3 (3 bits of mantissa) in both operands, and of int8 in one.
BOUNDS = {"fp8": 0.05, "int8": 0.012}


def relative_error(got, want):
    return float(jnp.linalg.norm(got - want) / jnp.linalg.norm(want))


def random(*shape, seed=0):
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape), jnp.float32)


class Two(nn.Module):
    """Two layers of one input, the first adapted."""

    @nn.compact
    def __call__(self, x):
        lora = LoraConfig(rank=4, targets=("q_proj",))
        return project(x, [Linear(48, lora=lora, name="q_proj"), Linear(32, use_bias=True, name="k_proj")])


@pytest.mark.parametrize("precision", ["fp8", "int8"])
def test_products_and_gradients_are_near_those_of_float32(precision):
    x, probes = random(3, 20, 64), [random(3, 20, 48, seed=1), random(3, 20, 32, seed=2)]
    params = Two().init(jax.random.key(0), x)["params"]
    params = jax.tree.map(lambda leaf: leaf + 0.1 * random(*leaf.shape, seed=3), params)
    trained = {k: v for k, v in flatten(params).items() if not k.endswith("kernel")}
    frozen = {k: v for k, v in flatten(params).items() if k.endswith("kernel")}

    def run(frozen):
        def loss(trained, x):
            made = Two().apply({"params": unflatten(trained | frozen)}, x)
            return sum((y * probe).sum() for y, probe in zip(made, probes, strict=True)), made

        (dtrained, dx), made = jax.grad(loss, (0, 1), has_aux=True)(trained, x)
        return *made, dx, *dtrained.values()

    quantised = {path: quantise_kernel(leaf, precision) for path, leaf in frozen.items()}
    for got, want in zip(jax.jit(run)(quantised), run(frozen), strict=True):
        assert relative_error(got, want) < BOUNDS[precision]


def test_both_layouts_hold_the_same_values_and_inference_keeps_one():
    kernel = random(64, 48)
    both, one = quantise_kernel(kernel, "fp8"), quantise_kernel(kernel, "fp8", differentiated=False)
    np.testing.assert_array_equal(both.forward.T.astype(jnp.float32), both.backward.astype(jnp.float32))
    assert one.backward is None and quantise_kernel(kernel, "int8").backward is None
    assert relative_error(both.forward.T.astype(jnp.float32) * both.scale, kernel) < 0.04
    with pytest.raises(ValueError, match="inference alone"):
        jax.grad(lambda x: project_one(x, one).sum())(random(2, 64))


def project_one(x, kernel):
    return Linear(48, name="q_proj").apply({"params": {"kernel": kernel}}, x, method=lambda m, x: project(x, [m])[0])


@pytest.mark.parametrize("interpret", [False, True])
def test_a_row_keeps_its_own_scale(interpret):
    """A token with large activations does not round its neighbours away; a row of zeros stays one; arrays share scales."""
    x = random(3, 64) * jnp.array([[1e4], [1.0], [0.0]])
    (got, other), scale = round_rows([x, 0.1 * x[:, :40]], [jnp.ones(64), 2 * jnp.ones(40)], interpret=interpret)
    for got_row, row_scale, want in zip(got.astype(jnp.float32), scale, x, strict=True):
        np.testing.assert_allclose(got_row * row_scale, want, rtol=0.07, atol=2e-3 * float(jnp.abs(want).max()))
    assert relative_error((other.astype(jnp.float32) * scale)[:2], 0.2 * x[:2, :40]) < 0.04
    assert scale.shape == (3, 1)


def test_an_input_is_quantised_once_for_all_its_products():
    kernels = [{"kernel": quantise_kernel(random(64, 48, seed=i), "fp8")} for i in range(3)]

    class Three(nn.Module):
        @nn.compact
        def __call__(self, x):
            return project(x, [Linear(48, name=name) for name in "abc"])

    program = str(jax.make_jaxpr(lambda x: Three().apply({"params": dict(zip("abc", kernels))}, x))(random(2, 64)))
    assert program.count("new_dtype=float8_e4m3fn") == 1


CONFIG = LlmConfig(37, 32, 64, 3, 4, 2, 8, lora=LoraConfig(rank=4))
LAYOUT = PrefixLayout(6, 2, 3)


def _logits(model, tokens):
    return model.logits(model(model.embed(tokens), LAYOUT))


@pytest.mark.parametrize("scan_layers", [True, False])
def test_a_small_llm_learns_as_in_full_precision(scan_layers):
    model = Llm(CONFIG, scan_layers=scan_layers)
    tokens = jnp.asarray(np.random.default_rng(0).integers(0, 37, (8, LAYOUT.total)))
    leaves = flatten(Llm(CONFIG).init(jax.random.key(0), tokens, method=_logits)["params"])
    leaves = {f"llm/{path}": leaf for path, leaf in leaves.items()}
    start = {path: leaf for path, leaf in leaves.items() if "lora" in path}
    kernels = {path: leaf * (3 if path.endswith("kernel") else 1) for path, leaf in leaves.items() if path not in start}
    optimizer = optax.adam(5e-3)

    def losses(frozen):
        def loss(trained):
            params = unflatten(trained | frozen)["llm"]
            logits = model.apply({"params": params}, tokens, method=_logits)[:, :-1]
            return -jnp.take_along_axis(jax.nn.log_softmax(logits), tokens[:, 1:, None], -1).mean()

        @jax.jit
        def step(carry, _):
            trained, state = carry
            value, slopes = jax.value_and_grad(loss)(trained)
            updates, state = optimizer.update(slopes, state)
            return (optax.apply_updates(trained, updates), state), value

        return jax.lax.scan(step, (start, optimizer.init(start)), None, 60)[1]

    def prepared(precision):
        return quantise_frozen(unstack_layers(dict(kernels), scan_layers), precision)

    want = losses(prepared("bf16"))
    assert want[-1] < 0.9 * want[0]
    for precision in ("fp8", "int8"):
        np.testing.assert_allclose(losses(prepared(precision)), want, rtol=0.04, err_msg=precision)


def test_only_the_kernels_of_layers_are_quantised():
    leaves = {
        "llm/layers/attn/q_proj/kernel": random(2, 8, 8),
        "image_encoder/layers/mlp/fc1/kernel": random(2, 8, 8),
        "llm/lm_head/kernel": random(8, 8),
        "llm/layers/attn/q_proj/bias": random(2, 8),
        "image_connector/fc1/kernel": random(8, 8),
    }
    quantised = quantise_frozen(dict(leaves), "int8")
    assert [path for path, leaf in quantised.items() if isinstance(leaf, Quantised)] == list(leaves)[:1]
    assert quantise_frozen(leaves, "bf16") is leaves


# Rows, values of a row, outputs of each kernel: whole pieces, and none of them whole.
@pytest.mark.parametrize(("rows", "inner", "widths"), [(1, 512, (64, 128)), (5, 300, (37, 90, 20)), (20, 1100, (70,))])
@pytest.mark.parametrize("precision", ["fp8", "int8"])
def test_the_kernel_for_few_rows_equals_the_products(rows, inner, widths, precision):
    x, kernels = random(rows, inner), [quantise_kernel(random(inner, width), precision) for width in widths]
    made = few_rows_products(x, [k.forward for k in kernels], [k.scale for k in kernels], interpret=True)
    for got, kernel in zip(made, kernels, strict=True):
        want = x @ (kernel.forward.T.astype(jnp.float32) * kernel.scale)
        np.testing.assert_allclose(got, want, rtol=1e-4, atol=2e-3)


@pytest.mark.parametrize("scan_layers", [True, False])
def test_a_prefix_in_8_bits_changes_what_follows_little(scan_layers):
    x, positions = random(2, 8, 32), jnp.broadcast_to(jnp.arange(6, 8), (2, 1, 2))

    def run(model):
        _, cache = model.prefill(x[:, :6], 4)
        return model.extend(x[:, None, 6:], positions, positions >= 0, cache)[0]

    params = Llm(CONFIG).init(jax.random.key(0), jnp.zeros((2, 12), int), method=_logits)["params"]
    params = jax.tree.map(lambda leaf: 5 * leaf, params)
    models = (Llm(CONFIG, scan_layers=scan_layers, kv_precision=kv) for kv in ("bf16", "int8"))
    want, got = (jax.jit(lambda p, model=model: model.apply({"params": p}, method=run))(params) for model in models)
    assert 0 < relative_error(got, want) < 0.02


def test_a_program_for_several_devices_holds_no_kernel_that_cannot_be_cut(monkeypatch):
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    x = jax.ShapeDtypeStruct((4, 64), jnp.bfloat16)

    def holds_kernel():
        return "pallas_call" in str(jax.make_jaxpr(lambda x: round_rows([x]))(x))

    assert holds_kernel()
    with jax.set_mesh(make_mesh(MeshConfig(data=2), jax.devices("cpu")[:2])):
        assert not holds_kernel()


def test_both_layouts_are_cut_over_devices_as_the_kernel_is():
    path = "llm/layers/mlp/down_proj/kernel"
    assert logical_axes(f"{path}/forward", 3) == ("layers", "embed", "mlp")
    assert logical_axes(f"{path}/backward", 3) == logical_axes(path, 3) == ("layers", "mlp", "embed")
    assert logical_axes(f"{path}/scale", 2) == ("layers", "embed")
