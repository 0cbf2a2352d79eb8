"""Systems: how a network is trained and what it says of a clip."""

from asdjax.systems.classify import classify

__all__ = ["classify"]
