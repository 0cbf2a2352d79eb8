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


@pytest.mark.parametrize("resident", [True, False])
@pytest.mark.parametrize("axis", [0, 2])
def test_rows_of_a_bank_of_features_are_units(resident, axis):
    """Clips of five frames in units of three, at frames 0 and 2, by slicing."""
    n, mesh, starts = 4, parallel.data_mesh(), np.array([0, 2])
    frames = np.random.default_rng(0).standard_normal((n, 5, 3)).astype(np.float32)
    places = (starts[:, None] + np.arange(3)).astype(np.int32)
    store = feed.Frames(frames, places, {"class": np.concatenate([np.eye(n), 2 * np.eye(n)]).astype(np.float32)})
    rows = np.random.default_rng(1).integers(n * store.units, size=(3, 2, 2, 2))
    labelled = rows // store.units + np.array([0, n])[:, None, None]
    held = feed.resident(store, mesh) if resident else store
    got = list(feed.feed(held, zip(rows, labelled, strict=True), mesh, axis=axis))
    for (there, (units, labels)), expected in zip(got, rows, strict=True):
        for network, step in np.ndindex(2, 2):
            batch = there.batch(units[network, step], labels[network, step])
            wanted = [frames[row // 2, starts[row % 2] :][:3] for row in expected[network, step]]
            np.testing.assert_array_equal(batch["features"], wanted)
            clip = expected[network, step] // 2
            np.testing.assert_array_equal(batch["label"]["class"], (network + 1) * np.eye(n)[clip])
    assert feed.example(store)["features"].shape == (2, 3, 3)
