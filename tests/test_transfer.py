import json
import logging
import shutil

import jax
import numpy as np
import pytest
import tiny
import trees
from flax import traverse_util

from asdjax import checkpoint, checks, run, train, transfer
from asdjax.core import InputError, UsageError


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return trees.hums(tmp_path_factory.mktemp("data"))


def settings(data, **changes):
    return tiny.config(**{"data.root": str(data), "data.cache": str(data / "cache"), "train.steps": 2, **changes})


@pytest.fixture(scope="module")
def first(data, tmp_path_factory):
    workdir = tmp_path_factory.mktemp("first") / "run"
    run.run(settings(data), workdir)
    return workdir


def weights(folder):
    step, params, stats = checkpoint.network(transfer.source(folder))
    return step, traverse_util.flatten_dict({"params": params, "stats": stats}, sep="/")


def fresh(config, n_classes=2, seed=0):
    system = train.make(config, n_classes)
    label = {"class": np.eye(n_classes, dtype=np.float32), "target": np.zeros(n_classes, np.float32)}
    wave = np.random.default_rng(0).standard_normal((n_classes, tiny.SR)).astype(np.float32)
    return jax.tree.map(np.asarray, jax.jit(system.init)(jax.random.key(seed), {"wave": wave, "label": label}))


def test_the_backbone_of_another_run_is_taken_and_the_head_is_not(data, first, tmp_path, caplog):
    _, theirs = weights(first)
    state = fresh(settings(data), n_classes=7)
    with caplog.at_level(logging.INFO):
        start = transfer.started_from(first)
        found = start(state)
        start(state)
    flat = traverse_util.flatten_dict({"params": found.params, "stats": found.stats}, sep="/")
    before = traverse_util.flatten_dict({"params": state.params, "stats": state.stats}, sep="/")
    taken = [k for k in flat if k.split("/")[1] == "backbone"]
    assert len(taken) > 10 and jax.tree.structure(found) == jax.tree.structure(state)
    for name, leaf in flat.items():
        np.testing.assert_array_equal(leaf, theirs[name] if name in taken else before[name], err_msg=name)
        assert leaf.dtype == before[name].dtype
    said = [r.message for r in caplog.records if "started from" in r.message]
    assert len(said) == 1 and "step 2" in said[0]
    assert said[0].endswith("anew: params/head/kernel (7, 8); not taken: its head")


def test_what_does_not_fit_begins_anew_and_is_named(data, first, caplog):
    other = settings(data, backbone={**tiny.CONFIG["backbone"], "embedding": 12})
    with caplog.at_level(logging.WARNING):
        found = transfer.started_from(first)(fresh(other))
        assert not caplog.records  # most of it fits
    with caplog.at_level(logging.INFO):
        transfer.started_from(first)(fresh(other))
    said = next(r.message for r in caplog.records if "started from" in r.message)
    assert "(16, 12)" in said or "(12,)" in said
    _, theirs = weights(first)
    stem = next(k for k in theirs if k.startswith("params/backbone/Conv3x3"))
    mine = traverse_util.flatten_dict({"params": found.params}, sep="/")
    np.testing.assert_array_equal(mine[stem], theirs[stem])


def test_a_network_with_nothing_in_common_is_refused(data, first):
    vit = {"name": "ViT", "patch": 8, "width": 8, "heads": 2, "dim_head": 4, "mlp": 8, "input_bn": False}
    state = fresh(settings(data, backbone=vit))
    with pytest.raises(UsageError, match=r"no weights for this backbone; it has .* expected"):
        transfer.started_from(first)(state)


def test_a_run_starts_from_another_and_resumes_without_it(data, first, tmp_path, caplog):
    """One step with a rate of almost 0: the weights are still the others'."""
    source = shutil.copytree(first, tmp_path / "source")
    changes = {"init_from": str(source), "train.steps": 1, "optim": {"name": "sgd", "lr": 1e-12}}
    with caplog.at_level(logging.INFO):
        run.run(settings(data, **changes), tmp_path / "second")
        assert "started from" in caplog.text
        caplog.clear()
        shutil.rmtree(source)  # a run that has begun does not need it
        shutil.rmtree(tmp_path / "second" / "groups" / "all" / "embeddings")
        run.run(settings(data, **changes), tmp_path / "second")
        assert "started from" not in caplog.text
    _, theirs = weights(first)
    step, ours = weights(tmp_path / "second")
    assert step == 1
    for name, leaf in ours.items():
        if name.startswith("params/backbone"):
            np.testing.assert_allclose(leaf, theirs[name], atol=1e-7, err_msg=name)


def test_where_networks_are_looked_for(data, tmp_path):
    config = settings(data)
    for given, message in (
        (tmp_path / "nowhere", "is not there"),
        (tmp_path, "holds no checkpoints"),
    ):
        with pytest.raises(UsageError, match=message):
            run.run({**config, "init_from": str(given)}, tmp_path / "run")
    for member in ("member_0", "member_1"):
        (tmp_path / "several" / "groups" / "all" / member / "checkpoints").mkdir(parents=True)
    with pytest.raises(UsageError, match=r"several networks, .*member_0, .*member_1: give the folder of one"):
        transfer.source(tmp_path / "several")
    with pytest.raises(UsageError, match=r"several networks, .*member_0, .*member_1"):
        transfer.source(tmp_path / "several" / "groups" / "all")
    with pytest.raises(UsageError, match="only classifiers start from other networks"):
        checks.check_parts(
            {**config, "init_from": str(tmp_path), "head": {}, "data": {**config["data"], "label": "none"}}
        )
    one = tmp_path / "several" / "groups" / "all" / "member_1"
    assert transfer.source(one) == one / "checkpoints"


def test_a_damaged_checkpoint_is_refused_and_left_where_it_is(data, first, tmp_path):
    folder = tmp_path / "run" / "groups" / "all"
    state = fresh(settings(data))
    manager = checkpoint.manager(folder / "checkpoints")
    checkpoint.save(manager, state)
    manager.close()
    assert checkpoint.network(folder / "checkpoints")[0] == 0
    meta = next((folder / "checkpoints" / "0" / "meta").glob("metadata"))
    meta.write_text(json.dumps({**json.loads(meta.read_text()), "network": "0" * 32}))
    with pytest.raises(InputError, match="no usable checkpoint; step 0: its content is not what was saved"):
        transfer.started_from(tmp_path / "run")
    assert (folder / "checkpoints" / "0").is_dir()
