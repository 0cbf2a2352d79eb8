from __future__ import annotations

import csv
import io

import numpy as np
import pytest

from asdjax import metrics, results, tables
from asdjax.core import InputError, UsageError


def make(
    *, scorers=("near", "far"), machines=("fan", "pump"), domains=("source", "target"), n=12, members=1, seed=0
) -> results.Scores:
    """One section '00': n normal training clips, n normal and n anomalous test clips per machine and domain."""
    rng, rows = np.random.default_rng(seed), []
    for member in range(members):
        for scorer in (*scorers, "rms-only"):
            for machine in machines:
                for domain in domains:
                    for i in range(3 * n):
                        split, label = ("train", 0) if i < n else ("test", int(i >= 2 * n))
                        score = rng.gamma(3) + label
                        name = f"section_00_{domain}_{split}_{(7 * i) % (3 * n):04}.wav"
                        rows.append((scorer, member, machine, "00", domain, split, name, label, score))
    columns = dict(zip(results.COLUMNS, map(np.array, zip(*rows, strict=True)), strict=True))
    return columns | {"label": columns["label"].astype(np.int8)}


def values(rows, scorer="near", member=0) -> dict[tuple, float]:
    return {row[2:6]: row.value for row in rows if row[:2] == (scorer, member)}


def test_scores_round_trip(tmp_path):
    scores = make()
    scores["label"][:3] = -1
    scores["score"][:3] = [1 / 3, -1e300, np.inf]
    scores["file"][0] = 'a, "b".wav'
    results.write_scores(tmp_path / "run" / "scores.csv", scores)
    back = results.read_scores(tmp_path / "run" / "scores.csv")
    assert list(back) == list(results.COLUMNS)
    for name in results.COLUMNS:
        np.testing.assert_array_equal(back[name], scores[name])
    assert back["score"].dtype == np.float64 and back["member"].dtype == np.int64
    assert [path.name for path in (tmp_path / "run").iterdir()] == ["scores.csv"]
    header, first, *_ = (tmp_path / "run" / "scores.csv").read_bytes().split(b"\n")
    assert header == b"scorer,member,machine,section,domain,split,file,label,score"
    assert first == b'near,0,fan,00,source,train,"a, ""b"".wav",,0.3333333333333333'


def test_nan_scores_are_not_written(tmp_path):
    scores = make()
    results.write_scores(tmp_path / "scores.csv", scores)
    before = (tmp_path / "scores.csv").read_bytes()
    scores["score"][5] = np.nan
    with pytest.raises(InputError, match="1 scores are NaN, the first of near, fan, 00, section_00_source_train_0035"):
        results.write_scores(tmp_path / "scores.csv", scores)
    assert (tmp_path / "scores.csv").read_bytes() == before


@pytest.mark.parametrize(
    "line,message",
    [
        ("near,0,fan,00,source,test,a.wav,1,high", "line 3: score is 'high', expected a number"),
        ("near,0,fan,00,source,test,a.wav,1,nan", "line 3: score is 'nan', expected a number"),
        ("near,0,fan,00,source,test,a.wav,2,0.5", "line 3: label is '2', expected 0, 1 or nothing"),
        ("near,x,fan,00,source,test,a.wav,1,0.5", "line 3: member is 'x', expected an integer"),
        ("near,0,fan,00,moon,test,a.wav,1,0.5", "line 3: domain is 'moon', expected source, target or nothing"),
        ("near,0,fan,00,source,dev,a.wav,1,0.5", "line 3: split is 'dev', expected train or test"),
        ("near,0,fan,00,source,test,a.wav,1", "line 3: 8 columns, expected 9"),
    ],
)
def test_malformed_rows_are_named(tmp_path, line, message):
    file = tmp_path / "scores.csv"
    file.write_text(f"{','.join(results.COLUMNS)}\nnear,0,fan,00,,test,b.wav,,0.5\n{line}\n")
    with pytest.raises(InputError) as error:
        results.read_scores(file)
    assert str(error.value) == f"{file} {message}"


def test_missing_columns_and_files_are_named(tmp_path):
    with pytest.raises(InputError, match=r"scores\.csv: no such file"):
        results.read_scores(tmp_path / "scores.csv")
    (tmp_path / "scores.csv").write_text("scorer,member,machine\n")
    with pytest.raises(InputError, match="no column section, domain, split, file, label, score; found"):
        results.read_scores(tmp_path / "scores.csv")
    (tmp_path / "scores.csv").write_text(",".join(results.COLUMNS) + "\n")
    assert len(results.read_scores(tmp_path / "scores.csv")["score"]) == 0


def test_summarise_by_hand(tmp_path):
    """2 normal clips per domain, 2 anomalies: every number can be counted."""
    train = [("train", "source", 0, float(i)) for i in range(9)]  # too few for a fit: the 90 % quantile is 7.2
    test = [
        ("test", "source", 0, 1.0),
        ("test", "source", 0, 7.2),
        ("test", "target", 0, 3.0),
        ("test", "target", 0, 8.0),
    ]
    test += [("test", "source", 1, 9.0), ("test", "target", 1, 5.0)]
    rows = [("a", 0, "fan", "00", d, s, f"{i}.wav", y, v) for i, (s, d, y, v) in enumerate(train + test)]
    rows += [("rms-only", 0, "fan", "00", d, s, f"{i}.wav", y, -v) for i, (s, d, y, v) in enumerate(train + test)]
    scores = dict(zip(results.COLUMNS, map(np.array, zip(*rows, strict=True)), strict=True))
    found, notes = results.summarise(scores, 2025)
    got = values(found, "a")
    expected = {
        ("fan", "00", "source", "AUC"): 3 / 4,  # 9 and 5 against 1 and 7.2
        ("fan", "00", "target", "AUC"): 3 / 4,  # 9 and 5 against 3 and 8
        ("fan", "00", "all", "AUC"): 6 / 8,
        ("fan", "00", "source", "AUC same-domain"): 1.0,
        ("fan", "00", "target", "AUC same-domain"): 1 / 2,
        ("fan", "00", "source", "precision"): 1.0,  # 7.2 is not strictly above the threshold
        ("fan", "00", "target", "precision"): 0.0,  # 8 is called anomalous, 5 is not
        ("fan", "00", "target", "recall"): 0.0,
        ("fan", "00", "source", "rms-only AUC"): 1 / 4,
        ("fan", "harmonic mean", "target", "rms-only AUC"): 1 / 4,
        ("all", "harmonic mean", "", "rms-only AUC"): 1 / 4,
        ("all", "harmonic mean", "", "AUC"): 3 / 4,
        ("fan", "00", "all", "pAUC"): 0.5 * (1 + (0.05 - 0.005) / 0.095),  # TPR 1/2 from the start
    }
    for key, value in expected.items():
        assert got[key] == pytest.approx(value, rel=1e-12), key
    omega = 3 / (4 / 3 + 4 / 3 + 1 / expected["fan", "00", "all", "pAUC"])
    assert got["all", "", "", "official score"] == pytest.approx(omega, rel=1e-12)
    assert {row.scorer for row in found} == {"a"}
    assert len(notes) == 1 and notes[0].startswith("9 scores") and notes[0].endswith("empirical quantile: a fan")

    results.write_results(tmp_path / "results.csv", found)
    header, *lines = csv.reader(io.StringIO((tmp_path / "results.csv").read_text()))
    assert header == ["scorer", "member", "machine", "section", "domain", "metric", "value"]
    assert {tuple(line[2:6]): float(line[6]) for line in lines} == got


def test_thresholds_are_those_of_scipy():
    from scipy import stats

    scores = make(n=40)
    for (scorer, member, machine), (threshold, note) in results.thresholds(scores).items():
        own = (scores["scorer"] == scorer) & (scores["machine"] == machine) & (scores["split"] == "train")
        shape, loc, scale = stats.gamma.fit(scores["score"][own])
        assert shape > 1 and member == 0 and note == ""
        assert threshold == pytest.approx(stats.gamma.ppf(0.9, shape, loc, scale), rel=1e-12)


def test_each_member_has_its_rows_and_its_loudness():
    scores = make(scorers=("near",), members=2)
    found, _ = results.summarise(scores, 2024)
    for member in (0, 1):
        test = (scores["split"] == "test") & (scores["member"] == member) & (scores["machine"] == "fan")
        for scorer, metric in (("near", "AUC"), ("rms-only", "rms-only AUC")):
            own = test & (scores["scorer"] == scorer)
            expected = metrics.auc(scores["label"][own], scores["score"][own])
            assert values(found, "near", member)["fan", "00", "all", metric] == expected
    assert values(found, "near", 0) != values(found, "near", 1)


def test_without_loudness_or_labels_it_is_said():
    scores = make()
    without = {name: column[scores["scorer"] != "rms-only"] for name, column in scores.items()}
    found, notes = results.summarise(without, 2024)
    assert found and "rms-only" in notes[-1]
    assert results.summarise(scores | {"label": np.full(len(scores["label"]), -1)}, 2024) == (
        [],
        ["none of 288 scores of test clips has a label: no metrics"],
    )


def test_without_training_scores_there_are_no_decisions(tmp_path):
    scores = make(scorers=("near",))
    test_only = {name: column[scores["split"] == "test"] for name, column in scores.items()}
    found, notes = results.summarise(test_only, 2024)
    assert "no decisions" in notes[0]
    assert {row.metric for row in found}.isdisjoint({"precision", "recall", "F1 score"})
    results.write_submission(tmp_path, test_only, 2024)
    assert sorted(path.name for path in (tmp_path / "near").iterdir()) == [
        "anomaly_score_fan_section_00_test.csv",
        "anomaly_score_pump_section_00_test.csv",
    ]


@pytest.mark.parametrize(
    "year,endings",
    [
        (2020, ["fan_id_00", "pump_id_00"]),
        (2021, [f"{machine}_section_00_{domain}_test" for machine in ("fan", "pump") for domain in metrics.DOMAINS]),
        (2022, ["fan_section_00_test", "pump_section_00_test"]),
        (2026, ["fan_section_00_test", "pump_section_00_test"]),
        ("plain", ["fan_section_00_test", "pump_section_00_test"]),
    ],
)
def test_submission_files_of_a_year(tmp_path, year, endings):
    scores = make()
    limits = results.write_submission(tmp_path, scores, year)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["far", "near"]
    kinds = ["anomaly_score"] if year == 2020 else ["anomaly_score", "decision_result"]
    assert sorted(path.name for path in (tmp_path / "near").iterdir()) == [
        f"{kind}_{ending}.csv" for kind in kinds for ending in endings
    ]
    count = 0
    for ending in endings:
        machine = ending.split("_")[0]
        text = (tmp_path / "near" / f"anomaly_score_{ending}.csv").read_bytes().decode()
        lines = list(csv.reader(text.splitlines()))
        assert "\r" not in text and text.endswith("\n") and lines == sorted(lines)
        own = (scores["scorer"] == "near") & (scores["machine"] == machine) & (scores["split"] == "test")
        score = dict(zip(scores["file"][own], scores["score"][own], strict=True))
        assert all(float(value) == score[name] for name, value in lines)
        count += len(lines)
        if year != 2020:
            said = list(csv.reader(open(tmp_path / "near" / f"decision_result_{ending}.csv")))
            limit = limits["near", 0, machine][0]
            assert said == [[name, str(int(score[name] > limit))] for name, _ in lines]
            assert {value for _, value in said} == {"0", "1"}
    assert count == 2 * 2 * 24


def test_submission_without_labels_with_members_and_infinities(tmp_path):
    scores = make(scorers=("near",), members=2)
    test = scores["split"] == "test"
    scores["label"][test] = -1
    scores["score"][np.flatnonzero(test)[0]] = np.inf
    results.write_submission(tmp_path, scores, 2023)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["near_member0", "near_member1"]
    text = (tmp_path / "near_member0" / "anomaly_score_fan_section_00_test.csv").read_text()
    assert "inf" not in text and "1.7976931348623157e+308" in text
    with pytest.raises(InputError, match="has no domain"):
        results.write_submission(tmp_path, scores | {"domain": np.full(len(test), "")}, 2021)


def test_select_per_domain_and_machine():
    scores = make(scorers=("lof", "knn", "std"), machines=("fan", "valve"))
    part = results.select(
        scores,
        name="mix",
        source="lof",
        target="knn",
        by_machine={"valve": dict(source="std", target="std"), "not here": dict(source="lof", target="lof")},
    )
    limits = results.thresholds(scores)
    assert set(part["scorer"]) == {"mix"} and len(part["score"]) == 2 * 2 * 36
    for machine, domain, scorer in (
        ("fan", "source", "lof"), ("fan", "target", "knn"), ("valve", "source", "std"), ("valve", "target", "std"),
    ):  # fmt: skip
        mine, theirs = (
            (s["machine"] == machine) & (s["domain"] == domain) & (s["scorer"] == name)
            for s, name in ((part, "mix"), (scores, scorer))
        )
        for column in ("file", "split", "label"):
            np.testing.assert_array_equal(part[column][mine], scores[column][theirs])
        own = limits[scorer, 0, machine][0] if machine == "fan" else 0  # one threshold must fit lof and knn
        np.testing.assert_array_equal(part["score"][mine], scores["score"][theirs] - own)
    both = results.concatenate([scores, part])
    found, _ = results.summarise(both, 2021)
    for domain, scorer in (("source", "lof"), ("target", "knn")):
        key = ("fan", "00", domain, "AUC")
        assert values(found, "mix")[key] == values(found, scorer)[key]


def test_select_refuses_what_is_not_there():
    scores = make()
    for bad in (
        dict(name="near", source="near", target="far"),
        dict(name="mix", source="near", target="nearer"),
        dict(name="mix", source="near", target="far", by_machine={"fan": dict(source="near", target="further")}),
    ):
        with pytest.raises(UsageError, match="the name must be new"):
            results.select(scores, **bad)
    keep = ~((scores["scorer"] == "far") & (scores["machine"] == "pump"))
    with pytest.raises(InputError, match="'far' has no scores of pump, target"):
        results.select({k: v[keep] for k, v in scores.items()}, name="mix", source="near", target="far")


def printed(rows, year) -> str:
    from rich.console import Console

    console = Console(width=80, file=io.StringIO(), color_system=None)
    tables.print_tables(rows, year, console=console)
    return console.file.getvalue()


@pytest.mark.parametrize("year", [2020, 2021, 2024])
def test_tables_show_every_scorer_in_percent(year):
    rows, _ = results.summarise(make(scorers=("near", "far [x]"), members=1), year)
    text = printed(rows, year)
    assert max(map(len, text.splitlines())) <= 80
    for scorer in ("near", "far [x]"):
        got = values(rows, scorer)
        domain = "" if year == 2020 else "target"
        assert f"{scorer}, {year}, in %" in text
        assert f"{100 * got['fan', '00', domain, 'AUC']:.2f}" in text
        kind = ("mean of average AUC and pAUC") if year == 2020 else "official score"
        omega, width = got["all", "", "", kind], got["all", "", "", f"{kind} bootstrap95"]
        assert f"{100 * omega:.2f} ± {100 * width:.2f}" in text
    assert printed([], year) == ""


def test_a_table_looks_like_this():
    section = [("fan", "00"), ("fan", "01"), ("fan", "harmonic mean"), ("all", "harmonic mean")]
    rows = [results.Result("kNN", 0, *key, domain, "AUC", 0.75) for key in section for domain in metrics.DOMAINS]
    rows += [results.Result("kNN", 0, *key, "all" if key[1] in ("00", "01") else "", "pAUC", 0.5) for key in section]
    rows += [results.Result("kNN", 0, *key, "source", "rms-only AUC", 0.51234) for key in section]
    rows += [results.Result("kNN", 0, "all", "", "", "official score", 0.64286)]
    text = [line.split() for line in printed(rows, 2022).splitlines()]
    assert ["fan", "00", "75.00", "75.00", "50.00", "51.23"] in text
    assert ["fan", "h.", "mean", "75.00", "75.00", "50.00", "51.23"] in text
    assert ["kNN", "75.00", "75.00", "50.00", "-", "64.29", "±", "-"] in text
