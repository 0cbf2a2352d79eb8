"""The training-free baseline beside every run: what statistics of spectrograms say of the same clips, in seconds.

A network that does not beat it has learnt nothing worth its training. It is the default of configs/statistics.py, which
explains its values.
"""

from __future__ import annotations

import jax
import numpy as np
from jax.sharding import Mesh

from asdjax import evaluate, frontends, scoretable, systems
from asdjax.core import Clips, Parts
from asdjax.data.feed import Store
from asdjax.progress import reporter
from asdjax.results import fusion
from asdjax.scoretable import TRAINING_FREE

POOLINGS = ("mean", "gwrp_0.95", "gwrp_0.8", "gwrp_0.5", "max", "std", "moments")
DETECTORS = {
    "knn": dict(name="knn", k=1, metric="euclidean"),
    "density": dict(name="knn", k=1, metric="euclidean", density="ratio", density_k=4),
    "mahalanobis": dict(name="mahalanobis", covariance="ledoit_wolf"),
    "gmm": dict(name="gmm", n_components=2, covariance_type="diag", reg_covar=1e-3),
}
SCORERS = tuple(
    dict(name=f"{pooling}-{name}", fit="section", detector=dict(key=pooling, **detector))
    for pooling in POOLINGS
    for name, detector in DETECTORS.items()
)
NAMES = tuple(spec["name"] for spec in SCORERS)
UNITS = 64  # clips at once


def scores(clips: Clips, store: Store, level: np.ndarray, sample_rate: int, mesh: Mesh) -> scoretable.Scores:
    """Scores of every clip by the label-free fusion of all statistics and detectors.

    Args:
        clips: N clips, training and test.
        store: their waveforms.
        level: (N,) loudness in dB, which the fusion has no use for.
        sample_rate: Hz.
        mesh: the devices.

    Returns:
        the columns of scores.csv, of one scorer, scoretable.TRAINING_FREE.
    """
    parts = Parts((), frontends.log_mel(sample_rate=sample_rate), None, (), None, None, None)
    system = systems.statistics(parts)
    state = jax.device_get(system.init(jax.random.key(0), {}))
    with reporter(TRAINING_FREE) as report:

        def on_batch(done, total):
            report(done, total, f"{TRAINING_FREE}: statistics of {done} of {total} clips")

        rows = np.arange(len(clips))
        (e,) = evaluate.embed_clips(system, [state], store, rows, units=UNITS, mesh=mesh, progress=on_batch)
        columns = []
        for scorer, values in evaluate.score_group(clips, e, level, SCORERS, None, fused=NAMES):
            report(len(columns), len(SCORERS), f"{TRAINING_FREE}: {scorer}")
            columns.append(scoretable.of_clips(scorer, 0, clips, values))
    return fusion.fuse(scoretable.concatenate(columns), name=TRAINING_FREE)
