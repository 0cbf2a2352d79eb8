"""Statistics of a clip's spectrogram over time, without a network: the baseline that needs no training."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from asdjax import pooling
from asdjax.core import Batch, Parts, System, TrainState, UsageError


def statistics(
    parts: Parts, *, ranks: tuple[float, ...] = (0.95, 0.8, 0.5), quantiles: tuple[float, ...] = (0.95,)
) -> System:
    """Each frequency bin of the frontend pooled over a clip's frames in several ways.

    Global weighted rank pooling of the log-mel spectrogram as in TWFR-GMM (Guan et al., 2023, "Time-weighted frequency
    domain audio representation with GMM estimator for anomalous sound detection", section 2).

    Args:
        parts: the built pieces; of these the frontend alone is used, and there must be no others.
        ranks: weights r of the global weighted rank poolings, 0 (maximum) to 1 (mean).
        quantiles: 0 to 1.

    Returns:
        System without update, whose embed gives (B, 1, D) each: mean, std, max, gwrp_R for each of ranks, quantile_Q
        for each of quantiles, and moments: mean, std and the quantiles side by side.

    Raises:
        UsageError: other parts, a rank or a quantile out of range; when called, several branches of the frontend.
    """
    needless = [name for name, part in parts._asdict().items() if name != "frontend" and part not in (None, ())]
    if needless:
        raise UsageError(f"system statistics has no {', '.join(needless)}: leave these parts of the config empty")
    for name, values in (("ranks", ranks), ("quantiles", quantiles)):
        if not all(0 <= value <= 1 for value in values):
            raise UsageError(f"system statistics: {name}={tuple(values)}; expected numbers from 0 to 1")

    def init(key: jax.Array, sample: Batch) -> TrainState:
        return TrainState(jnp.zeros((), jnp.int32), {}, {}, ())

    def embed(state: TrainState, wave: jax.Array) -> dict[str, jax.Array]:
        x = parts.frontend(wave)
        if isinstance(x, dict):
            raise UsageError(f"system statistics: the frontend has branches {', '.join(x)}; expected one spectrogram")
        pooled = {"mean": pooling.mean(x), "std": pooling.std(x), "max": pooling.maximum(x)}
        pooled |= {f"gwrp_{r:g}": pooling.gwrp(x, r) for r in ranks}
        pooled |= {f"quantile_{q:g}": pooling.quantile(x, q) for q in quantiles}
        moments = [pooled["mean"], pooled["std"], *(pooled[f"quantile_{q:g}"] for q in quantiles)]
        pooled["moments"] = jnp.concatenate(moments, axis=1)
        return {name: values[:, None] for name, values in pooled.items()}

    return System(init, None, embed)
