from __future__ import annotations

import importlib.util
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny

from asdjax import checks, evaluate, frontends, parallel, systems, train
from asdjax.core import Parts, UsageError
from asdjax.data import feed
from asdjax.systems.statistics import statistics

SPECTROGRAM = frontends.log_mel(sample_rate=tiny.SR, win=128, hop=64, n_mels=16)
PARTS = Parts((), SPECTROGRAM, None, (), None, None, None)
EMPTY = {"cut": {}, "wave_ops": (), "feature_ops": (), "backbone": {}, "head": {}, "optim": {}}


def config_of(name: str):
    path = Path(__file__).parents[1] / "configs" / f"{name}.py"
    spec = importlib.util.spec_from_file_location(name, path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_a_clip_is_pooled_over_all_its_frames():
    wave = jnp.asarray(tiny.tones(n=3).wave / np.float32(32768))
    system = statistics(PARTS)
    state = system.init(jax.random.key(0), {"wave": wave})
    assert system.update is None and int(state.step) == 0 and not jax.tree.leaves(state.params)
    e = jax.jit(system.embed)(state, wave)
    x = np.asarray(SPECTROGRAM(wave), np.float64)
    ranked = -np.sort(-x, axis=1)
    expected = {"mean": x.mean(1), "std": x.std(1), "max": x.max(1), "quantile_0.95": np.quantile(x, 0.95, axis=1)}
    for r in (0.95, 0.8, 0.5):
        expected[f"gwrp_{r}"] = np.average(ranked, axis=1, weights=r ** np.arange(x.shape[1]))
    expected["moments"] = np.hstack([expected["mean"], expected["std"], expected["quantile_0.95"]])
    assert set(e) == set(expected)
    for name, values in expected.items():
        assert e[name].shape == (3, 1, values.shape[1])
        np.testing.assert_allclose(e[name][:, 0], values, rtol=2e-5, atol=1e-4, err_msg=name)


def test_what_is_pooled_can_be_chosen():
    wave = jnp.asarray(tiny.tones(n=2).wave / np.float32(32768))
    system = statistics(PARTS, ranks=(0.9,), quantiles=(0.1, 0.5))
    e = system.embed(system.init(jax.random.key(0), {}), wave)
    assert set(e) == {"mean", "std", "max", "gwrp_0.9", "quantile_0.1", "quantile_0.5", "moments"}
    assert e["moments"].shape == (2, 1, 4 * 16)


def test_parts_that_it_has_no_use_for_are_refused():
    with pytest.raises(UsageError, match="no cut, head: leave these parts of the config empty"):
        statistics(PARTS._replace(cut=frontends.cut(width=4, hop=2), head=object()))
    with pytest.raises(UsageError, match=r"ranks=\(1.5,\); expected numbers from 0 to 1"):
        statistics(PARTS, ranks=(1.5,))
    system = statistics(PARTS._replace(frontend=frontends.branches(a=SPECTROGRAM, b=SPECTROGRAM)))
    with pytest.raises(UsageError, match="branches a, b; expected one spectrogram"):
        system.embed(system.init(jax.random.key(0), {}), jnp.zeros((1, tiny.SR)))


def test_it_is_built_from_a_config_and_embeds_a_bank():
    system = train.make(tiny.config(**EMPTY, system={"name": "statistics"}), n_classes=1)
    store, mesh = tiny.tones(n=10), parallel.data_mesh()
    state = system.init(jax.random.key(0), {})
    made = evaluate.embed_clips(system, [state], feed.resident(store, mesh), np.arange(10), units=4, mesh=mesh)
    (e,) = made
    wave = jnp.asarray(store.wave * store.gain[:, None])
    np.testing.assert_allclose(e["max"][:, 0], SPECTROGRAM(wave).max(1), rtol=1e-5, atol=1e-4)


def test_every_variant_of_the_config_is_what_it_says():
    module = config_of("statistics")
    keys = {name: set(section) for name, section in config_of("mfn").get_config().to_dict().items() if name == "data"}
    for variant in module.VARIANTS:
        config = module.get_config(variant).to_dict()
        assert set(config["data"]) == keys["data"]
        names = [scorer["name"] for scorer in config["score"]["scorers"]]
        if variant in module.SINGLE:
            assert names == [f"{variant}-knn"] and config["score"]["fusions"] == ()
        else:
            assert len(set(names)) == len(names) == 28 and config["score"]["fusions"][0]["name"] == "fusion"
        known = statistics(PARTS, **{k: v for k, v in config["system"].items() if k != "name"})
        outputs = jax.eval_shape(known.embed, known.init(jax.random.key(0), {}), jnp.zeros((1, tiny.SR)))
        checks.check_scorers(config["score"]["scorers"], gives_test_domain=False)
        assert {scorer["detector"]["key"] for scorer in config["score"]["scorers"]} <= set(outputs)
    assert module.get_config("2021").data.year == "2021" and module.get_config("max").data.year == "2023"
    with pytest.raises(ValueError, match="no such variant; there is: 2020"):
        module.get_config("oracle")
    assert "statistics" in systems.__all__
