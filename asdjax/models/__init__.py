"""Networks, one file each: (x (B, L, F), train) -> embedding (B, D)."""

from asdjax.models.mobilefacenet import MobileFaceNet
from asdjax.models.mobilenetv2 import MobileNetV2

__all__ = ["MobileFaceNet", "MobileNetV2"]
