"""The index of every year's layout, on miniature trees."""

import collections
import re
from pathlib import Path

import numpy as np
import pytest
from trees import MINI_ASD, needs_recordings, touch

from asdjax.core import InputError, UsageError
from asdjax.data import dcase
from asdjax.data.names import YEARS


def table(clips):
    """What the index says of each file name."""
    columns = (clips.machine, clips.section, clips.domain, clips.split, clips.is_anomaly.tolist(), clips.attributes)
    return {Path(p).name: row for p, *row in zip(clips.path, *columns, strict=True)}


# ---------------------------------------------------------------- the table


def test_machines_of_the_years():
    """Totals of machine types as the official data pages count them."""
    counts = {y: (len(r.dev), len(r.additional)) for y, r in YEARS.items()}
    expected = {2020: (6, 6), 2021: (7, 7), 2022: (7, 7), 2023: (7, 7), 2024: (7, 9), 2025: (7, 8), 2026: (7, 5)}
    assert counts == expected | {"plain": (0, 0)}
    assert set(YEARS[2023].dev) == {"ToyCar", "ToyTrain", "bearing", "fan", "gearbox", "slider", "valve"}
    assert [y for y, r in YEARS.items() if r.gives_test_domain] == [2021]
    assert [y for y, r in YEARS.items() if not r.has_domains] == [2020, "plain"]
    assert [y for y, r in YEARS.items() if r.channels == 2] == [2026]


def test_year_of():
    assert dcase.year_of(2023) is dcase.year_of("2023") is YEARS[2023]
    assert dcase.year_of("plain") is YEARS["plain"]
    for odd in (2019, "2027", "", None, "²", True):
        with pytest.raises(UsageError, match=r"data.year.*2020.*2026, plain"):
            dcase.year_of(odd)


# ---------------------------------------------------------------- the layouts


def tree_2020(root):
    touch(root, "dev_data/ToyCar/train/normal_id_01_00000003.wav", "dev_data/ToyCar/train/normal_id_04_00000999.wav")
    touch(root, "dev_data/ToyCar/test/normal_id_01_00000000.wav", "dev_data/ToyCar/test/anomaly_id_04_00000007.wav")
    touch(root, "eval_data/ToyCar/train/normal_id_05_00000000.wav", "eval_data/ToyCar/test/id_05_00000001.wav")
    touch(root, "eval_data/ToyCar/test/id_05_00000009.wav")


def test_2020(tmp_path):
    tree_2020(tmp_path)
    assert table(dcase.index(tmp_path, 2020)) == {
        "normal_id_01_00000003.wav": ["ToyCar", "01", "", "train", 0, ""],
        "normal_id_04_00000999.wav": ["ToyCar", "04", "", "train", 0, ""],
        "normal_id_05_00000000.wav": ["ToyCar", "05", "", "train", 0, ""],
        "normal_id_01_00000000.wav": ["ToyCar", "01", "", "test", 0, ""],
        "anomaly_id_04_00000007.wav": ["ToyCar", "04", "", "test", 1, ""],
    }
    clips = dcase.index(tmp_path, 2020, train_on=("additional",), test_on="eval")
    assert table(clips) == {
        "normal_id_05_00000000.wav": ["ToyCar", "05", "", "train", 0, ""],
        "id_05_00000001.wav": ["ToyCar", "05", "", "test", -1, ""],
        "id_05_00000009.wav": ["ToyCar", "05", "", "test", -1, ""],
    }
    assert clips.is_anomaly.dtype == np.int8


def tree_2021(root, merged=False):
    """fan 00 has attributes in training names, no target clips, and gaps in its numbers; section 01 is not there."""
    source, target = ("test", "test") if merged else ("source_test", "target_test")
    touch(root, "dev_data/fan/train/section_00_source_train_normal_0007_strength_1_ambient.wav")
    touch(root, "dev_data/fan/train/section_02_target_train_normal_0002_strength_2_far.wav")
    touch(root, f"dev_data/fan/{source}/section_00_source_test_anomaly_0001.wav")
    touch(root, f"dev_data/fan/{target}/section_02_target_test_normal_0000.wav")
    touch(root, "eval_data/fan/train/section_03_source_train_normal_0000_strength_1_ambient.wav")
    touch(root, f"eval_data/fan/{source}/section_03_source_test_0000.wav")
    touch(root, f"eval_data/fan/{target}/section_03_target_test_0000.wav")


@pytest.mark.parametrize("merged", [False, True])
def test_2021(tmp_path, merged):
    tree_2021(tmp_path, merged)
    assert table(dcase.index(tmp_path, "2021", train_on=("dev",))) == {
        "section_00_source_train_normal_0007_strength_1_ambient.wav": [
            "fan", "00", "source", "train", 0, "strength_1_ambient"
        ],
        "section_02_target_train_normal_0002_strength_2_far.wav": ["fan", "02", "target", "train", 0, "strength_2_far"],
        "section_00_source_test_anomaly_0001.wav": ["fan", "00", "source", "test", 1, ""],
        "section_02_target_test_normal_0000.wav": ["fan", "02", "target", "test", 0, ""],
    }  # fmt: skip
    clips = dcase.index(tmp_path, 2021, test_on="eval")
    assert clips.is_train.sum() == 3
    assert table(clips[clips.is_test]) == {
        "section_03_source_test_0000.wav": ["fan", "03", "source", "test", -1, ""],
        "section_03_target_test_0000.wav": ["fan", "03", "target", "test", -1, ""],
    }


def tree_2022(root):
    """ToyCar in dev and eval, one file of each kind."""
    touch(root, "dev_data/raw/ToyCar/train/section_00_source_train_normal_0000_car_A1_spd_28V_mic_1.wav")
    touch(root, "dev_data/raw/ToyCar/test/section_00_target_test_anomaly_0049_car_E2_spd_28V_mic_1.wav")
    touch(root, "eval_data/raw/ToyCar/train/section_03_source_train_normal_0000_car_A1_spd_28V_mic_1.wav")
    touch(root, "eval_data/raw/ToyCar/test/section_03_0000.wav", "eval_data/raw/ToyCar/test/section_03_0001.wav")


def test_2022(tmp_path):
    tree_2022(tmp_path)
    assert table(dcase.index(tmp_path, 2022, train_on=("dev",))) == {
        "section_00_source_train_normal_0000_car_A1_spd_28V_mic_1.wav": [
            "ToyCar", "00", "source", "train", 0, "car_A1_spd_28V_mic_1"
        ],
        "section_00_target_test_anomaly_0049_car_E2_spd_28V_mic_1.wav": ["ToyCar", "00", "target", "test", 1, ""],
    }  # fmt: skip
    clips = dcase.index(tmp_path, 2022, test_on="eval")
    assert clips.section[clips.is_train].tolist() == ["00", "03"]
    assert table(clips[clips.is_test]) == {
        "section_03_0000.wav": ["ToyCar", "03", "", "test", -1, ""],
        "section_03_0001.wav": ["ToyCar", "03", "", "test", -1, ""],
    }


# one additional machine of each year, with a training name as it is released
ADDITIONAL = {
    2023: ("bandsaw", "section_00_source_train_normal_0000_vel_13.wav", "vel_13"),
    2024: ("RoboticArm", "section_00_source_normal_0035_weight15_BckgF.wav", "weight15_BckgF"),
    2025: ("CoffeeGrinder", "section_00_target_train_normal_0001_mic_imp23absu_mic_pos_A_grind_200_bkg_A.wav",
           "mic_imp23absu_mic_pos_A_grind_200_bkg_A"),
    2026: ("SewingMachine", "section_00_source_train_normal_0001_noAttribute.wav", "noAttribute"),
}  # fmt: skip


def tree_since_2023(root, year, below=""):
    machine, name, _ = ADDITIONAL[year]
    touch(root, f"dev_data/{below}fan/train/section_00_source_train_normal_0001_m-n_W.wav")
    touch(root, f"dev_data/{below}fan/test/section_00_source_test_normal_0001_ac_0.03_.wav")
    touch(root, f"eval_data/{below}{machine}/train/{name}")
    touch(root, f"eval_data/{below}{machine}/test/section_00_0003.wav")
    return machine, name


@pytest.mark.parametrize("year", ADDITIONAL)
@pytest.mark.parametrize("below", ["", "raw/"])
def test_since_2023(tmp_path, year, below):
    machine, name = tree_since_2023(tmp_path, year, below)
    domain = "target" if "_target_" in name else "source"
    trained = {
        "section_00_source_train_normal_0001_m-n_W.wav": ["fan", "00", "source", "train", 0, "m-n_W"],
        name: [machine, "00", domain, "train", 0, ADDITIONAL[year][2]],
    }
    dev = {"section_00_source_test_normal_0001_ac_0.03_.wav": ["fan", "00", "source", "test", 0, ""]}
    assert table(dcase.index(tmp_path, year)) == trained | dev
    hidden = {"section_00_0003.wav": [machine, "00", "", "test", -1, ""]}
    assert table(dcase.index(tmp_path, str(year), test_on="eval")) == trained | hidden
    alone = dcase.index(tmp_path, year, train_on=("additional",), test_on="eval")
    assert set(alone.machine) == {machine}


def test_test_clips_of_robotic_arm_have_no_test_in_their_names(tmp_path):
    touch(tmp_path, "RoboticArm/train/section_00_target_normal_0990_weight15_BckgF.wav")
    touch(tmp_path, "RoboticArm/test/section_00_target_anomaly_0003_weight15_BckgF.wav")
    clips = dcase.index(tmp_path, 2024)
    assert clips.split.tolist() == ["test", "train"] and clips.is_anomaly.tolist() == [1, 0]
    assert clips.attributes.tolist() == ["", "weight15_BckgF"]


def test_supplemental_clips_of_2025_are_not_training_clips(tmp_path):
    tree_since_2023(tmp_path, 2025)
    names = ["0001_.wav", "source_supplemental_machine_0000.wav", "noise_supplemental_normal_0000.wav"]
    for name in (f"section_00_{'machine_' * (i == 0)}{name}" for i, name in enumerate(names)):
        touch(tmp_path, f"dev_data/fan/supplemental/{name}")
    clips = dcase.index(tmp_path, 2025)
    extra = clips[clips.split == "supplemental"]
    assert len(extra) == 3 and set(extra.section) == {"00"} and set(extra.is_anomaly) == {-1}
    assert not extra.is_train.any() and set(extra.attributes) == {""}
    assert not (dcase.index(tmp_path, 2025, train_on=("additional",), test_on="eval").split == "supplemental").any()


def test_order_is_by_machine_split_and_path(tmp_path):
    for machine in ("valve", "fan", "Fan"):
        touch(tmp_path, *(f"{machine}/test/section_00_source_test_normal_{i:04d}.wav" for i in (11, 3)))
        touch(tmp_path, *(f"{machine}/train/section_0{i}_source_train_normal_0000.wav" for i in (4, 1)))
    clips = dcase.index(tmp_path, 2023)
    found = [str(Path(p).relative_to(tmp_path)) for p in clips.path]
    assert found == sorted(found) and len(found) == 12
    assert clips.machine.tolist() == ["Fan"] * 4 + ["fan"] * 4 + ["valve"] * 4


def test_other_files_and_unknown_machines(tmp_path):
    touch(tmp_path, "dev_data/raw/Lathe/train/section_00_source_train_normal_0000.wav", "dev_data/raw/Lathe/notes.txt")
    touch(tmp_path, "dev_data/raw/Lathe/train/README.md", "dev_data/raw/Lathe/train/._section_00.wav", "dev_data/x.wav")
    touch(tmp_path, "dev_data/raw/Lathe/test/section_00_source_test_normal_0000.WAV", "dev_data/processed/x/x.wav")
    clips = dcase.index(tmp_path, 2023)
    assert clips.machine.tolist() == ["Lathe", "Lathe"] and clips.split.tolist() == ["test", "train"]


def test_plain(tmp_path):
    touch(tmp_path, "my pump/train/monday.wav", "my pump/train/june/Normal 1.wav", "my pump/test/what.wav")
    touch(tmp_path, "my pump/test/Abnormal/a/1.wav", "my pump/test/NORMAL/1.wav", "my pump/test/anomaly_3.wav")
    touch(tmp_path, "my pump/test/b/normal-x.wav", "my pump/test/b/abnormalx.wav")
    clips = dcase.index(tmp_path, "plain")
    found = {
        str(Path(p).relative_to(tmp_path / "my pump")): a for p, a in zip(clips.path, clips.is_anomaly, strict=True)
    }
    assert found == {
        "train/monday.wav": 0, "train/june/Normal 1.wav": 0, "test/what.wav": -1, "test/Abnormal/a/1.wav": 1,
        "test/NORMAL/1.wav": 0, "test/anomaly_3.wav": 1, "test/b/normal-x.wav": 0, "test/b/abnormalx.wav": 1,
    }  # fmt: skip
    assert set(clips.section) == {"00"} and set(clips.domain) == {""} and set(clips.machine) == {"my pump"}


# ---------------------------------------------------------------- what is refused


@pytest.mark.parametrize(
    ("year", "name", "words"),
    [
        (2023, "fan/train/normal_id_00_00000000.wav", "section_NN_{source|target}_{train|test}_{normal|anomaly}_NNNN"),
        (2023, "fan/test/section_00_test_0000.wav", "section_NN_NNNN.wav"),
        (2023, "fan/train/section_00_0000.wav", "section_NN_{source|target}"),
        (2023, "fan/train/section_00_source_train_normal_000.wav", "section_NN_{source|target}"),
        (2023, "fan/train/section_٠٠_source_train_normal_0000.wav", "section_NN_{source|target}"),
        (2023, "fan/train/section_00_source_train_normal_0000_a\nb.wav", "section_NN_{source|target}"),
        (2023, "fan/supplemental/noise.wav", "section_NN_ANYTHING.wav"),
        (2021, "fan/test/section_03_0000.wav", "section_NN_{source|target}_test_NNNN.wav"),
        (2022, "fan/test/section_03_source_test_0000.wav", "section_NN_NNNN.wav"),
        (
            2020,
            "fan/test/section_00_source_test_normal_0000.wav",
            "{normal|anomaly}_id_NN_NNNNNNNN.wav or id_NN_NNNNNNNN",
        ),
        (2023, "fan/train/section_00_source_train_anomaly_0000.wav", "only normal training clips"),
        (2020, "fan/train/anomaly_id_00_00000000.wav", "only normal training clips"),
        (2023, "fan/train/section_00_source_test_normal_0000.wav", "only normal training clips"),
        (2023, "fan/test/section_00_source_train_normal_0000.wav", "contradicts the folder test/"),
        (2021, "fan/source_test/section_00_target_test_normal_0000.wav", "contradicts the folder source_test/"),
        ("plain", "fan/train/Anomaly 1.wav", "only normal training clips"),
        ("plain", "fan/train/abnormal/1.wav", "only normal training clips"),
        ("plain", "fan/test/abnormal/normal_1.wav", "contradict"),
    ],
)
def test_odd_names_are_refused(tmp_path, year, name, words):
    touch(tmp_path, name)
    with pytest.raises(InputError, match=re.escape(words)) as error:
        dcase.index(tmp_path, year)
    assert str(tmp_path / name) in str(error.value)


def test_layouts_that_are_refused(tmp_path):
    with pytest.raises(UsageError, match=r"data.root: .*/nowhere is no folder"):
        dcase.index(tmp_path / "nowhere", 2023)
    with pytest.raises(InputError, match=r"expected MACHINE/train/\*.wav.*dev_data/ or eval_data/.*found nothing"):
        dcase.index(tmp_path, 2023)
    touch(tmp_path, "dev_data/fan.zip", "readme.txt")
    with pytest.raises(InputError, match=r"no machines, .*found dev_data, readme.txt"):
        dcase.index(tmp_path, 2023)
    touch(tmp_path, "dev_data/fan/train/readme.txt")
    with pytest.raises(InputError, match=r"no .wav files in train or test"):
        dcase.index(tmp_path, 2023)
    with pytest.raises(InputError, match=r"no machines to test, expected eval_data/"):
        dcase.index(tmp_path, 2023, test_on="eval")


def test_arguments_that_are_refused(tmp_path):
    for change in ({"train_on": "dev"}, {"train_on": ()}, {"train_on": ("test",)}, {"test_on": "additional"}):
        with pytest.raises(UsageError, match=f"data.{next(iter(change))}: found"):
            dcase.index(tmp_path, 2023, **change)


def test_test_clips_need_training_clips(tmp_path):
    machine, _ = tree_since_2023(tmp_path, 2023)
    with pytest.raises(InputError, match=f"{machine} has test clips but no training clips.*'additional' is eval_data"):
        dcase.index(tmp_path, 2023, train_on=("dev",), test_on="eval")


def test_2021_folders_in_another_year_and_one_clip_twice(tmp_path):
    tree_2021(tmp_path)
    with pytest.raises(InputError, match=r"source_test: a folder of 2021, expected test in 2022"):
        dcase.index(tmp_path, 2022)
    touch(tmp_path, "dev_data/fan/test/section_00_source_test_anomaly_0001.wav")
    with pytest.raises(InputError, match=r"fan/test/section_00_source_test_anomaly_0001.wav: .*same name"):
        dcase.index(tmp_path, 2021)


# ---------------------------------------------------------------- real recordings


@needs_recordings
def test_real_recordings():
    clips = dcase.index(MINI_ASD, 2023)
    keys = zip(clips.machine, clips.section, clips.split, clips.domain, clips.is_anomaly.tolist(), strict=True)
    assert collections.Counter(keys) == {
        ("slider", "00", "train", "source", 0): 64, ("slider", "00", "test", "source", 0): 28,
        ("slider", "00", "test", "source", 1): 28, ("slider", "01", "train", "source", 0): 60,
        ("slider", "01", "test", "source", 0): 28, ("slider", "01", "test", "source", 1): 28,
        ("valve", "00", "train", "source", 0): 30, ("valve", "00", "train", "target", 0): 8,
        ("valve", "00", "test", "source", 0): 20, ("valve", "00", "test", "source", 1): 25,
        ("valve", "00", "test", "target", 0): 25, ("valve", "00", "test", "target", 1): 25,
    }  # fmt: skip
