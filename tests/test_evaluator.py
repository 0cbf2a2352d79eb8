"""`python -m asdjax.results`: the official numbers of a folder of csvs, and what is said of bad ones."""

from __future__ import annotations

import csv
import json
import os
import random
from pathlib import Path

import numpy as np
import pytest
from test_metrics import CASES, GOLDEN, expected_rows, golden
from test_results import make

from asdjax import metrics, results, scoretable
from asdjax.results import __main__ as command

ALL = [(year, case) for year in CASES for case in CASES[year]]


def write(path: Path, rows: list[tuple], *, seed: int = 0) -> None:
    """A csv of rows in another order."""
    path.parent.mkdir(parents=True, exist_ok=True)
    rows = random.Random(seed).sample(rows, len(rows))
    path.write_text("".join(f"{','.join(map(str, row))}\n" for row in rows))


def ending(year: str, machine: str, section: str, domain: str) -> str:
    if year == "2020":
        return f"{machine}_id_{section}"
    return f"{machine}_section_{section}_{domain}_test" if year == "2021" else f"{machine}_section_{section}_test"


def labelled_names() -> dict[tuple[str, int], str]:
    """(machine, number of the clip) -> number and attribute of its labelled name, in the golden case 'renamed'."""
    packed = json.loads((GOLDEN / "metrics_2023_names.json").read_text())
    return {(machine, i): text for machine, line in packed.items() for i, text in enumerate(line.split())}


def write_case(folder: Path, table: metrics.Table, year: str, labelled: bool = False) -> None:
    """folder/truth and folder/system in the layout of the official evaluators; the clips are numbered in each file."""
    names, files, count = labelled_names() if year[:4] == "2023" else {}, {}, {}
    columns = (c.tolist() for c in (table[:5] if table.decision is None else table))
    for machine, section, domain, label, score, *decision in zip(*columns, strict=True):
        end = ending(year[:4], machine, section, domain)
        i = count[end] = count.get(end, -1) + 1
        stem = {"2020": f"id_{section}_{i:08}", "2021": f"section_{section}_{domain}_test_{i:04}"}.get(
            year, f"section_{section}_{i:04}"
        )
        kind, name = ("normal", "anomaly")[label], stem
        if (machine, i) in names:
            renamed = f"section_{section}_{domain}_test_{kind}_{names[machine, i].replace('_', '_att_')}"
            files.setdefault(f"truth/ground_truth_attributes/ground_truth_{end}", []).append((f"{stem}.wav", renamed))
            name = renamed if labelled else stem
        truth = f"ground_truth_{end}" + "_test" * (year == "2020")
        files.setdefault(f"truth/ground_truth_data/{truth}", []).append((f"{stem}.wav", label))
        if year >= "2022":
            files.setdefault(f"truth/ground_truth_domain/{truth}", []).append((f"{stem}.wav", int(domain == "target")))
        files.setdefault(f"system/anomaly_score_{end}", []).append((f"{name}.wav", repr(score)))
        for said in decision:
            files.setdefault(f"system/decision_result_{end}", []).append((f"{name}.wav", said))
    for seed, (file, rows) in enumerate(files.items()):
        write(folder / f"{file}.csv", rows, seed=seed)


def flags(folder: Path, year: str, **more: str) -> list[str]:
    paths = {"submission": folder / "system", "truth": folder / "truth", "year": year[:4], **more}
    return [text for name, value in paths.items() for text in (f"--{name}", str(value))]


def evaluated(folder: Path, year: str, *more: str) -> dict[tuple, float]:
    """What results.csv holds."""
    assert command.main(["evaluate", *flags(folder, year, out=folder / "out"), *more]) == 0
    rows = list(csv.DictReader(open(folder / "out" / "results.csv")))
    assert {(row["scorer"], row["member"]) for row in rows} == {("system", "0")}
    return {tuple(row[k] for k in ("machine", "section", "domain", "metric")): float(row["value"]) for row in rows}


def assert_equals_the_evaluator(found: dict, printed: dict, year: str) -> None:
    expected = expected_rows(year, printed)
    assert len(expected) > 40
    for (machine, section, domain, metric), value in expected.items():
        key = (machine, section, domain, metric)
        if year > "2021" and metric == "pAUC" and domain in metrics.DOMAINS and key not in found:
            key = (machine, section, "", metric)  # the evaluators print the one pAUC for both domains
        np.testing.assert_allclose(found[key], value, rtol=1e-12, atol=0, err_msg=str(key))
    if "official_score_ci95" in printed:
        ci95 = found["all", "", "", "official score ci95"]
        np.testing.assert_allclose(ci95, printed["official_score_ci95"], rtol=1e-10, atol=0)


@pytest.mark.parametrize("year,case", ALL)
def test_the_numbers_are_those_of_the_evaluators(tmp_path, capsys, year, case):
    table, printed = golden(year, case)
    write_case(tmp_path, table, year, labelled=case == "renamed")
    found = evaluated(tmp_path, year, "--as_official")
    assert_equals_the_evaluator(found, printed, year)
    said = capsys.readouterr().out
    assert "alignment by sorting changed nothing" in said and f"system, {year[:4]}, in %" in said
    right = evaluated(tmp_path, year)
    if year == "2022":
        slips = set()
        for key, value in found.items():
            before = right[key if key in right else (*key[:2], "", key[3])]  # the one pAUC for both domains
            slips |= set() if value == pytest.approx(before, rel=1e-12, abs=0) else {key}
        assert slips and all(key[1] == "harmonic mean" and key[2] and key[0] != "all" for key in slips)
        assert f"slices of the machine means changed {len(slips)} values" in said
    else:
        assert {key: pytest.approx(value, rel=1e-12) for key, value in found.items()} == right
    interval = [key for key in right if key[3].endswith("bootstrap95")]
    assert len(interval) == 1 and right[interval[0]] > 0
    assert command.main(["validate", *flags(tmp_path, year)]) == 0
    decisions = "no" if year == "2020" else "yes"
    clips = f"valid: 7 machines, {len(table.score)} clips, decisions: {decisions}"
    assert clips in capsys.readouterr().out


def test_the_order_of_rows_is_nothing_but_order(tmp_path):
    """The golden's numbers come out of names: other scores under the same names give other numbers."""
    table, printed = golden("2023", "gauss")
    write_case(tmp_path, table._replace(score=np.roll(table.score, 1)), "2023")
    assert evaluated(tmp_path, "2023")["all", "", "", "official score"] != pytest.approx(printed["official_score"])


@pytest.mark.parametrize("year,case", [("2021", "gauss"), ("2023", "renamed")])
def test_labelled_names_need_no_truth(tmp_path, capsys, year, case):
    table, printed = golden(year, case)
    write_case(tmp_path, table, year, labelled=True)
    if year == "2021":  # made up: names of the development set
        truth = {}
        for file in (tmp_path / "truth" / "ground_truth_data").iterdir():
            truth |= {(file.name.split("_")[2], name): label for name, label in csv.reader(open(file))}
        for file in (tmp_path / "system").iterdir():
            machine, text = file.name.split("_")[2], file.read_text()
            for (of, name), label in truth.items():
                if of == machine:
                    text = text.replace(name, name.replace("test_", f"test_{('normal', 'anomaly')[int(label)]}_"))
            file.write_text(text)
    paths = ["--submission", str(tmp_path / "system"), "--year", year]
    assert command.main(["evaluate", *paths, "--out", str(tmp_path / "out")]) == 0
    rows = csv.DictReader(open(tmp_path / "out" / "results.csv"))
    found = {tuple(row[k] for k in ("machine", "section", "domain", "metric")): float(row["value"]) for row in rows}
    assert_equals_the_evaluator(found, printed, year)
    assert command.main(["validate", *paths]) == 0
    assert "only the form was checked" in capsys.readouterr().out
    write_case(tmp_path, table, year)
    assert command.main(["evaluate", *paths, "--out", str(tmp_path / "out")]) == 1
    assert f"does not say its label, nor do {len(table.score) - 1} others; expected --truth" in capsys.readouterr().err


def small(folder: Path, year: str = "2023", machines=("ToyTank", "shaker"), n: int = 8) -> dict[str, list]:
    """A system of few clips, of a year's machines, written with its truth; its files' rows."""
    rng, rows = np.random.default_rng(0), []
    sections = ("01", "03") if year == "2020" else ("00",)
    domains = ("",) if year == "2020" else metrics.DOMAINS
    for m in machines:
        rows += [(m, s, d, y, rng.normal() + y, y) for s in sections for d in domains for y in (0, 1) for _ in range(n)]
    table = metrics.Table(*map(np.array, zip(*rows, strict=True)))
    write_case(folder, table._replace(decision=None) if year == "2020" else table, year)
    return {p.name: list(csv.reader(open(p))) for p in sorted((folder / "system").iterdir())}


SCORE, DECISION = "anomaly_score_ToyTank_section_00_test.csv", "decision_result_ToyTank_section_00_test.csv"


def first_row(path: Path, change) -> None:
    first, *others = path.read_text().splitlines()
    path.write_text("\n".join([change(first), *others, ""]))


BAD = {
    "row missing": (lambda f: first_row(f / SCORE, lambda row: ""), f"{SCORE}: 31 rows, expected 32; missing: section"),
    "file missing": (lambda f: (f / SCORE).unlink(), f"no {SCORE}, expected one with 32 rows"),
    "unknown machine": (
        lambda f: (f / SCORE).rename(f / SCORE.replace("Tank", "Tink")),
        "ToyTink_section_00_test.csv: machine ToyTink is not in the truth, which has ToyTank, shaker",
    ),
    "unknown section": (
        lambda f: (f / SCORE).rename(f / SCORE.replace("00", "01")),
        "section 01 of ToyTank is not in the truth, which has 00 of ToyTank",
    ),
    "unknown clip": (
        lambda f: first_row(f / SCORE, lambda row: "section_00_0900.wav,1"),
        f"{SCORE} line 1: section_00_0900 is no test clip of ToyTank 00",
    ),
    "no decisions of a machine": (lambda f: (f / DECISION).unlink(), f"{SCORE}: no decision_result file beside it"),
    "fewer decisions": (
        lambda f: first_row(f / DECISION, lambda row: ""),
        f"{DECISION}: other clips than in {SCORE}: only in one of them section_00_00",
    ),
    "a NaN": (
        lambda f: first_row(f / SCORE, lambda row: row.split(",")[0] + ",nan"),
        f"{SCORE} line 1: found 'nan', expected a finite number",
    ),
    "garbage": (lambda f: (f / SCORE).write_bytes(bytes(range(256))), f"{SCORE} line "),
    "a link": (
        lambda f: ((f / SCORE).unlink(), (f / SCORE).symlink_to("/etc/passwd")),
        f"{SCORE} line 1: found 1 column, expected 2: file name and a finite number",
    ),
}


@pytest.mark.parametrize("kind", BAD)
def test_bad_submissions_are_refused_and_it_is_said_why(tmp_path, capsys, kind):
    break_it, message = BAD[kind]
    small(tmp_path)
    assert command.main(["validate", *flags(tmp_path, "2023")]) == 0
    break_it(tmp_path / "system")
    assert command.main(["validate", *flags(tmp_path, "2023")]) == 1
    assert message in (text := capsys.readouterr().out) and "not valid: " in text
    assert command.main(["evaluate", *flags(tmp_path, "2023", out=tmp_path / "out")]) == 1
    said = capsys.readouterr()
    assert said.err.startswith("error: ") and message in said.err and "Traceback" not in said.err
    assert not (tmp_path / "out").exists()


def test_all_problems_are_listed_up_to_twenty(tmp_path, capsys):
    machines = [f"m{i:02}" for i in range(22)]
    small(tmp_path, machines=machines, n=1)
    for file in (tmp_path / "system").glob("anomaly*"):
        first_row(file, lambda row: row.split(",")[0] + ",high")
    assert command.main(["validate", *flags(tmp_path, "2023")]) == 1
    lines = capsys.readouterr().out.splitlines()
    assert sum("line 1: found 'high', expected a finite number" in line for line in lines) == 20
    assert lines[20:] == ["and 2 more", "not valid: 22 problems"]


def rename_both(folder: Path, old: str, new: str) -> None:
    for name in (SCORE, DECISION):
        (folder / name).rename(folder / name.replace(old, new))


MANY = {
    "a missing row, before what it makes of the decisions": (
        lambda f: first_row(f / SCORE, lambda row: ""),
        [f"{SCORE}: 31 rows, expected 32; missing: section", f"{DECISION}: other clips than in {SCORE}: only in one"],
    ),
    "another separator": (
        lambda f: [rewrite(f / name, ",", ";") for name in (SCORE, DECISION)],
        [
            f"{SCORE} line 1: found 1 column, expected 2: file name and a finite number (and 31 more rows)",
            f"{DECISION} line 1: found 1 column, expected 2: file name and the decision 0 or 1 (and 31 more rows)",
        ],
    ),
    "an unknown section": (
        lambda f: rename_both(f, "_00_", "_01_"),
        [
            f": no {SCORE}, expected one with 32 rows",
            f"{SCORE.replace('00', '01')}: section 01 of ToyTank is not in the truth, which has 00 of ToyTank",
        ],
    ),
    "an unknown machine": (
        lambda f: rename_both(f, "Tank", "Tink"),
        [
            f": no {SCORE}, expected one with 32 rows",
            f"{SCORE.replace('Tank', 'Tink')}: machine ToyTink is not in the truth, which has ToyTank, shaker",
        ],
    ),
    "unknown clips": (
        lambda f: [rewrite(f / name, "section_00_0", "section_00_9") for name in (SCORE, DECISION)],
        [
            f"{SCORE} line 1: section_00_9003 is no test clip of ToyTank 00 (and 31 more rows)",
            f"{SCORE}: 32 rows, expected 32; missing: section_00_0000, section_00_0001, section_00_0002 and 29 more",
        ],
    ),
    "no rows": (lambda f: (f / SCORE).write_text(""), [f"{SCORE}: no rows, expected scores"]),
    "no scores": (lambda f: (f / SCORE).unlink(), [f": no {SCORE}, expected one with 32 rows"]),
}


@pytest.mark.parametrize("kind", MANY)
def test_one_cause_is_one_line_and_comes_first(tmp_path, capsys, kind):
    break_it, expected = MANY[kind]
    small(tmp_path)
    break_it(tmp_path / "system")
    assert command.main(["validate", *flags(tmp_path, "2023")]) == 1
    *lines, last = capsys.readouterr().out.splitlines()
    assert last == f"not valid: {len(expected)} problem{'s' * (len(expected) > 1)}"
    for line, text in zip(lines, expected, strict=True):
        assert text in line


def test_the_domain_of_2021_is_named_with_its_section(tmp_path, capsys):
    small(tmp_path, "2021", ("fan",))
    source = tmp_path / "system" / "anomaly_score_fan_section_00_source_test.csv"
    rename = source.with_name(source.name.replace("00", "05"))
    source.rename(rename)
    assert command.main(["validate", *flags(tmp_path, "2021")]) == 1
    expected = f"{rename.name}: section 05 source of fan is not in the truth, which has 00 source of fan, 00 target of"
    assert expected in capsys.readouterr().out


@pytest.mark.parametrize("more", [[], ["--as_official"]])
def test_unreadable_rows_stop_the_evaluation_either_way(tmp_path, capsys, more):
    small(tmp_path)
    first_row(tmp_path / "system" / SCORE, lambda row: row.replace(",", ";"))
    assert command.main(["evaluate", *flags(tmp_path, "2023", out=tmp_path / "out"), *more]) == 1
    said = capsys.readouterr().err.splitlines()
    assert len(said) == 1 and f"{SCORE} line 1: found 1 column" in said[0]


def test_decisions_of_2020_are_refused_once(tmp_path, capsys):
    small(tmp_path, "2020", ("fan", "valve"))
    for i in (1, 3):
        (tmp_path / "system" / f"decision_result_fan_id_0{i}.csv").write_text("id_01_00000000.wav,1\n")
    assert command.main(["validate", *flags(tmp_path, "2020")]) == 1
    line, _ = capsys.readouterr().out.splitlines()
    assert "decision_result_fan_id_01.csv: 2020 has no decisions, expected anomaly_score_MACHINE_id_NN.csv" in line
    assert line.endswith(" (and 1 more file)")


@pytest.mark.parametrize("year,other", [("2023", "2024"), ("2021", "2022"), ("2020", "2021")])
def test_another_year_is_refused(tmp_path, capsys, year, other):
    machines = ("ToyTank", "shaker") if year == "2023" else ("fan", "valve")
    small(tmp_path, year, machines)
    assert command.main(["validate", *flags(tmp_path, other)]) == 1
    assert "error: " in capsys.readouterr().err  # the truth is of another year
    assert command.main(["validate", "--submission", str(tmp_path / "system"), "--year", other]) == (
        0 if year == "2023" else 1  # names are all alike since 2022
    )
    if year < "2022":
        assert f": a name of {year}, expected anomaly_score_MACHINE_section_" in capsys.readouterr().out


def test_folders_that_are_none(tmp_path, capsys):
    small(tmp_path)
    (tmp_path / "empty").mkdir()
    for name, code, message in (
        ("empty", 1, "found nothing, expected anomaly_score_MACHINE_section_NN_test.csv, or folders of such"),
        (f"system/{SCORE}", 2, "is a file, expected a folder"),
        ("nowhere", 2, "is not there, expected a folder"),
    ):
        for action in (["validate"], ["evaluate", "--out", str(tmp_path / "out")]):
            given = flags(tmp_path, "2023", submission=tmp_path / name)
            assert command.main([action[0], *given, *action[1:]]) == code
            assert message in capsys.readouterr().err
    for truth in ("empty", "nowhere"):
        assert command.main(["validate", *flags(tmp_path, "2023", truth=tmp_path / truth)]) == 1
        assert "error: ground truth" in capsys.readouterr().err


def test_several_systems_are_each_evaluated(tmp_path, capsys):
    small(tmp_path)
    (tmp_path / "team").mkdir()
    (tmp_path / "system").rename(tmp_path / "team" / "one")
    small(tmp_path)
    (tmp_path / "system").rename(tmp_path / "team" / "two")
    (tmp_path / "team" / "two" / "notes.yaml").write_text("a team's own")
    for file in (tmp_path / "team" / "two").glob("decision*"):
        file.unlink()
    given = flags(tmp_path, "2023", submission=tmp_path / "team")
    assert command.main(["validate", *given]) == 0
    assert capsys.readouterr().out.splitlines() == [
        "one: valid: 2 machines, 64 clips, decisions: yes",
        "two: valid: 2 machines, 64 clips, decisions: no",
    ]
    assert command.main(["evaluate", *given, "--out", str(tmp_path / "out")]) == 0
    said = capsys.readouterr().out
    assert "\nnote: two: no decision files: no precision, recall and F1 score\n" in f"\n{said}"
    assert "rms-only" not in said  # nobody's submission has the loudness
    assert command.main(["evaluate", *given, "--out", str(tmp_path / "out"), "--as_official"]) == 0
    assert capsys.readouterr().out.count("as the official evaluator of 2023: alignment by sorting changed nothing") == 1
    rows = list(csv.DictReader(open(tmp_path / "out" / "results.csv")))
    of = {name: {row["metric"] for row in rows if row["scorer"] == name} for name in ("one", "two")}
    assert {"precision", "recall", "F1 score"} == of["one"] - of["two"] and of["two"] - of["one"] == set()
    (tmp_path / "team" / SCORE).write_text("section_00_0000.wav,1\n")
    assert command.main(["validate", *given]) == 1
    assert "expected one system a folder" in capsys.readouterr().err


def test_a_run_is_not_overwritten(tmp_path, capsys):
    small(tmp_path)
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "config.json").write_text("{}")
    for out, what in (("run", "the folder of a run"), (f"system/{SCORE}", "a file")):
        assert command.main(["evaluate", *flags(tmp_path, "2023", out=tmp_path / out)]) == 2
        assert f"--out: {tmp_path / out} is {what}" in capsys.readouterr().err


def test_alignment_by_sorting_is_repeated_and_said(tmp_path, capsys):
    """Names of 2022 with labels sort otherwise than those without: the script gives clips the scores of others."""
    from sklearn.metrics import roc_auc_score

    files = small(tmp_path, "2022", ("fan",))
    score = tmp_path / "system" / "anomaly_score_fan_section_00_test.csv"
    truth = dict(csv.reader(open(tmp_path / "truth" / "ground_truth_data" / "ground_truth_fan_section_00_test.csv")))
    domain = dict(csv.reader(open(tmp_path / "truth" / "ground_truth_domain" / "ground_truth_fan_section_00_test.csv")))
    of = {n: (metrics.DOMAINS[int(domain[n])], ("normal", "anomaly")[int(truth[n])]) for n in truth}
    for name, rows in files.items():
        labelled = [(f"section_00_{of[n][0]}_test_{of[n][1]}_{n[11:]}", value) for n, value in rows]
        write(tmp_path / "system" / name, labelled)
    assert command.main(["evaluate", *flags(tmp_path, "2022", out=tmp_path / "out")]) == 1
    assert "is no test clip of fan 00, or the truth does not say which it is" in capsys.readouterr().err
    found = evaluated(tmp_path, "2022", "--as_official")
    zipped = list(zip(sorted(truth.items()), sorted(csv.reader(open(score))), strict=True))
    label, value = [int(y) for (_, y), _ in zipped], [float(v) for _, (_, v) in zipped]
    assert found["fan", "00", "all", "AUC"] == pytest.approx(roc_auc_score(label, value), rel=1e-12)
    by_name = dict(files[score.name])
    right = roc_auc_score([int(y) for y in truth.values()], [float(by_name[n]) for n in truth])
    assert right != pytest.approx(found["fan", "00", "all", "AUC"])
    assert "alignment by sorting took what by name is malformed: " in capsys.readouterr().out
    first_row(score, lambda row: "")
    assert command.main(["evaluate", *flags(tmp_path, "2022", out=tmp_path / "out"), "--as_official"]) == 1
    assert f"{score.name}: 31 rows, expected 32" in capsys.readouterr().err


def test_a_missing_file_of_2020_is_passed_over_as_officially(tmp_path, capsys):
    small(tmp_path, "2020", ("fan", "valve"))
    before = evaluated(tmp_path, "2020")
    (tmp_path / "system" / "anomaly_score_fan_id_03.csv").unlink()
    capsys.readouterr()
    assert command.main(["evaluate", *flags(tmp_path, "2020", out=tmp_path / "out")]) == 1
    assert "no anomaly_score_fan_id_03.csv, expected one with 16 rows" in capsys.readouterr().err
    found = evaluated(tmp_path, "2020", "--as_official")
    assert "missing files passed over: anomaly_score_fan_id_03.csv" in capsys.readouterr().out
    assert found["fan", "arithmetic mean", "", "AUC"] == before["fan", "01", "", "AUC"]
    assert found["valve", "arithmetic mean", "", "AUC"] == before["valve", "arithmetic mean", "", "AUC"]


def write_run(folder: Path, year=2024, **kinds) -> dict:
    scores = make(**kinds)
    label = np.where(scores["label"] == 1, "anomaly", "normal")
    scores["file"] = np.array([f"{file[:-8]}{y}_{file[-8:]}" for file, y in zip(scores["file"], label, strict=True)])
    if kinds.get("members", 1) > 1:
        scores = scoretable.concatenate([scores, scoretable.ensemble(scores)])
    scoretable.write_scores(folder / "scores.csv", scores)
    (folder / "config.json").write_text(json.dumps({"data": {"year": year}}))
    return scores


def test_a_run_of_one_scorer_is_packed_as_any_other(tmp_path):
    write_run(tmp_path / "run", scorers=("near",))
    for more, folder in (([], "out/near"), (["--scorer", "near"], "one")):
        out = str(tmp_path / folder.split("/")[0])
        assert command.main(["pack", "--run", str(tmp_path / "run"), "--out", out, *more]) == 0
        assert (tmp_path / folder / SCORE.replace("ToyTank", "fan")).is_file()


def rewrite(path: Path, old: str, new: str) -> None:
    path.write_text(path.read_text().replace(old, new))


def test_notes_say_of_how_many_systems_they_are():
    assert command._whose(["a"], 1) == ""
    assert command._whose(["b"], 3) == "b: "
    assert command._whose(["a", "b"], 2) == "all 2 systems: "
    assert command._whose(list("abcd"), 5) == "4 of 5 systems (a, b, c and 1 more): "


def test_a_fusion_prints_its_own_table_and_says_where_an_ensemble_takes_part(tmp_path, capsys):
    for name, members in (("one", 1), ("three", 3)):
        write_run(tmp_path / name, members=members, scorers=(f"near {name}", f"far {name}"))
    runs = [str(tmp_path / name) for name in ("one", "three")]
    assert command.main(["fuse", "--runs", *runs, "--out", str(tmp_path / "out"), "--name", "joint"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line for line in lines if line.endswith(", in %")] == [
        "joint, 2024, in %",
        "all scorers, 2024: means over machines and sections, in %",
        "all scorers, 2024: official score of each machine, in %",
    ]
    assert sum(line.startswith((" near ", " far ", " joint ")) for line in lines) == 10
    assert [line for line in lines if "takes part" in line] == ["three: of its 3 members the ensemble takes part"]
    assert command.main(["fuse", "--runs", str(tmp_path / "out"), "--out", str(tmp_path / "again")]) == 0
    said = capsys.readouterr().out
    assert "takes part" not in said and "\n near three " in said and "\n joint" not in said
    assert "out: left out, as made of the others: joint\n" in said


@pytest.mark.parametrize("year", ["2026", "1999", "plain"])
def test_years_without_published_numbers_are_answered_with_those_that_have_some(capsys, year):
    assert command.main(["published", "--year", year]) == 2
    said = capsys.readouterr().err
    assert f"found {year}; there is: 2020 dev, " in said and "2025 eval" in said and "2026 eval" not in said
    with pytest.raises(SystemExit):
        command.main(["published", "--help"])
    assert "one of 2020, 2021, 2022, 2023, 2024, 2025\n" in capsys.readouterr().out


def test_published_numbers_are_the_means_unless_all_are_wanted(capsys):
    assert command.main(["published", "--year", "2023"]) == 0
    few = capsys.readouterr().out.splitlines()
    assert command.main(["published", "--year", "2023", "--all"]) == 0
    many = capsys.readouterr().out.splitlines()
    assert len(few) < 50 < 100 < len(many)
    assert few[-1].endswith("python -m asdjax.results published --year 2023 --all")
    assert not any("--all" in line for line in many)
    assert not any(line.endswith(" ") for line in few + many)


def read_all(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


def test_pack_writes_what_a_run_hands_in(tmp_path, capsys):
    run = tmp_path / "run"
    scores = write_run(run, members=2)
    results.write_submission(tmp_path / "direct", scores, 2024, results.thresholds(scores))
    assert command.main(["pack", "--run", str(run), "--out", str(tmp_path / "all")]) == 0
    assert read_all(tmp_path / "all") == read_all(tmp_path / "direct")
    assert len(capsys.readouterr().out.splitlines()) == 6
    one = ["pack", "--run", str(run), "--out", str(tmp_path / "one"), "--scorer", "far", "--member", "ensemble"]
    assert command.main(one) == 0
    assert read_all(tmp_path / "one") == read_all(tmp_path / "direct" / "far_ensemble")
    assert "2 machines, 96 clips, decisions: yes" in capsys.readouterr().out
    assert command.main(one) == 2 and "is not empty, expected a new folder" in capsys.readouterr().err
    paths = ["--submission", str(tmp_path / "one"), "--year", "2024", "--out", str(tmp_path / "out")]
    assert command.main(["evaluate", *paths]) == 0
    limits = results.thresholds(scores)
    summary, _ = results.summarise(scores, 2024, limits)
    theirs = {row[2:6]: row.value for row in summary if row[:2] == ("far", "ensemble")}
    rows = csv.DictReader(open(tmp_path / "out" / "results.csv"))
    mine = {tuple(row[k] for k in ("machine", "section", "domain", "metric")): float(row["value"]) for row in rows}
    assert mine == {key: pytest.approx(value, rel=1e-12) for key, value in theirs.items() if "rms" not in key[3]}


@pytest.mark.parametrize(
    "break_it,more,code,message",
    [
        (lambda run: None, ["--scorer", "x"], 2, "--scorer x: not in the run's scores; there is: near (member 0), far"),
        (lambda run: None, ["--member", "3"], 2, "--member 3: not in the run's scores"),
        (lambda run: (run / "config.json").unlink(), [], 1, "config.json: cannot be read"),
        (lambda run: (run / "config.json").write_text("[]"), [], 1, "config.json: says no data.year"),
        (lambda run: (run / "config.json").write_bytes(b"\xff{"), [], 1, "config.json: says no data.year"),
        (lambda run: rewrite(run / "scores.csv", ",test,", ",train,"), [], 1, "scores.csv: no scores of test clips"),
        (lambda run: rewrite(run / "scores.csv", "near,", "..,"), [], 1, "found the name '..', expected one that"),
        (lambda run: (run / "scores.csv").unlink(), [], 1, "scores.csv: no such file"),
        (
            lambda run: (run / "config.json").write_text('{"data": {"year": 2020}}'),
            [],
            1,
            "far/anomaly_score_fan_id_00",
        ),
    ],
)
def test_pack_refuses(tmp_path, capsys, break_it, more, code, message):
    write_run(tmp_path / "run")
    break_it(tmp_path / "run")
    assert command.main(["pack", "--run", str(tmp_path / "run"), "--out", str(tmp_path / "out"), *more]) == code
    said = capsys.readouterr().err
    assert said.startswith("error: ") and message in said
    assert not (tmp_path / "out").exists()


def test_strange_names_of_folders_do_no_harm(tmp_path, capsys):
    small(tmp_path)
    odd = os.fsdecode(b"\x1b[31m \xff[bold]")
    (tmp_path / "system").rename(tmp_path / odd)
    given = flags(tmp_path, "2023", submission=tmp_path / odd)
    assert command.main(["evaluate", *given, "--out", str(tmp_path / "out")]) == 0
    (row, *_) = csv.DictReader(open(tmp_path / "out" / "results.csv"))
    assert row["scorer"] == "?[31m ?[bold]"
    (tmp_path / odd / SCORE).unlink()
    assert command.main(["evaluate", *given, "--out", str(tmp_path / "out")]) == 1
    said = capsys.readouterr()
    assert "?[31m ?[bold]: no anomaly_score" in said.err and "\x1b" not in said.out + said.err


def test_usage(tmp_path, capsys):
    assert command.main([]) == 2
    assert "evaluate" in capsys.readouterr().out
    given = ["--submission", str(tmp_path)]
    for bad in (["judge"], ["validate", *given], ["evaluate", *given, "--year", "2023"], ["pack"]):
        with pytest.raises(SystemExit) as ended:
            command.main(bad)
        assert ended.value.code == 2
    for year in ("2019", "plain"):
        assert command.main(["validate", *given, "--year", year]) == 2
        assert f"--year: found '{year}', expected one of 2020, " in capsys.readouterr().err
    assert command.main(["pack", "--run", str(tmp_path / "run"), "--out", str(tmp_path)]) == 2


def test_names_made_by_the_wrong_list_of_2022_are_refused(tmp_path, capsys):
    names = [f"section_03_{d}_test_{label}_{i:04d}_car_A1.wav" for i, (d, label) in enumerate(
        (d, label) for d in metrics.DOMAINS for label in ("normal", "anomaly"))]  # fmt: skip
    for machine, code in (("ToyCar", 1), ("fan", 0)):
        file = tmp_path / machine / f"anomaly_score_{machine}_section_03_test.csv"
        file.parent.mkdir()
        file.write_text("".join(f"{name},{i}.0\n" for i, name in enumerate(names)))
        paths = ["--submission", str(file.parent), "--year", "2022", "--out", str(tmp_path / "out")]
        assert command.main(["evaluate", *paths]) == code
        assert ("gives wrong labels and domains" in capsys.readouterr().err) == bool(code)


def test_validate_refuses_names_made_by_the_wrong_list_too(tmp_path, capsys):
    file = tmp_path / "system" / "anomaly_score_ToyCar_section_03_test.csv"
    file.parent.mkdir()
    file.write_text("section_03_source_test_normal_0000_car_A1.wav,1.0\n")
    assert command.main(["validate", "--submission", str(file.parent), "--year", "2022"]) == 1
    assert "csv line 1: 'section_03_source_test_normal_0000_car_A1.wav': evaluation clips" in capsys.readouterr().out
