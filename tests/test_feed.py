"""The feed: whether the clips are on the device or come from the host, a request gets its clips and labels."""

import numpy as np
import pytest

from asdjax import parallel
from asdjax.data import feed


@pytest.mark.parametrize("resident", [True, False])
@pytest.mark.parametrize("axis", [0, 2])
def test_requests_get_their_clips_and_labels(resident, axis):
    """Two networks with labellings of their own, chunks of two steps of two clips."""
    n, mesh = 6, parallel.data_mesh()
    wave = np.arange(n * 4, dtype=np.int16).reshape(n, 4)
    gain = np.linspace(0.5, 1.0, n, dtype=np.float32)
    label = {"class": np.concatenate([np.eye(n), 2 * np.eye(n)]).astype(np.float32)}
    rows = np.random.default_rng(0).integers(n, size=(3, 2, 2, 2))
    labelled = rows + np.array([0, n])[:, None, None]
    store = feed.Store(wave, gain, label)
    held = feed.resident(store, mesh) if resident else store
    got = list(feed.feed(held, zip(rows, labelled, strict=True), mesh, axis=axis))
    assert len(got) == 3
    for (there, (clips, labels)), expected in zip(got, rows, strict=True):
        for network in range(2):
            for step in range(2):
                batch = there.batch(clips[network, step], labels[network, step])
                wanted = expected[network, step]
                np.testing.assert_allclose(batch["wave"], wave[wanted] * gain[wanted, None], rtol=1e-6)
                np.testing.assert_array_equal(batch["label"]["class"], (network + 1) * np.eye(n)[wanted])
