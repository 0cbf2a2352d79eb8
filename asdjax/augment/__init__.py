"""Augmentations: factories of (key, x, label) -> (x, label), pure and fixed in shape, run inside the jitted step.

The label is a dict of float leaves (B, ...), all of which are mixed as the examples are, but for `event_mix`. Training
gives 'class' (B, C), 'target' (B,), 1 for clips of the target domain, and 'step' (B,), the number of the update.
"""

from asdjax.augment.events import crop, event_mix
from asdjax.augment.fmix import fmix
from asdjax.augment.masks import spec_mask
from asdjax.augment.mixing import alternate, choose, mixup
from asdjax.augment.op import Op as Op

__all__ = ["alternate", "choose", "crop", "event_mix", "fmix", "mixup", "spec_mask"]  # what configs name
