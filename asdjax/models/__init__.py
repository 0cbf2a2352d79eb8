"""Networks, one file each: (x (B, L, F), train) -> embedding (B, D), an autoencoder's units (B, L, F), or both."""

from asdjax.models.autoencoder import Autoencoder
from asdjax.models.dual_path import DualPathTransformer
from asdjax.models.keras_mobilenetv2 import KerasMobileNetV2
from asdjax.models.mobilefacenet import MobileFaceNet
from asdjax.models.mobilenetv2 import MobileNetV2
from asdjax.models.panns import PannsMobileNetV2
from asdjax.models.vit import ViT

__all__ = [
    "Autoencoder",
    "DualPathTransformer",
    "KerasMobileNetV2",
    "MobileFaceNet",
    "MobileNetV2",
    "PannsMobileNetV2",
    "ViT",
]
