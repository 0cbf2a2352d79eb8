import json
import os
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from asdjax import augment, core, losses
from asdjax.augment.fmix import amplitudes, largest, low_frequency_image
from asdjax.augment.mixing import blend, cross_domain
from asdjax.core import UsageError

HERE = Path(__file__).parent
GOLDEN = json.loads((HERE / "golden" / "mixup_conventions.json").read_text())
LOSSES = json.loads((HERE / "golden" / "mixup_losses.json").read_text())
FMIX = json.loads((HERE / "golden" / "fmix.json").read_text())
STATISTICS = FMIX["properties_200_draws_lam_0p5"]


def test_blend_against_golden():
    given, expected = GOLDEN["inputs"], GOLDEN["outputs"]
    lam = np.where(np.array(given["dec"]) == 1, given["lam"], 1.0)
    with jax.enable_x64(True):
        for name, partner in (("asdkit", given["perm"]), ("wilkinghoff", [3, 2, 1, 0])):
            for leaf, values in (("x", given["x"]), ("y", given["Y"])):
                got = blend(jnp.array(values), jnp.array(partner), jnp.array(lam))
                np.testing.assert_allclose(got, expected[f"{name}_{leaf}"], rtol=0, atol=1e-12)


def test_losses_of_a_batch_with_one_lam_against_golden():
    """Examples and labels blended alike; the label in one is lam L(y) + (1 - lam) L(y of the partner)."""
    margin = LOSSES["arcface"]
    with jax.enable_x64(True):
        partner, lam = jnp.array(LOSSES["perm"]), jnp.array([LOSSES["lam"]])
        x, label = (blend(jnp.array(v), partner, lam) for v in (LOSSES["x"], np.eye(3)[LOSSES["y"]]))
        np.testing.assert_allclose(x, LOSSES["mixed"], rtol=0, atol=1e-12)
        found = losses.softmax(jnp.array(LOSSES["logits"]), label).mean()
        np.testing.assert_allclose(found, LOSSES["ce_mixed"], rtol=0, atol=1e-8)
        directions = [v / np.linalg.norm(v, axis=1, keepdims=True) for v in (margin["emb"], margin["W"])]
        cosine = jnp.array(directions[0] @ directions[1].T)
        plain, turned = (
            losses.arcface(cosine, jnp.full((4, 3), share), s=margin["s"], margin=margin["m"]) for share in (0.0, 1.0)
        )
        found = losses.margin_softmax(plain, turned, label).mean()
        np.testing.assert_allclose(found, margin["loss"], rtol=0, atol=1e-8)


def test_mixup_blends_label_and_wave_alike():
    x = jnp.eye(64)
    label = {"class": jnp.eye(64), "own": jnp.arange(64.0)}
    mixed, out = jax.jit(augment.mixup(p=0.5))(jax.random.key(0), x, label)
    np.testing.assert_allclose(mixed, out["class"], atol=1e-7)  # x is its own one-hot here
    np.testing.assert_allclose(out["own"], mixed @ jnp.arange(64.0), rtol=1e-5)
    np.testing.assert_allclose(mixed.sum(1), 1.0, atol=1e-6)
    untouched = (np.diag(mixed) == 1).mean()
    assert 0.3 < untouched < 0.7  # a binomial of 64 draws at 0.5: sigma 0.06


def test_mixup_never_and_always():
    x, label = jax.random.normal(jax.random.key(1), (16, 5)), {"class": jnp.eye(16)}
    same, _ = augment.mixup(p=0.0)(jax.random.key(0), x, label)
    np.testing.assert_array_equal(same, x)
    _, out = augment.mixup(p=1.0)(jax.random.key(0), x, label)
    assert (out["class"].max(1) < 1).mean() > 0.8  # all but those drawn as their own partner


def test_mixups_draws_stay_what_they_are():
    """Published numbers depend on them."""
    k_order, k_lam, k_apply = jax.random.split(jax.random.key(5), 3)
    lam = jnp.where(jax.random.bernoulli(k_apply, 0.4, (8,)), jax.random.beta(k_lam, 0.3, 0.3, (8,)), 1.0)[:, None]
    expected = lam * jnp.eye(8) + (1 - lam) * jnp.eye(8)[jax.random.permutation(k_order, 8)]
    mixed, _ = augment.mixup(p=0.4, alpha=0.3)(jax.random.key(5), jnp.eye(8), {})
    np.testing.assert_array_equal(mixed, expected)


def within_4_sigma(values, mean, std):
    assert abs(np.mean(values) - mean) <= 4 * std / np.sqrt(len(values)), (np.mean(values), mean)


def drawn(op, x, label, draws=300):
    """What an op makes of one batch with many keys, as numpy arrays (draws, ...)."""
    many = jax.jit(jax.vmap(op, in_axes=(0, None, None)))(jax.random.split(jax.random.key(0), draws), x, label)
    return jax.tree.map(np.asarray, many)


def test_mixup_of_whole_batches():
    mixed, out = drawn(augment.mixup(p=0.7, lam="batch"), jnp.eye(6), {"class": jnp.eye(6)})
    np.testing.assert_allclose(mixed, out["class"], atol=1e-7)
    np.testing.assert_allclose(mixed.sum(1), 1, atol=1e-6)  # one lam for all: the columns sum to 1 as the rows do
    lam = mixed.min(axis=(1, 2), where=np.eye(6, dtype=bool), initial=1)  # 1 for those who are their own partner
    applied = lam < 1
    within_4_sigma(applied, 0.7, np.sqrt(0.7 * 0.3))
    within_4_sigma(lam[applied], 1 / 2, np.sqrt(1 / 12))  # Beta(1, 1) is uniform


@pytest.mark.parametrize("target", [(1.0, 0.0, 0.4, 0.6, 0.0), (0.0,) * 5, (1.0,) * 5])
def test_partners_of_the_other_domain(target):
    """Uniform over the examples of the other domain; over all where there are none."""
    draws, is_target = 1000, np.array(target) >= 0.5
    keys = jax.random.split(jax.random.key(1), draws)
    partner = np.asarray(jax.vmap(cross_domain, in_axes=(0, None))(keys, jnp.array(target)))
    assert partner.dtype == np.int32
    for i, own in enumerate(is_target):
        allowed = is_target != own if is_target.any() and not is_target.all() else np.ones(5, bool)
        share = allowed / allowed.sum()
        found = np.bincount(partner[:, i], minlength=5) / draws
        assert (np.abs(found - share) <= 4 * np.sqrt(share * (1 - share) / draws)).all()


@pytest.mark.parametrize("name", ["mixup", "fmix"])
def test_cross_domain_pairs(name):
    target = jnp.array([1.0, 0, 0, 1, 0, 0])
    x = jnp.broadcast_to(jnp.eye(6)[:, None], (6, 3, 6))
    op = getattr(augment, name)(p=1.0, pairing="cross_domain")
    _, out = drawn(op, x, {"class": jnp.eye(6), "target": target}, draws=50)
    np.testing.assert_allclose(out["target"], out["class"] @ np.asarray(target), atol=1e-6)
    lam = np.diagonal(out["class"], axis1=1, axis2=2)
    np.testing.assert_allclose(out["target"], np.where(target, lam, 1 - lam), atol=1e-6)  # the rest is the other's
    assert (lam < 1).all()
    with pytest.raises(UsageError, match=f"{name}: pairing='cross_domain' needs each clip's domain"):
        op(jax.random.key(0), x, {"class": jnp.eye(6)})


@pytest.mark.parametrize("size", ["8x6", "6x8"])
def test_fmix_amplitudes_against_golden(size):
    shape, golden = tuple(map(int, size.split("x"))), FMIX["small"][size]
    np.testing.assert_allclose(amplitudes(shape, 3.0), golden["scale"], rtol=1e-9)
    lowest = np.maximum(golden["freqs"], 1 / max(shape))
    np.testing.assert_allclose(1 / amplitudes(shape, 1.0), lowest, rtol=0, atol=1e-9)


def test_fmix_amplitudes_in_cycles_per_map():
    """By hand: 0 and 1 cycle are the lowest, 2 cycles along either axis have an eighth of their amplitude."""
    found = amplitudes((512, 8), 3.0, "per_image")
    assert found.shape == (512, 5)
    np.testing.assert_allclose(found[[0, 1, 0, 2, 0, -2, 3], [0, 0, 1, 0, 2, 0, 4]], [1, 1, 1, *[1 / 8] * 3, 1 / 125])


@pytest.mark.parametrize("x64, tolerance", [(True, 1e-9), (False, 1e-5)])
@pytest.mark.parametrize("size", ["8x6", "6x8"])
@pytest.mark.parametrize("variant", ["paper", "official"])
def test_fmix_images_and_masks_against_golden(variant, size, x64, tolerance):
    shape, golden = tuple(map(int, size.split("x"))), FMIX["small"][size]
    with jax.enable_x64(x64):
        image = low_frequency_image(jnp.array(golden["normals"]), shape, variant=variant)
        assert image.dtype == (jnp.float64 if x64 else jnp.float32)
        np.testing.assert_allclose(image, golden[variant]["image"], rtol=0, atol=tolerance)
        for number, name in ((14, "floor"), (15, "ceil")):  # of 0.3 * 48 pixels
            mask = largest(image, jnp.array(number))
            np.testing.assert_array_equal(mask, golden[variant][f"mask_lam_0p3_{name}"])


@pytest.mark.parametrize("shape", [(7, 5), (5, 7), (4, 13)])
@pytest.mark.parametrize("variant", ["paper", "official"])
def test_fmix_images_of_odd_maps_equal_numpys(variant, shape):
    """The formula of the golden file with numpy's two-dimensional inverse; the code of the paper has a column more."""
    height, width = shape
    f = np.sqrt(np.fft.fftfreq(height)[:, None] ** 2 + np.fft.fftfreq(width)[: width // 2 + 2] ** 2)
    z = np.random.default_rng(0).normal(size=(*f.shape, 2))
    s = z / np.maximum(f, 1 / max(shape))[..., None] ** 3
    spectrum = s[0] + 1j * s[1] if variant == "official" else s[..., 0] + 1j * s[..., 1]
    expected = np.fft.irfftn(spectrum, shape, axes=(0, 1))
    expected = (expected - expected.min()) / np.ptp(expected)
    with jax.enable_x64(True):
        found = low_frequency_image(jnp.array(z), shape, variant=variant)
        np.testing.assert_allclose(found, expected, rtol=0, atol=1e-12)


def test_fmix_official_images_have_one_cycle_along_the_second_axis():
    with jax.enable_x64(True):
        image = low_frequency_image(jax.random.normal(jax.random.key(0), (8, 4, 2)), (8, 6), variant="official")
    energy = np.abs(np.fft.rfft2(image)) ** 2
    assert energy[:, 2:].sum() < 1e-25 < energy[:, 1].sum()


@pytest.mark.parametrize("case", STATISTICS)
def test_fmix_images_and_masks_have_the_statistics_of_the_papers_code(case):
    """Means over 100 draws against those over 200 of the golden file."""
    size, variant = case.split("_")
    shape, draws = tuple(map(int, size.split("x"))), 100

    def one(key):
        normals = jax.random.normal(key, (shape[0], shape[1] // 2 + 1, 2))
        image = low_frequency_image(normals, shape, variant=variant)
        return image, largest(image, jnp.array(image.size // 2))

    image, mask = jax.jit(lambda keys: jax.lax.map(one, keys))(jax.random.split(jax.random.key(0), draws))
    image, mask = np.asarray(image, np.float64), np.asarray(mask, int)
    assert set(mask.sum((1, 2))) == {image[0].size // 2}
    energy = np.abs(np.fft.fft2(image - image.mean((1, 2), keepdims=True))) ** 2
    low = np.hypot(np.fft.fftfreq(shape[0])[:, None], np.fft.fftfreq(shape[1])) <= 4 / max(shape)
    found = {
        "energy_axis0_only": image.mean(2).var(1) / image.var((1, 2)),
        "energy_axis1_only": image.mean(1).var(1) / image.var((1, 2)),
        "energy_share_f_le_4_over_max": energy[:, low].sum(1) / energy.sum((1, 2)),
        "mean_transitions_along_axis1_per_row": np.abs(np.diff(mask, axis=2)).sum(2).mean(1),
        "mean_transitions_along_axis0_per_column": np.abs(np.diff(mask, axis=1)).sum(1).mean(1),
    }
    for name, golden in STATISTICS[case].items():
        # 4 sigma of the difference of two means; and what has no spread within the digits of the file, where on the
        # narrowest maps one draw in 500 (counted with numpy) has a crossing that moves the mean by 0.001
        least = 2e-3 if "transitions" in name else 5e-5
        tolerance = least + 4 * found[name].std() * np.sqrt(1 / draws + 1 / 200)
        assert abs(found[name].mean() - golden) <= tolerance, (name, found[name].mean(), golden, tolerance)


def test_as_many_pixels_as_asked_even_among_equals():
    image = jax.random.randint(jax.random.key(0), (5, 7), 0, 4).astype(jnp.float32)
    chosen = np.asarray(jax.jit(jax.vmap(largest, in_axes=(None, 0)))(image, jnp.arange(36)))
    image = np.asarray(image)
    np.testing.assert_array_equal(chosen.sum((1, 2)), np.arange(36))
    for mask in chosen[1:-1]:
        assert image[mask].min() >= image[~mask].max()


@pytest.mark.parametrize("layout, variant", [("freq_time", "paper"), ("time_freq", "official")])
def test_fmix_of_a_batch(layout, variant):
    """One mask of the share lam, within a pixel, one permutation, and labels blended by lam itself."""
    x = jnp.broadcast_to(jnp.arange(4.0)[:, None, None], (4, 5, 9))  # a pixel's value tells whose it is
    op = augment.fmix(p=0.8, layout=layout, variant=variant)
    source, out = drawn(op, x, {"class": jnp.eye(4), "own": jnp.arange(4.0)})
    np.testing.assert_allclose(out["own"], out["class"] @ np.arange(4.0), atol=1e-5)
    kept = source == x
    partner = np.where(kept, -1, source).max((2, 3))  # -1 for who keeps all pixels
    lam = out["class"].min(axis=(1, 2), where=np.eye(4, dtype=bool), initial=1)
    mixed = (partner >= 0).any(1)
    assert (lam[~mixed] > 1 - 1 / 45).all()
    rounded_up = []
    for i in np.flatnonzero(mixed):
        others = np.flatnonzero(partner[i] >= 0)
        mask = kept[i, others[0]]
        assert abs(mask.mean() - lam[i]) <= 1 / 45 + 1e-6
        assert sorted(partner[i, others]) == others.tolist()
        expected = np.where(mask, others[:, None, None], partner[i, others, None, None])
        np.testing.assert_array_equal(source[i, others], expected)
        rounded_up.append(mask.sum() > lam[i] * 45)
    within_4_sigma(rounded_up, 1 / 2, 1 / 2)
    applied = lam < 1
    share = 0.8 * (1 - 1 / 24)  # one permutation of four in 24 is none
    within_4_sigma(applied, share, np.sqrt(share * (1 - share)))
    within_4_sigma(lam[applied], 1 / 2, np.sqrt(1 / 12))  # Beta(1, 1) is uniform


@pytest.mark.parametrize("layout", ["freq_time", "time_freq"])
def test_fmix_layouts(layout):
    """Where the image's first axis is much longer, the official variant cuts intervals of the second: of time here."""
    x = jnp.broadcast_to(jnp.arange(4.0)[:, None, None], (4, 6, 96))  # six frames of 96 bins
    mixed, _ = drawn(augment.fmix(layout=layout, variant="official"), x, {}, draws=50)
    whole = (np.diff(mixed, axis=3) == 0).all((1, 3))  # (draws, frames): all bins from one example
    assert whole.mean() > 0.8 if layout == "freq_time" else whole.mean() < 0.5


def marked(number):
    return lambda key, x, label: (x + number, {k: v for k, v in label.items()})


def test_ops_take_turns_by_the_number_of_the_update():
    op = jax.jit(augment.alternate(ops=(marked(1.0), marked(2.0), marked(3.0))))
    steps = (0.0, 1.0, 2.0, 3.0, 0.9999, 5.0001)  # blending rounds
    found = [op(jax.random.key(0), jnp.zeros(2), {"step": jnp.full(2, step)})[0][0] for step in steps]
    assert found == [1, 2, 3, 1, 2, 3]


def test_turns_are_kept_by_mixed_batches():
    """Blended steps round to the step, so that ops after mixing do not fall out of turn."""
    turns = augment.alternate(ops=(marked(1.0), marked(2.0)))

    @jax.jit
    def after_mixing(step):
        x, label = augment.mixup(p=1.0)(jax.random.key(3), jnp.zeros((64, 1)), {"step": jnp.full(64, step)})
        return jnp.round(label["step"]), turns(jax.random.key(0), x, label)[0][0, 0]

    for step in (1_000_000.0, 1_000_001.0):
        rounded, mark = after_mixing(step)
        assert (rounded == step).all() and mark == 1 + step % 2


def test_one_of_several_ops_at_random():
    found, _ = drawn(augment.choose(ops=(marked(0.0), marked(1.0))), jnp.zeros(1), {})
    within_4_sigma(found, 1 / 2, 1 / 2)


EVERYTHING = dict(
    name="alternate",
    ops=(
        dict(name="mixup", p=1.0, lam="batch", pairing="cross_domain"),
        dict(name="fmix", pairing="cross_domain"),
        dict(name="choose", ops=(dict(name="mixup"), dict(name="fmix", variant="official", layout="time_freq"))),
        dict(name="spec_mask", time_width=4, freq_width=4),
    ),
)
OF_WAVES = (dict(name="crop", samples=40), dict(name="event_mix", p=0.9))


def batch_of_everything(*shape):
    x = jax.random.normal(jax.random.key(0), (16, *shape))
    return x, {"class": jnp.eye(16), "target": jnp.arange(16.0) % 4 // 3, "step": jnp.ones(16)}


def of_waves(key, x, label):
    for op in OF_WAVES:
        x, label = core.build(augment, op)(key, x, label)
    return x, label


def test_ops_lower_for_tpu():
    op = jax.jit(core.build(augment, EVERYTHING))
    exported = jax.export.export(op, platforms=["tpu"])(jax.random.key(0), *batch_of_everything(4, 6))
    assert "stablehlo.case" in exported.mlir_module()
    exported = jax.export.export(jax.jit(of_waves), platforms=["tpu"])(jax.random.key(0), *batch_of_everything(50))
    assert exported.out_avals[0].shape == (16, 40)


def test_ops_over_eight_devices_equal_one():
    code = """
import jax, numpy as np, test_augment
from asdjax import augment, core, parallel
mesh = parallel.data_mesh()
assert mesh.size == 8
everything = core.build(augment, test_augment.EVERYTHING)
for op, shape, steps in ((everything, (4, 6), 4), (test_augment.of_waves, (50,), 1)):
    batch = test_augment.batch_of_everything(*shape)
    alone, split = jax.jit(op), jax.jit(op, in_shardings=(parallel.replicated(mesh), *[parallel.sharded(mesh)] * 2))
    for step in range(steps):
        batch[1]["step"] = jax.numpy.full(16, float(step))
        expected, found = (jax.device_get(f(jax.random.key(step), *batch)) for f in (alone, split))
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=0, atol=1e-6), found, expected)
        print((found[0] != batch[0][..., : found[0].shape[-1]]).any())
"""
    flags = os.environ["XLA_FLAGS"] + " --xla_force_host_platform_device_count=8"
    env = {**os.environ, "XLA_FLAGS": flags, "PYTHONPATH": str(HERE)}
    done = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True, timeout=200)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == ["True"] * 5


@pytest.mark.parametrize(
    "spec, message",
    [
        (dict(name="mixup", p=1.5), "mixup: p must lie"),
        (dict(name="mixup", lam="clip"), "mixup: lam='clip'; expected one of example, batch"),
        (dict(name="mixup", pairing="all"), "mixup: pairing='all'; expected one of random, cross_domain"),
        (dict(name="fmix", alpha=0.0), "fmix: p must lie in .* found p=1.0, alpha=0.0"),
        (dict(name="fmix", variant="fast"), "fmix: variant='fast'; expected one of paper, official"),
        (dict(name="fmix", layout="mel"), "fmix: layout='mel'; expected one of freq_time, time_freq"),
        (dict(name="fmix", freq_units="hertz"), "fmix: freq_units='hertz'; expected one of per_sample, per_image"),
        (dict(name="alternate", ops=()), r"alternate: ops=\(\); expected dicts"),
        (dict(name="choose", ops=("mixup",)), "choose: ops=.*mixup.*; expected dicts"),
    ],
)
def test_nonsense_raises(spec, message):
    with pytest.raises(UsageError, match=message):
        core.build(augment, spec)


def test_ops_without_what_they_need_raise():
    key, wave = jax.random.key(0), jnp.zeros((2, 9))
    with pytest.raises(UsageError, match="alternate: goes by the number of the update"):
        augment.alternate(ops=(marked(1.0),))(key, wave, {})
    with pytest.raises(UsageError, match=r"fmix: found an input of shape \(2, 9\), expected features"):
        augment.fmix()(key, wave, {})
