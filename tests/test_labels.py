"""Groups, classes and attributes."""

import re

import numpy as np
import pytest
from trees import MINI_ASD, needs_recordings, rows, touch, write

from asdjax.core import InputError, UsageError
from asdjax.data import dcase, labels

# ---------------------------------------------------------------- groups


def test_groups():
    clips = rows(("fan", "00", "train"), ("fan", "01", "test"), ("pump", "00", "train"), ("fan", "00", "supplemental"))
    found = {
        by: {n: own.tolist() for n, own in labels.groups(clips, by)} for by in ("all", "machine", "machine_section")
    }
    assert found["all"] == {"all": [True] * 4}
    assert found["machine"] == {"fan": [True, True, False, True], "pump": [False, False, True, False]}
    assert found["machine_section"] == {
        "fan_00": [True, False, False, True],
        "fan_01": [False, True, False, False],
        "pump_00": [False, False, True, False],
    }
    with pytest.raises(UsageError, match=r"data.group_by: found 'section'"):
        labels.groups(clips, "section")


def test_names_of_groups_are_folder_names():
    clips = rows(*((m, "00", "train") for m in ("a b", "a_b", "A.b", "../x", "a_b-2")))
    names = [name for name, _ in labels.groups(clips, "machine")]
    assert len({name.casefold() for name in names}) == 5
    assert all(re.fullmatch(r"[\w-]+", name) for name in names)
    assert all(own.sum() == 1 for _, own in labels.groups(clips, "machine"))


# ---------------------------------------------------------------- classes


def every(clips):
    return np.ones(len(clips), bool)


TWO = rows(
    ("fan", "00", "train", "m_1"), ("fan", "00", "train", "m_2"), ("fan", "01", "train", "m_1"), ("fan", "01", "test"),
    ("fan", "02", "test"), ("pump", "00", "train", "m_1"), ("pump", "00", "test"), ("fan", "00", "supplemental"),
)  # fmt: skip


def own_classes(found):
    """'01' for a clip that may be of the classes 0 and 1."""
    return ["".join(map(str, np.flatnonzero(row))) for row in found.own_classes]


@pytest.mark.parametrize(
    ("label", "names", "which"),
    [
        ("section", ("00", "01"), [0, 0, 1, 1, -1, 0, 0, -1]),
        ("machine", ("fan", "pump"), [0, 0, 0, 0, 0, 1, 1, -1]),
        ("machine_section", ("fan/00", "fan/01", "pump/00"), [0, 0, 1, 1, -1, 2, 2, -1]),
        (
            "machine_section_attribute",
            ("fan/00/m_1", "fan/00/m_2", "fan/01/m_1", "pump/00/m_1"),
            [0, 1, 2, -1, -1, 3, -1, -1],
        ),
    ],
)
def test_classes(label, names, which):
    found = labels.class_labels(TWO, every(TWO), label)
    assert found.names == names and found.note == ""
    assert found.onehot.dtype == np.float32 and found.onehot.shape == (8, len(names))
    assert [row.argmax() if row.any() else -1 for row in found.onehot] == which
    assert found.onehot.sum(1).tolist() == [float(w >= 0) for w in which]
    assert found.rows.tolist() == TWO.is_train.tolist()


@pytest.mark.parametrize(
    ("label", "own"),
    [
        ("section", ["0", "0", "1", "1", "", "0", "0", "0"]),
        ("machine", ["0", "0", "0", "0", "0", "1", "1", "0"]),
        ("machine_section", ["0", "0", "1", "1", "", "2", "2", "0"]),
        ("machine_section_attribute", ["01", "01", "2", "2", "", "3", "3", "01"]),  # fan 00 has two, fan 02 none
    ],
)
def test_own_classes_are_known_from_machine_and_section_alone(label, own):
    found = labels.class_labels(TWO, every(TWO), label)
    assert found.own_classes.dtype == bool and found.own_classes.shape == found.onehot.shape
    assert own_classes(found) == own


def test_test_clips_have_no_class_where_attributes_make_classes():
    """Also where the training names have no attributes, so that all would seem to be of one class."""
    clips = rows(("fan", "00", "train"), ("pump", "00", "train"), ("fan", "00", "test"))
    found = labels.class_labels(clips, every(clips), "machine_section_attribute")
    assert found.names == ("fan/00", "pump/00") and found.onehot.tolist() == [[1, 0], [0, 1], [0, 0]]
    assert own_classes(found) == ["0", "1", "0"]


def test_without_labels_there_are_no_classes():
    found = labels.class_labels(TWO, every(TWO), "none")
    assert found.names == () and found.onehot.shape == found.own_classes.shape == (8, 0)
    assert found.rows.tolist() == TWO.is_train.tolist()


def test_other_groups_have_no_class():
    own = TWO.machine == "fan"
    found = labels.class_labels(TWO, own, "section")
    assert found.names == ("00", "01") and not found.onehot[~own].any()
    assert not found.own_classes[~own].any() and found.rows.tolist() == (own & TWO.is_train).tolist()


def test_one_class_takes_the_next_finer_label():
    """valve: one section with two attribute values; sections of one number are the same class before they are not."""
    clips = rows(("fan", "00", "train", "m_1"), ("valve", "00", "train", "p_0"), ("valve", "00", "train", "p_1"))
    own = clips.machine == "valve"
    for label in ("section", "machine", "machine_section"):
        found = labels.class_labels(clips, own, label)
        assert found.names == ("valve/00/p_0", "valve/00/p_1")
        assert found.rows.tolist() == own.tolist() and own_classes(found) == ["", "01", "01"]
        assert f"data.label={label!r}" in found.note and "2 classes of machine_section_attribute" in found.note
    found = labels.class_labels(clips, every(clips), "section")
    assert found.names == ("fan/00", "valve/00") and "2 classes of machine_section are" in found.note


def test_one_class_pools_the_machines():
    clips = rows(
        ("fan", "00", "train", "noAttribute"), ("fan", "00", "test"), ("valve", "00", "train", "p_0"),
        ("valve", "00", "train", "p_1"), ("valve", "00", "test"),
    )  # fmt: skip
    found = labels.class_labels(clips, clips.machine == "fan", "section")
    assert found.names == ("fan/00/noAttribute", "valve/00/p_0", "valve/00/p_1")
    assert found.rows.tolist() == clips.is_train.tolist()
    assert own_classes(found) == ["0", "0", "12", "12", "12"]
    assert "3 classes" in found.note and "all machines" in found.note
    assert "all machines" in labels.class_labels(clips, clips.machine == "fan", "machine_section_attribute").note


def test_one_class_in_all_is_refused():
    clips = rows(("fan", "00", "train"), ("fan", "00", "train"), ("pump", "00", "test", "x_1"))
    for label in labels.LEVELS:
        with pytest.raises(InputError, match=r"one class \(fan/00\).*at least two.*other machines.*attributes"):
            labels.class_labels(clips, every(clips), label)
    with pytest.raises(InputError, match="no training clips"):
        labels.class_labels(clips, clips.machine == "pump", "section")
    with pytest.raises(UsageError, match=r"data.label: found 'id', expected one of none, section, machine"):
        labels.class_labels(clips, every(clips), "id")


def test_names_of_test_clips_make_no_classes(tmp_path):
    """A test clip's attributes may give its label away: they reach neither the index nor the classes."""
    touch(tmp_path, *(f"fan/train/section_00_source_train_normal_000{i}_m-n_{t}.wav" for i, t in enumerate("WX")))
    touch(tmp_path, "fan/test/section_00_source_test_anomaly_0000_m-n_LEAK.wav")
    touch(tmp_path, "fan/test/section_00_source_test_normal_0000_m-n_W.wav")
    clips = dcase.index(tmp_path, 2023)
    found = labels.class_labels(clips, every(clips), "machine_section_attribute")
    assert found.names == ("fan/00/m-n_W", "fan/00/m-n_X") and not found.onehot[clips.is_test].any()
    assert set(own_classes(found)) == {"01"}  # also of the test clips, by their section
    split = labels.split_attributes(clips, "fan")
    assert split.keys() == {"m-n"} and set(split["m-n"][clips.is_test]) == {""}
    everything = " ".join(str(getattr(clips, c)) for c in ("machine", "section", "domain", "attributes"))
    assert "LEAK" not in everything


# ---------------------------------------------------------------- attributes


def values(found, clips, machine):
    """column -> values of the machine's training clips, having checked that no other clip has one."""
    own = clips.is_train & (clips.machine == machine)
    assert all(len(v) == len(clips) and set(v[~own]) == {""} for v in found.values())
    return {column: v[own].tolist() for column, v in found.items()}


def attribute_tree(root, machine, tails):
    touch(root, *(f"{machine}/train/section_00_source_train_normal_{i:04d}{t}.wav" for i, t in enumerate(tails)))
    touch(root, f"{machine}/test/section_00_source_test_normal_0000{tails[0]}.wav")
    touch(root, "other/train/section_00_source_train_normal_0000_a_1.wav")
    return dcase.index(root, 2023)


def test_attributes_from_csv_with_paths(tmp_path):
    """The form of the MIMII machines: FOLDER/NAME.wav; rows of test clips are passed over, a missing one is ''."""
    clips = attribute_tree(tmp_path, "gearbox", ["_volt_1.5_wt_150", "_volt_2.0_wt_0", "_volt_2.0_wt_50", "_x"])
    lines = ["file_name,d1p,d1v,d2p,d2v"]
    lines += [
        "gearbox/train/section_00_source_train_normal_0002_volt_2.0_wt_50.wav,volt,2.0"
    ]  # shorter than the header
    lines += ["gearbox/train/section_00_source_train_normal_0000_volt_1.5_wt_150.wav,volt,1.5,wt,150"]
    lines += ["gearbox/train/section_00_source_train_normal_0001_volt_2.0_wt_0.wav,volt,2.0,wt,0"]
    lines += ["gearbox/test/section_00_source_test_normal_0000_volt_1.5_wt_150.wav,volt,1.5,leak,1"]
    write(tmp_path / "gearbox" / "attributes_00.csv", *lines)
    expected = {"volt": ["1.5", "2.0", "2.0", ""], "wt": ["150", "0", "", ""]}
    assert values(labels.split_attributes(clips, "gearbox"), clips, "gearbox") == expected


def test_attributes_from_csv_with_bare_names(tmp_path):
    """The form of the additional Toy machines: NAME without folder and .wav, another key, another order, CRLF."""
    clips = attribute_tree(tmp_path, "ToyTank", ["_car_A1_spd_3_mic_1", "_car_B1_spd_4_mic_1"])
    lines = ["d3p,d3v,file_name,d1p,d1v,d2p,d2v"]
    lines += ["mic,1,section_00_source_train_normal_0001_car_B1_spd_4_mic_1,car,B1,speed,4", ""]
    lines += ["mic,1,section_00_source_train_normal_0000_car_A1_spd_3_mic_1,car,A1,speed,3"]
    write(tmp_path / "ToyTank" / "attributes_00.csv", *lines, end="\r\n")
    expected = {"car": ["A1", "B1"], "speed": ["3", "4"], "mic": ["1", "1"]}
    assert values(labels.split_attributes(clips, "ToyTank"), clips, "ToyTank") == expected


@pytest.mark.parametrize(
    ("tails", "expected"),
    [
        (["_car_A1_spd_3", "_car_B1_spd_4"], {"car": ["A1", "B1"], "spd": ["3", "4"]}),
        (["_pat_00", "_pat_01"], {"pat": ["00", "01"]}),
        (["_pat_00", "_noAttribute"], {"pat": ["00", ""]}),
        (["_ac_0.03_", "_ac_0.04_"], {"attribute": ["ac_0.03_", "ac_0.04_"]}),  # an odd number of words
        (["_spd1000_BckgE", "_spd900_BckgF"], {"attribute": ["spd1000_BckgE", "spd900_BckgF"]}),  # keys that differ
        (["_a_1_a_2", "_a_1_a_3"], {"attribute": ["a_1_a_2", "a_1_a_3"]}),  # a key twice
        (["_pat_00", "_spd_1"], {"attribute": ["pat_00", "spd_1"]}),
        (["_noAttribute", "_noAttribute"], {}),
        (["", ""], {}),
    ],
)
def test_attributes_from_names(tmp_path, tails, expected):
    clips = attribute_tree(tmp_path, "m", tails)
    assert values(labels.split_attributes(clips, "m"), clips, "m") == expected


def test_attribute_csv_that_is_damaged_or_silent(tmp_path):
    clips = attribute_tree(tmp_path, "m", ["_pat_00", "_pat_01"])
    path = write(tmp_path / "m" / "attributes_00.csv", "file_name,d1p,d1v")
    assert labels.split_attributes(clips, "m").keys() == {"pat"}  # it says nothing: the names do
    path.write_bytes(b"file_name,d1p,d1v\n\xff\xfe,a,1\n")
    with pytest.raises(InputError, match=r"attributes_00.csv line 2: not a line of a csv in UTF-8"):
        labels.split_attributes(clips, "m")
    path.write_bytes(b"file,d1p,d1v\n")
    with pytest.raises(InputError, match=r"attributes_00.csv line 1: .*expected a header with file_name"):
        labels.split_attributes(clips, "m")


@needs_recordings
def test_real_recordings():
    clips = dcase.index(MINI_ASD, 2023)
    found = labels.split_attributes(clips, "valve")
    assert found.keys() == {"pat"} and set(found["pat"]) == {"", "00", "01", "02", "03"}
    tails = labels.class_labels(clips, clips.machine == "valve", "section").names
    assert tails == ("valve/00/pat_00", "valve/00/pat_01", "valve/00/pat_02", "valve/00/pat_03")
