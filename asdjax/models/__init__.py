"""Networks, one file each: (x (B, L, F), train) -> embedding (B, D), or of an autoencoder (B, L, F)."""

from asdjax.models.autoencoder import Autoencoder
from asdjax.models.keras_mobilenetv2 import KerasMobileNetV2
from asdjax.models.mobilefacenet import MobileFaceNet
from asdjax.models.mobilenetv2 import MobileNetV2

__all__ = ["Autoencoder", "KerasMobileNetV2", "MobileFaceNet", "MobileNetV2"]
