"""The official autoencoder baseline: network, features, scores, and how it is trained, against its own numbers."""

import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from asdjax import frontends, models, systems
from asdjax.core import Parts, TrainState, UsageError

GOLDEN = Path(__file__).parent / "golden"
WIDTHS = (128, 128, 128, 128, 8, 128, 128, 128, 128)


def rule(k, shape, scale, offset=0.0):
    """The values of golden/autoencoder.json."""
    i = np.arange(np.prod(shape))
    return (offset + scale * np.sin(0.7 * i + 1.3 * k + 0.01 * i * i % 7)).reshape(shape)


def filled() -> tuple[dict, dict]:
    """Parameters and batch statistics of the network by the rule."""
    params, stats, k, inputs = {}, {}, 0, 640
    for i, width in enumerate((*WIDTHS, 640)):
        params[f"Dense_{i}"] = {
            "kernel": rule(k, (width, inputs), (6 / inputs) ** 0.5).T,
            "bias": rule(k + 1, width, 0.2),
        }
        k, inputs = k + 2, width
        if i < len(WIDTHS):
            params[f"BatchNorm_{i}"] = {"scale": rule(k, width, 0.3, 1.0), "bias": rule(k + 1, width, 0.3)}
            stats[f"BatchNorm_{i}"] = {"mean": rule(k + 2, width, 0.3), "var": rule(k + 3, width, 0.3, 1.0)}
            k += 4
    return params, stats


@pytest.fixture(scope="module")
def golden():
    return json.loads((GOLDEN / "autoencoder.json").read_text())


def test_the_network_is_that_of_pytorch(golden):
    """Values, gradients and running statistics, in float64."""
    net = models.Autoencoder()
    with jax.enable_x64(True):
        params, stats = filled()
        x = jnp.asarray(rule(100, (12, 640), 20.0, -30.0)).reshape(12, 5, 128)
        y = net.apply({"params": params, "batch_stats": stats}, x, train=False)
        np.testing.assert_allclose(y.reshape(12, -1)[:, ::64], golden["eval"], rtol=1e-9)

        def loss(params):
            y, new = net.apply({"params": params, "batch_stats": stats}, x, train=True, mutable=["batch_stats"])
            return jnp.mean((y - x) ** 2), (y, new["batch_stats"])

        (value, (y, new)), grads = jax.jit(jax.value_and_grad(loss, has_aux=True))(params)
        np.testing.assert_allclose(y.reshape(12, -1)[:, ::64], golden["train"], rtol=1e-9)
        np.testing.assert_allclose(value, golden["loss"], rtol=1e-9)
        np.testing.assert_allclose(grads["Dense_9"]["bias"][::64], golden["grad_last_bias"], rtol=1e-9)
        first = np.asarray(golden["grad_first_weight"])
        np.testing.assert_allclose(
            grads["Dense_0"]["kernel"].T[::16, ::80], first, rtol=0, atol=1e-9 * np.abs(first).max()
        )
        np.testing.assert_allclose(new["BatchNorm_0"]["mean"][::16], golden["running_mean"], rtol=1e-9)
        before = stats["BatchNorm_0"]["var"][::16]  # PyTorch's batch variance is n / (n - 1) of ours
        expected = 0.99 * before + (np.asarray(golden["running_var"]) - 0.99 * before) * 11 / 12
        np.testing.assert_allclose(new["BatchNorm_0"]["var"][::16], expected, rtol=1e-9)


def test_updates_are_those_of_pytorch(golden):
    """Six steps of Adam on one batch, from the rule's weights, in float64."""
    import optax

    made = parts(backbone=models.Autoencoder(), tx=optax.adam(1e-3))
    with jax.enable_x64(True):
        params, stats = filled()
        state = TrainState(jnp.zeros((), jnp.int32), params, {"batch_stats": stats}, made.tx.init(params))
        x = jnp.asarray(rule(100, (12, 640), 20.0, -30.0)).reshape(12, 5, 128)
        update, losses = jax.jit(systems.reconstruct(made).update), []
        for _ in golden["adam_losses"]:
            state, metrics = update(state, jax.random.key(0), {"features": x, "label": {}})
            losses.append(metrics["loss"])
        np.testing.assert_allclose(losses, golden["adam_losses"], rtol=1e-6)  # Adam divides by roots of tiny squares


def test_parameters_are_counted_as_published(golden):
    variables = jax.eval_shape(
        lambda key: models.Autoencoder().init(key, jnp.zeros((2, 5, 128)), False), jax.random.key(0)
    )
    n = sum(np.prod(leaf.shape) for leaf in jax.tree.leaves(variables["params"]))
    assert n == golden["parameters"] == 267_928


def test_weights_start_as_those_of_pytorch():
    """Uniform up to 1 / sqrt(inputs), biases alike."""
    variables = models.Autoencoder().init(jax.random.key(0), jnp.zeros((2, 5, 128)), False)
    first = variables["params"]["Dense_0"]
    bound = 640**-0.5
    for leaf in (first["kernel"], first["bias"]):
        assert 0.9 * bound < np.abs(leaf).max() <= bound
    assert np.std(first["kernel"]) == pytest.approx(bound / 3**0.5, rel=0.01)
    assert np.std(first["bias"]) == pytest.approx(bound / 3**0.5, rel=0.15)


def test_features_are_those_of_the_official_code():
    with np.load(GOLDEN / "baseline_ae.npz") as stored:
        wave = stored["wave"][None].astype(np.float32) / 32768
        x = np.asarray(frontends.log_mel()(wave))[0]
        np.testing.assert_allclose(x[:24], stored["logmel"], rtol=0, atol=1e-3)  # float32; 1e-4 in float64, below
        with jax.enable_x64(True):
            x = np.asarray(frontends.log_mel()(wave.astype(np.float64)))
            np.testing.assert_allclose(x[0, :24], stored["logmel"], rtol=0, atol=1e-4)
            vectors = frontends.cut(width=5, hop=1).units(jnp.asarray(x))
            np.testing.assert_allclose(vectors[0, 0].reshape(-1), stored["vector"], rtol=0, atol=1e-4)


def parts(**changes):
    cut = frontends.cut(width=5, hop=1)
    frontend = frontends.log_mel(sample_rate=4000, win=128, hop=64, n_mels=8)
    made = Parts((), frontend, cut, (), models.Autoencoder(widths=(16, 4, 16)), None, None)
    return made._replace(**changes)


def test_embed_is_the_error_of_every_vector():
    """By hand, clip by clip, from the reconstruction of its vectors."""
    import optax

    made = parts(tx=optax.adam(1e-3))
    system = systems.reconstruct(made)
    wave = np.random.default_rng(0).standard_normal((3, 2000)).astype(np.float32)
    units = np.asarray(made.cut.units(made.frontend(wave)))
    state = system.init(jax.random.key(0), {"features": units[:, 0], "label": {}})
    out = jax.jit(system.embed)(state, wave)
    for clip in range(3):
        y = made.backbone.apply({"params": state.params, **state.stats}, units[clip], train=False)
        error = np.asarray(y, np.float64) - units[clip]
        rows = error.reshape(-1, 8)
        np.testing.assert_allclose(out["score"][clip, 0, 0], (error**2).mean(), rtol=1e-5)
        np.testing.assert_allclose(out["residual"][clip, 0], rows.mean(0), rtol=1e-4, atol=1e-4)
        np.testing.assert_allclose(out["scatter"][clip, 0], rows.T @ rows / len(rows), rtol=1e-4)
        assert (out["vectors"][clip], out["rows"][clip]) == (len(error), len(rows))


def test_it_refuses_what_it_cannot_use():
    import optax

    with pytest.raises(UsageError, match=r"config\.optim"):
        systems.reconstruct(parts())
    with pytest.raises(UsageError, match=r"no use for config\.head"):
        systems.reconstruct(parts(tx=optax.adam(1e-3), head=object()))
    system = systems.reconstruct(parts(tx=optax.adam(1e-3)))
    with pytest.raises(UsageError, match=r"config\.data\.bank='features'"):
        system.init(jax.random.key(0), {"wave": jnp.zeros((2, 2000)), "label": {}})
