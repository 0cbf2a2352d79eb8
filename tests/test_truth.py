"""Labels and domains of evaluation clips: what folders and lists say, what is refused, the join with an index."""

import logging
import re
from pathlib import Path

import pytest
from trees import touch, write

from asdjax.core import InputError, UsageError
from asdjax.data import dcase, labels, truth
from asdjax.data.truth import Truth

# (domain, label) of the test clips 0, 2, 4, 6, 8 of a section
LABELS = [("source", 0), ("target", 1), ("target", 0), ("source", 1), ("source", 1)]
SHUFFLED = [3, 0, 4, 2, 1]


def hidden_names(year, section="03"):
    return [
        f"section_{section}_{domain}_test_{2 * i:04d}" if year == 2021 else f"section_{section}_{2 * i:04d}"
        for i, (domain, _) in enumerate(LABELS)
    ]


def eval_tree(root, year, machine, section="03"):
    """Hidden test clips of one section."""
    touch(root, f"dev_data/{machine}/train/section_07_source_train_normal_0000.wav")
    touch(root, f"eval_data/{machine}/train/section_{section}_source_train_normal_0000.wav")
    names = hidden_names(year, section)
    touch(root, *(f"eval_data/{machine}/test/{name}.wav" for name in names))
    return names


def truth_folders(root, year, machine, section="03"):
    """The csvs of the official evaluator, their rows shuffled, in each folder in another order."""
    names = hidden_names(year, section)
    for domain in ("_source", "_target") if year == 2021 else ("",):
        own = [i for i in SHUFFLED if domain[1:] in ("", LABELS[i][0])]
        file = f"ground_truth_{machine}_section_{section}{domain}_test.csv"
        write(root / "ground_truth_data" / file, *(f"{names[i]}.wav,{LABELS[i][1]}" for i in own))
        if year != 2021:
            lines = (f"{names[i]}.wav,{int(LABELS[i][0] == 'target')}" for i in own[::-1])
            write(root / "ground_truth_domain" / file, *lines, end="\r\n")
    return root


def labels_of(clips, names):
    found = {Path(p).stem: i for i, p in enumerate(clips.path)}
    return [(str(clips.domain[found[name]]), int(clips.is_anomaly[found[name]])) for name in names]


def list_lines(names, section="03"):
    kinds = [f"{domain}_test_{('normal', 'anomaly')[label]}" for domain, label in LABELS]
    return [f"{names[i]}.wav,section_{section}_{kinds[i]}_{i:04d}_noAttribute.wav" for i in SHUFFLED]


# ---------------------------------------------------------------- what is read


@pytest.mark.parametrize("year", [2022, 2023, 2024, 2025, "2026"])
def test_folders(tmp_path, year):
    """Two sections; the folder, or its ground_truth_data/, may be given. `where` is the row of the label."""
    file = truth_folders(tmp_path, year, "fan") / "ground_truth_data/ground_truth_fan_section_03_test.csv"
    for kind, flag in ("data", 1), ("domain", 0):
        write(tmp_path / f"ground_truth_{kind}/ground_truth_ToyCar_section_05_test.csv", f"section_05_0000,{flag}")
    write(tmp_path / "ground_truth_data" / "README.md", "words")
    found = truth.read(tmp_path, year)
    assert found == truth.read(str(tmp_path / "ground_truth_data"), year)
    assert found == {
        ("fan", "section_03_0000"): Truth("03", 0, "source", f"{file} line 2", ""),
        ("fan", "section_03_0002"): Truth("03", 1, "target", f"{file} line 5", ""),
        ("fan", "section_03_0004"): Truth("03", 0, "target", f"{file} line 4", ""),
        ("fan", "section_03_0006"): Truth("03", 1, "source", f"{file} line 1", ""),
        ("fan", "section_03_0008"): Truth("03", 1, "source", f"{file} line 3", ""),
        ("ToyCar", "section_05_0000"): Truth("05", 1, "source", f"{file.parent}/{ToyCar_05} line 1", ""),
    }


ToyCar_05 = "ground_truth_ToyCar_section_05_test.csv"


def test_folders_of_2020_and_2021(tmp_path):
    """No folder of domains: 2020 has none, in 2021 they are in the names."""
    truth_folders(tmp_path / "21", 2021, "fan")
    found = truth.read(tmp_path / "21", 2021)
    assert {name: (t.domain, t.is_anomaly) for (_, name), t in found.items()} == {
        "section_03_source_test_0000": ("source", 0), "section_03_target_test_0002": ("target", 1),
        "section_03_target_test_0004": ("target", 0), "section_03_source_test_0006": ("source", 1),
        "section_03_source_test_0008": ("source", 1),
    }  # fmt: skip
    assert {m for m, _ in found} == {"fan"} and {(t.section, t.renamed) for t in found.values()} == {("03", "")}
    file = tmp_path / "20" / "ground_truth_data" / "ground_truth_ToyConveyor_id_05_test.csv"
    write(file, "id_05_00000001.wav,1", "", "id_05_00000000.wav,0")
    assert truth.read(tmp_path / "20", 2020) == {
        ("ToyConveyor", "id_05_00000001"): Truth("05", 1, "", f"{file} line 1", ""),
        ("ToyConveyor", "id_05_00000000"): Truth("05", 0, "", f"{file} line 3", ""),
    }


def renamed_csv(root, *lines):
    return write(root / "ground_truth_attributes" / "ground_truth_fan_section_03_test.csv", *lines, end="\r\n")


def test_published_names(tmp_path):
    """Rows of two fields and (2024) of three; RoboticArm's form without `test`; clips without a row."""
    truth_folders(tmp_path, 2024, "fan")
    lines = ["section_03_0006.wav,section_03_source_test_anomaly_0006_noAttribute,section_03_x_car_A.wav"]
    lines += ["section_03_0000.wav,section_03_source_normal_0035_weight15_BckgF"]
    lines += ["section_03_0002.wav,section_03_target_test_anomaly_0001_ac_0.03_.wav"]
    renamed_csv(tmp_path, *lines)
    assert {name[-2:]: t.renamed for (_, name), t in truth.read(tmp_path, 2024).items()} == {
        "00": "section_03_source_normal_0035_weight15_BckgF", "02": "section_03_target_test_anomaly_0001_ac_0.03_",
        "06": "section_03_source_test_anomaly_0006_noAttribute", "04": "", "08": "",
    }  # fmt: skip


def test_lists(tmp_path):
    """Names repeat across machines; CRLF; a byte-order mark; given as a file or lying in the folder."""
    lines = ["\ufeffgrinder", "section_00_0000.wav,section_00_target_test_anomaly_0007_vel_1.wav", "shaker"]
    lines += ["section_00_0000.wav,section_00_source_normal_0000.wav"]
    file = write(tmp_path / "eval_data_list_2023.csv", *lines, end="\r\n")
    expected = {
        ("grinder", "section_00_0000"): Truth(
            "00", 1, "target", f"{file} line 2", "section_00_target_test_anomaly_0007_vel_1"
        ),
        ("shaker", "section_00_0000"): Truth("00", 0, "source", f"{file} line 4", "section_00_source_normal_0000"),
    }
    assert truth.read(file, 2023) == truth.read(tmp_path, "2023") == expected
    file = write(tmp_path / "20" / "eval_data_list.csv", "fan", "id_05_00000001.wav,anomaly_id_05_00000004.wav,1")
    expected = {("fan", "id_05_00000001"): Truth("05", 1, "", f"{file} line 2", "anomaly_id_05_00000004")}
    assert truth.read(file, 2020) == truth.read(file.parent, 2020) == expected


# ---------------------------------------------------------------- the trap of 2022


def trap_2022(root, machine):
    """The evaluator's folders of 2022 as they are published, and the list that mixes up the clips of two machines.

    Only ground_truth_data/ and ground_truth_domain/ are right; list and attributes agree with each other.
    """
    truth_folders(root, 2022, machine)
    wrong = [f"section_03_{d}_test_{('normal', 'anomaly')[a]}" for d, a in LABELS[1:] + LABELS[:1]]
    names = hidden_names(2022)
    wrong = {name: f"{kind}_{i:04d}_car_G1_spd_31V" for i, (name, kind) in enumerate(zip(names, wrong, strict=True))}
    path = root / "eval_data_list_2022.csv"
    write(path, machine, *(f"{name}.wav,{after}.wav" for name, after in wrong.items()))
    rows = [f"{machine}/test/{name}.wav,car,G1,{machine}/test/{after}.wav" for name, after in wrong.items()]
    later = root / "ground_truth_attributes" / f"ground_truth_{machine}_section_03_test.csv"  # in the form of 2023
    write(later, *(f"{name}.wav,{after}" for name, after in wrong.items()))
    header = "file_name,d1p,d1v,file_name_with_attributes"
    write(root / "ground_truth_attributes" / machine / "attributes_03.csv", header, *rows)
    return path


@pytest.mark.parametrize("machine", ["ToyCar", "ToyTrain"])
def test_2022_takes_the_right_labels_and_domains(tmp_path, machine, caplog, monkeypatch):
    """The lists' labels differ in two of five clips and their domains in two; nothing of them is even opened."""
    path = trap_2022(tmp_path / "truth", machine)
    names = eval_tree(tmp_path, 2022, machine)
    as_2023 = truth.read(path.rename(tmp_path / "list.csv"), 2023)  # the same form: what it would say of the clips
    (tmp_path / "list.csv").rename(path)
    wrong = [(as_2023[machine, name].domain, as_2023[machine, name].is_anomaly) for name in names]
    assert wrong == [("target", 1), ("target", 0), ("source", 1), ("source", 1), ("source", 0)]
    opened, read_bytes = [], Path.read_bytes
    monkeypatch.setattr(Path, "read_bytes", lambda file: (opened.append(file), read_bytes(file))[1])
    with caplog.at_level(logging.WARNING):
        clips = dcase.index(tmp_path, 2022, test_on="eval", ground_truth=tmp_path / "truth")
        found = truth.read(tmp_path / "truth", 2022)
    assert labels_of(clips, names) == LABELS
    assert [(found[machine, name].domain, found[machine, name].is_anomaly) for name in names] == LABELS
    assert {t.renamed for t in found.values()} == {""}
    assert {file.parent.name for file in opened} == {"ground_truth_data", "ground_truth_domain"}
    assert set(clips.attributes) == {""} and not labels.split_attributes(clips, machine)
    assert [r.levelname for r in caplog.records] == ["WARNING"] * 2
    said = caplog.records[0].getMessage()
    assert str(path) in said and "not used" in said and "ToyCar and ToyTrain give wrong labels and domains" in said


def test_2022_names_made_by_the_wrong_list_say_nothing(tmp_path, caplog):
    """The third form of the trap: files that a tool has renamed by the list. Development sections are named rightly."""
    for machine, section in (("ToyCar", "03"), ("ToyCar", "00"), ("fan", "03")):
        name = f"section_{section}_source_{{}}_{{}}_0000_car_A1.wav"
        touch(tmp_path, f"eval_data/{machine}/train/{name.format('train', 'normal')}")
        touch(tmp_path, f"eval_data/{machine}/test/{name.format('test', 'anomaly')}")
    with caplog.at_level(logging.WARNING):
        clips = dcase.index(tmp_path, 2022, test_on="eval")
    said = {(m, s): (d, a) for m, s, d, a, t in zip(
        clips.machine, clips.section, clips.domain, clips.is_anomaly, clips.is_test, strict=True) if t}  # fmt: skip
    assert said == {("ToyCar", "03"): ("", -1), ("ToyCar", "00"): ("source", 1), ("fan", "03"): ("source", 1)}
    (record,) = caplog.records
    assert "ToyCar/test/section_03" in record.getMessage() and "gives wrong labels and domains" in record.getMessage()
    caplog.clear()
    dcase.index(tmp_path, 2023, test_on="eval")
    assert not caplog.records


def test_2022_attributes_of_test_clips_reach_no_class(tmp_path):
    """Also where somebody lays the evaluator's csv beside train/: rows of test clips are passed over."""
    trap_2022(tmp_path / "truth", "ToyCar")
    names = eval_tree(tmp_path, 2022, "ToyCar")
    csv = (tmp_path / "truth" / "ground_truth_attributes" / "ToyCar" / "attributes_03.csv").read_text()
    write(tmp_path / "eval_data/ToyCar/attributes_03.csv", csv + "section_03_source_train_normal_0000.wav,car,A1")
    clips = dcase.index(tmp_path, 2022, test_on="eval", ground_truth=tmp_path / "truth")
    assert labels_of(clips, names) == LABELS
    found = labels.split_attributes(clips, "ToyCar")
    assert found.keys() == {"car"} and found["car"].tolist() == [
        "A1" if "03_source_train" in p else "" for p in clips.path
    ]
    assert set(clips.attributes) == {""}


def test_the_wrong_list_of_2022_is_refused(tmp_path):
    """Under any name, and in a folder of its own; the message says why and what to give instead."""
    eval_tree(tmp_path, 2022, "ToyCar")
    path = trap_2022(tmp_path / "truth", "ToyCar")
    alone = write(tmp_path / "alone" / "eval_data_list_2022.csv", path.read_text())
    repaired = write(tmp_path / "repaired.csv", path.read_text())
    words = (
        r"does not serve 2022: its rows of ToyCar and ToyTrain give wrong labels and domains; expected a folder with"
    )
    words += " the official evaluator's ground_truth_data/ and ground_truth_domain/$"
    for where in (path, alone, alone.parent, repaired):
        named = alone if where == alone.parent else where
        with pytest.raises(InputError, match=f"{re.escape(str(named))} {words}"):
            truth.read(where, 2022)
        with pytest.raises(InputError, match=words):
            dcase.index(tmp_path, 2022, test_on="eval", ground_truth=where)


def test_other_years_do_not_warn(tmp_path, caplog):
    truth_folders(tmp_path, 2023, "fan")
    write(tmp_path / "eval_data_list_2023.csv", "fan", *list_lines(hidden_names(2023)))
    with caplog.at_level(logging.WARNING):
        assert {t.renamed for t in truth.read(tmp_path, 2023).values()} == {""}  # the folders come first
    truth_folders(tmp_path / "22", 2022, "fan")
    truth.read(tmp_path / "22", 2022)
    assert not caplog.records


# ---------------------------------------------------------------- what is refused


@pytest.mark.parametrize(
    ("year", "wanted"),
    [
        (2020, "a folder .* ground_truth_data/ or an eval_data_list csv"),
        (2021, "a folder .* ground_truth_data/"),
        (2022, "a folder .* ground_truth_data/ and ground_truth_domain/"),
        (2023, "a folder .* ground_truth_data/ and ground_truth_domain/ or an eval_data_list csv"),
        ("plain", "none: in plain data sets the names are the labels"),
    ],
)
def test_nothing_that_serves(tmp_path, year, wanted):
    with pytest.raises(InputError, match=f"/none does not serve {year}: nothing is there; expected {wanted}$"):
        truth.read(tmp_path / "none", year)
    with pytest.raises(InputError, match=f"{tmp_path} does not serve {year}: expected {wanted}$"):
        truth.read(tmp_path, year)
    with pytest.raises(UsageError, match="found 2019"):
        truth.read(tmp_path, 2019)


def test_truth_of_plain_data_is_refused(tmp_path):
    touch(tmp_path, "fan/train/1.wav", "fan/test/1.wav")
    with pytest.raises(InputError, match="plain"):
        dcase.index(tmp_path, "plain", ground_truth=tmp_path)


@pytest.mark.parametrize(
    ("file", "year", "message"),
    [
        (
            "fan_section_03_source_test",
            2022,
            "a name of 2021, expected ground_truth_MACHINE_section_NN_test.csv in 2022",
        ),
        ("fan_section_03_test", 2021, r"a name of 2022 and later, expected .*_NN_\{source\|target\}_test.csv in 2021"),
        ("fan_id_03_test", 2023, "a name of 2020, expected"),
        ("fan_section_03_test", 2020, "a name of 2022 and later, expected ground_truth_MACHINE_id_NN_test.csv in 2020"),
        ("fan_id_03_source_test", 2020, "not a name of a ground-truth csv"),
        ("my_fan_section_03_test", 2023, "not a name of a ground-truth csv"),
        ("fan_section_3_test", 2023, "not a name of a ground-truth csv"),
        ("fan_section_03", 2023, "not a name of a ground-truth csv"),
    ],
)
def test_names_of_another_year(tmp_path, file, year, message):
    path = tmp_path / "ground_truth_data" / f"ground_truth_{file}.csv"
    write(path, "section_03_0000.wav,1")
    with pytest.raises(InputError, match=f"^{path}: {message}"):
        truth.read(tmp_path, year)


def test_machines_of_another_year(tmp_path):
    """Since 2022 the names are alike. Machines of no year are somebody's own, those of a development set too."""
    truth_folders(tmp_path / "a", 2023, "bandsaw", "00")
    with pytest.raises(
        InputError, match=r"/a/ground_truth_data: found bandsaw, which are machines of 2023, expected .*Sca"
    ):
        truth.read(tmp_path / "a", 2024)
    path = write(tmp_path / "list.csv", "HairDryer", "section_00_0000.wav,section_00_target_test_anomaly_0007.wav")
    with pytest.raises(InputError, match=r"list.csv: found HairDryer, which are machines of 2024"):
        truth.read(path, 2025)
    path = write(
        tmp_path / "eval_data_list_2022.csv", "fan", "section_03_0000.wav,section_03_target_test_normal_0000.wav"
    )
    with pytest.raises(InputError, match=r"eval_data_list_2022.csv: the list of 2022, expected that of 2023"):
        truth.read(path, 2023)
    assert len(truth.read(truth_folders(tmp_path / "b", 2023, "Lathe"), 2024)) == 5
    assert len(truth.read(truth_folders(tmp_path / "c", 2023, "gearbox"), 2024)) == 5


DATA, DOMAIN = (f"ground_truth_{kind}/ground_truth_fan_section_03_test.csv" for kind in ("data", "domain"))


@pytest.mark.parametrize(
    ("file", "edit", "message"),
    [
        (DATA, lambda b: b + b"section_03_0099.wav,1\n", "ground_truth_domain.*no row for section_03_0099.wav"),
        (DOMAIN, lambda b: b + b"section_03_0099.wav,1\n", "ground_truth_data.*no row for section_03_0099.wav"),
        (DATA, lambda b: b + b"section_03_0000.wav,1\n", "line 6: section_03_0000.wav a second time"),
        (DOMAIN, lambda b: b + b"section_03_0000.wav,0\r\n", "domain/.* line 6: section_03_0000.wav a second time"),
        (DATA, lambda b: b.replace(b",1", b",2", 1), "line 1: found 'section_03_0006.wav,2', expected NAME.wav,0"),
        (DATA, lambda b: b.replace(b",1", b",nan", 1), "line 1: found 'section_03_0006.wav,nan', expected NAME.wav,0"),
        (DATA, lambda b: b.replace(b",1", b",1.0", 1), "line 1: found 'section_03_0006.wav,1.0', expected NAME.wav,0"),
        (DOMAIN, lambda b: b.replace(b",1", b",target", 1), "domain/.* line 1: found 'section_03_0002.wav,target'"),
        (DATA, lambda b: b.replace(b",1", b"", 1), "line 1: found 'section_03_0006.wav'"),
        (DATA, lambda b: b.replace(b",1", b",\xff", 1), "line 1: not a line of a csv in UTF-8"),
        (DATA, lambda b: b.replace(b"section_03_0000", b"section\x00", 1), "line 2: control characters"),
        (DATA, lambda b: b.replace(b"section_03_0000", b'"section', 1), "line 2: not a line of a csv"),
        (DATA, lambda b: b.replace(b",1", b",=HYPERLINK(1)", 1), "line 1: found"),
        (
            DATA,
            lambda b: b.replace(b"n_03", b"n_04", 1),
            "line 1: found 'section_04_0006.wav', expected section_NN_.* of 03",
        ),
        (DATA, lambda b: b.replace(b"_03_", b"_03_source_test_", 1), "line 1: .*expected section_NN_NNNN.wav of 03"),
        (DATA, lambda b: b"", f"{DATA}: no rows, expected NAME.wav,0"),
    ],
)
def test_damaged_truth_is_refused(tmp_path, file, edit, message):
    eval_tree(tmp_path, 2022, "fan")
    path = truth_folders(tmp_path / "truth", 2022, "fan") / file
    path.write_bytes(edit(path.read_bytes()))
    for call in (
        lambda: dcase.index(tmp_path, 2022, test_on="eval", ground_truth=tmp_path / "truth"),
        lambda: truth.read(tmp_path / "truth", 2022),
    ):
        with pytest.raises(InputError, match=message) as error:
            call()
        assert str(tmp_path / "truth") in str(error.value)


def test_missing_files_are_named(tmp_path):
    truth_folders(tmp_path, 2023, "fan")
    (tmp_path / DATA).rename(tmp_path / "kept.csv")
    with pytest.raises(InputError, match="/ground_truth_data: nothing there, expected ground_truth_MACHINE_section_NN"):
        truth.read(tmp_path, 2023)
    truth_folders(tmp_path, 2023, "valve")
    with pytest.raises(InputError, match=f"{DATA}: not there, expected one as in ground_truth_domain/"):
        truth.read(tmp_path, 2023)
    (tmp_path / "kept.csv").rename(tmp_path / DATA)
    (tmp_path / DOMAIN).unlink()
    with pytest.raises(InputError, match=f"{DOMAIN}: cannot be read"):
        truth.read(tmp_path, 2023)
    with pytest.raises(InputError, match=r"list.csv: says nothing of any clip"):
        truth.read(write(tmp_path / "list.csv", "fan", "valve"), 2023)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("section_03_0099.wav,section_03_source_test_normal_0000", "line 1: found .*of a clip with label"),
        ("section_03_0000.wav", "line 1: found .*of a clip with label"),
        (
            "section_03_0000.wav,section_03_source_test_anomaly_0000",
            "line 1: .*expected .*03, source, normal, as .*line 2",
        ),
        (
            "section_03_0000.wav,section_03_target_test_normal_0000",
            "line 1: found .*expected a name of section 03, source",
        ),
        ("section_03_0000.wav,section_00_source_test_normal_0000", "line 1: found .*expected a name of section 03"),
        ("section_03_0000.wav,normal", "line 1: found 'normal', expected a name of section 03, source, normal"),
        ("section_03_0000.wav,section_03_source_test_normal_0000\n" * 2, "line 2: .* a second time"),
    ],
)
def test_damaged_published_names_are_refused(tmp_path, line, message):
    truth_folders(tmp_path, 2023, "fan")
    path = renamed_csv(tmp_path, line)
    with pytest.raises(InputError, match=message) as error:
        truth.read(tmp_path, 2023)
    assert str(path) in str(error.value)


# ---------------------------------------------------------------- the join with an index


@pytest.mark.parametrize("year", [2021, 2022, 2023, 2024, 2025])
def test_truth_from_folders_is_joined_by_name(tmp_path, year):
    """Files of other machines and sections are not even opened: people cut data sets."""
    names = eval_tree(tmp_path, year, "fan")
    path = truth_folders(tmp_path / "truth", year, "fan")
    for place in ("other_section_03", "fan_section_04"):
        write(path / "ground_truth_data" / f"ground_truth_{place}_test.csv", "nothing of use")
    clips = dcase.index(tmp_path, year, test_on="eval", ground_truth=path)
    assert labels_of(clips, names) == LABELS
    assert set(clips[clips.is_train].is_anomaly) == {0} and set(clips[clips.is_test].attributes) == {""}
    before = dcase.index(tmp_path, year, test_on="eval")
    assert set(before[before.is_test].is_anomaly) == {-1}
    # names of the development set say their labels: nothing is joined
    touch(tmp_path, "dev_data/fan/test/section_00_target_test_anomaly_0000.wav")
    assert dcase.index(tmp_path, year, ground_truth=path).is_anomaly.sum() == 1


@pytest.mark.parametrize("year", [2023, 2024, 2025])
@pytest.mark.parametrize("end", ["\n", "\r\n"])
def test_truth_from_an_official_list(tmp_path, year, end):
    """Names repeat across machines; machines and sections that are not on the disk are passed over."""
    names = eval_tree(tmp_path, year, "bandsaw", "00")
    other = ["\ufeffgrinder", "section_00_0000.wav,section_00_target_test_anomaly_0000_x.wav"]
    more = ["section_01_0000.wav,section_01_target_test_anomaly_0000_x.wav"]
    path = tmp_path / f"eval_data_list_{year}.csv"
    write(path, *other, "bandsaw", *list_lines(names, "00"), *more, end=end)
    for where in (path, tmp_path):
        clips = dcase.index(tmp_path, year, test_on="eval", ground_truth=where)
        assert labels_of(clips, names) == LABELS
        assert set(clips[clips.is_test].attributes) == {""}


def test_truth_of_2020(tmp_path):
    touch(tmp_path, "eval_data/ToyCar/train/normal_id_05_00000000.wav", "eval_data/ToyCar/test/id_05_00000001.wav")
    touch(tmp_path, "eval_data/ToyCar/test/id_05_00000009.wav")
    lines = ["fan", "id_05_00000001.wav,normal_id_05_00000004.wav,0", "ToyCar"]
    lines += ["id_05_00000009.wav,normal_id_05_00000003.wav,0", "id_05_00000001.wav,anomaly_id_05_00000000.wav,1"]
    path = write(tmp_path / "eval_data_list.csv", *lines)
    file = tmp_path / "folder" / "ground_truth_data" / "ground_truth_ToyCar_id_05_test.csv"
    write(file, "id_05_00000009.wav,0", "id_05_00000001.wav,1")
    for where in (path, tmp_path, tmp_path / "folder"):
        clips = dcase.index(tmp_path, 2020, test_on="eval", ground_truth=where)
        assert labels_of(clips, ["id_05_00000001", "id_05_00000009"]) == [("", 1), ("", 0)]
    write(path, "ToyCar", "id_05_00000009.wav,normal_id_05_00000003.wav,1")
    with pytest.raises(InputError, match=r"eval_data_list.csv line 2: .*contradict"):
        dcase.index(tmp_path, 2020, test_on="eval", ground_truth=path)


def test_truth_and_files_must_be_the_same_clips(tmp_path):
    eval_tree(tmp_path, 2023, "fan")
    path = truth_folders(tmp_path / "truth", 2023, "fan")

    def index(year=2023):
        return dcase.index(tmp_path, year, test_on="eval", ground_truth=path)

    touch(tmp_path, "eval_data/fan/test/section_03_0050.wav")
    with pytest.raises(InputError, match=r"test/section_03_0050.wav: the ground truth in .*/truth has no row for it"):
        index()
    (tmp_path / "eval_data/fan/test/section_03_0050.wav").unlink()
    (tmp_path / "eval_data/fan/test/section_03_0002.wav").unlink()
    with pytest.raises(InputError, match=r"ground_truth_fan_section_03_test.csv line 5: a row for section_03_0002.wav"):
        index()
    (path / DOMAIN).unlink()
    with pytest.raises(InputError, match=f"{DOMAIN}: cannot be read"):
        index()
    (path / DATA).rename(path / "ground_truth_data" / "ground_truth_valve_section_03_test.csv")
    with pytest.raises(InputError, match=f"{DATA}: cannot be read"):
        index()
    write(path / "ground_truth_data" / "ground_truth_fan_section_03_source_test.csv", "")
    with pytest.raises(InputError, match=r"fan_section_03_source_test.csv: a name of 2021, expected .* in 2023"):
        index()


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        (["section_00_0000.wav,section_00_source_test_normal_0000.wav"], "line 1: found 'section_00_0000.wav,section"),
        (["fan", "section_00_0000.wav,section_01_source_test_normal_0000.wav"], "line 2: .*of one section"),
        (["fan", "section_00_0000.wav,section_00_0000.wav"], "line 2"),
        (["fan", "", "section_00_0000.wav,section_00_source_test_normal_0000.wav,0,x"], "line 3: .*contradict"),
        (["fan", *["section_00_0000.wav,section_00_source_test_normal_0000.wav"] * 2], "line 3: .*second time"),
        (
            ["fan", "section_00_0001.wav,section_00_source_test_normal_0000.wav"],
            "line 2: a row for section_00_0001.wav",
        ),
        (["valve"], "fan/test/section_00_0000.wav: .*list.csv has no row"),
    ],
)
def test_damaged_lists_are_refused(tmp_path, lines, message):
    touch(tmp_path, "fan/train/section_00_source_train_normal_0000.wav", "fan/test/section_00_0000.wav")
    path = write(tmp_path / "list.csv", *lines)
    with pytest.raises(InputError, match=message):
        dcase.index(tmp_path, 2023, ground_truth=path)
