"""Anomaly detectors over the network's outputs: core.build finds them here by name."""

from asdjax.detectors.device import cosine_mean, knn, lof, mahalanobis
from asdjax.detectors.host import lof_host

__all__ = ["cosine_mean", "knn", "lof", "lof_host", "mahalanobis"]
