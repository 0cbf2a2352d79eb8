import math

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from asdjax import optim
from asdjax.core import UsageError


def test_cosine_by_hand():
    rate = optim.learning_rate(steps=110, lr=2.0, schedule="cosine", end=0.5, warmup=10)
    assert float(rate(5)) == pytest.approx(1.0)  # half way up
    assert float(rate(10)) == pytest.approx(2.0)
    assert float(rate(60)) == pytest.approx(0.5 + 1.5 * 0.5)  # half way down
    assert float(rate(35)) == pytest.approx(0.5 + 1.5 * 0.5 * (1 + math.cos(math.pi / 4)))
    assert float(rate(110)) == pytest.approx(0.5)
    assert float(rate(500)) == pytest.approx(0.5)


def test_exponential_by_hand():
    """From 8 at the first of seven steps to 1/8 at the last: halved at each; then it stays."""
    rate = optim.learning_rate(steps=7, lr=8.0, schedule="exponential", end=0.125, warmup=0)
    found = [float(rate(step)) for step in range(9)]
    np.testing.assert_allclose(found, [8, 4, 2, 1, 0.5, 0.25, 0.125, 0.125, 0.125], rtol=1e-6)
    rate = optim.learning_rate(steps=9, lr=8.0, schedule="exponential", end=0.125, warmup=2)
    found = [float(rate(step)) for step in range(10)]
    np.testing.assert_allclose(found, [0, 4, 8, 4, 2, 1, 0.5, 0.25, 0.125, 0.125], rtol=1e-6)


@pytest.mark.parametrize("wrong", [{"end": 0.0}, {"end": 2e-3}, {"end": 1e-4, "schedule": "linear"}, {"clip": -1.0}])
def test_refused(wrong):
    with pytest.raises(
        UsageError, match=r"expected end above 0, at most lr|constant, cosine, exponential|clip=-1\.0; expected a norm"
    ):
        optim.adam(steps=3, **{"schedule": "exponential", "end": 1e-4, **wrong})


@pytest.mark.parametrize(
    ("tx", "first"),
    [
        # Adam's first step is lr * g / (|g| + eps) whatever the gradient; decay adds lr * wd * w; Nesterov (1 + m) * g
        (optim.adam(steps=10, lr=0.1, schedule="constant"), -0.1),
        (optim.adamw(steps=10, lr=0.1, schedule="constant", weight_decay=0.5), -0.1 - 0.1 * 0.5 * 3.0),
        (optim.sgd(steps=10, lr=0.1, schedule="constant", momentum=0.9), -0.1 * 1.9 * 2.0),
    ],
)
def test_first_step_by_hand(tx, first):
    with jax.enable_x64(True):  # in float32 Adam's bias correction by 1 - 0.999 costs three digits
        params = {"w": jnp.array(3.0)}
        updates, _ = tx.update({"w": jnp.array(2.0)}, tx.init(params), params)
        np.testing.assert_allclose(updates["w"], first, rtol=1e-7)


@pytest.mark.parametrize("clip, scaled", [(1.0, [0.6, 0.8]), (5.0, [3.0, 4.0]), (0.0, [3.0, 4.0])])
def test_clipping_by_hand(clip, scaled):
    """A gradient (3, 4) of two parameters has norm 5; with eps = 1 Adam's first step is -lr * g / (|g| + 1)."""
    with jax.enable_x64(True):
        tx = optim.adam(steps=10, lr=0.1, schedule="constant", eps=1.0, clip=clip)
        params = {"a": jnp.array(1.0), "b": jnp.array([1.0])}
        updates, _ = tx.update({"a": jnp.array(3.0), "b": jnp.array([4.0])}, tx.init(params), params)
    found = [float(updates["a"]), float(updates["b"][0])]
    np.testing.assert_allclose(found, [-0.1 * g / (g + 1) for g in scaled], rtol=1e-7)


@pytest.mark.parametrize("name", ["adam", "adamw"])
def test_a_state_without_clipping_is_that_of_optax(name):
    """Checkpoints of before `clip` must load."""
    params = {"w": jnp.zeros(3)}
    plain = getattr(optax, name)(optax.constant_schedule(1e-3)).init(params)
    found = getattr(optim, name)(steps=4, schedule="constant").init(params)
    assert jax.tree.structure(found) == jax.tree.structure(plain)
    clipped = getattr(optim, name)(steps=4, schedule="constant", clip=0.5).init(params)
    assert jax.tree.leaves(jax.tree.map(jnp.shape, clipped)) == jax.tree.leaves(jax.tree.map(jnp.shape, plain))


def test_clipped_adamw_with_falling_rate_equals_pytorch():
    """Eight steps; half of the gradients are far above the norm that is allowed."""
    torch = pytest.importorskip("torch")
    rng = np.random.default_rng(0)
    start = {"w": rng.standard_normal((4, 3)), "b": rng.standard_normal(3)}
    grads = [{k: rng.standard_normal(v.shape) * (50, 0.05)[i % 2] for k, v in start.items()} for i in range(8)]

    theirs = {k: torch.nn.Parameter(torch.tensor(v)) for k, v in start.items()}
    optimizer = torch.optim.AdamW(theirs.values(), lr=1e-2, weight_decay=0.1)
    schedule = torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.01 ** (1 / 7))
    for each in grads:
        for k, parameter in theirs.items():
            parameter.grad = torch.tensor(each[k])
        torch.nn.utils.clip_grad_norm_(theirs.values(), 0.5)
        optimizer.step()
        schedule.step()

    with jax.enable_x64(True):
        tx = optim.adamw(steps=8, lr=1e-2, schedule="exponential", end=1e-4, weight_decay=0.1, clip=0.5)
        ours = jax.tree.map(jnp.asarray, start)
        state = tx.init(ours)
        for each in grads:
            updates, state = tx.update(jax.tree.map(jnp.asarray, each), state, ours)
            ours = optax.apply_updates(ours, updates)
    for k, value in ours.items():
        moved = np.abs(start[k] - theirs[k].detach().numpy()).min()
        assert moved > 1e-4  # a thousand times what is tolerated
        np.testing.assert_allclose(value, theirs[k].detach().numpy(), rtol=0, atol=1e-7)
