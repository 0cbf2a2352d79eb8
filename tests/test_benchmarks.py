from __future__ import annotations

import json
import os
import resource
from pathlib import Path

import jax
import numpy as np
import pytest

from benchmarks import common


def test_cases_are_called_in_turn_after_the_warm_up():
    calls = []
    cases = {name: lambda name=name: calls.append(name) for name in "ab"}
    times = common.interleaved(cases, repeats=3, warmup=2)
    assert "".join(calls) == "ab" * 5
    assert [len(times[name]) for name in "ab"] == [3, 3]
    times = common.interleaved(cases, repeats=3, warmup=0, seconds=0.0)
    assert [len(times[name]) for name in "ab"] == [1, 1]


def test_the_ratio_is_the_median_of_each_rounds():
    # Rounds: 1/2, 2/4, 9/3. The medians alone, 2 and 3, would say 2/3.
    times = {"ours": [1.0, 2.0, 9.0], "peer": [2.0, 4.0, 3.0]}
    assert common.ratio(times, "ours", "peer") == 0.5
    assert common.ratio(times, "peer", "ours") == 2.0
    assert common.median(times["ours"]) == 2.0
    with pytest.raises(ValueError):
        common.ratio({"ours": [1.0], "peer": [1.0, 2.0]}, "ours", "peer")


def test_a_report_is_printed_and_written_whole(tmp_path, capsys):
    rows = [dict(setting="first", speed=1234.5, note="[x]"), dict(setting="second", ratio=0.5, note=None)]
    path = common.report("trial", rows, {"clips": 3}, out=str(tmp_path / "deep" / "trial.json"))
    written = json.loads(path.read_text())
    assert (written["name"], written["rows"], written["settings"]) == ("trial", rows, {"clips": 3})
    assert written["environment"]["versions"]["numpy"] == np.__version__
    assert written["environment"]["cores"] == len(os.sched_getaffinity(0))
    assert [p.name for p in path.parent.iterdir()] == ["trial.json"]
    text = capsys.readouterr().out
    assert written["environment"]["hardware"] in text
    for cell in ("first", "1234", "[x]", "second", "0.5", "-", "clips 3"):
        assert cell in text


def test_a_report_that_cannot_be_written_leaves_the_former(tmp_path):
    out = str(tmp_path / "trial.json")
    path = common.report("trial", [dict(x=1)], {}, out=out)
    with pytest.raises(TypeError):
        common.report("trial", [dict(x={1, 2})], {}, out=out)
    assert json.loads(path.read_text())["rows"] == [{"x": 1}]


class Device:
    def __init__(self, platform, device_kind):
        self.platform, self.device_kind = platform, device_kind


@pytest.mark.parametrize(
    "kind, precision, tera",
    [
        ("NVIDIA H200", "tf32", 494.5),
        ("NVIDIA A100-SXM4-80GB", "bfloat16", 312),
        ("NVIDIA H100 80GB HBM3", "float32", 67),
        ("NVIDIA H100 PCIe", "float32", 51),
        ("NVIDIA L4", "float32", 30.3),
        ("NVIDIA L40S", "float32", None),  # another card
        ("Tesla T4", "float32", 8.1),
        ("Tesla T4", "bfloat16", None),
        ("TPU v4", "bfloat16", 275),
        ("TPU v4 lite", "bfloat16", None),
        ("TPU v5 lite", "bfloat16", 197),
        ("TPU v5p", "bfloat16", 459),
        ("TPU v5", "bfloat16", 459),
        ("TPU v6 lite", "bfloat16", 918),
    ],
)
def test_peaks_are_those_of_the_device_kind(kind, precision, tera):
    found = common.peak_flops(Device("gpu", kind), precision)
    assert found == (None if tera is None else pytest.approx(tera * 1e12))


def test_the_highest_memory_is_between_the_present_and_that_of_the_kernel():
    present = resource.getpagesize() * int(Path("/proc/self/statm").read_text().split()[1])
    highest = 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss  # may be that of the process before
    assert 0.99 * present <= common.peak_rss() <= 1.01 * highest


def test_a_process_is_started_anew_only_where_a_variable_is_unset(monkeypatch):
    started = []
    monkeypatch.setattr(common.os, "execve", lambda *args: started.append(args))
    monkeypatch.delenv("OMP_WAIT_POLICY", raising=False)
    monkeypatch.setenv("MALLOC_MMAP_MAX_", "7")
    common.restart_tuned()
    ((program, argv, environ),) = started
    assert argv[0] == program
    assert argv[1:] == common.sys.orig_argv[1:]
    assert environ == {**common.tuned_environment(), **os.environ}
    assert (environ["MALLOC_MMAP_MAX_"], environ["OMP_WAIT_POLICY"]) == ("7", "PASSIVE")  # the user's stay
    for name, value in common.tuned_environment().items():
        monkeypatch.setenv(name, value)
    common.restart_tuned()
    assert len(started) == 1


@pytest.mark.parametrize("name", ["baseline, Bai", "Morita", "Zeng", "Zhang", "Hai"])
def test_the_three_frontends_of_the_benchmark_are_one(name, monkeypatch):
    pytest.importorskip("torch")
    from benchmarks import frontends as benchmark

    monkeypatch.setattr(benchmark, "SECONDS", 0.25)
    assert len(benchmark.SETTINGS) == 5
    setting = benchmark.SETTINGS[name]
    wave = benchmark.make_waves(2)
    assert wave.shape == (2, 4000)
    calls = benchmark.cases(setting, "log-mel" if "n_mels" in setting else "log power", wave)
    ours, torch, librosa = (np.asarray(calls[k]()) for k in ("ours", "torch", "librosa"))
    assert ours.shape == (2, 1 + 4000 // setting["hop"], setting.get("n_mels", setting["win"] // 2 + 1))
    # In amplitudes: float32 rounds each bin of a frame to a part of the loudest.
    ours, torch, librosa = (10 ** (x.astype(np.float64) / 20) for x in (ours, torch, librosa))
    for x in (ours, torch):
        np.testing.assert_allclose(x, librosa, rtol=1e-5, atol=1e-6 * librosa.max())


@pytest.mark.parametrize("networks, lowering", [(1, "map"), (2, "vmap")])
def test_the_chunk_of_the_benchmark_is_the_training_of_its_peer(networks, lowering):
    """All its losses, on the same batches; other weights are not the same training."""
    pytest.importorskip("torch")
    from benchmarks import autoencoder as benchmark

    net = dict(name="Autoencoder", widths=(8, 4, 8))
    config = {**benchmark.baseline.get_config("ae"), "backbone": net}
    system, store = benchmark.train.make(config, 0), benchmark.bank(clips=4, frames=12, bins=6)
    x = benchmark.vectors(store)
    assert x.shape == (4 * 8, 5 * 6)
    np.testing.assert_array_equal(x[8 + 3], store.frames[1, 3:8].ravel())
    case = benchmark.make_chunk(system, store, networks=networks, lowering=lowering, batch=8, steps=3)
    assert set(case.rows.ravel() // 8) == set(range(4 // networks))  # of its own clips, all of them
    peer = benchmark.peer.network(net["widths"], 30)
    assert max(benchmark.check_losses(case, peer, x, lr=1e-3)) < 1e-5
    assert case.temp > 0 and 0 < case.argument < 100_000
    with pytest.raises(SystemExit, match="not the same training"):
        benchmark.check_losses(case, peer, x, lr=1e-3)  # the chunk has gone on


def test_vectors_per_second_are_those_of_each_ones_median():
    pytest.importorskip("torch")
    from benchmarks import autoencoder as benchmark

    row = benchmark.row_of("training", "torch", {"ours": [1.0, 2.0, 9.0], "torch": [2.0, 4.0, 3.0]}, vectors=600)
    assert (row["vectors/s"], row["peer's vectors/s"], row["ours ms"], row["ratio"]) == (300.0, 200.0, 2000.0, 0.5)


@pytest.mark.parametrize(
    "name, backbone, head, products",
    [
        # parameters and multiply-adds of a unit, as counted from the reports' tables
        ("mfn.py", 993_280, 42 * 128, 141_967_360),
        ("morita2021.py:mfn", 993_280, 42 * 128, 372_686_848),
        ("morita2021.py:mnv2", 2_387_264, 42 * 128, 191_033_344),
        ("bai2022.py:mfn_stft", 985_088, 6 * 128, 186_376_192),
        ("bai2022.py:dpt", 288_256, 6 * 128 + 6, 31_457_280),
        # of the tables' 93,620,992, the head's left out, averaging at once saves 20 of 36 products for a place, and all
        # for one that is dropped; of 16,713,472 and attention remain those that the class vector's outcome hangs on
        (
            "zeng2023.py:mv2_sec",
            1_852_480,
            14 * 128 + 14,
            93_619_200
            - 9 * (301 * 64 * 32 + 150 * 32 * 96 + 75 * 16 * 144 + 37 * 8 * 192 + 18 * 4 * 384)
            + 16 * (150 * 32 * 32 + 75 * 16 * 96 + 37 * 8 * 144 + 18 * 4 * 192 + 9 * 2 * 384),
        ),
        (
            "zeng2023.py:vit_sec",
            240_896 + 128,
            14 * 128 + 14,
            72 * 256 * 128 + 73 * 128 * 3 * 128 + 2 * 73 * 128 + 128 * 128 + 2 * 128 * 512,
        ),
    ],
)
def test_the_networks_of_the_benchmark_are_those_of_the_reports(name, backbone, head, products):
    pytest.importorskip("torch")
    from benchmarks import networks as benchmark

    network = benchmark.NETWORKS[name]
    x, label = benchmark.units(network, batch=2)
    assert (x.shape, label.shape) == ((2, network.frames, network.bins), (2, network.classes))
    sample = {"wave": x, "label": benchmark.labelled(label)}
    state = jax.eval_shape(benchmark.network_alone(network).init, jax.random.key(0), sample)
    sizes = {k: sum(leaf.size for leaf in jax.tree.leaves(own)) for k, own in state.params.items()}
    assert sizes == {"backbone": backbone, "head": head}
    peers = benchmark.training.classifier(network.config, network.frames, network.bins, network.classes)
    assert [sum(p.numel() for p in peer.parameters()) for peer in peers] == [backbone, head]
    net = benchmark.build(benchmark.models, network.config["backbone"])
    assert benchmark.forward_flops(net, network.frames, network.bins) == 2 * products


def test_the_share_of_mixing_is_that_of_each_round():
    pytest.importorskip("torch")
    from benchmarks import mixing

    # Rounds: (2 - 1) / 2, (5 - 4) / 5, (10 - 3) / 10; the quartiles lie halfway to the outer ones.
    times = {"none": [1.0, 4.0, 3.0], "fmix": [2.0, 5.0, 10.0]}
    found = mixing.share(times, "fmix")
    assert found == pytest.approx({"share of step": 0.5, "lower": 0.35, "upper": 0.6})


def test_every_kind_of_mixing_is_measured(monkeypatch):
    """Rows of a tiny network, whose step with mixing is another program than the one without."""
    pytest.importorskip("torch")
    from benchmarks import mixing, networks

    config = networks.NETWORKS["mfn.py"].config.to_dict()
    config["backbone"] |= dict(rows=((1, 4, 1, 2),), stem=4, features=4, embedding=4)
    monkeypatch.setitem(networks.NETWORKS, "tiny", networks.Network(config, 8, 12, 3, 4, 4))
    monkeypatch.setattr(mixing, "OPS", {"in turn": mixing.OPS["fmix and mixup in turn"]})
    none, mixed = mixing.mixing_rows("tiny", batch=4, rounds=2)
    assert (none["mixing"], mixed["mixing"]) == ("none", "in turn")
    for row in (none, mixed):
        assert row["ours ms"] > 0
        assert row["clips/s"] == pytest.approx(4e3 / row["ours ms"])
    assert "share of step" not in none
    assert mixed["lower"] <= mixed["share of step"] <= mixed["upper"] < 1
    assert mixed["op / step"] == pytest.approx(mixed["op ms"] / mixed["ours ms"])
