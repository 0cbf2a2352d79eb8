"""MobileFaceNet and MobileNetV2: shapes, parameters and outputs of PyTorch networks with the same weights."""

import functools
import importlib.util
import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from asdjax import core, models
from asdjax.models import layers, mobilefacenet

GOLDEN = Path(__file__).parent / "golden"
NETS = json.loads((GOLDEN / "nets.json").read_text())
SHAPES = json.loads((GOLDEN / "params_shapes.json").read_text())

# numbers are what counts here, and unoptimised programs compile in two thirds of the time
quick_jit = functools.partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0})

# the reports' variants are data of their configs: the goldens are of these rows
SPEC = importlib.util.spec_from_file_location("morita2021", Path(__file__).parents[1] / "configs" / "morita2021.py")
CONFIG = importlib.util.module_from_spec(SPEC)
SPEC.loader.exec_module(CONFIG)
MORITA = CONFIG.BACKBONES["mfn"]["rows"]

BUILD = {
    "morita_mnv2_1024x32_gap": models.MobileNetV2(),
    "morita_mfn_1024x32_gdc32x1": models.MobileFaceNet(MORITA),
    "morita_mfn_1024x32_gdc16x1_literal_valid+gap": models.MobileFaceNet(MORITA, gdconv="literal16"),
    "mfn_orig_strides_1024x32_gdc64x2": models.MobileFaceNet(),
    "jless_mfn_logmel_128x64_gdc8x4": models.MobileFaceNet(),
    "jless_mfn_stft_512x32_morita_strides_gdc16x1": models.MobileFaceNet(MORITA),
    "jless_mfn_stft_512x32_orig_strides_gdc32x2": models.MobileFaceNet(),
    "mobilefacenet_orig_3x112x112_gdc7x7": models.MobileFaceNet(),
    "mobilefacenet_xiaoccer_3x112x96_gdc7x6": models.MobileFaceNet(),
    "morita_mnv2_1024x32": models.MobileNetV2(),
    "morita_mfn_1024x32": models.MobileFaceNet(MORITA),
    "jless_mfn_logmel_128x64": models.MobileFaceNet(),
    "jless_mfn_stft_512x32": models.MobileFaceNet(MORITA),
}


def stage_modules(net):
    """Stage of the golden files -> the names of its modules in our tree; the last one gives the stage's output."""
    if isinstance(net, models.MobileNetV2):
        first = {"conv3x3": ("Conv3x3_0", "BatchNorm_0")}
        last = {"conv1x1": ("Pointwise_0", "BatchNorm_1"), "emb1x1": ("Dense_0",)}
    else:
        first = {
            "conv3x3": ("Conv3x3_0", "BatchNorm_0"),
            "dw3x3": ("Depthwise_0", "BatchNorm_1"),
        }
        last = {
            "conv1x1": ("Pointwise_0", "BatchNorm_2"),
            "gdconv": ("GlobalDepthwise_0", "BatchNorm_3"),
            "lin1x1": ("Pointwise_1", "BatchNorm_4"),
        }
    rows = {f"bneck{r + 1}": tuple(f"row{r}_{i}" for i in range(n)) for r, (_, _, n, _) in enumerate(net.rows)}
    return first | rows | last


def run(net, variables, x, train):
    """One call -> embedding, output of each stage, all variables (made, where `variables` is empty)."""
    out, variables = net.apply(
        variables, x, train, rngs={"params": jax.random.key(0)}, mutable=True, capture_intermediates=True
    )
    seen = variables.pop("intermediates")
    return out, {stage: seen[names[-1]]["__call__"][0] for stage, names in stage_modules(net).items()}, variables


def size(tree):
    return sum(leaf.size for leaf in jax.tree.leaves(tree))


@pytest.mark.parametrize("name", SHAPES)
def test_shapes_and_parameters(name):
    net, golden = BUILD[name], SHAPES[name]
    channels, bins, frames = golden["input_chw"]
    x = jnp.zeros((1, frames, bins))
    _, stages, variables = jax.eval_shape(lambda: run(net, {}, x, False))
    params = variables["params"]
    colours = (channels - 1) * 9 * net.stem  # the first kernel of the networks for images; ours see one channel
    assert size(params) == golden["params"] - colours
    assert size(variables["batch_stats"]) == golden["bn_running_stats"]
    modules = stage_modules(net)
    assert {m for names in modules.values() for m in names} >= set(params)
    for layer in golden["layers"]:
        stage = layer["name"]
        count = sum(size(params.get(module, {})) for module in modules[stage])
        assert count == layer["params"] - (colours if stage == "conv3x3" else 0), stage
        c, h, w = layer["out_chw"]
        assert stages[stage].shape in ((1, h, w, c), (1, c)), stage
        assert stages[stage].size == c * h * w, stage


def u(index):
    """The hash that the golden files fill weights with; uniform on [-1, 1)."""
    mask = np.uint64(0xFFFFFFFF)
    h = (np.asarray(index, np.uint64) * np.uint64(2654435761) + np.uint64(97)) & mask
    h ^= h >> np.uint64(16)
    h = (h * np.uint64(2246822519)) & mask
    h ^= h >> np.uint64(13)
    h = (h * np.uint64(3266489917)) & mask
    h ^= h >> np.uint64(16)
    return h / 2.0**31 - 1


def fill(path, leaf, gain):
    """A weight by the rule of nets.json, which counts in PyTorch's layouts (O, I, kH, kW) and (out, in)."""
    i = np.arange(leaf.size)
    match path[-1].key:
        case "kernel" if leaf.ndim == 4:
            kh, kw, c_in, c_out = leaf.shape
            return (np.sqrt(gain / (c_in * kh * kw)) * u(i)).reshape(c_out, c_in, kh, kw).transpose(2, 3, 1, 0)
        case "kernel":
            c_in, c_out = leaf.shape
            return (np.sqrt(gain / c_in) * u(i)).reshape(c_out, c_in).T
        case "scale":
            return 1 + 0.1 * np.sin(i)
        case "bias":
            return 0.1 * np.cos(i)
        case "mean":
            return 0.05 * np.sin(2 * i)
        case "var":
            return 1 + 0.1 * np.cos(i) ** 2
        case "slope":
            return np.full(leaf.shape, 0.25)


def units(name, batch):
    """The input (B, L, F) of a golden network."""
    _, stem_h, stem_w = NETS[name]["eval_stages"][0]["shape"]
    h, w = 2 * stem_h, 2 * stem_w
    return (2 * u(np.arange(batch * h * w) + 1000003)).reshape(batch, h, w).swapaxes(1, 2)


@functools.cache
def weights(name):
    """The variables of a golden network, in float64."""
    shapes = jax.eval_shape(lambda: BUILD[name].init(jax.random.key(0), jnp.zeros(units(name, 1).shape), False))
    return jax.tree_util.tree_map_with_path(lambda path, leaf: fill(path, leaf, NETS[name]["gain"]), shapes)


def test_the_hash_is_the_one_of_the_golden_file():
    np.testing.assert_allclose(u(np.arange(5)), NETS["u_first5"], rtol=0, atol=1e-15)
    assert u(1000003) == pytest.approx(NETS["u_1000003"], abs=1e-15)


@pytest.mark.parametrize("name", [name for name in NETS if name in BUILD])
def test_outputs_by_running_statistics(name):
    golden = NETS[name]
    with jax.enable_x64(True):
        out, stages, _ = quick_jit(lambda v, x: run(BUILD[name], v, x, False))(weights(name), units(name, 2))
    for stage in golden["eval_stages"]:
        if stage["stage"] == "avgpool":  # a mean, which no module of ours holds
            continue
        y = np.asarray(stages[stage["stage"]])
        first = y[0].reshape(-1, stage["shape"][0]).T.ravel()[:3]
        found = [y.mean(), y.std(), *first]
        np.testing.assert_allclose(
            found, [stage["mean"], stage["std"], *stage["first"]], rtol=0, atol=1e-8, err_msg=stage["stage"]
        )
    np.testing.assert_allclose(out[0, :8], golden["eval_embedding_row0_first8"], rtol=0, atol=1e-8)
    np.testing.assert_allclose(np.linalg.norm(out, axis=1), golden["eval_norms"], rtol=0, atol=1e-8)


@pytest.mark.parametrize("name", [name for name in NETS if name in BUILD])
def test_outputs_by_batch_statistics(name):
    golden = NETS[name]
    with jax.enable_x64(True):
        function = quick_jit(lambda v, x: BUILD[name].apply(v, x, True, mutable=["batch_stats"]))
        out, _ = function(weights(name), units(name, 4))
    np.testing.assert_allclose(out[0, :8], golden["train_embedding_row0_first8"], rtol=0, atol=1e-8)
    np.testing.assert_allclose(np.linalg.norm(out, axis=1), golden["train_norms"], rtol=0, atol=1e-8)


def test_float32_keeps_five_digits():
    name = "jless_mfn_logmel_128x64"
    variables, x = jax.tree.map(np.float32, (weights(name), units(name, 2)))
    out = quick_jit(lambda v, x: BUILD[name].apply(v, x, False))(variables, x)
    reference = np.array(NETS[name]["eval_embedding_row0_first8"])
    assert out.dtype == jnp.float32
    np.testing.assert_allclose(out[0, :8], reference, rtol=0, atol=1e-5 * np.abs(reference).max())


def test_built_by_name_with_other_rows():
    net = core.build(
        models, {"name": "MobileFaceNet", "rows": [[2, 8, 1, 2]], "stem": 8, "features": 16, "embedding": 8}
    )
    x = jnp.zeros((3, 16, 32))
    out, variables = jax.eval_shape(lambda: net.init_with_output(jax.random.key(0), x, False))
    assert out.shape == (3, 8)
    assert variables["params"]["GlobalDepthwise_0"]["kernel"].shape == (8, 4, 1, 16)
    with pytest.raises(core.UsageError, match="MobileFaceNet, MobileNetV2"):
        core.build(models, {"name": "MobileFacenet"})


def test_literal16_averages_the_windows():
    """Kernel of sixteenths over a map whose rows are 0, 1, ..., 17: the window means are 7.5, 8.5 and 9.5."""
    x = jnp.broadcast_to(jnp.arange(18.0)[None, :, None, None], (2, 18, 1, 3))
    module = mobilefacenet.GlobalDepthwise("literal16")
    y = module.apply({"params": {"kernel": jnp.full((16, 1, 1, 3), 1 / 16)}}, x)
    np.testing.assert_allclose(y, np.broadcast_to(np.array([7.5, 8.5, 9.5])[None, :, None, None], (2, 3, 1, 3)))


@pytest.mark.parametrize("gdconv, message", [("literal16", "16 rows, not 8x4"), ("half", "full, literal16")])
def test_gdconv_that_cannot_be(gdconv, message):
    net = models.MobileFaceNet(rows=((2, 8, 1, 2),), stem=8, features=16, embedding=8, gdconv=gdconv)
    with pytest.raises(core.UsageError, match=message):
        jax.eval_shape(lambda: net.init(jax.random.key(0), jnp.zeros((1, 16, 32)), False))


@pytest.mark.parametrize("variant, parameters", [("mfn", 993_280), ("mnv2", 2_387_264)])
def test_the_networks_of_the_morita_config_have_the_parameters_of_its_tables(variant, parameters):
    net = core.build(models, CONFIG.BACKBONES[variant])
    shapes = jax.eval_shape(functools.partial(net.init, train=False), jax.random.key(0), jnp.zeros((1, 32, 1024)))
    assert sum(leaf.size for leaf in jax.tree.leaves(shapes["params"])) == parameters


TINY = {
    "MobileFaceNet": models.MobileFaceNet(rows=((2, 8, 2, 2),), stem=8, features=16, embedding=8),
    "MobileNetV2": models.MobileNetV2(rows=((1, 8, 1, 1), (2, 8, 2, 2)), stem=8, features=16, embedding=8),
}


def plain_batch_norm(act, x, scale, bias, slope, eps):
    """The formula in float32, for autodiff."""
    x, kind = x.astype(jnp.float32), x.dtype
    mean, var = x.mean(range(x.ndim - 1)), x.var(range(x.ndim - 1))
    return act((x - mean) / jnp.sqrt(var + eps) * scale + bias, slope).astype(kind), mean, var


@pytest.mark.parametrize("name", TINY)
def test_bfloat16_computes_in_it_and_keeps_float32(name, monkeypatch):
    """Parameters, statistics, gradients and embeddings are float32, close to those of a network in float32.

    Activations that change sides make the gradient of so small a network move by a tenth: the bound for it is what
    autodiff of the plain formula in bfloat16 is off by.
    """
    x = jnp.asarray(np.random.default_rng(0).normal(size=(16, 16, 32)), jnp.float32)
    weights = jnp.asarray(np.random.default_rng(1).normal(size=(16, 8)), jnp.float32)
    variables = quick_jit(lambda: TINY[name].init(jax.random.key(0), x, False))()

    def run(net):
        def loss(params):
            out, stats = net.apply({**variables, "params": params}, x, True, mutable=["batch_stats"])
            return jnp.vdot(out, weights), (out, stats)

        def function(params):
            gradient, (trained, stats) = jax.grad(loss, has_aux=True)(params)
            return net.apply({**variables, "params": params}, x, False), trained, stats, gradient

        return quick_jit(function)(variables["params"])

    half = TINY[name].clone(dtype="bfloat16")
    assert "bf16" in str(jax.make_jaxpr(lambda v: half.apply(v, x, False))(variables))
    assert "bf16" not in str(jax.make_jaxpr(lambda v: TINY[name].apply(v, x, False))(variables))
    shapes = jax.eval_shape(lambda: half.init(jax.random.key(0), x, False))
    assert {leaf.dtype for leaf in jax.tree.leaves(shapes)} == {jnp.dtype("float32")}
    found, expected = run(half), run(TINY[name])
    assert {leaf.dtype for leaf in jax.tree.leaves(found)} == {jnp.dtype("float32")}
    monkeypatch.setattr(layers, "batch_norm", plain_batch_norm)
    plain = run(half)

    def error(found, expected):
        found, expected = (jnp.concatenate([leaf.ravel() for leaf in jax.tree.leaves(t)]) for t in (found, expected))
        return float(jnp.linalg.norm(found - expected) / jnp.linalg.norm(expected))

    by_running, by_batch, stats, gradient = (error(*pair) for pair in zip(found, expected, strict=True))
    assert 1e-4 < by_running < 0.02
    assert 1e-4 < by_batch < 0.04
    assert stats < 0.01
    assert gradient < 1.2 * error(plain[3], expected[3])


@pytest.mark.parametrize("name", TINY)
def test_unknown_dtype_is_refused(name):
    with pytest.raises(core.UsageError, match="'float16'; there is: float32, bfloat16"):
        jax.eval_shape(TINY[name].clone(dtype="float16").init, jax.random.key(0), jnp.zeros((1, 16, 32)), train=False)
