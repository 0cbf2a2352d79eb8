"""A system small enough to compile in a second, and recordings to train it on; shared by several tests."""

import numpy as np

from asdjax.data import feed

SR = 4000

CONFIG = {
    "seed": 0,
    "system": {"name": "classify", "standardise": "bins"},
    "data": {
        "root": "", "year": "2023", "train_on": ("dev", "additional"), "test_on": "dev", "ground_truth": "",
        "group_by": "all", "label": "machine_section_attribute", "level": "as_recorded", "sample_rate": SR,
        "resample": False, "channel": 0, "seconds": 0.0, "length": "tile", "cache": "",
        "resident": True, "bank": "waves",
    },
    "sampler": {"name": "uniform"},
    "frontend": {"name": "log_mel", "sample_rate": SR, "win": 128, "hop": 64, "n_mels": 16},
    "cut": {"name": "cut", "width": 16, "hop": 8, "at": "frames", "tail": "align", "train_hop": 1},
    "wave_ops": ({"name": "mixup", "p": 0.5},),
    "feature_ops": (),
    "backbone": {"name": "MobileFaceNet", "rows": ((2, 8, 1, 2),), "stem": 8, "features": 16, "embedding": 8},
    "init_from": "",
    "head": {"name": "ArcFace", "s": 16.0, "margin": 0.2},
    "optim": {"name": "adam", "lr": 2e-2},
    "train": {
        "steps": 8, "epochs": 0.0, "batch_size": 16, "chunk": 2, "checkpoint_every": 4, "members": 1,
        "groups": "one_by_one",
    },
    "score": {
        "units": 32,
        "scorers": (
            {"name": "knn", "fit": "section", "detector": {"name": "knn", "k": 1}},
            {"name": "lof", "fit": "section", "detector": {"name": "lof", "n_neighbors": 4}},
        ),
        "selections": (),
        "fusions": (),
        "training_free": False,
        "tsne": 0,
    },
    "by_machine": {},
}  # fmt: skip


def config(**changes):
    """CONFIG with values replaced by dotted name: config(**{'train.steps': 4})."""
    out = {k: dict(v) if isinstance(v, dict) else v for k, v in CONFIG.items()}
    for name, value in changes.items():
        section, _, key = name.rpartition(".")
        (out[section] if section else out)[key] = value
    return out


def tones(n=48, classes=4, seconds=1.0, seed=0):
    """A Store of n noisy tones, one pitch per class."""
    rng = np.random.default_rng(seed)
    which = np.arange(n) % classes
    t = np.arange(int(SR * seconds)) / SR
    wave = np.sin(2 * np.pi * (200 + 300 * which[:, None]) * t) + 0.5 * rng.standard_normal((n, len(t)))
    wave = (wave * 6000).astype(np.int16)
    return feed.Store(wave, np.full(n, 1 / 32768, np.float32), {"class": np.eye(classes, dtype=np.float32)[which]})
