"""The vision transformer: counts of the specification's tables, PyTorch's numbers, and hand arithmetic."""

import functools
import importlib
import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from test_models import quick_jit, u

from asdjax import core, heads, models
from asdjax.core import UsageError
from asdjax.models import vit

GOLDEN = Path(__file__).parent / "golden" / "vit.json"
B, L, F = 3, 11, 8
SMALL = models.ViT(patch=4, width=6, depth=2, heads=2, dim_head=3, mlp=7)
CASES = {  # network, and whether by the statistics of the batch
    "cls": (SMALL, True),
    "mean": (SMALL.clone(pool="mean", time_fit="pad", input_bn=False), False),
    "lucidrains": (SMALL.clone(style="lucidrains", dim_head=5, depth=1, time_fit="pad"), False),
}


def shapes_of(net, frames=L, bins=F):
    init = functools.partial(net.init, train=False)
    return jax.eval_shape(init, jax.random.key(0), jax.ShapeDtypeStruct((1, frames, bins), np.float32))


def size(tree):
    return sum(leaf.size for leaf in jax.tree.leaves(tree))


# --- shapes and parameters -------------------------------------------------------------------------------------------

QKV = {"paper": 49_536, "lucidrains": 49_152}  # with and without 3 x 128 biases


@pytest.mark.parametrize(
    "spec, tokens, patch, out, total",
    [
        (dict(), 9_472, 32_896, 16_512, 242_702),
        (dict(pool="mean"), 9_216, 32_896, 16_512, 242_446),
        (dict(time_fit="pad"), 9_984, 32_896, 16_512, 243_214),
        (dict(style="lucidrains", dim_head=64), 9_472, 33_664, 65_664, 439_694),
        (dict(style="lucidrains"), 9_472, 33_664, 16_512, 243_086),
    ],
    ids=["cls", "mean", "pad", "lucidrains 64", "lucidrains 16"],
)
def test_parameters_are_those_of_the_tables(spec, tokens, patch, out, total):
    head = jax.eval_shape(lambda: heads.Linear(14).init(jax.random.key(0), jnp.zeros((1, 128)), None, False))
    for input_bn, more in ((False, 0), (True, 128)):
        params = shapes_of(models.ViT(**spec, input_bn=input_bn), 301, 64)["params"]
        assert size(params) + size(head["params"]) == total + more
        assert size(params.get("norm", {})) == more
    block = params["block_0"]
    qkv = 196_608 if spec.get("dim_head") == 64 else QKV[spec.get("style", "paper")]
    assert (size(block["qkv"]), size(block["out"])) == (qkv, out)
    assert size(block["expand"]) + size(block["project"]) == 131_712
    assert [size(n) for n in (block["attention_norm"], block["mlp_norm"], params["final_norm"])] == [256] * 3
    assert size(params["positions"]) + size(params.get("class_token", {})) == tokens
    assert sum(size(params.get(k, {})) for k in ("patch", "patch_norm", "vector_norm")) == patch


@pytest.mark.parametrize("spec, places", [({}, 73), ({"pool": "mean"}, 72), ({"time_fit": "pad"}, 77)])
def test_shapes_of_maps_are_those_of_the_tables(spec, places):
    net, x = models.ViT(**spec, depth=2), jnp.zeros((2, 301, 64))

    def run():
        return net.init_with_output(jax.random.key(0), x, False, capture_intermediates=True, mutable=True)

    embedding, variables = jax.eval_shape(run)
    assert (embedding.shape, embedding.dtype) == ((2, 128), np.float32)
    assert variables["params"]["positions"].shape == (places, 128)
    last = 1 if net.pool == "cls" else places  # nobody reads the other vectors
    shapes = [variables["intermediates"][f"block_{i}"]["__call__"][0].shape for i in range(2)]
    assert shapes == [(2, places, 128), (2, last, 128)]


# --- patches ---------------------------------------------------------------------------------------------------------


def test_patches_come_band_after_band_within_frames():
    """A unit whose value at frame l and bin f is 100 l + f: patch k = 2 t + b is of frames 2t.. and bins 3b.. here."""
    x = np.float32(100 * np.arange(4)[:, None] + np.arange(6))
    found = np.asarray(vit.patches(jnp.asarray(x[None]), 2))[0]
    assert found.shape == (6, 4)
    np.testing.assert_array_equal(found[0], [0, 1, 100, 101])
    np.testing.assert_array_equal(found[1], [2, 3, 102, 103])  # the next band of the same frames
    np.testing.assert_array_equal(found[2], [4, 5, 104, 105])
    np.testing.assert_array_equal(found[3], [200, 201, 300, 301])  # the next frames
    np.testing.assert_array_equal(found[5], [204, 205, 304, 305])


def test_frames_are_cut_at_both_ends_or_filled_up_behind():
    x = jnp.arange(301.0)[None, :, None]
    cropped, padded = vit.fit(x, 16, "crop"), vit.fit(x, 16, "pad")
    np.testing.assert_array_equal(cropped[0, :, 0], np.arange(6, 294))  # 13 left: 6 before, 7 behind
    np.testing.assert_array_equal(padded[0, :, 0], [*range(301), 0, 0, 0])
    for how in ("crop", "pad"):
        np.testing.assert_array_equal(vit.fit(x[:, :288], 16, how), x[:, :288])


# --- numbers ---------------------------------------------------------------------------------------------------------


def rule(path, leaf):
    """The weight of that name by a hash of its index, in float64."""
    name, start = path[-1].key, 10_000 * sum(map(ord, jax.tree_util.keystr(path)))
    value = u(start + np.arange(leaf.size)).reshape(leaf.shape)
    return 1 + 0.3 * value if name == "scale" else np.exp(value) if name == "var" else 0.6 * value


def filled(name):
    """Variables, units and the weights of the embedding's sum, which is the loss."""
    variables = jax.tree_util.tree_map_with_path(rule, shapes_of(CASES[name][0]))
    return variables, 2 * u(np.arange(B * L * F) + 77).reshape(B, L, F), u(np.arange(B * SMALL.width)).reshape(B, -1)


def summary(embedding, grads):
    """What the golden file holds: the embedding; of each gradient its norm and its product with the hash."""
    found = {}
    for path, leaf in jax.tree_util.tree_leaves_with_path(grads):
        key = "/".join(part.key for part in path)
        found[key] = [float(np.linalg.norm(leaf)), float(np.ravel(leaf) @ u(np.arange(leaf.size) + 5))]
    return {"embedding": np.asarray(embedding).tolist(), "gradients": found}


def by_pytorch(name):
    """The summary from the peer."""
    torch = pytest.importorskip("torch")
    peer = importlib.import_module("benchmarks.peers.vit")
    (net, train), (variables, x, w) = CASES[name], filled(name)
    own = {k: v for k, v in vars(net).items() if k in net.__dataclass_fields__ and k not in ("dtype", "parent", "name")}
    theirs = peer.ViT(L, F, **own).double().train(train)
    peer.fill(theirs, variables["params"], variables.get("batch_stats"))
    x = torch.tensor(x, requires_grad=True)
    embedding = theirs(x)
    (embedding * torch.tensor(w)).sum().backward()
    grads = jax.tree.map(np.zeros_like, variables["params"])
    pairs = peer.weights(theirs, grads)  # the second of each is a view of the tree's leaf
    assert len(pairs) == sum(1 for _ in theirs.parameters())
    for parameter, leaf in pairs:
        leaf[...] = parameter.grad.numpy().reshape(leaf.shape)
    return summary(embedding.detach().numpy(), {"params": grads, "x": x.grad.numpy()})


def by_ours(name, dtype=np.float64):
    net, train = CASES[name]
    variables, x, w = jax.tree.map(dtype, filled(name))

    def loss(params, x):
        embedding, _ = net.apply({**variables, "params": params}, x, train=train, mutable=["batch_stats"])
        return jnp.vdot(embedding, w), embedding

    with jax.enable_x64(dtype is np.float64):
        value_and_grad = quick_jit(jax.value_and_grad(loss, argnums=(0, 1), has_aux=True))
        (_, embedding), (params, x) = jax.device_get(value_and_grad(variables["params"], x))
    assert embedding.dtype == dtype
    return summary(embedding, {"params": params, "x": x})


def assert_close(found, expected, tolerance):
    np.testing.assert_allclose(found["embedding"], expected["embedding"], rtol=0, atol=tolerance)
    assert found["gradients"].keys() == expected["gradients"].keys()
    scale = max(norm for norm, _ in expected["gradients"].values())
    for k, values in expected["gradients"].items():
        np.testing.assert_allclose(found["gradients"][k], values, rtol=0, atol=tolerance * scale, err_msg=k)


@pytest.mark.parametrize("name", CASES)
def test_values_and_gradients_are_those_of_pytorch(name):
    assert_close(by_ours(name), json.loads(GOLDEN.read_text())[name], 1e-10)


@pytest.mark.parametrize("name", CASES)
def test_the_golden_file_is_what_pytorch_gives(name):
    assert_close(by_pytorch(name), json.loads(GOLDEN.read_text())[name], 1e-10)


def test_float32_keeps_five_digits():
    assert_close(by_ours("cls", np.float32), json.loads(GOLDEN.read_text())["cls"], 1e-5)


def test_a_block_of_the_peer_is_the_encoder_layer_of_pytorch():
    torch = pytest.importorskip("torch")
    peer = importlib.import_module("benchmarks.peers.vit")
    torch.manual_seed(0)
    theirs = torch.nn.TransformerEncoderLayer(
        8, 2, 12, dropout=0.0, activation="gelu", batch_first=True, norm_first=True, dtype=torch.float64
    )
    ours = peer.Block(8, 2, 4, 12, bias=True).double()
    names = {"in_proj_": "", "self_attn": "qkv", "qkv.out_proj": "out", "linear1": "mlp.0", "linear2": "mlp.2"}
    names |= {"norm1": "attention_norm", "norm2": "mlp_norm"}
    state = {}
    for k, v in theirs.state_dict().items():
        for old, new in names.items():
            k = k.replace(old, new)
        state[k] = torch.randn_like(v)
    ours.load_state_dict(state)
    theirs.load_state_dict(dict(zip(theirs.state_dict(), state.values(), strict=True)))
    x = torch.randn(3, 5, 8, dtype=torch.float64)
    torch.testing.assert_close(ours(x), theirs(x), rtol=1e-10, atol=1e-10)


def test_the_mean_is_of_all_vectors_and_the_class_has_one_of_its_own():
    """Without blocks: normalised vectors of the patches, hand-made, and their mean; the class sees only itself."""
    x = np.random.default_rng(0).normal(size=(2, 8, 8))
    for pool in ("mean", "cls"):
        net = SMALL.clone(pool=pool, depth=0, input_bn=False)
        params = jax.tree_util.tree_map_with_path(rule, shapes_of(net, 8, 8))["params"]
        with jax.enable_x64(True):
            found = np.asarray(net.apply({"params": params}, x, train=False))
        blocks = [x[:, a : a + 4, b : b + 4].reshape(2, 16) for a in (0, 4) for b in (0, 4)]
        vectors = np.stack([v @ params["patch"]["kernel"] + params["patch"]["bias"] for v in blocks], 1)
        y = vectors + params["positions"] if pool == "mean" else params["class_token"] + params["positions"][:1]
        y = (y - y.mean(-1, keepdims=True)) / np.sqrt(y.var(-1, keepdims=True) + 1e-5)
        y = y * params["final_norm"]["scale"] + params["final_norm"]["bias"]
        np.testing.assert_allclose(found, y.mean(1) if pool == "mean" else np.repeat(y, 2, 0), rtol=1e-12)


def test_bfloat16_is_for_matrix_products_only():
    made = jax.tree.map(np.float32, filled("cls")[0])
    x = np.float32(np.random.default_rng(1).normal(-40, 15, (16, L, F)))
    half = SMALL.clone(dtype="bfloat16")
    assert {leaf.dtype for leaf in jax.tree.leaves(shapes_of(half))} == {np.dtype("float32")}
    narrow = [line for line in str(jax.make_jaxpr(lambda v, x: half.apply(v, x, False))(made, x)).splitlines()]
    narrow = [line for line in narrow if ":bf16" in line.split("=")[0]]
    assert [line for line in narrow if "dot_general" in line]
    assert not [
        line for line in narrow if any(f" {op} " in line for op in ("exp", "erf", "rsqrt", "div", "reduce_sum"))
    ]
    found = quick_jit(lambda v, x: half.apply(v, x, False))(made, x)
    expected = quick_jit(lambda v, x: SMALL.apply(v, x, False))(made, x)
    assert found.dtype == np.float32
    assert 1e-4 < np.linalg.norm(found - expected) / np.linalg.norm(expected) < 0.02


def test_weights_start_as_those_of_the_original():
    """Glorot's uniform of each matrix, of queries, keys and values one by one."""
    params = quick_jit(lambda key: models.ViT().init(key, jnp.zeros((1, 301, 64)), False))(jax.random.key(0))["params"]
    block = params["block_0"]
    kernels = {"patch": (params["patch"]["kernel"], 256 + 128), "out": (block["out"]["kernel"], 256)}
    kernels |= {k: (block[k]["kernel"], 128 + 512) for k in ("expand", "project")}
    kernels |= {f"qkv {i}": (part, 256) for i, part in enumerate(np.split(block["qkv"]["kernel"], 3, axis=1))}
    for name, (kernel, inputs_and_outputs) in kernels.items():
        bound = (6 / inputs_and_outputs) ** 0.5
        assert 0.98 * bound < np.abs(kernel).max() <= bound, name
        assert np.std(kernel) == pytest.approx(bound / 3**0.5, rel=0.02), name
    assert not params["class_token"].any()
    assert not any(layer["bias"].any() for layer in (params["patch"], block["qkv"], block["out"]))
    assert np.std(params["positions"]) == pytest.approx(0.02, rel=0.03)  # of 9,344: 0.7 % by chance
    for name in ("expand", "project"):
        assert np.std(block[name]["bias"]) == pytest.approx(1e-6, rel=0.25)  # of 128: 6 %


# --- refusals --------------------------------------------------------------------------------------------------------


def test_what_cannot_be_is_refused():
    net = core.build(models, {"name": "ViT"})
    for frames in (15, 1):
        for fit in ("crop", "pad"):
            with pytest.raises(UsageError, match=rf"{frames} frames \(cut\.width\), less than one patch.*patch=16"):
                shapes_of(net.clone(time_fit=fit), frames, 64)
    shapes_of(net, 16, 64)
    with pytest.raises(UsageError, match=r"backbone\.patch=16 must divide the 40 bins"):
        shapes_of(net, 301, 40)
    for name, there in (("style", "paper, lucidrains"), ("pool", "cls, mean"), ("time_fit", "crop, pad")):
        with pytest.raises(UsageError, match=f"{name} is 'other'; there is: {there}"):
            shapes_of(net.clone(**{name: "other"}), 301, 64)
    with pytest.raises(UsageError, match="'float16'; there is: float32, bfloat16"):
        shapes_of(net.clone(dtype="float16"), 301, 64)
