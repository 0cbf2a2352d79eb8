"""configs/zeng2023.py against the report: sizes of the networks, windows, ensembles of table 3, cited numbers."""

import csv
import importlib.util
import re
from pathlib import Path

import jax
import numpy as np
import pytest

from asdjax import ensemble, frontends, models, train
from asdjax.core import build

ROOT = Path(__file__).parents[1]
FILE = ROOT / "configs" / "zeng2023.py"
SPEC = importlib.util.spec_from_file_location("zeng2023", FILE)
zeng2023 = importlib.util.module_from_spec(SPEC)
SPEC.loader.exec_module(zeng2023)


def config(variant):
    return zeng2023.get_config(variant).to_dict()


@pytest.mark.parametrize(
    ("variant", "classes", "parameters"),  # layer tables made with PyTorch; the ViT's are without its 128 of BatchNorm
    [
        ("mv2_sec", 14, 1_854_286),
        ("mv2_sed", 14, 1_854_286),
        ("vit_sec", 14, 242_702 + 128),
        ("vit_sed", 14, 242_702 + 128),
        ("mv2_pretrain", 527, 2_898_511),
    ],
)
def test_networks_have_the_sizes_of_the_report(variant, classes, parameters):
    own = config(variant)
    system = train.make(own, n_classes=classes)
    label = {k: jax.ShapeDtypeStruct(v, np.float32) for k, v in {"class": (2, classes), "target": (2,)}.items()}
    batch = {"wave": jax.ShapeDtypeStruct((2, 160_000), np.float32), "label": label}
    state = jax.eval_shape(system.init, jax.random.key(0), batch)
    assert sum(leaf.size for leaf in jax.tree.leaves(state.params)) == parameters
    units = {seconds: embedded(system, state, seconds)["embedding"] for seconds in (10, 12, 18)}
    if variant == "mv2_pretrain":
        assert units[10].shape == (1, 1, 1280)
    else:  # 3-s windows every 0.5 s
        assert {s: e.shape for s, e in units.items()} == {10: (1, 15, 128), 12: (1, 19, 128), 18: (1, 31, 128)}
    unit = jax.ShapeDtypeStruct((1, own["cut"]["width"]), np.float32)
    frames = 1001 if variant == "mv2_pretrain" else 301
    assert jax.eval_shape(build(frontends, own["frontend"]), unit).shape == (1, frames, 64)


@pytest.mark.parametrize("downsample", ["avgpool", "strided"])
def test_rows_may_be_halved_as_sandler_has_it(downsample):
    """The strided network's maps are 19 x 4 after the 96 channels, as in the layer table."""
    own = config("mv2_sec,strides=sandler")
    assert own["backbone"]["rows"][4:6] == ((6, 96, 3, 1), (6, 160, 3, 2))
    net = build(models, {**own["backbone"], "downsample": downsample})
    unit = jax.ShapeDtypeStruct((1, 301, 64), np.float32)

    def maps(x):
        return net.init_with_output(jax.random.key(0), x, train=False, capture_intermediates=True)[1]["intermediates"]

    assert jax.eval_shape(maps, unit)["row4_2"]["__call__"][0].shape == (1, 19 - (downsample == "avgpool"), 4, 96)


def embedded(system, state, seconds):
    return jax.eval_shape(system.embed, state, jax.ShapeDtypeStruct((1, seconds * 16000), np.float32))


def test_ensembles_are_those_of_table_3():
    """Each is made of these systems' Mahalanobis distances, by these operations."""

    def value(name, rules, scores):
        if name in scores:
            return scores[name]
        rule = rules[name]
        parts = [value(scorer, rules, scores) for scorer in rule["scorers"]]
        return sum(parts) if rule["how"] == "sum" else parts[0] * parts[1]

    primes = {"mv2_sec": 2, "mv2_sed": 3, "vit_sec": 5, "vit_sed": 7}
    scores = {f"{name}/mahalanobis": number for name, number in primes.items()}
    expected = {"ensemble1": 2 + 3, "ensemble2": 5 + 7, "ensemble3": 2 + 3 + 5 + 7, "ensemble4": (2 + 3) * (5 + 7)}
    for variant, number in expected.items():
        whole = config(variant)
        rules = {rule["name"]: rule for rule in whole["score"]["fusions"]}
        assert value(variant, rules, scores) == number
        members = {name: ensemble.of_member(whole, name) for name in whole["ensemble"]}
        ensemble.check(whole, members)
        assert members == {name: config(name) for name in members}  # the runs that they would be alone


def test_flags_of_one_member_are_of_no_other():
    whole = zeng2023.get_config("ensemble1")
    whole.ensemble.mv2_sec.backbone.dtype = "bfloat16"
    assert whole.ensemble.mv2_sed.backbone.dtype == "float32"
    assert "backbone" not in whole  # where a flag would reach no member


def test_numbers_of_the_docstring_are_the_published_ones():
    with open(ROOT / "asdjax" / "results" / "published.csv", encoding="utf-8") as file:
        rows = [r for r in csv.DictReader(file) if "zeng" in r["source"].lower()]
    published = {}
    for r in rows:
        published.setdefault((r["system"], r["metric"], r["domain"]), {})[r["machine"]] = r["value"]
    lines = re.findall(r"^ +((?:MV2|ViT)_SE[CD]|Ensemble\d) +([\d.]+) +([\d.]+) +([\d.]+)$", zeng2023.__doc__, re.M)
    assert len(lines) == 8
    columns = (("AUC same-domain", "source"), ("AUC same-domain", "target"), ("pAUC", "all"))
    for system, *numbers in lines:
        for number, column in zip(numbers, columns, strict=True):
            by_machine = published[(system, *column)]
            values = [100 * float(v) for machine, v in by_machine.items() if machine != "all"]
            assert len(values) == 7
            assert float(number) == pytest.approx(len(values) / sum(1 / v for v in values), abs=0.011)
