"""`python -m asdjax.data`: the table, the problems it finds, the guessed year, the exit codes."""

import os
import re
import subprocess
import sys
import zlib

import numpy as np
import pytest
import soundfile
from trees import MINI_ASD, needs_recordings

from asdjax.data import __main__ as tool

RATE = 8000


def noise(seed=0, n=800, channels=1):
    return 0.1 * np.random.default_rng(seed).standard_normal((n, channels)).clip(-3, 3)


def save(root, name, x=None, *, rate=RATE, subtype="PCM_16"):
    """A wav; without samples, noise of its own."""
    path = root / name
    path.parent.mkdir(parents=True, exist_ok=True)
    soundfile.write(path, noise(zlib.crc32(name.encode())) if x is None else x, rate, subtype=subtype)
    return path


def clean_tree(root):
    for i in range(2):
        save(root, f"fan/train/section_00_source_train_normal_{i:04d}_m-n_W.wav", noise(i, 800))
        save(root, f"fan/test/section_00_target_test_anomaly_{i:04d}.wav", noise(10 + i, 1600))
    return save(root, "fan/test/section_00_target_test_normal_0000.wav")


def run(capsys, *argv):
    code = tool.main([str(a) for a in argv])
    out = capsys.readouterr()
    return code, out.out, out.err


def cells(out):
    """The rows of the table."""
    return [[c.strip() for c in line.strip("│").split("│")] for line in out.splitlines() if line.startswith("│")]


def test_clean_data(tmp_path, capsys):
    clean_tree(tmp_path)
    code, out, _ = run(capsys, tmp_path, "--year", 2023)
    assert code == 0 and "5 clips, problems: none" in out
    assert cells(out) == [
        ["fan", "00", "test", "target", "3", "2", "0.1-0.2", "8000", "1"],
        ["fan", "00", "train", "source", "2", "0", "0.1", "8000", "1"],
    ]


def test_every_problem_is_named_with_its_file(tmp_path, capsys):
    clean_tree(tmp_path)
    names = {k: f"fan/test/section_00_source_test_normal_{i:04d}.wav" for i, k in enumerate(
        ("text", "cut", "empty", "silent", "constant", "one channel", "clipped", "nan", "rate", "copy", "zero bytes")
    )}  # fmt: skip
    for kind in ("text", "zero bytes"):
        (tmp_path / names[kind]).parent.mkdir(exist_ok=True)
        (tmp_path / names[kind]).write_bytes(b"not a recording" * (kind == "text"))
    whole = save(tmp_path, names["cut"]).read_bytes()
    (tmp_path / names["cut"]).write_bytes(whole[:30])
    save(tmp_path, names["empty"], np.zeros((0, 1)))
    save(tmp_path, names["silent"], np.zeros(800))
    save(tmp_path, names["constant"], np.full(801, 0.25))
    save(tmp_path, names["one channel"], np.concatenate([noise(1), np.zeros((800, 1))], 1))
    save(tmp_path, names["clipped"], np.clip(40 * noise(2), -1, 1))
    save(tmp_path, names["nan"], np.where(np.arange(800) == 7, np.nan, noise(3)[:, 0]), subtype="FLOAT")
    save(tmp_path, names["rate"], rate=16000)
    first = "fan/test/section_00_target_test_normal_0000.wav"
    (tmp_path / names["copy"]).write_bytes((tmp_path / first).read_bytes())
    code, out, _ = run(capsys, tmp_path, "--year", "2023")
    expected = {
        "text": "unreadable: ", "cut": "unreadable: ", "zero bytes": "unreadable: ", "empty": "empty",
        "silent": "silent$", "constant": "silent$", "one channel": "silent: channel 1", "clipped": r"clipped: \d+.\d %",
        "nan": "NaN or infinite: 1 samples", "rate": "sample rate 16000 Hz, 8000 in most files",
    }  # fmt: skip
    for kind, words in expected.items():
        assert re.search(f"^{re.escape(names[kind])}: {words}", out, re.M), (kind, out)
    assert f"\n{names['one channel']}: channels: 2, 1 in most files\n" in out
    pair = {first, names["copy"]}
    assert any({a, b} == pair for a, b in re.findall(r"^(.*): byte-identical to (.*)$", out, re.M))
    assert code == 1 and f"{5 + len(names)} clips, problems: {len(expected) + 2}" in out
    assert ["fan", "00", "test", "source", "11", "0", "0.0-0.1", "8000, 16000", "1, 2"] in cells(out)


def test_clipping_by_hand():
    """1000 samples: 0.1 % is one sample, but a run has two at least; the two sides of full scale are not one run."""
    x = noise(0, 1000)
    x[[10, 20, 30]] = 1.0  # lone ones
    assert tool.clipped_share(x) == 0 and tool.wave_problems(x) == []
    x[40:42] = [[1.0], [-1.0]]
    assert tool.clipped_share(x) == 0
    x[50:52] = 32767 / 32768
    assert tool.clipped_share(x) == pytest.approx(0.002, abs=1e-12)
    x[60:63] = -1.0
    assert tool.clipped_share(x) == pytest.approx(0.005, abs=1e-12)
    assert tool.wave_problems(x) == ["clipped: 0.5 % of the samples in runs at full scale"]
    assert tool.clipped_share(np.concatenate([noise(1, 1000), x], 1)) == pytest.approx(0.005, abs=1e-12)
    x[998:] = 1.0  # at the end of the clip
    assert tool.clipped_share(x) == pytest.approx(0.007, abs=1e-12)
    long = noise(2, 4000)
    long[7:10] = 1.0  # 0.075 %
    assert tool.wave_problems(long) == []
    long[10] = 1.0  # 0.1 % exactly
    assert tool.wave_problems(long) == ["clipped: 0.1 % of the samples in runs at full scale"]


def test_silence_by_hand():
    step = np.zeros((100, 1), np.float32)
    step[::2] = 2**-15
    assert tool.wave_problems(step) == ["silent"]
    assert tool.wave_problems(2 * step) == []


def touch(root, *names):
    for name in names:
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"")


TRAIN = "train/section_00_source_train_normal_0000.wav"


@pytest.mark.parametrize(
    ("names", "year"),
    [
        (["fan/train/normal_id_00_00000000.wav", "fan/test/anomaly_id_00_00000000.wav"], "2020"),
        ([f"pump/{TRAIN}"], "2021"),
        ([f"fan/{TRAIN}", "fan/source_test/section_00_source_test_0000.wav"], "2021"),
        ([f"fan/{TRAIN}"], "2026"),
        ([f"slider/{TRAIN}"], "2025"),
        ([f"dev_data/raw/fan/{TRAIN}", f"eval_data/raw/grinder/{TRAIN}"], "2023"),
        ([f"eval_data/Scanner/{TRAIN}", "eval_data/Scanner/test/section_00_0000.wav"], "2024"),
        ([f"lathe/{TRAIN}"], "2026"),
        ([f"slider/{TRAIN}", "slider/test/section_00_0000.wav", "slider/test/x.wav"], "2025"),
        (["slider/train/monday.wav", "slider/test/normal_1.wav"], "plain"),
        ([], "plain"),
    ],
)
def test_guessed_year(tmp_path, names, year):
    touch(tmp_path, *names)
    found, why = tool.guess(str(tmp_path))
    assert found == year and why.startswith("guessed")


def test_guess_is_printed(tmp_path, capsys):
    clean_tree(tmp_path)
    code, out, _ = run(capsys, tmp_path)
    assert code == 0 and out.startswith("year: 2026, guessed: the newest with such file names and machines (2021, 2022")


def test_evaluation_clips_and_their_labels(tmp_path, capsys):
    save(tmp_path, "eval_data/grinder/train/section_00_source_train_normal_0000.wav")
    for i in range(3):
        save(tmp_path, f"eval_data/grinder/test/section_00_{i:04d}.wav")
    argv = [tmp_path, "--year", "2023", "--train_on", "additional", "--test_on", "eval"]
    code, out, _ = run(capsys, *argv)
    assert code == 0 and ["grinder", "00", "test", "", "3", "?", "0.1", "8000", "1"] in cells(out)
    lines = [
        f"section_00_{i:04d}.wav,section_00_target_test_{'anomaly' if i else 'normal'}_0000.wav\n" for i in (2, 0, 1)
    ]
    (tmp_path / "list.csv").write_text("grinder\n" + "".join(lines))
    code, out, _ = run(capsys, *argv, "--ground_truth", tmp_path / "list.csv")
    assert code == 0 and ["grinder", "00", "test", "target", "3", "2", "0.1", "8000", "1"] in cells(out)


def test_exit_codes_of_mistakes(tmp_path, capsys):
    code, _, err = run(capsys, tmp_path / "nowhere")
    assert code == 2 and err.startswith("error: data.root: ") and "is no folder" in err
    assert run(capsys, tmp_path, "--year", "1999")[0] == 2
    assert run(capsys, tmp_path, "--train_on", "everything")[0] == 2
    code, _, err = run(capsys, tmp_path)
    assert code == 1 and "no machines" in err
    clean_tree(tmp_path)
    touch(tmp_path, "fan/train/odd.wav")
    code, _, err = run(capsys, tmp_path)
    assert code == 1 and re.search(r"error: .*fan/train/odd.wav: not a file name of 2026", err)
    with pytest.raises(SystemExit) as stop:
        tool.main([])
    assert stop.value.code == 2


def test_names_that_are_markup_or_not_text(tmp_path, capsys):
    save(tmp_path, "[red]/train/x.wav")
    silent = save(tmp_path, "[red]/train/y.wav", np.zeros(100))
    silent.rename(silent.with_name(os.fsdecode(b"a\xff[bold].wav")))
    code, out, _ = run(capsys, tmp_path)
    assert code == 1 and "[red]/train/a?[bold].wav: silent" in out and cells(out)[0][0] == "[red]"


def test_as_a_command(tmp_path):
    clean_tree(tmp_path)
    save(tmp_path, "fan/test/section_00_source_test_normal_0000.wav", np.zeros(80))
    command = [sys.executable, "-m", "asdjax.data", str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert (
        done.returncode == 1 and "section_00_source_test_normal_0000.wav: silent" in done.stdout and done.stderr == ""
    )


@needs_recordings
def test_real_recordings(capsys):
    code, out, _ = run(capsys, MINI_ASD, "--year", 2023)
    assert code == 0 and "369 clips, problems: none" in out
    assert ["valve", "00", "test", "target", "50", "25", "10.0", "16000", "1"] in cells(out)
