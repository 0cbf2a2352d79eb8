import math

import jax
import jax.numpy as jnp
import numpy as np
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


def test_unknown_schedule():
    with pytest.raises(UsageError, match="constant, cosine"):
        optim.adam(steps=3, schedule="linear")


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
