"""The autoencoder of the official DCASE Task 2 baselines, 2020 to 2026."""

from __future__ import annotations

import jax
from flax import linen as nn

from asdjax.losses import full_precision
from asdjax.models.layers import BatchNorm, relu

# PyTorch's default for linear layers, weights and biases alike: uniform up to 1 / sqrt(inputs).
KERNEL_INIT = nn.initializers.variance_scaling(1 / 3, "fan_in", "uniform")


def bias_init(inputs: int):
    """Initialiser of the biases of a layer with so many inputs."""
    return lambda key, shape, dtype: jax.random.uniform(key, shape, dtype, -1, 1) * inputs**-0.5


class Autoencoder(nn.Module):
    """Vectors of a few frames -> their reconstruction, through a narrow layer (267,928 parameters for 5 x 128).

    Dense layers, each but the last followed by batch normalisation (momentum 0.99, epsilon 1e-3) and ReLU, the narrow
    one too. The official PyTorch code of 2023 takes for its running variance that of the batch times n / (n - 1), which
    this does not: at its 256 vectors 0.4 % more.

    Attributes:
        widths: of the layers between input and output.
    """

    widths: tuple[int, ...] = (128, 128, 128, 128, 8, 128, 128, 128, 128)

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        """Reconstructs vectors.

        Args:
            x: (B, w, F), w consecutive frames, concatenated frame by frame.
            train: normalise by the batch, else by the running statistics.

        Returns:
            (B, w, F), float32 at least.
        """
        y = full_precision(x).reshape(len(x), -1)
        outputs = y.shape[1]
        for width in self.widths:
            y = self.dense(width, y)
            y = BatchNorm(relu, eps=1e-3, momentum=0.99)(y, train)
        return self.dense(outputs, y).reshape(x.shape)

    def dense(self, width: int, x: jax.Array) -> jax.Array:
        return nn.Dense(width, kernel_init=KERNEL_INIT, bias_init=bias_init(x.shape[1]))(x)
