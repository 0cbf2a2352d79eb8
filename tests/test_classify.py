import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny

from asdjax import frontends, train
from asdjax.core import UsageError
from asdjax.systems.classify import accuracy, mean_cosine


def test_accuracy_counts_only_labelled_examples():
    logits = jnp.array([[2.0, 1.0], [0.0, 3.0], [1.0, 0.0], [5.0, 0.0]])
    label = jnp.array([[1.0, 0.0], [0.3, 0.7], [0.0, 1.0], [0.0, 0.0]])  # right, right, wrong, none
    assert float(accuracy(logits, label)) == pytest.approx(2 / 3)
    assert float(accuracy(logits, jnp.zeros_like(label))) == 0


def test_accuracy_of_several_labels_at_once():
    """A hit is any of the largest labels, not the first alone; a smaller one is none."""
    label = jnp.array([[1.0, 0, 1], [1, 0, 1], [1, 0, 1], [0, 0, 0], [0.4, 0, 0.6]])
    logits = jnp.array([[2.0, 0, 1], [1, 0, 2], [1, 2, 0], [1, 2, 3], [2, 0, 1]])  # hit, hit, miss, none, miss
    assert float(accuracy(logits, label)) == pytest.approx(2 / 4)


def test_mean_cosine_by_hand():
    """Of [1, 0], [0, 2], [3, 3]: 0, sqrt(1/2), sqrt(1/2)."""
    embedding = jnp.array([[1.0, 0.0], [0.0, 2.0], [3.0, 3.0]])
    assert float(mean_cosine(embedding)) == pytest.approx(2 * np.sqrt(0.5) / 3, rel=1e-6)


def test_a_clip_is_standardised_by_the_sample_and_cut_into_all_its_units():
    store = tiny.tones(n=12)
    system = train.make(tiny.config(), n_classes=4)
    state = jax.jit(system.init)(jax.random.key(0), store.batch(np.arange(12), np.arange(12)))

    wave = store.wave * store.gain[:, None]
    log_mel = np.asarray(frontends.log_mel(sample_rate=tiny.SR, win=128, hop=64, n_mels=16)(jnp.asarray(wave)))
    flat = log_mel.reshape(-1, 16).astype(np.float64)
    np.testing.assert_allclose(state.stats["data"]["mean"], flat.mean(0), rtol=1e-5)
    np.testing.assert_allclose(state.stats["data"]["std"], flat.std(0), rtol=1e-4)

    e = jax.jit(system.embed)(state, jnp.asarray(wave[:2]))
    # 63 frames, windows of 16 every 8: starts 0, 8, .. 40, and one more aligned with the end at 47
    assert e["embedding"].shape == (2, 7, 8) and e["logits"].shape == (2, 7, 4)
    # a clip that begins 8 frames later has the same windows, but for those that touch its ends
    later = jax.jit(system.embed)(state, jnp.asarray(np.roll(wave[:2], -8 * 64, axis=1)))
    np.testing.assert_allclose(later["embedding"][:, 1:4], e["embedding"][:, 2:5], rtol=1e-4, atol=1e-4)


def test_unknown_standardisation_is_refused():
    with pytest.raises(UsageError, match="there is: none, bins"):
        train.make(tiny.config(system={"name": "classify", "standardise": "rows"}), n_classes=2)
