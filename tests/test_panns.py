"""MobileNetV2 in the PANNs form: shapes and parameters of the tables, numbers and gradients of a PyTorch network.

`python tests/test_panns.py` writes the golden file anew, by PyTorch.
"""

import functools
import importlib
import json
import math
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import traverse_util
from jax import lax
from test_models import quick_jit, size, u

from asdjax import convert, core, heads, models
from asdjax.models import convolutions, panns

FOLDER = Path(__file__).parent / "golden"
TABLES = json.loads((FOLDER / "panns_tables.json").read_text())["tables"]
GOLDEN = FOLDER / "panns.json"

# Both axes are odd somewhere on the way down: 23 -> 11 -> 5 and 14 -> 7 -> 3. 99 frames are odd at once.
ROWS = ((1, 4, 1, 1), (3, 6, 2, 2))
NETS = {
    "panns": dict(rows=ROWS, stem=5, features=8, fc=6),
    "strided, linear": dict(rows=ROWS, stem=5, features=8, downsample="strided", head_act="linear"),
}
CLASSES, FRAMES, BINS, BATCH = 3, 23, 14, 4


# --- the golden file -------------------------------------------------------------------------------------------------


def filled(shapes):
    """A state_dict by rule: the k-th tensor from u(1000 k), u(1000 k + 1), ..., as float32."""
    arrays = {}
    for k, (name, shape) in enumerate(shapes):
        x = u(1000 * k + np.arange(math.prod(shape))).reshape(shape)
        kind = name.rsplit(".", 1)[1]
        if kind == "running_var":
            x = 1 + 0.5 * x
        elif kind == "weight" and len(shape) == 1:
            x = 1.5 + x
        elif kind == "weight":
            x = x * (3 / math.prod(shape[1:])) ** 0.5
        arrays[name] = x.astype(np.float32)
    return arrays


def units():
    """Like levels in dB, (B, L, F)."""
    shape = (BATCH, FRAMES, BINS)
    return (40 * u(10**6 + np.arange(math.prod(shape))) - 30).reshape(shape)


def summary(x):
    """Norm and one more sum, which the order of the elements changes."""
    x = np.asarray(x, np.float64).ravel()
    return [float(np.linalg.norm(x)), float(x @ u(2 * 10**6 + np.arange(x.size)))]


def reference(spec):
    """What the golden file holds of a network: PyTorch's numbers in float64."""
    import torch

    peer = importlib.import_module("benchmarks.peers.panns")
    net = peer.MobileNetV2(**spec, classes=CLASSES, bins=BINS).double()
    state = {k: v for k, v in net.state_dict().items() if not k.endswith("num_batches_tracked")}
    shapes = [[name, list(tensor.shape)] for name, tensor in state.items()]
    net.load_state_dict({k: torch.tensor(v) for k, v in filled(shapes).items()}, strict=False)
    x, label = torch.tensor(units()), torch.arange(BATCH) % CLASSES
    with torch.no_grad():
        net.eval()
        by_running = {"embedding": net.embedding(x).tolist(), "logits": net(x).tolist()}
    logits = net.train()(x)
    loss = torch.nn.functional.cross_entropy(logits, label)
    loss.backward()
    gradients = {name: summary(p.grad.numpy()) for name, p in net.named_parameters()}
    running = {k: v.tolist() for k, v in net.state_dict().items() if "running" in k}
    by_batch = {"logits": logits.tolist(), "loss": loss.item(), "gradients": gradients, "running": running}
    return {"shapes": shapes, "eval": by_running, "train": by_batch}


def golden(name):
    return json.loads(GOLDEN.read_text())["nets"][name]


@pytest.mark.parametrize("name", NETS)
def test_the_golden_file_is_what_pytorch_computes(name):
    pytest.importorskip("torch")
    found, expected = (traverse_util.flatten_dict(tree, sep="/") for tree in (reference(NETS[name]), golden(name)))
    assert set(found) == set(expected) and found.pop("shapes") == expected.pop("shapes")
    for key, value in found.items():
        scale = max(1e-3, np.abs(expected[key]).max())
        np.testing.assert_allclose(value, expected[key], rtol=0, atol=1e-10 * scale, err_msg=key)


def variables(name):
    """Params and stats of backbone and head, by the rule."""
    return convert.from_panns(
        filled(golden(name)["shapes"]), models.PannsMobileNetV2(**NETS[name]), n_classes=CLASSES, bins=BINS
    )


def forward(net, params, stats, x, label, train):
    """Embedding, loss (B,), logits, batch statistics."""
    body = {"params": params["backbone"], **stats["backbone"]}
    embedding, after = net.apply(body, x, train, mutable=["batch_stats"])
    loss, logits = heads.Linear(CLASSES).apply({"params": params["head"], **stats["head"]}, embedding, label, train)
    return embedding, loss, logits, after["batch_stats"]


@functools.cache
def found(name):
    """All that the golden file holds, as ours computes it in one program, in float64."""
    net = models.PannsMobileNetV2(**NETS[name])

    def function(params, stats, x):
        label = {"class": jnp.eye(CLASSES)[jnp.arange(BATCH) % CLASSES]}
        embedding, _, logits, _ = forward(net, params, stats, x, None, False)

        def loss(params):
            _, losses, logits, after = forward(net, params, stats, x, label, True)
            return losses.mean(), (logits, after)

        (value, (by_batch, after)), gradients = jax.value_and_grad(loss, has_aux=True)(params)
        by_running = {"embedding": embedding, "logits": logits}
        return by_running, {"logits": by_batch, "loss": value, "gradients": gradients, "running": after}

    with jax.enable_x64(True):
        params, stats = jax.tree.map(np.float64, variables(name))
        return jax.device_get(quick_jit(function)(params, stats, units()))


def by_their_names(tree):
    """Arrays of backbone or head by PyTorch's names, in its order of axes."""
    modules = convert.module_names(ROWS)
    names = {path: f"{modules['/'.join(path[:-1])]}.{convert.LEAVES[path[-1]]}" for path in tree}
    return {name: convert.theirs_of(tree[path], name) for path, name in names.items()}


@pytest.mark.parametrize("name", NETS)
def test_outputs_by_running_statistics_are_those_of_pytorch(name):
    ours, expected = found(name)[0], golden(name)["eval"]
    for key, value in expected.items():
        assert ours[key].dtype == np.float64
        np.testing.assert_allclose(ours[key], value, rtol=0, atol=1e-10 * np.abs(value).max(), err_msg=key)


@pytest.mark.parametrize("name", NETS)
def test_a_training_step_is_that_of_pytorch(name):
    ours, expected = found(name)[1], golden(name)["train"]
    np.testing.assert_allclose(ours["logits"], expected["logits"], rtol=1e-9)
    np.testing.assert_allclose(ours["loss"], expected["loss"], rtol=1e-9)
    flat = {k: traverse_util.flatten_dict(v) for k, v in ours["gradients"].items()}
    gradients = by_their_names(flat["backbone"]) | by_their_names(flat["head"])
    assert set(gradients) == set(expected["gradients"])
    scale = max(norm for norm, _ in expected["gradients"].values())
    for key, value in expected["gradients"].items():
        np.testing.assert_allclose(summary(gradients[key]), value, rtol=1e-9, atol=1e-9 * scale, err_msg=key)
    # 1x1 convolution and normalisation undo the bias before them; every other gradient says something
    silent = {key for key, (norm, _) in expected["gradients"].items() if norm < 1e-5 * scale}
    assert silent == {f"features.{layer}.bias" for layer in ("1.conv.5", "2.conv.8", "3.conv.8")}


@pytest.mark.parametrize("name", NETS)
def test_running_statistics_are_those_of_pytorch(name):
    """But for the variance of the batch, which PyTorch divides by n - 1."""
    after = by_their_names(traverse_util.flatten_dict(found(name)[1]["running"]))
    expected, before = golden(name)["train"]["running"], filled(golden(name)["shapes"])
    assert set(after) == set(expected)
    places = numbers(NETS[name])
    for key, value in expected.items():
        value = np.array(value)
        if key.endswith("running_var"):
            kept, n = 0.9 * before[key].astype(np.float64), places[key.rsplit(".", 1)[0]]
            value = kept + (value - kept) * (n - 1) / n
        np.testing.assert_allclose(after[key], value, rtol=1e-9, err_msg=key)


def numbers(spec):
    """How many places each normalisation of the small networks sees, by hand."""
    maps = {"panns": (11 * 7, 5 * 3), "strided, linear": (12 * 7, 6 * 4)}
    large, small = (BATCH * places for places in maps["strided, linear" if "downsample" in spec else "panns"])
    first = {f"features.{layer}": large for layer in ("0.2", "1.conv.2", "1.conv.5", "2.conv.1")}
    last = {f"features.{layer}": small for layer in ("2.conv.5", "2.conv.8", "3.conv.1", "3.conv.5", "3.conv.8", "4.1")}
    return {"bn0": BATCH * FRAMES, **first, **last}


def test_float32_keeps_five_digits():
    net, (params, stats) = models.PannsMobileNetV2(**NETS["panns"]), variables("panns")
    x = units().astype(np.float32)
    embedding, _, logits, _ = quick_jit(lambda p, s, x: forward(net, p, s, x, None, False))(params, stats, x)
    for ours, value in ((embedding, golden("panns")["eval"]["embedding"]), (logits, golden("panns")["eval"]["logits"])):
        assert ours.dtype == np.float32
        np.testing.assert_allclose(ours, value, rtol=0, atol=1e-5 * np.abs(value).max())


# --- shapes ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("table", TABLES, ids=lambda table: table["title"][:24])
def test_shapes_and_parameters_are_those_of_the_tables(table):
    net, head = models.PannsMobileNetV2(**table["net"]), heads.Linear(table["classes"])
    x = jax.ShapeDtypeStruct((1, table["frames"], 64), np.float32)

    def run(x):
        key = {"params": jax.random.key(0)}
        out, made = net.apply({}, x, False, rngs=key, mutable=True, capture_intermediates=True)
        return out, made.pop("intermediates"), made, head.init_with_output(key, out, None, False)

    out, seen, made, ((_, logits), top) = jax.eval_shape(run, x)
    modules = {"bn0": ["bn0"], "stem": ["stem_conv", "stem_norm"], "head": ["features_conv", "features_norm"]}
    modules |= {f"stages.{r}": [f"row{r}_{i}" for i in range(row[2])] for r, row in enumerate(table["net"]["rows"])}
    modules |= {"fc1": ["fc1"]} if "fc" in table["net"] else {}
    assert {name for names in modules.values() for name in names} == set(made["params"])
    for layer, shape, parameters in table["layers"]:
        if layer == "fc":
            assert [*logits.shape] == shape and size(top["params"]) == parameters
            continue
        y = seen[modules[layer][-1]]["__call__"][0].shape
        theirs = (y[0], y[2], y[1], 1) if layer == "bn0" else (y[0], *y[3:], *y[1:3])
        assert [*theirs] == shape, layer
        assert sum(size(made["params"][module]) for module in modules[layer]) == parameters, layer
    assert size(made["params"]) + size(top["params"]) == table["total"]
    assert out.shape == (1, table["net"].get("fc", table["net"].get("features", 128)))


def test_kernels_start_as_those_of_panns():
    """Glorot's uniform, up to sqrt(6 / (fan in + fan out)); biases and means from 0, scales and variances from 1."""
    net = models.PannsMobileNetV2(rows=((1, 32, 1, 1), (6, 48, 1, 2)), stem=64, features=96, fc=64)
    made = quick_jit(lambda: net.init(jax.random.key(0), jnp.zeros((1, 8, 8)), False))()
    fans = {"stem_conv": 9 + 9 * 64, "depthwise": 9 + 9 * 192, "expand": 32 + 192, "project": 192 + 48, "fc1": 96 + 64}
    params = traverse_util.flatten_dict(made["params"])
    for layer, total in fans.items():
        kernel = params[(layer, "kernel") if (layer, "kernel") in params else ("row1_0", layer, "kernel")]
        bound = (6 / total) ** 0.5
        assert 0.98 * bound < np.abs(kernel).max() <= bound * (1 + 1e-6), layer
        assert np.std(kernel) == pytest.approx(bound / 3**0.5, rel=0.1), layer
    assert not any(np.any(leaf) for path, leaf in params.items() if path[-1] == "bias")
    assert all(np.all(leaf == 1) for path, leaf in params.items() if path[-1] == "scale")


# --- averaging -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("frames, bins", [(9, 7), (8, 6), (5, 8)])
@pytest.mark.parametrize("form", ["conv_grouped", "depthwise_shifted", "conv_product"])
def test_averaging_is_a_convolution_and_then_a_pool(form, frames, bins):
    """Values and gradients of each formulation, against XLA's convolution and its windows, in float64."""
    rng, channels = np.random.default_rng(0), 1 if form == "conv_product" else 3  # the stem's form is for one channel
    features = 4 if form == "conv_product" else channels
    shape = (2, frames, bins, channels)
    x, kernel = rng.normal(size=shape), rng.normal(size=(3, 3, 1, features))
    weights = rng.normal(size=(2, frames // 2, bins // 2, features))

    def plain(x, kernel):
        y = convolutions.conv_grouped(x, kernel, 1)
        return lax.reduce_window(y, 0.0, lax.add, (1, 2, 2, 1), (1, 2, 2, 1), "VALID") / 4

    def ours(x, kernel):
        return panns.averaged(getattr(convolutions, form), x, kernel)

    def all_of(function):
        return quick_jit(jax.value_and_grad(lambda *a: (function(*a) * weights).sum(), argnums=(0, 1)))(x, kernel)

    with jax.enable_x64(True):
        assert ours(x, kernel).shape == weights.shape
        np.testing.assert_allclose(ours(x, kernel), plain(x, kernel), rtol=0, atol=1e-13)
        jax.tree.map(functools.partial(np.testing.assert_allclose, rtol=1e-10, atol=1e-12), all_of(ours), all_of(plain))


# --- the rest --------------------------------------------------------------------------------------------------------


def test_gradients_of_silence_are_finite():
    """All maps are constant: every frame is the largest, and all activations lie at their ends."""
    net, (params, stats) = models.PannsMobileNetV2(**NETS["panns"]), variables("panns")
    x, label = jnp.full((BATCH, FRAMES, BINS), -100.0), {"class": jnp.eye(CLASSES)[jnp.zeros(BATCH, int)]}
    gradients = quick_jit(jax.grad(lambda p: forward(net, p, stats, x, label, True)[1].mean()))(params)
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(gradients))
    assert np.abs(gradients["head"]["Dense_0"]["bias"]).max() > 0.01


def test_bfloat16_computes_in_it_and_keeps_float32():
    """Parameters, statistics, gradients and embeddings are float32; levels in dB are normalised before rounding."""
    net, (params, stats) = models.PannsMobileNetV2(**NETS["panns"]), variables("panns")
    half = net.clone(dtype="bfloat16")
    x, label = units().astype(np.float32), {"class": np.eye(CLASSES, dtype=np.float32)[np.arange(BATCH) % CLASSES]}

    def step(net):
        def loss(params):
            embedding, losses, _, after = forward(net, params, stats, x, label, True)
            return losses.mean(), (embedding, after)

        return quick_jit(jax.grad(loss, has_aux=True))(params)

    traced = str(jax.make_jaxpr(lambda p: forward(half, p, stats, x, None, False))(params))
    assert "bf16" in traced
    assert "bf16" not in str(jax.make_jaxpr(lambda p: forward(net, p, stats, x, None, False))(params))
    (gradients, (embedding, after)), (_, (expected, expected_after)) = step(half), step(net)
    assert {leaf.dtype for leaf in jax.tree.leaves((gradients, embedding, after))} == {np.dtype("float32")}
    error = np.linalg.norm(embedding - expected) / np.linalg.norm(expected)
    assert 1e-4 < error < 0.04
    jax.tree.map(np.testing.assert_array_equal, after["bn0"], expected_after["bn0"])


def test_a_training_step_lowers_for_tpu():
    net = models.PannsMobileNetV2(**NETS["panns"])
    x = jax.ShapeDtypeStruct((BATCH, FRAMES, BINS), np.float32)
    params, stats = variables("panns")

    def step(params, x):
        return jax.grad(lambda p: forward(net, p, stats, x, None, True)[0].sum())(params)

    program = jax.export.export(jax.jit(step), platforms=["tpu"])(params, x)
    assert program.platforms == ("tpu",)
    # the depthwise convolution of the first halving, 4 x 4 over 12 channels
    assert "stablehlo.convolution" in program.mlir_module() and "tensor<4x4x1x12xf32>" in program.mlir_module()


@pytest.mark.parametrize(
    "change, shape, message",
    [
        (dict(downsample="avg"), (1, 64, 64), "backbone.downsample is 'avg'; there is: avgpool, strided"),
        (dict(head_act="relu"), (1, 64, 64), "backbone.head_act is 'relu'; there is: relu6, linear"),
        (dict(rows=((1, 4, 1, 3),)), (1, 64, 64), r"strides of backbone\.rows are \[3\]; there is: 1, 2"),
        (dict(dtype="float16"), (1, 64, 64), "'float16'; there is: float32, bfloat16"),
        ({}, (1, 31, 64), "units have 31 frames of 64 bins, expected 32 of each at least"),
    ],
)
def test_what_cannot_be_is_refused(change, shape, message):
    with pytest.raises(core.UsageError, match=message):
        init = functools.partial(models.PannsMobileNetV2(**change).init, train=False)
        jax.eval_shape(init, jax.random.key(0), jnp.zeros(shape))


def test_built_by_name():
    net = core.build(models, dict(name="PannsMobileNetV2", rows=[[1, 4, 1, 1]], stem=4, features=8))
    out, _ = jax.eval_shape(lambda: net.init_with_output(jax.random.key(0), jnp.zeros((3, 16, 32)), False))
    assert out.shape == (3, 8)


def write():
    import torch

    nets = {name: reference(spec) for name, spec in NETS.items()}
    source = f"reference() of tests/test_panns.py: benchmarks.peers.panns in float64, torch {torch.__version__}"
    GOLDEN.write_text(json.dumps({"source": source, "nets": nets}) + "\n")


if __name__ == "__main__":
    write()
