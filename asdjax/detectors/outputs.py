"""Detectors that need no bank of clips: what the network itself says of a clip becomes its score.

Factories return core.Detector(fit, score) as those of detectors.device.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np

from asdjax.core import Detector, InputError, UsageError
from asdjax.detectors.device import by_clip, check, vectors

EPS = 2.220446049250313e-16  # the floor of the official baselines: the spacing of float64 at 1


def passthrough(*, key: str = "score") -> Detector:
    """A score that the network gives itself, averaged over the clip's units.

    Args:
        key: the entry of embed's dict, (N, U, 1).
    """

    def fit(e, is_target):
        if vectors(e, key, "each").shape[-1] != 1:
            raise UsageError(f"passthrough: {key!r} has shape {e[key].shape}; expected one number per unit")
        return {}

    @jax.jit
    def score(state, e):
        return by_clip(vectors(e, key, "each"), len(e[key]))

    return Detector(fit, score)


def log_softmax(*, form: str = "logit_2022", key: str = "logits") -> Detector:
    """How little the network believes a clip to be of its own section (the official MobileNetV2 baselines).

    With p the probability of the clip's own class, averaged over its units:
        logit_2022: log(1 - p) - log(p), the scores of the baseline of 2022.
        baseline_2021_typo: log((1 - p) - log(p)), as the baseline of 2021 has it, by a misplaced bracket.
        neglog: -log(p).
    Where a section has several classes, its attributes, p is that of the likeliest of them, unit by unit: the maximum
    softmax probability of Hendrycks and Gimpel (2017), among the classes of the section.
    1 - p and p are floored at EPS, and computed from how far the class is ahead of the others together, so that they
    keep their digits in float32.

    Args:
        form: see above.
        key: the entry of embed's dict, (N, U, C).

    Returns:
        Detector without state. Its functions raise InputError where a clip has no class of its own.
    """
    check("log_softmax", "form", form, ("logit_2022", "baseline_2021_typo", "neglog"))

    def fit(e, is_target):
        check_classes("log_softmax", e, key)
        return {}

    @jax.jit
    def of_units(logits, own_classes):
        logits, own = likeliest_own(logits, own_classes)
        rest = jax.nn.logsumexp(jnp.where(own, -jnp.inf, logits), axis=-1)
        ahead = jnp.sum(jnp.where(own, logits, 0), axis=-1) - rest
        log_p, log_rest = log_sigmoid_floored(ahead), log_sigmoid_floored(-ahead)
        if form == "baseline_2021_typo":
            return jnp.log(jnp.exp(log_rest) - log_p).mean(1)
        return (-log_p if form == "neglog" else log_rest - log_p).mean(1)

    def score(state, e):
        check_classes("log_softmax", e, key)
        return of_units(e[key], e["own_classes"])

    return Detector(fit, score)


def log_sigmoid(*, key: str = "logits") -> Detector:
    """-log(p), p the sigmoid of the logit of the clip's own class: of networks that detect several events at once.

    That is the log likelihood of the introduction of Zeng 2023, for a network trained with binary cross-entropy. Over
    units and classes as log_softmax does: p is that of the likeliest of a section's classes, unit by unit, and floored
    at EPS; the mean is over units.

    Args:
        key: the entry of embed's dict, (N, U, C).

    Returns:
        Detector without state. Its functions raise InputError where a clip has no class of its own.
    """

    def fit(e, is_target):
        check_classes("log_sigmoid", e, key)
        return {}

    @jax.jit
    def of_units(logits, own_classes):
        logits, own = likeliest_own(logits, own_classes)
        return -log_sigmoid_floored(jnp.sum(jnp.where(own, logits, 0), axis=-1)).mean(1)

    def score(state, e):
        check_classes("log_sigmoid", e, key)
        return of_units(e[key], e["own_classes"])

    return Detector(fit, score)


def check_classes(detector: str, e: dict, key: str) -> None:
    """Raises where the network gives no logits, or a clip has no class of its own."""
    if key not in e or "own_classes" not in e:
        raise UsageError(f"{detector}: needs {key!r} and own_classes; the network's outputs are {', '.join(e)}")
    if not np.asarray(e["own_classes"]).any(1).all():
        raise InputError(f"{detector}: {NO_CLASS}")


def likeliest_own(logits: jax.Array, own_classes: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Logits (N, U, C) in float32 at least, and which of them, in bool, is the largest of own_classes (N, C)."""
    logits = logits.astype(jnp.promote_types(logits.dtype, jnp.float32))
    # a class of its own of logit -inf is still likelier than those that are not
    allowed = jnp.where(own_classes[:, None], jnp.maximum(logits, jnp.finfo(logits.dtype).min), -jnp.inf)
    return logits, jax.nn.one_hot(allowed.argmax(-1), logits.shape[-1], dtype=bool)


def log_sigmoid_floored(x: jax.Array) -> jax.Array:
    """log(sigmoid(x)), at least log(EPS)."""
    return jnp.maximum(jax.nn.log_sigmoid(x), jnp.log(EPS))


NO_CLASS = (
    "no class for the machine and section of some clips; expected classes (data.label other than 'none'), "
    "and training clips of every section that is scored, else data.group_by='all' with data.label='machine'"
)


def log_softmax_mse(
    *, weight: float = 1.0, form: str = "logit_2022", key: str = "logits", error: str = "mse"
) -> Detector:
    """`log_softmax` plus how badly the network reconstructs the clip (Bai 2022, Table 2, 'log-softmax & MSE').

    Args:
        weight: of the reconstruction error, which is averaged over the clip's units.
        form: see log_softmax.
        key: see log_softmax.
        error: the entry of embed's dict, (N, U, 1).

    Returns:
        Detector without state. It raises as log_softmax does, and UsageError where the network reconstructs nothing.

    Raises:
        UsageError: weight is negative or not finite.
    """
    if not 0 <= weight < np.inf:
        raise UsageError(f"log_softmax_mse: weight={weight}; expected a finite number, at least 0")
    belief, reconstruction = log_softmax(form=form, key=key), passthrough(key=error)

    def fit(e, is_target):
        if error not in e:
            raise UsageError(
                f"log_softmax_mse: the network's outputs are {', '.join(e)}; expected {error!r}, its reconstruction "
                "error, as that of the system dual_path gives"
            )
        return belief.fit(e, is_target) | reconstruction.fit(e, is_target)

    def score(state, e):
        return belief.score(state, e) + weight * reconstruction.score(state, e)

    return Detector(fit, score)


def selective_mahalanobis(*, form: str = "official") -> Detector:
    """Mahalanobis norm of the reconstruction error by the covariance of either domain, the smaller one (Harada 2023).

    Rows are the errors of single frames, M of them in a clip. With S the covariance of a domain's training rows:
        official: d^T S^-1 d of the clip's mean row d, which is what the official code comes to: it takes the mean over
            all pairs of rows. Its S is divided by the number of vectors, not of rows, hence as many times larger as a
            vector has frames (5).
        per_row: the mean over the clip's rows of their d^T S^-1 d, the textbook's form, with the textbook's S.
    Both come from a clip's mean row and mean outer product, without any pairs. The official code centres the rows of S
    on the mean that their domain has in the batch they come in (`batch_centred_covariance`), here it is the mean of the
    domain, so that S is larger by the variance of those means: on real spectra in batches of 256 vectors by 0.1 % for
    the source, but by 13 % for a target domain of one clip in a hundred, of which a batch holds two or three vectors.
    Distances to the target are as much smaller.

    Args:
        form: see above.

    Returns:
        Detector with state whitener (1 or 2, F, F), W with W W^T = S^-1; without target clips that of the source alone.
        fit raises InputError where a covariance is singular.
    """
    check("selective_mahalanobis", "form", form, ("official", "per_row"))

    def fit(e, is_target):
        missing = {"residual", "scatter", "vectors", "rows"} - e.keys()
        if missing:
            raise UsageError(f"selective_mahalanobis: the network gives no {', '.join(sorted(missing))}")
        target = np.asarray(is_target, bool)
        domains = [domain for domain in (~target, target) if domain.any()]
        return dict(whitener=jnp.asarray(np.stack([whitener({k: v[d] for k, v in e.items()}) for d in domains])))

    def whitener(e):
        mean = np.asarray(e["residual"], np.float64).mean((0, 1))
        centred = np.asarray(e["scatter"]).mean((0, 1), dtype=np.float64) - np.outer(mean, mean)
        vectors, rows = (float(np.sum(e[key], dtype=np.float64)) for key in ("vectors", "rows"))
        divisor = vectors - 1 if form == "official" else rows - 1
        return inverse_root(centred * (rows / divisor)).astype(np.float32)

    @jax.jit
    def score(state, e):
        whitener = state["whitener"]
        if form == "official":
            rows = jnp.einsum("mui,dij->mdj", e["residual"], whitener, precision="highest")
            return jnp.square(rows).sum(-1).min(1)
        half = jnp.einsum("muij,djk->mdik", e["scatter"], whitener, precision="highest")
        return jnp.einsum("mdik,dik->md", half, whitener, precision="highest").min(1)

    return Detector(fit, score)


def inverse_root(covariance: np.ndarray) -> np.ndarray:
    """W (F, F) with W W^T the inverse of a covariance, in float64.

    Raises:
        InputError: the covariance is singular.
    """
    try:
        return np.linalg.inv(np.linalg.cholesky(covariance)).T
    except np.linalg.LinAlgError as error:
        raise InputError(
            f"selective_mahalanobis: the covariance of the reconstruction errors is singular ({error}); "
            "expected more training clips, or feature bins that differ"
        ) from error


def batch_centred_covariance(
    residual: np.ndarray, is_target: np.ndarray, batches: list[np.ndarray]
) -> tuple[np.ndarray, np.ndarray]:
    """The covariances of the official code, to the letter; float64.

    Args:
        residual: (V, w, F) reconstruction errors of V vectors.
        is_target: (V,) bool.
        batches: index arrays of the vectors that come together.

    Returns:
        (F, F) of source and of target: rows centred on the mean row of their domain in their batch, their outer
        products summed, over the domain's number of vectors - 1. Without target vectors that of the source twice.
    """
    found = []
    for domain in (~is_target, is_target):
        total = 0.0
        for batch in batches:
            rows = residual[batch[domain[batch]]].reshape(-1, residual.shape[-1])
            centred = rows - rows.mean(0) if len(rows) else rows
            total = total + centred.T @ centred
        found.append(total / (domain.sum() - 1) if domain.any() else found[0])
    return found[0], found[1]
