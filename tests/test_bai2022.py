"""configs/bai2022.py against the report: sizes of the networks, detectors of table 2, mixtures of table 4."""

import csv
import importlib.util
import itertools
from pathlib import Path

import jax
import numpy as np
import pytest
from scipy import stats

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
        assert config(variant)["by_machine"].keys() <= {"bearing"}
        assert set(taken(variant).values()) == {("log_mel", "DualPathTransformer", "log_softmax_mse")}


def published(metric):
    """{(system, machine, domain): the printed number} of the report."""
    with open(FILE.parents[1] / "asdjax/results/published.csv", newline="") as file:
        rows = [row for row in csv.DictReader(file) if row["source"] == "Bai 2022" and row["metric"] == metric]
    return {(row["system"], row["machine"], row["domain"]): float(row["value"]) for row in rows}


def test_submissions_share_what_their_numbers_share():
    """Table 4: where two submissions have one number for a machine, they are one system there, with one exception."""
    omega = published("official score")
    names = {"ensemble": "1", "sub2_mfn": "2 MFN", "sub2_dpt": "2 DPT", "sub3": "3"}
    system = {v: next(s for s, *_ in omega if all(part in s for part in n.split())) for v, n in names.items()}
    assert len(set(system.values())) == 4

    def own(variant, machine):
        whole = config(variant)
        own = by_machine.config_of(whole, machine)
        return {k: own[k] for k in by_machine.SECTIONS[:-1]}, taken(variant)[machine]

    for one, other in itertools.combinations(names, 2):
        for machine in MACHINES:
            same = omega[system[one], machine, ""] == omega[system[other], machine, ""]
            if (one, other, machine) in {("ensemble", "sub2_mfn", "gearbox"), ("sub2_mfn", "sub3", "gearbox")}:
                assert not same and own(one, machine) == own(other, machine)  # what differs is not told
            else:
                assert same == (own(one, machine) == own(other, machine)), (one, other, machine)


def test_numbers_of_the_docstring_are_those_of_the_tables():
    """Every row of numbers in the docstring, against the table of published numbers."""
    text = bai2022.__doc__
    table2, table4 = text[text.index("Table 2") : text.index("Table 4")], text[text.index("Table 4") :]
    hauc, omega = published("h-AUC"), published("official score")
    for label, name in (("MFN STFT", "MFN STFT"), ("MFN log-mel", "MFN Log-Mel"), ("DPT", "DPT Log-Mel")):
        lines = table2[table2.index(f"    {label}") :].splitlines()[:2]
        for line, domain in zip(lines, ("source", "target"), strict=True):
            numbers = [float(word) / 100 for word in line.split()[-7:]]
            assert numbers == pytest.approx([hauc[name, machine, domain] for machine in MACHINES], abs=1e-9)
    for label in ("submission 1", "submission 2 MFN", "submission 2 DPT", "submission 3"):
        line = table4[table4.index(label) :].splitlines()[0]
        numbers = [float(word) / 100 for word in line.split()[-8:]]
        name = next(s for s, *_ in omega if all(part.lower() in s.lower() for part in label.split()))
        expected = [omega[name, machine, ""] for machine in MACHINES]
        assert numbers[:7] == pytest.approx(expected, abs=1e-9)
        assert numbers[7] == pytest.approx(stats.hmean(expected), abs=5e-4)


@pytest.mark.parametrize("variant", bai2022.VARIANTS)
def test_values_that_the_report_states(variant):
    """Sections 2.4 and 3.2."""
    whole = config(variant)
    for own in by_machine.configs(whole).values():
        frontend, width = own["frontend"], own["cut"]["width"]
        assert (frontend["win"], frontend["hop"]) == (1024, 512) and whole["data"]["sample_rate"] == 16000
        assert width == 32 if frontend["name"] == "spectrogram" else (width, frontend["n_mels"]) == (64, 128)
        detectors = {spec["name"]: spec["detector"] for spec in own["score"]["scorers"]}
        assert "lof" not in detectors or detectors["lof"]["n_neighbors"] == 4


def test_a_flag_for_one_machine_changes_no_other():
    for variant in bai2022.VARIANTS:
        whole = bai2022.get_config(variant)
        for machine, own in whole.by_machine.items():
            before = {name: whole.by_machine[name].to_json() for name in whole.by_machine if name != machine}
            before[""] = whole.head.to_json(), str(whole.feature_ops)
            if "head" in own:
                own.head.name = "changed"
            if "feature_ops" in own:
                own.feature_ops[0]["name"] = "changed"
            after = {name: whole.by_machine[name].to_json() for name in whole.by_machine if name != machine}
            assert before == after | {"": (whole.head.to_json(), str(whole.feature_ops))}
    assert "changed" not in str(bai2022.get_config("ensemble"))


def test_options_hold_for_all_machines():
    own = config("mfn_stft,loss=arcface,mixing=none")
    assert own["by_machine"] == {} and own["head"]["name"] == "ArcFace" and own["feature_ops"] == ()
    for variant in ("dpt", "sub2_dpt"):
        own = config(f"{variant},loss=arcface")
        assert own["by_machine"] == {} and own["head"]["name"] == "ArcFace"
    for wrong in ("mfn_mel,loss=hinge", "mfn_mel,lr=3"):
        with pytest.raises(ValueError, match=r"no such option; there is: loss=arcface\|focal"):
            bai2022.get_config(wrong)
