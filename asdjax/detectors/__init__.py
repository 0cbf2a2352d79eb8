"""Anomaly detectors over the network's outputs: core.build finds them here by name."""

from asdjax.detectors.device import cosine_mean, knn, lof
from asdjax.detectors.host import lof_host
from asdjax.detectors.mixture import gmm, mahalanobis
from asdjax.detectors.outputs import log_sigmoid, log_softmax, log_softmax_mse, passthrough, selective_mahalanobis

__all__ = [
    "cosine_mean",
    "gmm",
    "knn",
    "lof",
    "lof_host",
    "log_sigmoid",
    "log_softmax",
    "log_softmax_mse",
    "mahalanobis",
    "passthrough",
    "selective_mahalanobis",
]
