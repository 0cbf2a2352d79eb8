"""The plan of a run, against table 3 of Bai et al. 2022 and by hand."""

import copy
import importlib.util
import io
from pathlib import Path

import jax
import pytest
from rich.console import Console

from asdjax import by_machine, core, frontends, plan

SECTIONS = (["00", "01", "02", "03", "04", "05"], ["00", "01", "02"])
MFN = dict(
    frontend=dict(name="log_mel", n_mels=128, hop=512),
    cut=dict(name="cut", width=64, hop=8),
    sampler=dict(name="uniform"),
    wave_ops=(),
    feature_ops=(dict(name="mixup", p=1.0),),
    backbone=dict(name="MobileFaceNet", stem=64),
    head=dict(name="ArcFace", s=30.0),
    score=dict(scorers=(dict(name="a", fit="section", detector=dict(name="lof", n_neighbors=4)),), selections=()),
)


def changed(**sections):
    return copy.deepcopy(MFN) | sections


def cells(config, sections=SECTIONS) -> dict[str, str]:
    return dict(plan.table({"fan": config}, {"fan": sections}))


def test_a_plan_by_hand():
    both = dict(name="alternate", ops=(dict(name="fmix", p=1.0), dict(name="mixup")))
    scorers = tuple(dict(name=f"s{i}", detector=dict(name=name)) for i, name in enumerate(("knn", "lof", "knn")))
    other = changed(
        frontend=dict(name="spectrogram", win=1024, hop=512, drop_bin="last"),
        cut=dict(name="cut", width=32, hop=16),
        sampler=dict(name="domain_mixed", n_target=2),
        feature_ops=(both,),
        head=dict(name="Linear", loss="focal", gamma=2.0),
        score=dict(scorers=scorers, selections=()),
    )
    found = plan.table({"ToyCar": MFN, "fan": other}, {"fan": (["00"], []), "ToyCar": SECTIONS})
    assert found == [
        ["feature", "log_mel 128x64", "spectrogram 512x32"],
        ["network", "MobileFaceNet", "MobileFaceNet"],
        ["loss", "ArcFace", "focal"],
        ["batches", "uniform", "domain_mixed n_target=2"],
        ["augmentation", "mixup", "fmix, mixup in turn"],
        ["train sections", "00, 01, 02, 03, 04, 05", "00"],
        ["test sections", "00, 01, 02", "-"],
        ["scorers", "a", "s0, s1, s2"],
    ]


def test_what_a_config_leaves_empty_or_to_defaults():
    bare = changed(
        frontend=dict(name="log_mel"),
        cut={},
        feature_ops=(),
        backbone={},
        head={},
        score=dict(scorers=(), selections=()),
    )
    found = cells(bare, ([""], [""]))
    assert found["feature"] == "log_mel 128"
    assert {name: cell for name, cell in found.items() if name not in ("feature", "batches")} == dict.fromkeys(
        ("network", "loss", "augmentation", "train sections", "test sections", "scorers"), "-"
    )
    assert cells(changed(head=dict(name="Linear")))["loss"] == "softmax"


@pytest.mark.parametrize(
    "frontend,cut",
    [
        (dict(name="log_mel", sample_rate=16000, win=400, hop=160, n_mels=20), dict(name="cut", width=30, hop=8)),
        (dict(name="log_mel", win=400, hop=160, n_mels=20), dict(name="cut", width=4000, hop=8, at="wave")),
        (dict(name="log_mel", win=400, hop=160, center=False), dict(name="cut", width=4000, hop=8, at="wave")),
        (dict(name="spectrogram", win=400, hop=160), dict(name="cut", width=9, hop=8, at="frames")),
        (dict(name="spectrogram", win=400, hop=160, drop_bin="none"), dict(name="cut", width=9, hop=8)),
        (dict(name="spectrogram", win=401, hop=160, drop_bin="first"), dict(name="cut", width=9, hop=8)),
        (dict(name="phase", win=400, hop=160), dict(name="cut", width=7, hop=8)),
    ],
)
def test_sizes_are_those_of_the_frontend(frontend, cut):
    built, part = core.build(frontends, frontend), core.build(frontends, cut)
    wave = jax.ShapeDtypeStruct((1, 16000), "float32")
    if part.at == "wave":
        shape = jax.eval_shape(lambda wave: built(part.units(wave)[:, 0]), wave).shape
    else:
        shape = jax.eval_shape(lambda wave: part.units(built(wave))[:, 0], wave).shape
    _, frames, bins = shape
    assert cells(changed(frontend=frontend, cut=cut))["feature"] == f"{frontend['name']} {bins}x{frames}"


def test_a_frontend_without_bins_is_named_alone():
    assert cells(changed(frontend=dict(name="spectrum")))["feature"] == "spectrum"


def test_ops_are_named_in_their_order():
    mixup, fmix = dict(name="mixup"), dict(name="fmix")
    ops = (dict(name="choose", ops=(mixup, fmix)), dict(name="alternate", ops=(fmix, mixup)))
    found = cells(changed(wave_ops=(mixup,), feature_ops=ops))
    assert found["augmentation"] == "mixup + mixup, fmix at random + fmix, mixup in turn"


def test_selections_say_which_scorer_a_machine_takes():
    base = dict(source="lof", target="knn")
    rules = (dict(name="mix", **base, by_machine=dict(valve=dict(source="b", target="b"))), dict(name="plain", **base))
    config = changed(score=dict(MFN["score"], selections=rules))
    only = changed(score=dict(MFN["score"], selections=rules[:1]))
    found = plan.table({"fan": config, "valve": only}, {"fan": SECTIONS, "valve": SECTIONS})
    assert found[-2:] == [["mix", "lof, knn", "b"], ["plain", "lof, knn", "-"]]


def config_file(name):
    spec = importlib.util.spec_from_file_location(name, Path(__file__).parents[1] / "configs" / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_ensemble_of_bai_is_their_table_3():
    """Feature, network, loss, augmentation and detector of each machine, as printed; the names are ours."""
    stft, mel, both = "spectrogram 512x32", "log_mel 128x64", "fmix, mixup in turn"
    expected = {
        "ToyCar": (stft, "MobileFaceNet", "ArcFace", "mixup", "lof"),
        "ToyTrain": (stft, "MobileFaceNet", "ArcFace", both, "lof"),
        "bearing": (mel, "DualPathTransformer", "focal", "mixup", "log_softmax_mse"),
        "fan": (stft, "MobileFaceNet", "ArcFace", both, "lof"),
        "gearbox": (mel, "MobileFaceNet", "focal", both, "lof"),
        "slider": (mel, "MobileFaceNet", "focal", both, "log_softmax"),
        "valve": (mel, "MobileFaceNet", "ArcFace", "mixup", "lof"),
    }
    config = config_file("bai2022").get_config("ensemble").to_dict()
    configs = {machine: by_machine.config_of(config, machine) for machine in expected}
    rows = {what: row for what, *row in plan.table(configs, dict.fromkeys(expected, SECTIONS))}
    found = zip(*(rows[what] for what in ("feature", "network", "loss", "augmentation", "submission_1")), strict=True)
    assert dict(zip(expected, found, strict=True)) == expected


@pytest.mark.parametrize("width", [150, 80])
def test_the_plan_is_printed_whole(width):
    rule = dict(name="mix [x]", source="lof", target="lof")
    scorers = (dict(name="log_softmax_mse"),)
    configs = {f"machine{i}": changed(score=dict(scorers=scorers, selections=(rule,))) for i in range(7)}
    console = Console(width=width, file=io.StringIO(), color_system=None)
    plan.print_plan(configs, dict.fromkeys(configs, SECTIONS), console)
    lines = console.file.getvalue().splitlines()
    assert lines[0] == "plan of each machine" and max(map(len, lines)) <= width
    assert (lines.count("plan of each machine") == 1) == (width == 150)
    assert [word for line in lines for word in line.split() if word.startswith("machine") and word[-1].isdigit()] == [
        *configs
    ]
    assert sum(line.count("log_softmax_mse") for line in lines) == 7
    for what in ("log_mel 128x64", "MobileFaceNet", "ArcFace", "mixup", "00, 01, 02, 03,"):
        assert sum(line.count(what) for line in lines) == 7
    assert any(line.startswith(" mix [x] ") for line in lines)
