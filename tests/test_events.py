"""Windows, sound events and masks: the golden formula, hand arithmetic, and properties of many draws."""

import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from test_augment import drawn, within_4_sigma

from asdjax import augment, core
from asdjax.augment import events, masks
from asdjax.core import UsageError

GOLDEN = json.loads((Path(__file__).parent / "golden" / "sed_mixing.json").read_text())


def shares_match(found, expected, draws):
    """Each share within 4 sigma of a binomial."""
    expected = np.asarray(expected)
    assert (np.abs(np.asarray(found) - expected) <= 4 * np.sqrt(expected * (1 - expected) / draws)).all(), found


def uncorrelated(a, b):
    """Over the draws (draws, ...), every number of a with every one of b."""
    a, b = (v.reshape(len(v), -1) - v.reshape(len(v), -1).mean(0) for v in (np.asarray(a, float), np.asarray(b, float)))
    a, b = (v[:, v.any(0)] / np.linalg.norm(v[:, v.any(0)], axis=0) for v in (a, b))
    assert np.abs(a.T @ b).max() * np.sqrt(len(a)) < 4.5  # sigma, of hundreds


def test_crop_takes_any_window_of_each_wave():
    x = jnp.arange(6.0) + 100 * jnp.arange(3.0)[:, None]
    label = {"class": jnp.eye(3)}
    found, out = drawn(augment.crop(4), x, label, draws=600)
    assert found.shape == (600, 3, 4) and (out["class"] == np.eye(3)).all()
    start = found[..., 0] - 100 * np.arange(3)
    np.testing.assert_array_equal(found, start[..., None] + np.arange(4) + 100 * np.arange(3)[:, None])
    shares_match([(start == s).mean() for s in range(3)], [1 / 3] * 3, 1800)
    within_4_sigma(start[:, 0] == start[:, 1], 1 / 3, np.sqrt(2) / 3)  # each wave has a window of its own
    np.testing.assert_array_equal(augment.crop(6)(jax.random.key(0), x, label)[0], x)


@pytest.mark.parametrize("x64, tolerance", [(True, 1e-12), (False, 1e-5)])
def test_added_events_against_golden(x64, tolerance):
    given, expected = GOLDEN["inputs"], GOLDEN["outputs"]
    with jax.enable_x64(x64):
        x, label = jnp.array(given["x"]), jnp.array(given["Y"])
        partner = jnp.array([[1, 2], [0, 2], [0, 1]])
        gain = events.gains(jnp.square(x).mean(1), partner, jnp.array([given["snr_db"]] * 3))
        np.testing.assert_allclose(gain[0], expected["c"], rtol=0, atol=tolerance)
        for c, name in ((gain, "x_mix"), (jnp.ones((3, 2)), "x_mix_unity")):
            mixed, classes = events.add_events(x, label, partner, c)
            np.testing.assert_allclose(mixed[0], expected[name], rtol=0, atol=tolerance)
            np.testing.assert_array_equal(classes[0], expected["y"])


CLASSES = np.array([0, 0, 1, 1, 2, 2, 3])


def apart(classes=CLASSES, samples=3):
    """Waves that sound one after the other, so that a mix shows what is in it; with labels."""
    n = len(classes)
    x = np.random.default_rng(0).normal(size=(n, samples)) * 10.0 ** np.linspace(-2, 1, n)[:, None]
    wave = np.einsum("nt,nm->nmt", x, np.eye(n)).reshape(n, -1)
    label = {"class": np.eye(classes.max() + 1)[classes], "target": np.arange(n) % 2, "own": np.arange(n)}
    return jnp.asarray(wave, jnp.float32), {k: jnp.asarray(v, jnp.float32) for k, v in label.items()}


def gains_in(mixed, wave, samples=3):
    """(draws, B, B), the gain of each clip in each mix."""
    return mixed[..., 1::samples] / np.asarray(wave).sum(0)[1::samples]


@pytest.fixture(scope="module")
def many():
    """Gains and labels of many draws with p = 0.6 and up to 4 events."""
    wave, label = apart()
    mixed, out = drawn(augment.event_mix(p=0.6, max_events=4, snr_db=(-3.0, 7.0)), wave, label, draws=600)
    return gains_in(mixed, wave), out


def test_events_are_of_other_classes_and_as_many_as_asked(many):
    gain, _ = many
    np.testing.assert_allclose(np.diagonal(gain, axis1=1, axis2=2), 1, rtol=1e-6)
    added = (gain > 0) & ~np.eye(7, dtype=bool)
    assert not added[:, CLASSES[:, None] == CLASSES].any()
    counts = added.sum(2).ravel()
    shares_match([(counts == n).mean() for n in range(5)], [0.4, 0.2, 0.2, 0.2, 0], counts.size)
    allowed = CLASSES[:, None] != CLASSES  # five of them, or six; two are added on average, with probability 0.6
    shares_match(added.mean(0), allowed * 0.6 * 2 / allowed.sum(1, keepdims=True), 600)


def test_events_have_the_levels_asked_for(many):
    gain, _ = many
    wave, _ = apart()
    power = np.square(np.asarray(wave, np.float64)).mean(1)
    draw, i, j = np.nonzero((gain > 0) & ~np.eye(7, dtype=bool))
    snr = 10 * np.log10(power[i] / (gain[draw, i, j] ** 2 * power[j]))
    assert -3 - 1e-3 < snr.min() < -2.9 and 6.9 < snr.max() < 7 + 1e-3
    within_4_sigma(snr, 2, 10 / np.sqrt(12))
    within_4_sigma((snr - 2) ** 2, 100 / 12, np.sqrt(10**4 / 180))
    following = (np.diff(draw) == 0) & (np.diff(i) == 0)  # added to the same example
    within_4_sigma((np.diff(snr)[following] / 10) ** 2, 1 / 6, np.sqrt(7 / 180))  # of two numbers uniform in 0 .. 1


def test_events_are_drawn_independently(many):
    """Which clips one example gets has nothing to do with whether another gets any."""
    added = (many[0] > 0) & ~np.eye(7, dtype=bool)
    for one in range(7):
        uncorrelated(added[:, one], np.delete(added.any(2), one, axis=1))


def test_events_are_all_in_the_label_and_nothing_else_changes(many):
    gain, out = many
    _, label = apart()
    expected = (np.asarray(label["class"])[None, None] * (gain > 0)[..., None]).max(2)
    np.testing.assert_array_equal(out["class"], expected)
    assert set(np.unique(expected.sum(2))) == {1, 2, 3, 4}
    for name in ("target", "own"):
        assert (out[name] == np.asarray(label[name])).all()


def test_clips_are_added_as_they_are():
    wave, label = apart()
    mixed, _ = drawn(augment.event_mix(p=1.0, unity_gain=True), wave, label, draws=50)
    gain = gains_in(mixed, wave)
    assert set(np.unique(gain)) == {0, 1} and set(gain.sum(2).ravel()) == {2, 3}  # 2 would be a clip twice


def test_fewer_others_than_asked_for():
    wave, label = apart(np.array([0, 0, 0, 1]))
    mixed, _ = drawn(augment.event_mix(p=1.0, max_events=6), wave, label, draws=100)
    counts = (gains_in(mixed, wave) > 0).sum(2) - 1
    assert (counts[:, :3] == 1).all()
    shares_match([(counts[:, 3] == n).mean() for n in (1, 2, 3)], [0.2, 0.2, 0.6], 100)


@pytest.mark.parametrize("unity_gain", [False, True])
def test_who_has_no_class_or_no_sound_is_left_alone(unity_gain):
    """One silent clip, one without a class, one of two classes, which has none but the last to go with."""
    wave, label = apart(np.arange(5))
    wave = wave.at[0].set(0)
    classes = label["class"].at[1].set(0).at[2, 3].set(0.5)
    op = augment.event_mix(p=1.0, max_events=5, unity_gain=unity_gain)
    mixed, out = drawn(op, wave, {"class": classes}, draws=50)
    assert np.isfinite(mixed).all()
    added = gains_in(mixed, apart(np.arange(5))[0]) > 0
    expected = np.array([[0] * 5, [0, 1, 0, 0, 0], [0, 0, 1, 0, 1], [0, 0, 0, 1, 1]], bool)
    np.testing.assert_array_equal(added[:, :4], np.tile(expected, (50, 1, 1)))
    np.testing.assert_array_equal(out["class"][:, :2], np.tile(classes[:2], (50, 1, 1)))
    np.testing.assert_array_equal(out["class"][:, 2], np.tile([0, 0, 1, 0.5, 1], (50, 1)))
    assert added[:, 4, 2:4].any(0).all() and not added[:, 4, :2].any()


@pytest.mark.parametrize("classes, p", [(CLASSES, 0.0), (np.zeros(7, int), 1.0)])
def test_nothing_to_mix(classes, p):
    wave, label = apart(classes)
    mixed, out = jax.jit(augment.event_mix(p=p))(jax.random.key(0), wave, label)
    np.testing.assert_array_equal(mixed, wave)
    np.testing.assert_array_equal(out["class"], label["class"])


def test_gains_of_very_different_levels_are_finite():
    """1e-15 and 1e4: the quotient of their powers is beyond float32."""
    gain = events.gains(jnp.array([1e8, 1e-30]), jnp.array([[1], [0]]), jnp.zeros((2, 1)))
    np.testing.assert_allclose(gain, [[1e19], [1e-19]], rtol=1e-5)


def test_masks_by_hand():
    """Frames 1, 2 and 4 and bin 0 of the first example, no frames and bins 1 and 2 of the second."""
    x = jnp.arange(1.0, 37).reshape(2, 6, 3)
    time = jnp.array([[1, 4], [3, 0]]), jnp.array([[2, 1], [0, 0]])
    freq = jnp.array([[0], [1]]), jnp.array([[1], [2]])
    expected = np.array(x)
    expected[0, [1, 2, 4]] = expected[0, :, 0] = expected[1, :, 1:] = 0
    expected[0, [1, 2, 4]] = [-1, -2, -3]
    expected[0, :, 0], expected[1, :, 1], expected[1, :, 2] = -1, -2, -3
    np.testing.assert_array_equal(masks.masked(x, time, freq, jnp.array([-1.0, -2, -3])), expected)


@pytest.mark.parametrize("width, length", [(4, 6), (6, 6), (9, 3), (1, 5), (0, 5)])
def test_stripes_are_uniform(width, length):
    """Widths below W and up to the axis, starts where the stripe leaves one place free, as torchlibrosa's."""
    draws = 4000
    start, widths = (np.asarray(v).ravel() for v in masks.stripes(jax.random.key(0), (draws // 2, 2), width, length))
    most = max(0, min(width - 1, length))
    for w in range(most + 2):
        for s in range(length + 1):
            expected = (w <= most and s < max(length - w, 1)) / (most + 1) / max(length - w, 1)
            shares_match(((widths == w) & (start == s)).mean(), expected, draws)


@pytest.mark.parametrize("fill", ["mean", "zero"])
def test_spec_mask_of_a_batch(fill):
    """Whole frames and whole bins, each example its own, and every bin's mean over the batch."""
    x, label = jax.random.normal(jax.random.key(1), (8, 30, 12)) - 60, {"class": jnp.eye(8)}
    found, out = drawn(augment.spec_mask(time_width=9, freq_width=4, fill=fill), x, label, draws=100)
    assert (out["class"] == np.eye(8)).all()
    hit = found != np.asarray(x)
    frames, bins = hit.all(3), hit.all(2)
    np.testing.assert_array_equal(hit, frames[..., None] | bins[:, :, None])
    value = np.asarray(x, np.float64).mean((0, 1)) if fill == "mean" else np.zeros(12)
    np.testing.assert_allclose(found[hit], np.broadcast_to(value, hit.shape)[hit], rtol=1e-6)
    assert frames.sum(2).max() in (14, 15, 16) and bins.sum(2).max() in (5, 6)  # two stripes of up to 8 and 3
    assert (np.diff(frames.astype(int), axis=2) == 1).sum(2).max() <= 2
    assert len(np.unique(frames.reshape(800, -1), axis=0)) > 400


def test_stripes_of_time_and_of_frequency_are_independent():
    """Of a square, with stripes of the same widths."""
    x = jax.random.normal(jax.random.key(1), (8, 12, 12))
    found, _ = drawn(augment.spec_mask(time_width=6, freq_width=6), x, {}, draws=100)
    hit = (found != np.asarray(x)).reshape(800, 12, 12)
    uncorrelated(hit.all(2), hit.all(1))


def test_no_stripes():
    x = jax.random.normal(jax.random.key(1), (2, 5, 4))
    for none in (dict(time_stripes=0, freq_stripes=0), dict(time_width=0, freq_width=1)):
        np.testing.assert_array_equal(augment.spec_mask(**none)(jax.random.key(0), x, {})[0], x)


@pytest.mark.parametrize(
    "spec, message",
    [
        (dict(name="crop", samples=0), "crop: samples=0; expected a whole number, at least 1"),
        (dict(name="crop", samples=3.5), "crop: samples=3.5"),
        (dict(name="event_mix", p=-0.1), "event_mix: p=-0.1; expected 0 to 1"),
        (dict(name="event_mix", max_events=1), "event_mix: max_events=1; expected a whole number, at least 2"),
        (dict(name="event_mix", snr_db=(5.0, -5.0)), r"event_mix: snr_db=\(5.0, -5.0\); expected the least"),
        (dict(name="event_mix", snr_db=(0.0,)), "event_mix: snr_db="),
        (dict(name="event_mix", snr_db=(0.0, float("inf"))), "event_mix: snr_db="),
        (dict(name="spec_mask", freq_width=-8), "spec_mask: freq_width=-8; expected a whole number, at least 0"),
        (dict(name="spec_mask", fill="noise"), "spec_mask: fill='noise'; expected one of mean, zero"),
        (dict(name="blend"), "has no 'blend'; there is: alternate, choose, crop, event_mix, fmix, mixup, spec_mask$"),
    ],
)
def test_nonsense_raises(spec, message):
    with pytest.raises(UsageError, match=message):
        core.build(augment, spec)


def test_inputs_that_ops_cannot_work_with_raise():
    key, wave, features = jax.random.key(0), jnp.zeros((2, 9)), jnp.zeros((2, 9, 3))
    with pytest.raises(UsageError, match="crop: waves have 9 samples; expected at least samples=10"):
        augment.crop(10)(key, wave, {})
    for op in (augment.crop(1), augment.event_mix()):
        with pytest.raises(UsageError, match=r"found an input of shape \(2, 9, 3\), expected waves"):
            op(key, features, {})
    with pytest.raises(UsageError, match="event_mix: goes by the clips' classes"):
        augment.event_mix()(key, wave, {})
    with pytest.raises(UsageError, match=r"spec_mask: found an input of shape \(2, 9\), expected features"):
        augment.spec_mask()(key, wave, {})
