"""The dual-path transformer and its training: the golden files, PyTorch's layers, and hand arithmetic."""

import functools
import importlib
import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import tiny
from test_models import fill, quick_jit, u

from asdjax import frontends, heads, models, systems, train
from asdjax.core import Parts, TrainState, UsageError
from asdjax.systems.dual_path import patch_mask, random_mask

GOLDEN = Path(__file__).parent / "golden"
NET = json.loads((GOLDEN / "dual_path.json").read_text())["jless_dpt_64x128"]
MASK = json.loads((GOLDEN / "ssdpt_mask.json").read_text())

L, F, C = 6, 16, 3
SMALL = models.DualPathTransformer(blocks=2, heads=2, feedforward=5)


# --- the network -----------------------------------------------------------------------------------------------------


def shapes_of(net, frames, bins):
    init = functools.partial(net.init, train=False)
    return jax.eval_shape(init, jax.random.key(0), jax.ShapeDtypeStruct((1, frames, bins), np.float32))


@functools.cache
def golden_weights():
    """Variables of the golden network and of its head, in float64."""
    shapes = shapes_of(models.DualPathTransformer(), 64, 128)
    head = {"Dense_0": {"kernel": np.zeros((128, 6)), "bias": np.zeros(6)}}
    return jax.tree_util.tree_map_with_path(lambda path, leaf: fill(path, leaf, 3), (shapes, {"params": head}))


def golden_outputs(dtype):
    """Everything that the golden file has a number of."""

    def function(variables, x):
        body, top = variables
        embedding, reconstruction, _ = models.DualPathTransformer().apply(body, x, train=False)
        _, logits = heads.Linear(6).apply(top, embedding, None, train=False)
        return embedding, reconstruction, logits

    x = (2 * u(np.arange(2 * 64 * 128) + 1000003)).reshape(2, 64, 128)
    embedding, y, logits = quick_jit(function)(*jax.tree.map(dtype, (golden_weights(), x)))
    assert {embedding.dtype, y.dtype, logits.dtype} == {np.dtype(dtype)}
    y = np.asarray(y)
    return {
        "xhat_mean": y.mean(dtype=np.float64),
        "xhat_std": y.std(dtype=np.float64),
        "xhat_first": y.reshape(-1)[:5],
        "emb_first8": embedding[0, :8],
        "logits": logits,
        "mse_raw": np.mean((y - x) ** 2),
    }


@pytest.mark.parametrize(("dtype", "tolerance"), [(np.float64, 1e-8), (np.float32, 1e-5)])
def test_outputs_are_those_of_the_golden_network(dtype, tolerance):
    with jax.enable_x64(dtype is np.float64):
        found = golden_outputs(dtype)
    for name, value in found.items():
        scale = 1 if dtype is np.float64 else max(1, np.abs(NET[name]).max())
        np.testing.assert_allclose(value, NET[name], rtol=0, atol=tolerance * scale, err_msg=name)


def test_parameters_are_counted_as_by_hand():
    body, top = golden_weights()
    count = {k: sum(leaf.size for leaf in jax.tree.leaves(tree)) for k, tree in body["params"].items()}
    assert count["norm"] == 256 and count["over_frames_2"] == 74_912 and count["over_bins_0"] == 21_088
    assert sum(count.values()) == 288_256
    assert sum(count.values()) + sum(leaf.size for leaf in jax.tree.leaves(top)) == 289_030


def test_weights_start_as_those_of_pytorch():
    """Glorot's uniform for queries, keys and values as one matrix, else uniform up to 1 / sqrt(inputs)."""
    init = quick_jit(lambda key: models.DualPathTransformer(blocks=1).init(key, jnp.zeros((1, 64, 128)), False))
    layer = init(jax.random.key(0))["params"]["over_frames_0"]
    bounds = {"qkv": (6 / (128 + 3 * 128)) ** 0.5, "out": 128**-0.5, "expand": 128**-0.5, "project": 32**-0.5}
    for name, bound in bounds.items():
        kernel = np.asarray(layer[name]["kernel"])
        assert 0.98 * bound < np.abs(kernel).max() <= bound
        assert np.std(kernel) == pytest.approx(bound / 3**0.5, rel=0.02)
    assert not layer["qkv"]["bias"].any() and not layer["out"]["bias"].any()
    for name, most in (("expand", 128**-0.5), ("project", 32**-0.5)):
        assert 0.8 * most < np.abs(layer[name]["bias"]).max() <= most


def variables(net=SMALL, seed=0):
    """Random float64 variables of a network for units (L, F)."""
    rng = np.random.default_rng(seed)
    shapes = shapes_of(net, L, F)
    made = jax.tree.map(lambda leaf: rng.normal(scale=0.5, size=leaf.shape), shapes)
    made["batch_stats"] = jax.tree.map(np.exp, made["batch_stats"])  # variances are positive
    return made


def peer_of(made):
    """The same network in PyTorch."""
    pytest.importorskip("torch")
    peer = importlib.import_module("benchmarks.peers.dual_path")
    net = peer.DualPathTransformer(L, F, SMALL.blocks, SMALL.heads, SMALL.feedforward).double()
    peer.fill(net, made["params"], made["batch_stats"])
    return peer, net


@pytest.mark.parametrize("train", [True, False])
def test_values_and_gradients_are_those_of_pytorch(train):
    """Of a masked batch in float64, and the running statistics after it."""
    made = variables()
    peer, net = peer_of(made)
    import torch

    rng = np.random.default_rng(1)
    x = rng.normal(-40, 15, (5, L, F))
    mask = np.where(rng.random(x.shape) < 0.2, 2.2e-16, 1.0)
    weights = [rng.normal(size=shape) for shape in ((5, F), x.shape, x.shape)]

    def value(params):
        out, stats = SMALL.apply({**made, "params": params}, x, train=train, mask=mask, mutable=["batch_stats"])
        return sum(jnp.vdot(o, w) for o, w in zip(out, weights, strict=True)), (out, stats["batch_stats"])

    with jax.enable_x64(True):
        value_and_grad = quick_jit(jax.value_and_grad(value, has_aux=True))
        (_, (out, stats)), grads = jax.device_get(value_and_grad(made["params"]))
    theirs = net.train(train)(torch.tensor(x), torch.tensor(mask))
    sum((o * torch.tensor(w)).sum() for o, w in zip(theirs, weights, strict=True)).backward()
    for ours, their in zip(out, theirs, strict=True):
        np.testing.assert_allclose(ours, their.detach().numpy(), rtol=0, atol=1e-10 * float(their.detach().abs().max()))
    scale = max(np.abs(leaf).max() for leaf in jax.tree.leaves(grads))
    pairs = peer.weights(net, grads)
    assert len(pairs) == sum(1 for _ in net.parameters())
    for parameter, gradient in pairs:
        np.testing.assert_allclose(gradient, parameter.grad.numpy(), rtol=0, atol=1e-10 * scale)
    np.testing.assert_allclose(stats["norm"]["mean"], net.norm.running_mean.numpy(), rtol=1e-10)
    old, n = made["batch_stats"]["norm"]["var"], 5 * L  # PyTorch's batch variance is n / (n - 1) of ours
    expected = net.norm.running_var.numpy()
    expected = 0.9 * old + (expected - 0.9 * old) * (n - 1) / n if train else expected
    np.testing.assert_allclose(stats["norm"]["var"], expected, rtol=1e-10)


def test_bfloat16_computes_products_in_it_and_keeps_float32():
    made = jax.tree.map(np.float32, variables())
    x = np.float32(np.random.default_rng(1).normal(-40, 15, (8, L, F)))
    half = SMALL.clone(dtype="bfloat16")
    traced = str(jax.make_jaxpr(lambda v, x: half.apply(v, x, train=False))(made, x))
    assert "bf16" in traced
    narrow = [line for line in traced.splitlines() if ":bf16" in line]
    assert not [line for line in narrow if any(f" {op} " in line for op in ("exp", "rsqrt", "div", "reduce_sum"))]
    found = quick_jit(lambda v, x: half.apply(v, x, train=False))(made, x)
    expected = quick_jit(lambda v, x: SMALL.apply(v, x, train=False))(made, x)
    assert {leaf.dtype for leaf in found} == {np.dtype("float32")}
    error = np.linalg.norm(found[1] - expected[1]) / np.linalg.norm(expected[1])
    assert 1e-4 < error < 0.03
    np.testing.assert_array_equal(found[2], expected[2])  # before any product


def test_sizes_and_types_that_cannot_be_are_refused():
    with pytest.raises(UsageError, match=r"heads=4 must divide the 6 frames of a unit \(cut\.width\) and its 16 bins"):
        shapes_of(SMALL.clone(heads=4), L, F)
    with pytest.raises(UsageError, match="'float16'; there is: float32, bfloat16"):
        shapes_of(SMALL.clone(dtype="float16"), L, F)


# --- the mask --------------------------------------------------------------------------------------------------------


def test_the_mask_is_that_of_the_golden_file():
    shape, starts = tuple(MASK["shape"]), MASK["starts"]
    with jax.enable_x64(True):
        mask = np.asarray(patch_mask(jnp.array(starts), shape, MASK["mask_size"]))
    by_hand = np.ones(shape)
    for row, column in starts:
        by_hand[row : row + 5, column : column + 5] = MASK["fill"]
    np.testing.assert_array_equal(mask, by_hand)
    assert (mask < 1).sum() == MASK["n_masked"] and mask.sum() == MASK["sum"]


def test_masks_are_each_examples_own_and_start_anywhere():
    """Single cells: their places are uniform; patches of five: the mean area is (5 - 10 / 64)(5 - 10 / 128)."""
    x = jnp.zeros((4096, 8, 4))
    cells = np.asarray(random_mask(jax.random.key(0), x, 1, 1)) < 1
    assert (cells.sum((1, 2)) == 1).all()
    assert 4096 / 32 == 128 and np.abs(cells.sum(0) - 128).max() < 5 * 128**0.5  # binomial: 11.1 by place
    patches = random_mask(jax.random.key(1), jnp.zeros((512, 64, 128)), 1, 5) < 1
    area = patches.sum((1, 2))
    assert int(area.max()) == 25 and float(area.mean()) == pytest.approx(23.84, abs=0.7)  # spread of one: 3.3


# --- the system ------------------------------------------------------------------------------------------------------


def parts(**changes):
    """Of a bank of features (L, F), so that a clip is a unit."""
    cut = frontends.cut(width=L, hop=L, at="frames")
    made = Parts((), lambda x: x, cut, (), SMALL, heads.Linear(C), optax.sgd(1.0))
    return made._replace(**changes)


def batch(n=6, seed=2):
    rng = np.random.default_rng(seed)
    label = {"class": rng.dirichlet(np.ones(C), n), "target": np.zeros(n)}
    return {"features": rng.normal(-4, 3, (n, L, F)), "label": label}


@pytest.mark.parametrize("target", ["normalised", "raw"])
def test_an_update_is_that_of_pytorch(target):
    """Loss, metrics and, by a step of sgd, the gradients of all weights in float64; a detached target gives none."""
    made, data = variables(), batch()
    peer, net = peer_of(made)
    import torch

    rng = np.random.default_rng(3)
    kernel, bias = rng.normal(size=(F, C)), rng.normal(size=C)
    top = torch.nn.Linear(F, C).double()
    with torch.no_grad():
        top.weight.copy_(torch.tensor(kernel.T))
        top.bias.copy_(torch.tensor(bias))

    made_parts = parts()
    system = systems.dual_path(made_parts, masks=0, target=target, reconstruction_weight=0.3, classification_weight=2.0)
    with jax.enable_x64(True):
        params = {"backbone": made["params"], "head": {"Dense_0": {"kernel": kernel, "bias": bias}}}
        stats = {"backbone": {"batch_stats": made["batch_stats"]}, "head": {"classes": {"known": np.ones(C)}}}
        state = TrainState(jnp.zeros((), jnp.int32), params, stats, made_parts.tx.init(params))
        after, metrics = jax.device_get(quick_jit(system.update)(state, jax.random.key(0), data))
    assert int(after.step) == 1

    x, label = torch.tensor(data["features"]), torch.tensor(data["label"]["class"])
    embedding, reconstruction, normalised = net.train()(x)
    mse = (reconstruction - (x if target == "raw" else normalised.detach())).square().mean()
    logits = top(embedding)
    loss = 2.0 * torch.nn.functional.cross_entropy(logits, label) + 0.3 * mse
    loss.backward()
    parameters = [*net.parameters(), *top.parameters()]
    unit = torch.nn.functional.normalize(embedding)
    expected = {
        "loss": loss,
        "mse": mse,
        "gradient_norm": sum(p.grad.square().sum() for p in parameters) ** 0.5,
        "accuracy": (logits.argmax(1) == label.argmax(1)).double().mean(),
        "embedding_cosine": ((unit @ unit.T).sum() - 6) / 30,
    }
    assert metrics.keys() == expected.keys()
    for name, value in expected.items():
        np.testing.assert_allclose(metrics[name], value.detach().numpy(), rtol=1e-9, err_msg=name)
    scale = max(float(p.grad.abs().max()) for p in parameters)
    for (parameter, moved), (_, start) in zip(
        peer.weights(net, after.params["backbone"]), peer.weights(net, made["params"]), strict=True
    ):
        np.testing.assert_allclose(start - moved, parameter.grad.numpy(), rtol=0, atol=1e-9 * scale)
    moved = after.params["head"]["Dense_0"]["kernel"]
    np.testing.assert_allclose((kernel - moved).T, top.weight.grad.numpy(), rtol=0, atol=1e-9 * scale)


def test_embed_gives_the_error_of_each_unit_against_either_target():
    """By hand from the network's outputs, nothing masked; two units a clip."""
    wave = np.float32(np.random.default_rng(4).normal(-4, 3, (3, 2 * L, F)))
    body, found = jax.tree.map(np.float32, variables()), {}
    for target in ("normalised", "raw"):
        system = systems.dual_path(parts(), target=target)
        state = quick_jit(system.init)(jax.random.key(0), jax.tree.map(np.float32, batch()))
        params = {**state.params, "backbone": body["params"]}
        stats = {**state.stats, "backbone": {"batch_stats": body["batch_stats"]}}
        found[target] = quick_jit(system.embed)(state.replace(params=params, stats=stats), wave)
    embedding, y, normalised = quick_jit(lambda v, x: SMALL.apply(v, x, train=False))(body, wave.reshape(6, L, F))
    for target, wanted in {"normalised": normalised, "raw": wave.reshape(6, L, F)}.items():
        e = found[target]
        assert {k: v.shape for k, v in e.items()} == {"embedding": (3, 2, F), "logits": (3, 2, C), "mse": (3, 2, 1)}
        by_hand = (np.asarray(y, np.float64) - np.asarray(wanted, np.float64)) ** 2
        np.testing.assert_allclose(e["mse"].reshape(6), by_hand.mean((1, 2)), rtol=1e-5)
        np.testing.assert_allclose(e["embedding"].reshape(6, F), embedding, rtol=1e-4, atol=1e-5)
    dense = params["head"]["Dense_0"]
    logits = np.asarray(embedding) @ np.asarray(dense["kernel"]) + np.asarray(dense["bias"])
    np.testing.assert_allclose(e["logits"].reshape(6, C), logits, rtol=1e-4, atol=1e-5)
    assert not np.allclose(found["raw"]["mse"], found["normalised"]["mse"], rtol=0.1)


def test_units_are_masked_in_training_only():
    """Two keys mask two things; without masks the key says nothing. embed has no key, and is checked above."""
    data = jax.tree.map(np.float32, batch())
    losses, small = {}, parts(backbone=SMALL.clone(blocks=1))
    for masks in (0, 3):
        system = systems.dual_path(small, masks=masks, mask_size=2)
        state = quick_jit(system.init)(jax.random.key(0), data)
        mse = quick_jit(lambda state, key, system=system: system.update(state, key, data)[1]["mse"])
        losses[masks] = [float(mse(state, jax.random.key(i))) for i in range(2)]
    assert losses[0][0] == losses[0][1]
    assert len({losses[0][0], *losses[3]}) == 3


def config(**changes):
    made = {
        "system": {"name": "dual_path", "mask_size": 2},
        "backbone": {"name": "DualPathTransformer", "blocks": 1, "heads": 4, "feedforward": 8},
        "head": {"name": "Linear"},
        "optim": {"name": "adam", "lr": 1e-2, "schedule": "constant"},
    }
    return tiny.config(**{**made, **changes})


def test_it_learns_to_reconstruct_and_to_tell_apart():
    """From units of waves, with mixup of the waves and of their features; scores are of running statistics."""
    store = tiny.tones(n=32)
    cut = {"name": "cut", "width": 960, "hop": 960, "at": "wave"}  # 16 frames
    system = train.make(config(cut=cut, feature_ops=({"name": "mixup", "p": 0.5},)), n_classes=4)
    data = store.batch(np.arange(32), np.arange(32))
    data = {**data, "label": {**data["label"], "target": np.zeros(32, np.float32)}}
    state, history = quick_jit(system.init)(jax.random.key(0), data), []
    update = quick_jit(system.update)
    for step in range(80):
        state, metrics = update(state, jax.random.key(step), data)
        history.append({k: float(v) for k, v in metrics.items()})
    assert update._cache_size() == 1
    first, last = ({k: np.mean([m[k] for m in some]) for k in metrics} for some in (history[:6], history[-6:]))
    assert last["loss"] < 0.7 * first["loss"] and last["mse"] < 0.95 * first["mse"]
    e = quick_jit(system.embed)(state, data["wave"])
    assert e["logits"].shape == (32, 4, 4) and e["mse"].shape == (32, 4, 1)
    right = e["logits"].mean(1).argmax(1) == data["label"]["class"].argmax(1)
    assert right.mean() > 0.9


def test_what_it_cannot_use_is_refused():
    for missing in ("cut", "backbone", "head", "tx"):
        with pytest.raises(UsageError, match=r"config\.cut, config\.backbone, config\.head and config\.optim"):
            systems.dual_path(parts(**{missing: None}))
    with pytest.raises(UsageError, match=r"needs config\.backbone DualPathTransformer, not MobileNetV2"):
        systems.dual_path(parts(backbone=models.MobileNetV2()))
    with pytest.raises(UsageError, match="'bn'; there is: normalised, raw"):
        systems.dual_path(parts(), target="bn")
    for wrong in ({"masks": -1}, {"mask_size": 0}):
        with pytest.raises(UsageError, match=r"system\.masks=.* must be 0 at least"):
            systems.dual_path(parts(), **wrong)


def test_update_and_embedding_lower_for_tpu():
    system = train.make(config(), n_classes=4)
    wave = jax.ShapeDtypeStruct((8, tiny.SR), np.float32)
    label = {"class": jax.ShapeDtypeStruct((8, 4), np.float32), "target": jax.ShapeDtypeStruct((8,), np.float32)}
    data = {"wave": wave, "label": label}
    state = jax.eval_shape(system.init, jax.random.key(0), data)

    def update(state, seed, data):
        return system.update(state, jax.random.key(seed), data)

    seed = jax.ShapeDtypeStruct((), np.uint32)
    for function, args in ((update, (state, seed, data)), (system.embed, (state, wave))):
        exported = jax.export.export(jax.jit(function), platforms=["tpu"])(*args)
        assert exported.platforms == ("tpu",) and "stablehlo.dot_general" in exported.mlir_module()
