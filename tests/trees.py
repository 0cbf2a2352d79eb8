"""Miniature data sets: folders of empty files, csvs, and an index without files; shared by several tests."""

import os
from pathlib import Path

import numpy as np
import pytest
import soundfile
import tiny

from asdjax.core import Clips

# Real recordings, where there are some: slider and valve, 369 clips in the DCASE layout.
MINI_ASD = Path(os.environ.get("ASDJAX_MINI_ASD", Path(__file__).parents[2] / "shared" / "data" / "mini_asd"))
needs_recordings = pytest.mark.skipif(not MINI_ASD.is_dir(), reason=f"no recordings in {MINI_ASD}")


def touch(root, *names):
    """Empty files: the index reads names, not recordings."""
    for name in names:
        path = Path(root, name)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"")


def write(path, *lines, end="\n"):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes("".join(line + end for line in lines).encode())
    return path


def rows(*triples):
    """Clips from (machine, section, split[, attributes])."""
    machine, section, split, attributes = zip(*((*t, "")[:4] for t in triples), strict=True)
    n = len(triples)
    empty, zero = np.array([""] * n), np.zeros(n, np.int8)
    path = np.array([f"/d/{t[0]}/{t[2]}/{i}.wav" for i, t in enumerate(triples)])
    return Clips(path, np.array(machine), np.array(section), empty, np.array(split), zero, np.array(attributes))


def write_machine(root, machine, pitch, section="00", target=2):
    """A machine that hums at a pitch per attribute; its anomalies hum elsewhere."""
    rng = np.random.default_rng(pitch)
    t = np.arange(tiny.SR) / tiny.SR

    def clip(split, name, hz):
        wave = 0.3 * np.sin(2 * np.pi * hz * t) + 0.05 * rng.standard_normal(len(t))
        path = root / machine / split / f"section_{section}_{name}.wav"
        path.parent.mkdir(parents=True, exist_ok=True)
        soundfile.write(path, wave, tiny.SR)

    for i in range(10):
        clip("train", f"source_train_normal_{i:04d}_spd_{i % 2}", pitch * (1 + i % 2))
    for i in range(target):
        clip("train", f"target_train_normal_{i:04d}_spd_9", pitch * 1.5)
    for domain, factor in (("source", 1), ("target", 1.5))[: 2 if target else 1]:
        for i in range(4):
            clip("test", f"{domain}_test_normal_{i:04d}_spd_0", pitch * factor)
            clip("test", f"{domain}_test_anomaly_{i:04d}_spd_0", pitch * (2.6 + 0.1 * i))


def hums(root):
    """Two machines of a second's clips: 12 and 10 training clips, 16 and 8 test clips."""
    write_machine(root, "fan", 300)
    write_machine(root, "pump", 500, section="01", target=0)
    return root
