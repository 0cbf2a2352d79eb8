"""The embedded data set: layout, determinism, sounds, and how hard it is for a score without a network."""

import re
import shutil

import numpy as np
import pytest
import soundfile

from asdjax.core import InputError, UsageError
from asdjax.data import dcase, synth

NAME = re.compile(r"section_(\d{2})_(source|target)_(train|test)_(normal|anomaly)_(\d{4})_(.+)\.wav")  # DCASE 2023
SMALL = dict(n_train=2, n_target=1, n_test=2)


@pytest.fixture(scope="session")
def whole(tmp_path_factory):
    """The data set that a newcomer gets: its folder, and the recordings (N, T) in the order of the plan."""
    root = synth.generate(tmp_path_factory.mktemp("embedded") / "data")
    return root, np.stack([soundfile.read(root / r.path, dtype="int16")[0] for r in synth.plan()])


@pytest.fixture
def tiny(monkeypatch):
    """`embedded` with five fans only, and how often it made them."""
    made, generate = [], synth.generate

    def five_fans(root, *, seed):
        made.append(seed)
        return generate(root, seed=seed, machines=("fan",), n_train=1, n_target=0, n_test=1)

    monkeypatch.setattr(synth, "generate", five_fans)
    return made


def columns(machine):
    """Rows of the plan of one machine: index, is_target, is_anomaly, is_train."""
    rows = [(i, r.path) for i, r in enumerate(synth.plan()) if r.machine == machine]
    return tuple(
        np.array(c)
        for c in zip(*((i, "_target_" in p, "_anomaly_" in p, "/train/" in p) for i, p in rows), strict=True)
    )


def official(scores, target, anomaly):
    """AUC source, AUC target, pAUC as DCASE defines them since 2022: anomalies of both domains against each."""
    from sklearn.metrics import roc_auc_score

    domains = [anomaly | (target == t) for t in (False, True)]
    return [*(roc_auc_score(anomaly[d], scores[d]) for d in domains), roc_auc_score(anomaly, scores, max_fpr=0.1)]


def rms_db(waves):
    return 10 * np.log10(np.mean((waves / 32768.0) ** 2, axis=-1))


def files(root):
    return {p.relative_to(root).as_posix(): p.read_bytes() for p in root.rglob("*") if p.is_file()}


def test_layout_counts_and_size(whole):
    root, waves = whole
    found = sorted(p for p in root.rglob("*") if p.is_file())
    assert waves.shape == (4 * (64 + 10 + 4 * 20), 4 * 16000)
    assert sum(p.stat().st_size for p in found) < 80e6
    counts = {}
    for path in (p for p in found if p.suffix == ".wav"):
        machine, folder = path.relative_to(root).parts[:2]
        section, domain, split, label, number, _ = NAME.fullmatch(path.name).groups()
        assert (section, split) == ("00", folder)
        counts.setdefault((machine, split, domain, label), set()).add(int(number))
    sizes = {("train", "source", "normal"): 64, ("train", "target", "normal"): 10}
    sizes |= {("test", d, label): 20 for d in ("source", "target") for label in ("normal", "anomaly")}
    machines = ("bearing", "fan", "gearbox", "valve")
    assert counts == {(m, *group): set(range(n)) for m in machines for group, n in sizes.items()}
    for r in synth.plan()[::77]:
        info = soundfile.info(root / r.path)
        assert (info.format, info.subtype, info.samplerate, info.channels) == ("WAV", "PCM_16", 16000, 1)


def test_index_reads_it_as_2023(whole):
    clips = dcase.index(whole[0], 2023)
    assert len(clips) == 616 and set(clips.section) == {"00"}
    assert clips.is_anomaly.sum() == 160 and (clips.domain == "target").sum() == 4 * (10 + 40)
    tails = set(clips.attributes[(clips.machine == "gearbox") & clips.is_train & (clips.domain == "target")])
    assert tails == {"volt_1.2_wt_25", "volt_1.6_wt_75"}


def test_attributes_csv_agrees_with_the_names(whole):
    for folder in whole[0].iterdir():
        header, *rows = (line.split(",") for line in (folder / "attributes_00.csv").read_text().splitlines())
        wavs = {p.relative_to(whole[0]).as_posix() for p in folder.rglob("*.wav")}
        assert {row[0] for row in rows} == wavs and len(rows) == len(wavs)
        assert header == ["file_name", "d1p", "d1v", "d2p", "d2v"][: len(rows[0])]
        domains = {"source": set(), "target": set()}
        for name, *pairs in rows:
            _, domain, _, _, _, tail = NAME.fullmatch(name.rsplit("/")[-1]).groups()
            assert "_".join(pairs) == tail
            domains[domain].add(tail)
        assert 2 <= len(domains["source"]) <= 4 and len(domains["target"]) == 2
        assert not domains["source"] & domains["target"]


def test_attributes_say_nothing_of_the_label(whole):
    for machine in synth.MACHINES:
        for domain in ("source", "target"):
            tails = {"normal": [], "anomaly": []}
            for path in (whole[0] / machine / "test").iterdir():
                _, d, _, label, _, tail = NAME.fullmatch(path.name).groups()
                tails[label] += [tail] if d == domain else []
            assert sorted(tails["normal"]) == sorted(tails["anomaly"])


@pytest.mark.parametrize("machine", synth.MACHINES)
def test_loudness_says_nothing_of_the_label(whole, machine):
    from sklearn.metrics import roc_auc_score

    rows, target, anomaly, train = columns(machine)
    level = rms_db(whole[1][rows])
    assert level.min() > -36.1 and level.max() < -32.9
    distance = np.abs(level - level[train].mean())
    test = ~train
    for score in (level[test], distance[test]):
        for auc in official(score, target[test], anomaly[test])[:2]:
            assert abs(auc - 0.5) < 0.03
        for own in (target[test], ~target[test]):
            assert abs(roc_auc_score(anomaly[test][own], score[own]) - 0.5) < 0.03


def test_no_clip_reaches_full_scale(whole):
    assert whole[1].max() < 30000 and whole[1].min() > -30000


def nearest_neighbour(waves, target, anomaly, train, level):
    """AUC source, AUC target, pAUC of the distance to the nearest training clip, in z-scored mean log-mel."""
    import librosa

    mels = librosa.feature.melspectrogram(y=waves / np.float32(32768), sr=16000, n_fft=1024, hop_length=512, n_mels=128)
    x = (10 * np.log10(mels + 1e-10)).mean(-1) - level[:, None]
    x = (x - x[train].mean(0)) / x[train].std(0)
    distance = np.linalg.norm(x[~train][:, None] - x[train], axis=-1).min(1)
    return official(distance, target[~train], anomaly[~train])


@pytest.fixture(scope="session")
def reference(whole):
    """(4 machines, 6): the reference score as it is, and where every clip is first brought to one level."""
    table = []
    for machine in synth.MACHINES:
        rows, *masks = columns(machine)
        waves = whole[1][rows]
        table.append([nearest_neighbour(waves, *masks, level) for level in (0 * rms_db(waves), rms_db(waves))])
    table = np.reshape(table, (-1, 6))
    print(
        *(f"{m:10}" + "  ".join(f"{x:.3f}" for x in row) for m, row in zip(synth.MACHINES, table, strict=True)),
        sep="\n",
    )
    print("harmonic mean", [round(3 * len(table) / np.sum(1 / half), 3) for half in (table[:, :3], table[:, 3:])])
    return table


def test_reference_score_is_neither_at_chance_nor_perfect(reference):
    assert reference.min() > 0.5 and reference.max() < 0.95
    for half in (reference[:, :3], reference[:, 3:]):
        assert 0.60 < half.size / np.sum(1 / half) < 0.75
        assert (half[:, 0] > half[:, 1]).all()  # the target domain is the harder one


def test_documented_difficulty_is_the_measured_one(reference):
    rows = {m: re.search(rf"^ +{m} +(.*)$", synth.__doc__, re.M)[1].split() for m in synth.MACHINES}
    np.testing.assert_allclose(np.array(list(rows.values()), float), reference, atol=0.011)


def test_same_seed_same_bytes_with_any_number_of_workers(tmp_path, whole):
    one = files(synth.generate(tmp_path / "one", seed=3, workers=1, machines=("bearing", "valve"), **SMALL))
    assert len(one) == 2 * (2 + 1 + 4 * 2 + 1)
    assert one == files(synth.generate(tmp_path / "four", seed=3, workers=4, machines=("valve", "bearing"), **SMALL))
    other = files(synth.generate(tmp_path / "other", seed=4, machines=("valve",), **SMALL))
    assert all(one[name] != other[name] for name in other if name.endswith(".wav"))
    some = files(synth.generate(tmp_path / "some", seed=3, machines=("valve",), **SMALL))
    assert some.items() <= one.items()
    plan, waves = synth.plan(), whole[1]
    for i in range(0, len(plan), 88):
        np.testing.assert_array_equal(synth.render(plan[i]), waves[i])


@pytest.mark.parametrize("machine", synth.MACHINES)
def test_every_fault_grows_with_its_degree(machine):
    sick = [r for r in synth.plan(n_train=1, machines=(machine,)) if r.fault]
    faults = synth.MACHINES[machine].faults.split()
    assert {r.fault for r in sick} == set(faults)
    assert sorted(r.degree for r in sick) == pytest.approx(np.repeat((np.arange(20) + 0.5) / 20, 2))
    for fault in faults:
        first = next(r for r in sick if r.fault == fault)
        healthy = synth.render(first._replace(fault="", degree=0.0)).astype(float)
        np.testing.assert_array_equal(synth.render(first._replace(degree=0.0)), healthy)
        change = [np.std(synth.render(first._replace(degree=d)) - healthy) / np.std(healthy) for d in (0.1, 0.5, 1.0)]
        assert 0 < change[0] < change[1] < change[2]


def peak_hz(wave, low, high):
    """Frequency of the highest line between `low` and `high` Hz."""
    power = np.abs(np.fft.rfft(wave * np.hanning(len(wave))))
    freq = np.fft.rfftfreq(len(wave), 1 / 16000)
    return freq[np.argmax(np.where((freq > low) & (freq < high), power, 0))]


def clip(machine, tail, fault="", degree=0.0):
    return synth.render(synth.Recording("", machine, tail, fault, degree, -34.0, (1,))).astype(float)


def test_tones_are_where_the_machine_turns():
    # 7 blades at 1200 / 60 turns a second; 19 teeth at 20 * 1.4 turns a second; both within 0.5 % + 0.6 %.
    assert peak_hz(clip("fan", "spd_1200"), 130, 500) == pytest.approx(140, rel=0.012)
    assert peak_hz(clip("gearbox", "volt_1.4_wt_0"), 400, 700) == pytest.approx(532, rel=0.012)


@pytest.mark.parametrize(("fault", "order"), [("outer", 3.58), ("inner", 5.42)])
def test_bearing_fault_shows_in_the_envelope(fault, order):
    from scipy.signal import butter, hilbert, sosfilt

    band = butter(4, (2000, 6000), "bandpass", fs=16000, output="sos")
    envelope = np.abs(hilbert(sosfilt(band, clip("bearing", "vel_20", fault, 1.0))))
    assert peak_hz(envelope - envelope.mean(), 50, 150) == pytest.approx(20 * order, rel=0.02)


def test_valve_clicks_in_its_rhythm():
    # The sharp click rings at 3.1 kHz: pattern 00 opens every half second.
    power = np.abs(np.fft.rfft(np.lib.stride_tricks.sliding_window_view(clip("valve", "pat_00"), 256)[::128]))
    click = power[:, 48:52].sum(1)  # 3000 to 3250 Hz
    at = np.flatnonzero((click[1:-1] > click[:-2]) & (click[1:-1] >= click[2:]) & (click[1:-1] > 0.4 * click.max()))
    np.testing.assert_allclose(np.diff(at) * 128 / 16000, 0.5, atol=0.04)
    assert len(at) in (7, 8)


def test_wrong_arguments_are_named(tmp_path):
    with pytest.raises(UsageError, match="no pump; there is: bearing, fan, gearbox, valve"):
        synth.generate(tmp_path, machines=("fan", "pump"))
    for wrong in (dict(n_test=0), dict(n_train=0), dict(n_target=-1), dict(seed=-1)):
        with pytest.raises(UsageError, match=f"{next(iter(wrong))} {next(iter(wrong.values()))}"):
            synth.generate(tmp_path, **wrong)
    (tmp_path / "mine.txt").write_text("keep")
    with pytest.raises(InputError, match="empty"):
        synth.generate(tmp_path)
    assert files(tmp_path) == {"mine.txt": b"keep"}


def test_embedded_is_made_once(tmp_path, monkeypatch, tiny):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    monkeypatch.delenv("ASDJAX_CACHE", raising=False)
    assert synth.embedded() == synth.embedded() == tmp_path / "xdg" / "asdjax" / "embedded-v1-seed0"
    monkeypatch.setenv("ASDJAX_CACHE", str(tmp_path / "own"))
    assert synth.embedded() == tmp_path / "own" / "embedded-v1-seed0"
    assert synth.embedded(tmp_path / "given", seed=7) == tmp_path / "given" / "embedded-v1-seed7"
    assert tiny == [0, 0, 7]
    assert len(list(synth.embedded().rglob("*.wav"))) == 5
    assert [p.name for p in (tmp_path / "own").iterdir()] == ["embedded-v1-seed0"]


def test_embedded_is_made_anew_where_something_is_wrong(tmp_path, tiny):
    folder = synth.embedded(tmp_path)
    good = files(folder)
    wav = next(folder.rglob("*.wav"))
    for damage in (
        lambda: wav.unlink(),
        lambda: wav.write_bytes(wav.read_bytes()[:1000]),
        lambda: shutil.copy(wav, wav.with_name(wav.name.replace("_00", "_01"))),
        lambda: (folder / "manifest.json").unlink(),
        lambda: (folder / "manifest.json").write_text('{"fan'),
        lambda: shutil.rmtree(folder / "fan"),
    ):
        damage()
        assert files(folder) != good
        assert synth.embedded(tmp_path) == folder and files(folder) == good
    assert len(tiny) == 7


def test_interrupted_generation_leaves_nothing(tmp_path, monkeypatch):
    def interrupted(root, *, seed):
        (root / "fan").mkdir(parents=True)
        raise KeyboardInterrupt

    monkeypatch.setattr(synth, "generate", interrupted)
    with pytest.raises(KeyboardInterrupt):
        synth.embedded(tmp_path)
    assert not list(tmp_path.iterdir())


def test_unwritable_cache_is_said(tmp_path, tiny):
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match=r"file/embedded-v1-seed0: cannot write .* set ASDJAX_CACHE"):
        synth.embedded(tmp_path / "file")
