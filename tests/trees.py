"""Miniature data sets: folders of empty files, csvs, and an index without files; shared by several tests."""

import os
from pathlib import Path

import numpy as np
import pytest

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
