"""Systems: how a network is trained and what it says of a clip."""

from asdjax.systems.classify import classify
from asdjax.systems.dual_path import dual_path
from asdjax.systems.reconstruct import reconstruct
from asdjax.systems.statistics import statistics

__all__ = ["classify", "dual_path", "reconstruct", "statistics"]
