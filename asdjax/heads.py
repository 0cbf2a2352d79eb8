"""Heads: Linen modules from embedding and label to a loss per example and the logits that scores use.

`__call__(embedding (B, D), label, train) -> loss (B,), logits (B, C)`. The label is a dict whose 'class' (B, C) may be
soft (mixed) or all zero (no label: no loss, no gradient), or None at test time, where the loss is 0. Heads compute in
float32 (float64 where x64 is on) whatever the backbone computes in.
"""

from __future__ import annotations

from functools import partial

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax import lax

from asdjax import losses
from asdjax.core import UsageError

FULL = lax.Precision.HIGHEST  # products in bfloat16 or TF32 would move cosines by 1e-3
NEVER = -1e9  # the logit of a class that there is not: no probability, no gradient


class Linear(nn.Module):
    """A linear classifier.

    Attributes:
        n_classes: C.
        loss: 'softmax', the cross-entropy; 'focal', which weighs sure examples less (Lin et al. 2017); or 'bce', that
            of a sigmoid for each class, for labels of any number of classes, see losses.bce.
        gamma: of 'focal', see losses.focal.
        kernel_init: of the weights, 'lecun_normal' (Flax) or 'glorot_uniform' (Keras).
    """

    n_classes: int
    loss: str = "softmax"
    gamma: float = 2.0
    kernel_init: str = "lecun_normal"

    @nn.compact
    def __call__(self, embedding: jax.Array, label: dict | None, train: bool) -> tuple[jax.Array, jax.Array]:
        """embedding (B, D), label['class'] (B, C) -> loss (B,), logits (B, C)."""
        if self.loss not in ("softmax", "focal", "bce"):
            raise UsageError(f"Linear: loss is {self.loss!r}; there is: softmax, focal, bce")
        if self.kernel_init not in ("lecun_normal", "glorot_uniform"):
            raise UsageError(f"Linear: kernel_init is {self.kernel_init!r}; there is: lecun_normal, glorot_uniform")
        init = getattr(nn.initializers, self.kernel_init)()
        logits = nn.Dense(self.n_classes, precision=FULL, kernel_init=init)(losses.full_precision(embedding))
        known = known_classes(self, self.n_classes)
        logits, label = jnp.where(known > 0, logits, NEVER), class_label(label, logits)
        if self.loss == "bce":
            return losses.bce(logits, label, known=known), logits
        loss = losses.softmax if self.loss == "softmax" else partial(losses.focal, gamma=self.gamma)
        return loss(logits, label), logits


class ArcFace(nn.Module):
    """Classes as directions, with an angular margin in training (Deng et al. 2019, 'ArcFace').

    Attributes:
        n_classes: C, at least 2.
        s: scale. The reports do not state it; the range in use is 30 to 64.
        margin: in radians.
        mode: 'th_mm', 'easy' or 'plain', see losses.arcface.
        gradient: 'analytic' or 'straight_through', see losses.arcface.
    """

    n_classes: int
    s: float = 30.0
    margin: float = 0.5
    mode: str = "th_mm"
    gradient: str = "analytic"

    @nn.compact
    def __call__(self, embedding: jax.Array, label: dict | None, train: bool) -> tuple[jax.Array, jax.Array]:
        """embedding (B, D), label['class'] (B, C) -> loss (B,), logits (B, C) = s * cosine, without margin."""
        if self.n_classes < 2:
            raise UsageError(f"ArcFace: {self.n_classes} classes; it needs 2 at least")
        embedding = losses.full_precision(embedding)
        weight = self.param("kernel", nn.initializers.xavier_uniform(), (self.n_classes, embedding.shape[-1]))
        cosine = jnp.matmul(unit(embedding), unit(losses.full_precision(weight)).T, precision=FULL)
        every = jnp.ones_like(cosine)  # any class may be a target
        turned = losses.arcface(cosine, every, s=self.s, margin=self.margin, mode=self.mode, gradient=self.gradient)
        logits = jnp.where(known_classes(self, self.n_classes) > 0, self.s * cosine, NEVER)
        return losses.margin_softmax(logits, turned, class_label(label, logits)), logits


def unit(x: jax.Array) -> jax.Array:
    """x (..., D) scaled to length 1; a zero vector stays zero, with a finite gradient."""
    return x * lax.rsqrt(jnp.maximum(jnp.sum(jnp.square(x), -1, keepdims=True), 1e-12))


def known_classes(head: nn.Module, n_classes: int) -> jax.Array:
    """(C,), 1 for each class, 0 for those that only pad a smaller head to the size of others (see chunks.stack).

    The variable that tells them apart is 1 for each class at the start, and padding fills with zeros.
    """
    every = jnp.ones(n_classes)
    if head.is_initializing():
        head.put_variable("classes", "known", every)
    return head.get_variable("classes", "known", every)


def class_label(label: dict | None, logits: jax.Array) -> jax.Array:
    """label['class'] (B, C), or "no such label" for every example where there is no label."""
    return jnp.zeros_like(logits) if label is None else label["class"]
