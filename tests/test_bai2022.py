"""configs/bai2022.py against the report: sizes of the networks, detectors of table 2, mixtures of table 4."""

import csv
import importlib.util
from pathlib import Path

import jax
import numpy as np
import pytest

from asdjax import by_machine, train

FILE = Path(__file__).parents[1] / "configs" / "bai2022.py"
SPEC = importlib.util.spec_from_file_location("bai2022", FILE)
bai2022 = importlib.util.module_from_spec(SPEC)
SPEC.loader.exec_module(bai2022)
MACHINES = ("ToyCar", "ToyTrain", "bearing", "fan", "gearbox", "slider", "valve")


def config(variant):
    return bai2022.get_config(variant).to_dict()


def taken(variant):
    """(feature, network, detector) of each machine."""
    whole = config(variant)
    (rule,) = whole["score"]["selections"]
    found = {}
    for machine in MACHINES:
        own = by_machine.config_of(whole, machine)
        scorer = rule["by_machine"].get(machine, rule)["source"]
        assert scorer in [spec["name"] for spec in own["score"]["scorers"]]
        found[machine] = own["frontend"]["name"], own["backbone"]["name"], scorer
    return found


@pytest.mark.parametrize(
    ("variant", "parameters"),  # the report's table 1 and the published code of the others, each with six classes
    [("mfn_mel", 993_280 + 768), ("mfn_stft", 985_088 + 768), ("dpt", 289_030), ("mfn_mel,loss=softmax", 994_054)],
)
def test_networks_have_the_sizes_of_the_report(variant, parameters):
    own = config(variant)
    system = train.make(own, n_classes=6)
    frames, bins = own["cut"]["width"], 512 if variant == "mfn_stft" else 128
    label = {"class": jax.ShapeDtypeStruct((2, 6), np.float32)}
    batch = {"features": jax.ShapeDtypeStruct((2, frames, bins), np.float32), "label": label}
    params = jax.eval_shape(system.init, jax.random.key(0), batch).params
    assert sum(leaf.size for leaf in jax.tree.leaves(params)) == parameters
    clip = jax.eval_shape(train.frontend(own), jax.ShapeDtypeStruct((1, 160_000), np.float32)).shape
    assert clip == (1, 313, bins) and len(train.unit_frames(own, 160_000)) == (18 if variant == "mfn_stft" else 32)


def test_detectors_are_those_of_table_2():
    stft = {m: "cosine" if m in ("bearing", "gearbox", "slider") else "lof" for m in MACHINES}
    mel = {m: "lof" if m in ("ToyCar", "ToyTrain", "gearbox") else "log_softmax" for m in MACHINES}
    assert taken("mfn_stft") == {m: ("spectrogram", "MobileFaceNet", stft[m]) for m in MACHINES}
    for variant in ("mfn_mel", "sub2_mfn"):
        assert taken(variant) == {m: ("log_mel", "MobileFaceNet", mel[m]) for m in MACHINES}
    for variant in ("dpt", "sub2_dpt"):
        assert set(taken(variant).values()) == {("log_mel", "DualPathTransformer", "log_softmax_mse")}


def test_submissions_1_and_3_share_what_their_numbers_share():
    """Table 4: they are equal but for bearing and slider."""
    with open(FILE.parents[1] / "asdjax/results/published.csv", newline="") as file:
        rows = [
            row for row in csv.DictReader(file) if row["source"] == "Bai 2022" and row["metric"] == "official score"
        ]
    omega = {(row["system"], row["machine"]): row["value"] for row in rows}
    one, three = (next(s for s, _ in omega if f"ubmission {n}" in s or f"ubmission{n}" in s) for n in (1, 3))
    differing = {machine for machine in MACHINES if omega[one, machine] != omega[three, machine]}
    first, third = taken("ensemble"), taken("sub3")
    assert differing == {"bearing", "slider"} == {machine for machine in MACHINES if first[machine] != third[machine]}
    assert third["bearing"] == third["slider"] == ("spectrogram", "MobileFaceNet", "cosine")


def test_options_hold_for_all_machines():
    own = config("mfn_stft,loss=arcface,mixing=none")
    assert own["by_machine"] == {} and own["head"]["name"] == "ArcFace" and own["feature_ops"] == ()
    for wrong in ("mfn_mel,loss=hinge", "mfn_mel,lr=3"):
        with pytest.raises(ValueError, match=r"no such option; there is: loss=arcface\|focal"):
            bai2022.get_config(wrong)
