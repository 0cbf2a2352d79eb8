"""Submission files: read back as written, tolerated as people write them, and refused with the reason."""

from __future__ import annotations

import csv

import numpy as np
import pytest
from test_results import make

from asdjax import results
from asdjax.core import InputError, UsageError
from asdjax.results import evaluation, submission

SCORE = "anomaly_score_fan_section_00_test.csv"
DECISION = "decision_result_fan_section_00_test.csv"


def read_one(folder, year=2023) -> submission.Submission:
    (one,), found = submission.read_submissions(folder, year)
    assert found == []
    return one


def values(file: submission.File) -> dict[str, float]:
    return {row.name: row.value for row in file.rows}


def problems(folder, year=2023) -> list[str]:
    """Without the name of the folder."""
    systems, found = submission.read_submissions(folder, year)
    found += [text for system in systems for text in evaluation.problems(system, year)]
    return [text.replace(f"{folder}/", "") for text in found]


def written(folder, text: str, name: str = SCORE):
    folder.mkdir(exist_ok=True)
    (folder / name).write_bytes(text.encode())
    return folder


@pytest.mark.parametrize("year", [2020, 2021, 2022, 2023, "2024", 2025, 2026, "plain"])
def test_what_is_written_is_read(tmp_path, year):
    scores = make(scorers=("near",))
    forms = {"2020": "id_00_000{d}{n}", "2021": "section_00_{domain}_test_{n}", "plain": "a/{domain} {n}"}
    form = forms.get(str(year), "section_00_{domain}_test_normal_{n}")
    clips = zip(scores["domain"].tolist(), scores["file"].tolist(), strict=True)
    scores["file"] = np.array([f"{form.format(d=int(d == 'target'), domain=d, n=f[-8:-4])}.wav" for d, f in clips])
    limits = results.thresholds(scores)
    results.write_submission(tmp_path, scores, year, limits)
    one = read_one(tmp_path, year)
    assert one.name == "near" and problems(tmp_path, year) == []
    test = (scores["split"] == "test") & (scores["scorer"] == "near")
    for machine in ("fan", "pump"):
        own = test & (scores["machine"] == machine)
        expected = dict(zip(scores["file"][own].tolist(), scores["score"][own].tolist(), strict=True))
        read = [file for part, file in one.scores.items() if part[0] == machine]
        assert {part[1:] for part in one.scores} == (
            {("00", "source"), ("00", "target")} if year == 2021 else {("00", "")}
        )
        assert {name: value for file in read for name, value in values(file).items()} == expected
        said = {n: v for part, f in one.decisions.items() if part[0] == machine for n, v in values(f).items()}
        above = {name: float(score > limits["near", "0", machine][0]) for name, score in expected.items()}
        assert said == ({} if year == 2020 else above)


def test_rows_as_people_write_them(tmp_path):
    text = "\ufeffsection_00_0002.wav,1e-3\r\n\r\n  \r\nsection_00_0000 , -.5\r\nfan/test/section_00_0001.WAV,+7.\r\n\n"
    one = read_one(written(tmp_path / "x", text))
    assert [row.value for row in one.scores["fan", "00", ""].rows] == [1e-3, -0.5, 7]
    assert problems(tmp_path / "x") == []
    known = evaluation.of_clips(one, 2023, {})
    assert [row.name for row in known.scores["fan", "00", ""].rows] == [f"section_00_000{i}" for i in (2, 0, 1)]
    written(tmp_path / "x", "section_00_0001.wav,0.0\nsection_00_0000.wav,1\nsection_00_0002.wav,1.0\n", DECISION)
    assert problems(tmp_path / "x") == []


def test_names_of_the_baseline(tmp_path):
    for kind in ("anomaly_score", "decision_result"):
        for machine in ("ToyTank", "bandsaw"):
            name = f"{kind}_DCASE2023T2{machine}_section_00_test_seed13711_id(0_)_Eval.csv"
            written(tmp_path / "x", "section_00_0001.wav,1\n", name)
    one = read_one(tmp_path / "x")
    assert one.scores.keys() == one.decisions.keys() == {("ToyTank", "00", ""), ("bandsaw", "00", "")}
    assert problems(tmp_path / "x", 2024)[0].endswith(
        "_Eval.csv: a name of 2023, expected anomaly_score_MACHINE_section_NN_test.csv or decision_result_* "
        "(and 3 more files)"
    )
    written(tmp_path / "x", "section_00_0001.wav,1\n", "anomaly_score_bandsaw_section_00_test.csv")
    assert any("is of the same clips, expected one anomaly_score file" in text for text in problems(tmp_path / "x"))


def test_other_files_are_nobody_s_business(tmp_path):
    folder = written(tmp_path / "x", "section_00_0001.wav,1\n")
    for name in ("report.pdf", "system.meta.yaml", ".hidden.csv", f"._{SCORE}"):
        (folder / name).write_bytes(b"\xff\x00")
    (folder / "plots").mkdir()
    (folder / "plots" / "other.csv").write_text("a,b\n")
    assert problems(folder) == []


@pytest.mark.parametrize(
    "line,message",
    [
        ("section_00_0002.wav,nan", "found 'nan', expected a finite number"),
        ("section_00_0002.wav,-inf", "found '-inf', expected a finite number"),
        ("section_00_0002.wav,1e999", "found '1e999', expected a finite number"),
        ("section_00_0002.wav,1_0", "found '1_0', expected a finite number"),
        ("section_00_0002.wav,٣", "found '٣', expected a finite number"),
        ("section_00_0002.wav,", "found '', expected a finite number"),
        ("section_00_0002.wav,high", "found 'high', expected a finite number"),
        ("section_00_0002.wav", "found 1 column, expected 2: file name and a finite number"),
        ("section_00_0002.wav,1,2", "found 3 columns, expected 2: file name and a finite number"),
        ("section_00_0001.wav,1", "section_00_0001 a second time, first in line 1"),
        ("section_00_0001,1", "section_00_0001 a second time, first in line 1"),
        ("section_01_0002.wav,1", "found 'section_01_0002.wav', expected a test clip of fan 00"),
        ("section_00_source_train_normal_0002.wav,1", "expected a test clip of fan 00"),
        ("id_00_00000002.wav,1", "found 'id_00_00000002.wav', a name of 2020, expected section_NN_NNNN.wav or section"),
        ("section_00_source_test_0002.wav,1", "found 'section_00_source_test_0002.wav', a name of 2021, expected"),
        ("clip.wav,1", "found 'clip.wav', expected section_NN_NNNN.wav or section_NN_{source|target}_"),
        ("section_00_0002.wav,1\x00", "control characters, expected text"),
        ('"section_00_0002.wav,1', "not a line of a csv in UTF-8"),
    ],
)
def test_malformed_rows_are_named(tmp_path, line, message):
    (text,) = problems(written(tmp_path / "x", f"section_00_0001.wav,1\n{line}\n"))
    assert text.startswith(f"{SCORE} line 2: ") and message in text


def test_rows_with_the_same_complaint_are_one_problem(tmp_path):
    rows = [f"section_00_{i:04}.wav;{i}" for i in range(3)] + ["a,b,c"]
    rows += [f"section_00_{i:04}.wav,high" for i in range(3, 5)] + ["section_00_0005.wav,1"] * 3
    rows += ["section_01_0006.wav,1", "section_01_0007.wav,1", "section_00_source_train_normal_0008.wav,1", "x.wav,1"]
    rows += ["id_00_00000001.wav,1", "id_00_00000002.wav,1"]
    said = problems(written(tmp_path / "x", "\n".join(rows)))
    starts_and_counts = [
        ("1: found 1 column, expected 2", "2 more rows"),
        ("4: found 3 columns, expected 2", ""),
        ("5: found 'high', expected a finite number", "1 more row"),
        ("10: found 'section_01_0006.wav', expected a test clip of fan 00", "2 more rows"),
        ("13: found 'x.wav', expected section_NN_NNNN.wav", ""),
        ("14: found 'id_00_00000001.wav', a name of 2020, expected", "1 more row"),
        ("8: section_00_0005 a second time, first in line 7", "1 more row"),
    ]
    for text, (start, count) in zip(said, starts_and_counts, strict=True):
        assert text.startswith(f"{SCORE} line {start}")
        assert text.endswith(f" (and {count})") if count else "more row" not in text


def test_what_follows_from_unreadable_rows_is_not_said(tmp_path):
    written(tmp_path / "x", "section_00_0001.wav,1\nsection_00_0002.wav;1\n")
    written(tmp_path / "x", "section_00_0001.wav,1\nsection_00_0002.wav,1\n", DECISION)
    (text,) = problems(tmp_path / "x")  # not that the decisions are of other clips
    assert text.startswith(f"{SCORE} line 2: found 1 column")
    written(tmp_path / "x", "file,score\nsection_00_0001.wav,1\n")  # a header hides no clip
    assert [text[:24] for text in problems(tmp_path / "x")] == [f"{SCORE} line 1: "[:24], f"{DECISION}: "[:24]]


def test_a_header_is_called_one(tmp_path):
    (text,) = problems(written(tmp_path / "x", "file_name,score\nsection_00_0001.wav,1\n"))
    assert text == f"{SCORE} line 1: 'file_name,score' looks like a header: the files have none"


@pytest.mark.parametrize(
    "decisions,message",
    [
        ("section_00_0001.wav,2\nsection_00_0002.wav,0\n", f"{DECISION} line 1: found '2', expected the decision 0 or"),
        ("section_00_0001.wav,0.7\nsection_00_0002.wav,0\n", "line 1: found '0.7', expected the decision 0 or 1"),
        ("section_00_0001.wav,1\n", f"{DECISION}: other clips than in {SCORE}: only in one of them section_00_0002"),
        ("section_00_0001.wav,1\nsection_00_0003.wav,0\n", "only in one of them section_00_0002, section_00_0003"),
        ("", f"{DECISION}: no rows, expected decisions"),
    ],
)
def test_decisions_are_0_or_1_and_of_the_same_clips(tmp_path, decisions, message):
    written(tmp_path / "x", "section_00_0001.wav,1\nsection_00_0002.wav,2\n")
    assert message in problems(written(tmp_path / "x", decisions, DECISION))[0]


def test_decisions_without_scores(tmp_path):
    written(tmp_path / "x", "section_00_0001.wav,1\n")
    written(tmp_path / "x", "section_00_0001.wav,1\n", DECISION.replace("fan", "gearbox"))
    assert problems(tmp_path / "x") == [
        f"{DECISION.replace('fan', 'gearbox')}: decisions of clips without scores, "
        "expected an anomaly_score file beside it",
        f"{SCORE}: no decision_result file beside it, expected one of all scores or of none",
    ]
    (tmp_path / "x" / SCORE).unlink()
    assert f"{tmp_path / 'x'}: no anomaly_score_*.csv" in problems(tmp_path / "x")


@pytest.mark.parametrize(
    "year,name,message",
    [
        (2020, DECISION, "2020 has no decisions, expected anomaly_score_MACHINE_id_NN.csv"),
        (2020, "decision_result_fan_id_00.csv", "2020 has no decisions, expected anomaly_score_MACHINE_id_NN.csv"),
        (2020, SCORE, "a name of 2022, 2023, 2024, 2025, 2026, expected anomaly_score_MACHINE_id_NN.csv"),
        (2021, SCORE, "expected anomaly_score_MACHINE_section_NN_{source|target}_test.csv or decision_result_*"),
        (2023, "anomaly_score_fan_id_00.csv", "a name of 2020, expected anomaly_score_MACHINE_section_NN_test.csv"),
        (2023, "anomaly_score_fan_section_00_target_test.csv", "a name of 2021, expected"),
        (2023, "anomaly_score_fan_section_0_test.csv", "not the name of a submission's file, expected"),
        (2023, "anomaly_scores_fan_section_00_test.csv", "not the name of a submission's file, expected"),
        (2023, "all.csv", "not the name of a submission's file, expected"),
    ],
)
def test_names_of_files(tmp_path, year, name, message):
    right = {2020: "anomaly_score_fan_id_00.csv", 2021: "anomaly_score_fan_section_00_source_test.csv"}.get(year, SCORE)
    clip = {2020: "id_00_00000001", 2021: "section_00_source_test_0001"}.get(year, "section_00_0001")
    folder = written(tmp_path / "x", f"{clip}.wav,1\n", right)
    assert problems(folder, year) == []
    (text,) = problems(written(folder, f"{clip}.wav,1\n", name), year)
    assert text.startswith(f"{name}: ") and message in text


def test_domains_of_2021_are_those_of_the_file(tmp_path):
    name = "anomaly_score_fan_section_00_source_test.csv"
    (text,) = problems(written(tmp_path / "x", "section_00_target_test_0001.wav,1\n", name), 2021)
    assert text.endswith("found 'section_00_target_test_0001.wav', expected a test clip of fan 00 source")


def test_files_that_are_no_tables(tmp_path):
    folder = written(tmp_path / "x", "section_00_0001.wav,1\n")
    (folder / SCORE.replace("fan", "valve")).mkdir()
    (folder / SCORE.replace("fan", "slider")).symlink_to("/nowhere")
    (folder / SCORE.replace("fan", "bearing")).write_bytes(np.random.default_rng(0).bytes(5000))
    (folder / SCORE.replace("fan", "gearbox")).write_bytes(b"")
    said = problems(folder)
    assert len(said) == 4
    assert "bearing_section_00_test.csv line " in said[0] and said[1].endswith(": no rows, expected scores")
    assert all("cannot be read (" in text for text in said[2:])


def test_folders_without_submissions(tmp_path):
    with pytest.raises(UsageError, match="is not there, expected a folder"):
        submission.read_submissions(tmp_path / "x", 2023)
    with pytest.raises(
        InputError, match=r"found nothing, expected anomaly_score_MACHINE_id_NN[.]csv, or folders of such"
    ):
        submission.read_submissions(tmp_path, 2020)
    (tmp_path / "scores.csv").write_text("a,b\n")
    with pytest.raises(InputError, match=r"found scores\.csv, expected anomaly_score_"):
        submission.read_submissions(tmp_path, 2023)


@pytest.mark.parametrize("column,name", [("scorer", ".."), ("machine", "../../fan"), ("section", "a/../../../b")])
def test_no_name_in_a_table_of_scores_leads_out_of_the_folder(tmp_path, column, name):
    scores = make(scorers=("near",))
    scores[column] = np.where(scores["scorer"] == "near", name, scores[column])
    limits = results.thresholds(scores)
    with pytest.raises(InputError, match="expected one that a file or folder can have"):
        results.write_submission(tmp_path / "deep" / "out", scores, 2023, limits)
    assert [p for p in tmp_path.rglob("*") if p.is_file()] == []


def test_two_systems_never_share_a_folder(tmp_path):
    scores = make(scorers=("a/b", "a_b"))
    with pytest.raises(InputError, match="a second system would be written to a_b/; rename scorer 'a_b'"):
        results.write_submission(tmp_path, scores, 2023, results.thresholds(scores))


def test_what_is_written_sorts_as_the_evaluators_sort(tmp_path):
    scores = make(scorers=("near",))
    results.write_submission(tmp_path, scores, 2023, results.thresholds(scores))
    for file in (tmp_path / "near").iterdir():
        rows = list(csv.reader(open(file)))
        assert rows == sorted(rows)
