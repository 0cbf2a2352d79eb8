from __future__ import annotations

import csv
import io

import numpy as np
import pytest
from scipy import stats

from asdjax import metrics, results, scoretable, tables
from asdjax.core import InputError, UsageError


def make(
    *, scorers=("near", "far"), machines=("fan", "pump"), domains=("source", "target"), n=12, members=1, seed=0
) -> scoretable.Scores:
    """One section '00': n normal training clips, n normal and n anomalous test clips per machine and domain."""
    rng, rows = np.random.default_rng(seed), []
    for member in range(members):
        for scorer in (*scorers, "rms-only")[: None if member == 0 else -1]:  # loudness has no members
            for machine in machines:
                for domain in domains:
                    for i in range(3 * n):
                        split, label = ("train", 0) if i < n else ("test", int(i >= 2 * n))
                        score = rng.gamma(3) + label
                        name = f"section_00_{domain}_{split}_{(7 * i) % (3 * n):04}.wav"
                        rows.append((scorer, str(member), machine, "00", domain, split, name, label, score))
    columns = dict(zip(scoretable.COLUMNS, map(np.array, zip(*rows, strict=True)), strict=True))
    return columns | {"label": columns["label"].astype(np.int8)}


def summarise(scores, year) -> tuple[list[results.Result], list[str]]:
    return results.summarise(scores, year, results.thresholds(scores))


def values(rows, scorer="near", member="0") -> dict[tuple, float]:
    return {row[2:6]: row.value for row in rows if row[:2] == (scorer, member)}


def some(scores, keep) -> scoretable.Scores:
    return {name: column[keep] for name, column in scores.items()}


def of(scores, **wanted) -> np.ndarray:
    return np.logical_and.reduce([scores[name] == value for name, value in wanted.items()])


def test_scores_round_trip(tmp_path):
    scores = make(members=11)
    scores = scoretable.concatenate([scores, scoretable.ensemble(scores)])
    scores["label"][:3] = -1
    scores["score"][:3] = [1 / 3, -1e300, np.inf]
    scores["file"][0] = 'a, "b".wav'
    scoretable.write_scores(tmp_path / "run" / "scores.csv", scores)
    back = scoretable.read_scores(tmp_path / "run" / "scores.csv")
    assert list(back) == list(scoretable.COLUMNS)
    for name in scoretable.COLUMNS:
        np.testing.assert_array_equal(back[name], scores[name])
    assert back["score"].dtype == np.float64 and set(back["member"]) == {*map(str, range(11)), "ensemble"}
    assert [path.name for path in (tmp_path / "run").iterdir()] == ["scores.csv"]
    header, first, *_ = (tmp_path / "run" / "scores.csv").read_bytes().split(b"\n")
    assert header == b"scorer,member,machine,section,domain,split,file,label,score"
    assert first == b'near,0,fan,00,source,train,"a, ""b"".wav",,0.3333333333333333'


def test_nan_scores_are_not_written(tmp_path):
    scores = make()
    scoretable.write_scores(tmp_path / "scores.csv", scores)
    before = (tmp_path / "scores.csv").read_bytes()
    scores["score"][5] = np.nan
    with pytest.raises(InputError, match="1 scores are NaN, the first of near, fan, 00, section_00_source_train_0035"):
        scoretable.write_scores(tmp_path / "scores.csv", scores)
    assert (tmp_path / "scores.csv").read_bytes() == before


@pytest.mark.parametrize(
    "line,message",
    [
        ("near,0,fan,00,source,test,a.wav,1,high", "line 3: score is 'high', expected a number"),
        ("near,0,fan,00,source,test,a.wav,1,nan", "line 3: score is 'nan', expected a number"),
        ("near,0,fan,00,source,test,a.wav,2,0.5", "line 3: label is '2', expected 0, 1 or nothing"),
        ("near,x,fan,00,source,test,a.wav,1,0.5", "line 3: member is 'x', expected 0, 1, 2, ... or ensemble"),
        ("near,-1,fan,00,source,test,a.wav,1,0.5", "line 3: member is '-1', expected 0, 1, 2, ... or ensemble"),
        ("near,1.0,fan,00,source,test,a.wav,1,0.5", "line 3: member is '1.0', expected 0, 1, 2, ... or ensemble"),
        ("near,mean,fan,00,source,test,a.wav,1,0.5", "line 3: member is 'mean', expected 0, 1, 2, ... or ensemble"),
        ("near,,fan,00,source,test,a.wav,1,0.5", "line 3: member is '', expected 0, 1, 2, ... or ensemble"),
        ("near,0,fan,00,moon,test,a.wav,1,0.5", "line 3: domain is 'moon', expected source, target or nothing"),
        ("near,0,fan,00,source,dev,a.wav,1,0.5", "line 3: split is 'dev', expected train or test"),
        ("near,0,fan,00,source,test,a.wav,1", "line 3: 8 columns, expected 9"),
    ],
)
def test_malformed_rows_are_named(tmp_path, line, message):
    file = tmp_path / "scores.csv"
    file.write_text(f"{','.join(scoretable.COLUMNS)}\nnear,0,fan,00,,test,b.wav,,0.5\n{line}\n")
    with pytest.raises(InputError) as error:
        scoretable.read_scores(file)
    assert str(error.value) == f"{file} {message}"


def test_a_member_has_one_name(tmp_path):
    lines = [f"near,{member},fan,00,,test,b.wav,,0.5" for member in ("ensemble", "10", "007")]
    (tmp_path / "scores.csv").write_text("\n".join([",".join(scoretable.COLUMNS), *lines, ""]))
    assert scoretable.read_scores(tmp_path / "scores.csv")["member"].tolist() == ["ensemble", "10", "7"]


def test_missing_columns_and_files_are_named(tmp_path):
    with pytest.raises(InputError, match=r"scores\.csv: no such file"):
        scoretable.read_scores(tmp_path / "scores.csv")
    (tmp_path / "scores.csv").write_text("scorer,member,machine\n")
    with pytest.raises(InputError, match="no column section, domain, split, file, label, score; found"):
        scoretable.read_scores(tmp_path / "scores.csv")
    (tmp_path / "scores.csv").write_text(",".join(scoretable.COLUMNS) + "\n")
    assert len(scoretable.read_scores(tmp_path / "scores.csv")["score"]) == 0


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
    rows = [("a", "0", "fan", "00", d, s, f"{i}.wav", y, v) for i, (s, d, y, v) in enumerate(train + test)]
    rows += [("rms-only", "0", "fan", "00", d, s, f"{i}.wav", y, -v) for i, (s, d, y, v) in enumerate(train + test)]
    scores = dict(zip(scoretable.COLUMNS, map(np.array, zip(*rows, strict=True)), strict=True))
    found, notes = summarise(scores, 2025)
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
    scores = make(n=40)
    for (scorer, member, machine), (threshold, note) in results.thresholds(scores).items():
        own = (scores["scorer"] == scorer) & (scores["machine"] == machine) & (scores["split"] == "train")
        shape, loc, scale = stats.gamma.fit(scores["score"][own])
        assert shape > 1 and member == "0" and note == ""
        assert threshold == pytest.approx(stats.gamma.ppf(0.9, shape, loc, scale), rel=1e-12)


def test_the_ensemble_is_the_mean_of_the_members():
    from sklearn.metrics import roc_auc_score

    scores = make(members=3)
    others = np.flatnonzero(scores["member"] != "0")
    shuffled = np.concatenate([np.flatnonzero(scores["member"] == "0"), np.random.default_rng(0).permutation(others)])
    part = scoretable.ensemble(some(scores, shuffled))
    assert set(part["member"]) == {"ensemble"} and set(part["scorer"]) == {"near", "far"}
    for scorer in ("near", "far"):
        for machine in ("fan", "pump"):
            found = some(part, of(part, scorer=scorer, machine=machine))
            theirs = [some(scores, of(scores, scorer=scorer, machine=machine, member=m)) for m in "012"]
            clips = [dict(zip(one["file"], one["score"], strict=True)) for one in theirs]
            label = dict(zip(theirs[0]["file"], theirs[0]["label"], strict=True))
            assert len(found["score"]) == 72
            for file, score, y in zip(found["file"], found["score"], found["label"], strict=True):
                assert score == pytest.approx(sum(clip[file] for clip in clips) / 3, rel=1e-14) and y == label[file]
    both = scoretable.concatenate([scores, part])
    got = values(summarise(both, 2024)[0], "far", "ensemble")
    again = scoretable.ensemble(both | {"score": both["score"] + of(both, member="ensemble")})  # takes no part itself
    assert again["score"].tolist() == scoretable.ensemble(scores)["score"].tolist()
    for machine in ("fan", "pump"):
        test = [some(scores, of(scores, scorer="far", machine=machine, split="test", member=m)) for m in "012"]
        mean = np.mean([one["score"] for one in test], axis=0)
        for metric, limit in (("AUC", None), ("pAUC", 0.1)):
            expected = roc_auc_score(test[0]["label"], mean, max_fpr=limit)
            assert got[machine, "00", "all", metric] == pytest.approx(expected, rel=1e-12)


def test_one_member_makes_no_ensemble():
    scores = make()
    part = scoretable.ensemble(scores)
    assert {name: (len(column), column.dtype) for name, column in part.items()} == {
        name: (0, scores[name].dtype) for name in scoretable.COLUMNS
    }


@pytest.mark.parametrize(
    "change,message",
    [
        (lambda s: some(s, np.arange(len(s["score"])) != 300), r"\(71 scores\).* 0 \(72\): \('fan', '00', 'source', "),
        (lambda s: s | {"label": np.where(np.arange(len(s["label"])) == 300, 1, s["label"])}, r"\(72 scores\)"),
        (lambda s: some(s, np.append(np.arange(len(s["score"])), 300)), r"\(73 .* \(72\): a clip that is scored twice"),
    ],
    ids=["one left out", "another label", "one twice"],
)
def test_members_must_score_the_same_clips(change, message):
    scores = make(scorers=("near",), machines=("fan",), members=6)
    with pytest.raises(InputError, match=f"ensemble of 'near': member 3 {message}"):
        scoretable.ensemble(change(scores))


def test_mean_and_std_by_hand():
    """AUCs 1, 3/4 and 1/2 of three members; the ensemble puts both anomalies above the normal clips."""
    clips = [("source", 0), ("target", 0), ("source", 1), ("target", 1)]
    scored = {"0": (0, 1, 2, 3), "1": (0, 2, 1, 3), "2": (0, 3, 2, 2)}
    rows = [
        ("a", member, "fan", "00", domain, "test", f"{i}.wav", label, float(score[i]))
        for member, score in scored.items()
        for i, (domain, label) in enumerate(clips)
    ]
    rows += [("rms-only", "0", *row[2:8], -row[8]) for row in rows[:4]]
    scores = dict(zip(scoretable.COLUMNS, map(np.array, zip(*rows, strict=True)), strict=True))
    found, _ = summarise(scoretable.concatenate([scores, scoretable.ensemble(scores)]), 2025)
    key = ("fan", "00", "all", "AUC")
    assert [values(found, "a", m)[key] for m in ("0", "1", "2", "mean")] == [1, 0.75, 0.5, 0.75]
    assert values(found, "a", "std")[key] == pytest.approx(0.25, rel=1e-12)  # of -1/4, 0, 1/4: sqrt(2/16 / 2)
    assert values(found, "a", "ensemble")[key] == 0.75  # 0 and 2 against 5/3 and 8/3: three of four pairs
    for member in ("0", "1", "2", "ensemble", "mean"):
        assert values(found, "a", member)["fan", "00", "all", "rms-only AUC"] == 0
    assert not any("rms-only" in row.metric for row in found if row.member == "std")


def test_mean_and_std_of_everything_but_intervals():
    import statistics

    scores = make(scorers=("near",), members=3)
    scores["score"][of(scores, member="1", machine="pump", split="train")] = np.inf  # no decisions for it
    found, notes = summarise(scoretable.concatenate([scores, scoretable.ensemble(scores)]), 2024)
    member = {m: values(found, "near", m) for m in ("0", "1", "2", "ensemble", "mean", "std")}
    expected = {key for key in member["0"] if key in member["1"] and key[3] != "rms-only AUC"}
    assert set(member["std"]) == expected and ("all", "", "", "official score") in expected
    assert ("pump", "00", "source", "recall") in set(member["0"]) - expected  # member 1 has none
    assert set(member["mean"]) - expected == {key for key in member["0"] if key[3] == "rms-only AUC"}
    for key in expected:
        three = [member[m][key] for m in "012"]
        assert member["mean"][key] == pytest.approx(statistics.mean(three), rel=1e-12)
        assert member["std"][key] == pytest.approx(statistics.stdev(three), rel=1e-9, abs=1e-15)
    intervals = {("all", "", "", f"official score {kind}") for kind in ("ci95", "bootstrap95")}
    assert intervals <= set(member["ensemble"])
    assert all(intervals.isdisjoint(member[m]) for m in ("0", "1", "2", "mean", "std"))
    # the mean of members 0 to 2 over pump's training clips is infinite too
    assert "no finite score of a training clip, hence no decisions: near pump (2 of 4 members)" in notes


def test_members_are_in_natural_order():
    scores = make(scorers=("near", "far"), machines=("fan",), members=11, n=4)
    backwards = some(scoretable.concatenate([scores, scoretable.ensemble(scores)]), slice(None, None, -1))
    natural = [*map(str, range(11)), "ensemble"]
    assert list(results.thresholds(backwards)) == [(s, m, "fan") for s in ("far", "near") for m in natural]
    found, _ = summarise(backwards, 2024)
    assert list(dict.fromkeys(row[:2] for row in found)) == [
        (scorer, member) for scorer in ("far", "near") for member in (*natural, "mean", "std")
    ]


def test_each_member_has_its_rows_and_the_loudness_beside():
    scores = make(scorers=("near",), members=2)
    found, _ = summarise(scores, 2024)
    loud = of(scores, scorer="rms-only", split="test", machine="fan")
    for member in ("0", "1"):
        own = of(scores, scorer="near", split="test", machine="fan", member=member)
        for metric, clips in (("AUC", own), ("rms-only AUC", loud)):
            expected = metrics.auc(scores["label"][clips], scores["score"][clips])
            assert values(found, "near", member)["fan", "00", "all", metric] == expected
    assert values(found, "near", "0") != values(found, "near", "1")


def test_without_loudness_or_labels_it_is_said():
    scores = make()
    without = some(scores, scores["scorer"] != "rms-only")
    found, notes = summarise(without, 2024)
    assert found and "rms-only" in notes[-1]
    found, (note,) = summarise(scores | {"label": np.full(len(scores["label"]), -1)}, 2024)
    assert found == [] and note.startswith("none of 96 test clips has a label: no metrics; scores are in scores.csv")


def test_without_training_scores_there_are_no_decisions(tmp_path):
    scores = make(scorers=("near",))
    test_only = some(scores, scores["split"] == "test")
    found, notes = summarise(test_only, 2024)
    assert "no decisions" in notes[0]
    assert {row.metric for row in found}.isdisjoint({"precision", "recall", "F1 score"})
    results.write_submission(tmp_path, test_only, 2024, results.thresholds(test_only))
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
    limits = results.thresholds(scores)
    results.write_submission(tmp_path, scores, year, limits)
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
            limit = limits["near", "0", machine][0]
            assert said == [[name, str(int(score[name] > limit))] for name, _ in lines]
            assert {value for _, value in said} == {"0", "1"}
    assert count == 2 * 2 * 24


def test_submission_without_labels_with_members_and_infinities(tmp_path):
    scores = make(scorers=("near",), members=2)
    scores = scoretable.concatenate([scores, scoretable.ensemble(scores)])
    test = scores["split"] == "test"
    scores["label"][test] = -1
    scores["score"][np.flatnonzero(test)[0]] = np.inf
    limits = results.thresholds(scores)
    results.write_submission(tmp_path, scores, 2023, limits)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["near_ensemble", "near_member0", "near_member1"]
    text = (tmp_path / "near_member0" / "anomaly_score_fan_section_00_test.csv").read_text()
    assert "inf" not in text and "1.7976931348623157e+308" in text
    for member, folder in (("1", "near_member1"), ("ensemble", "near_ensemble")):
        own = some(scores, of(scores, scorer="near", member=member, machine="pump", split="test"))
        said = dict(csv.reader(open(tmp_path / folder / "decision_result_pump_section_00_test.csv")))
        above = own["score"] > limits["near", member, "pump"][0]
        assert said == {name: str(int(yes)) for name, yes in zip(own["file"], above, strict=True)}
    with pytest.raises(InputError, match="has no domain"):
        results.write_submission(tmp_path, scores | {"domain": np.full(len(test), "")}, 2021, limits)


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
        own = limits[scorer, "0", machine][0] if machine == "fan" else 0  # one threshold must fit lof and knn
        np.testing.assert_array_equal(part["score"][mine], scores["score"][theirs] - own)
    both = scoretable.concatenate([scores, part])
    found, _ = summarise(both, 2021)
    for domain, scorer in (("source", "lof"), ("target", "knn")):
        key = ("fan", "00", domain, "AUC")
        assert values(found, "mix")[key] == values(found, scorer)[key]


def test_select_counts_each_member_from_its_own_threshold():
    scores = make(machines=("fan",), members=3)
    limits = results.thresholds(scores)
    part = results.select(scores, name="mix", source="near", target="far")
    for domain, scorer in (("source", "near"), ("target", "far")):
        for member in "012":
            mine = part["score"][of(part, domain=domain, member=member)]
            theirs = scores["score"][of(scores, domain=domain, member=member, scorer=scorer)]
            np.testing.assert_array_equal(mine, theirs - limits[scorer, member, "fan"][0])
    assert len({limits["near", member, "fan"][0] for member in "012"}) == 3
    assert len(scoretable.ensemble(part)["score"]) == len(part["score"]) / 3


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
        results.select(some(scores, keep), name="mix", source="near", target="far")


def printed(rows, year, width=80) -> str:
    from rich.console import Console

    console = Console(width=width, file=io.StringIO(), color_system=None)
    tables.print_tables(rows, year, console=console)
    return console.file.getvalue()


@pytest.mark.parametrize("year", [2020, 2021, 2024])
def test_tables_show_every_scorer_in_percent(year):
    rows, _ = summarise(make(scorers=("near", "far [x]"), members=1), year)
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
    rows = [results.Result("kNN", "0", *key, domain, "AUC", 0.75) for key in section for domain in metrics.DOMAINS]
    rows += [results.Result("kNN", "0", *key, "all" if key[1] in ("00", "01") else "", "pAUC", 0.5) for key in section]
    rows += [results.Result("kNN", "0", *key, "source", "rms-only AUC", 0.51234) for key in section]
    rows += [results.Result("kNN", "0", "all", "", "", "official score", 0.64286)]
    text = [line.split() for line in printed(rows, 2022).splitlines()]
    assert ["fan", "00", "75.00", "75.00", "50.00", "51.23"] in text
    assert ["fan", "h.", "mean", "75.00", "75.00", "50.00", "51.23"] in text
    assert ["kNN", "75.00", "75.00", "50.00", "64.29", "±", "-"] in text  # of loudness there is no mean over all
    assert not any(line.endswith(" ") for line in printed(rows, 2022).splitlines())


def test_a_column_without_values_is_left_out():
    rows = [results.Result("kNN", "0", "fan", "00", "all", name, 0.5) for name in ("AUC", "pAUC", "rms-only AUC")]
    rows += [row._replace(machine="all", section="arithmetic mean", domain="") for row in rows]
    assert printed(rows, 2020).count("rms-only") == 2
    without = [row for row in rows if row.metric != "rms-only AUC"]
    assert "rms-only" not in printed(without, 2020) and printed(without, 2020).count(" pAUC") == 2
    assert " pAUC" not in printed([row for row in without if row.metric != "pAUC"], 2020)


@pytest.mark.parametrize("year", [2020, 2021, 2024])
def test_tables_of_several_members(year):
    scores = make(scorers=("near", "far [x]"), members=3)
    scores = scoretable.concatenate([scores, scoretable.ensemble(scores)])
    alone = scores | {"scorer": np.where(scores["scorer"] == "near", "alone", scores["scorer"])}
    alone = some(alone, of(alone, scorer="alone", member="0"))  # beside them one that has no other members
    rows, _ = summarise(scoretable.concatenate([scores, alone]), year)
    text = printed(rows, year, width=100)
    assert "…" not in text and f"alone, {year}, in %" in text
    lines = [" ".join(line.split()) for line in text.splitlines()]
    score, domain = ("mean of average AUC and pAUC", "") if year == 2020 else ("official score", "target")
    first, after = (i for i, line in enumerate(lines) if line.startswith("all scorers"))
    last = lines[first:after]
    assert [line.split(" ")[0] for line in last[5:]] == [
        "near",
        "mean",
        "ensemble",
        "far",
        "mean",
        "ensemble",
        "alone",
        "",
    ]
    for scorer, at in (("near", 5), ("far [x]", 8)):
        mean, std, joint = (values(rows, scorer, member) for member in ("mean", "std", "ensemble"))
        assert f"{scorer}, {year}: mean ± std of 3 members, in %" in lines
        key = ("fan", "00", domain, "AUC")
        assert f"{100 * mean[key]:.2f} ±{100 * std[key]:.2f}" in text
        key = ("all", "", "", score)
        assert last[at] == scorer and last[at + 1].startswith("mean ± std of 3 members ")
        assert last[at + 1].endswith(f" {100 * mean[key]:.2f} ± {100 * std[key]:.2f}")
        width = joint["all", "", "", f"{score} bootstrap95"]
        assert last[at + 2].startswith("ensemble ± 95 % ")
        assert last[at + 2].endswith(f" {100 * joint[key]:.2f} ± {100 * width:.2f}")
    one = values(rows, "alone")
    assert last[11].endswith(f" {100 * one[key]:.2f} ± {100 * one['all', '', '', f'{score} bootstrap95']:.2f}")


def test_notes_name_a_few_and_count_the_rest():
    scores = make(scorers=("a", "b", "c", "d"))
    train = (scores["split"] == "train") & (scores["scorer"] != "rms-only")
    scores["score"][train] = 1.0  # too few values for a gamma fit
    _, notes = summarise(scores, 2024)
    (note,) = (note for note in notes if "gamma fit" in note)
    assert note.endswith(": a fan, a pump, b fan, b pump, c fan, c pump, and 2 more (thresholds.json has all)")


def test_scorers_of_fewer_machines_are_marked():
    scores = make()
    kept = ~((scores["scorer"] == "far") & (scores["machine"] == "pump"))
    lines = printed(summarise(some(scores, kept), 2024)[0], 2024, width=120).splitlines()
    assert any(line.split()[:5] == ["far", "(1", "of", "2", "machines)"] for line in lines)
    assert not any("near (" in line for line in lines)


def machine_table(rows, year, width=120) -> list[list[str]]:
    """The words of each line of the table of the machines' scores, its title first; none where there is none."""
    lines = [line.split() for line in printed(rows, year, width).splitlines()]
    title = [i for i, line in enumerate(lines) if line[-5:] == ["of", "each", "machine,", "in", "%"]]
    return lines[title[0] :] if title else []


def machine_score(rows, scorer, member, machine, year) -> float:
    """The definition, from the rows of sections: harmonic mean (2020: of both means) over AUCs and pAUCs."""
    own = {key: value for key, value in values(rows, scorer, member).items() if key[0] == machine and key[1].isdigit()}
    parts = {
        name: [v for key, v in own.items() if key[3] == name and key[2:] != ("all", "AUC")] for name in ("AUC", "pAUC")
    }
    if year == 2020:
        return np.mean([np.mean(part) for part in parts.values()])
    return stats.hmean([*parts["AUC"], *parts["pAUC"]])


def sectioned(scores) -> scoretable.Scores:
    """The clips in two sections, each with clips of every kind."""
    return scores | {"section": np.where(np.arange(len(scores["score"])) % 3 == 0, "01", "00")}


@pytest.mark.parametrize("year", [2020, 2021, 2022, 2025])
def test_scores_of_machines_are_official(year):
    scores = sectioned(make(machines=("fan", "ToyCar", "pump"), domains=("",) if year == 2020 else metrics.DOMAINS))
    rows, _ = summarise(scores, year)
    table = machine_table(rows, year)
    title = "mean of average AUC and pAUC" if year == 2020 else "official score"
    assert " ".join(table[0]) == f"all scorers, {year}: {title} of each machine, in %"
    assert [table[2], table[3]] == [["Toy"], ["scorer", "Car", "fan", "pump"]]
    for line, scorer in zip(table[5:], ("near", "far"), strict=False):
        expected = [machine_score(rows, scorer, "0", machine, year) for machine in ("ToyCar", "fan", "pump")]
        assert line == [scorer, *(f"{100 * value:.2f}" for value in expected)]
    assert len([line for line in table if line]) == 6


def test_scores_of_plain_machines_follow_the_domains():
    """With domains as 2025, without as 2020; a machine may have no section."""
    for domains, year in ((("",), 2020), (metrics.DOMAINS, 2025)):
        scores = make(domains=domains)
        plain = summarise(scores | {"section": np.full(len(scores["score"]), "")}, "plain")[0]
        there, here = machine_table(summarise(scores, year)[0], year), machine_table(plain, "plain")
        assert here[1:] == there[1:] and " ".join(here[0]) == " ".join(there[0]).replace(str(year), "plain")


@pytest.mark.parametrize("year", [2020, 2024])
def test_scores_of_machines_over_members(year):
    scores = sectioned(make(scorers=("near", "far [x]"), members=3))
    scores = scoretable.concatenate([scores, scoretable.ensemble(scores)])
    rows, _ = summarise(scores, year)
    table = machine_table(rows, year)
    assert [line[0] for line in table if line and line[0] in ("near", "far", "mean", "ensemble")] == [
        *("near", "mean", "ensemble"),
        *("far", "mean", "ensemble"),
    ]
    at = next(i for i, line in enumerate(table) if line[:2] == ["far", "[x]"])
    cells, joint = [], []
    for machine in ("fan", "pump"):
        members = [machine_score(rows, "far [x]", str(member), machine, year) for member in range(3)]
        cells += [f"{100 * np.mean(members):.2f}", f"±{100 * np.std(members, ddof=1):.2f}"]
        joint += [f"{100 * machine_score(rows, 'far [x]', 'ensemble', machine, year):.2f}"]
    assert table[at + 1] == ["mean", "±", "std", "of", "3", "members", *cells]
    assert table[at + 2] == ["ensemble", *joint]


def test_a_scorer_of_some_machines_gets_a_dash_for_the_others():
    scores = sectioned(make(machines=("fan", "pump", "valve")))
    scores = some(scores, ~((scores["scorer"] == "near") & (scores["machine"] == "fan")))  # first in the table
    part = of(scores, machine="pump", section="01", domain="target", label=0) & (scores["split"] == "test")
    rows, _ = summarise(some(scores, ~part), 2024)
    table = machine_table(rows, 2024)
    assert table[2] == ["scorer", "fan", "pump", "valve"]
    cells = {line[0]: line[1:] for line in table if line and line[0] in ("near", "far")}

    def expected(scorer, *machines):
        return [f"{100 * machine_score(rows, scorer, '0', machine, 2024):.2f}" for machine in machines]

    assert cells["near"] == ["-", *expected("near", "pump", "valve")]  # pump's over what there is, as that of all
    assert cells["far"] == expected("far", "fan", "pump", "valve")


def test_one_scorer_or_one_machine_needs_no_table_of_machines():
    assert machine_table(summarise(make(scorers=("near",)), 2024)[0], 2024) == []
    assert machine_table(summarise(make(machines=("fan",)), 2024)[0], 2024) == []
    assert machine_table(summarise(make(), 2024)[0], 2024) != []


def test_many_machines_are_shown_in_parts_on_a_narrow_console():
    machines = tuple(f"machine{i:02}" for i in range(9))
    rows, _ = summarise(make(machines=machines, members=2, n=6), 2024)
    text = printed(rows, 2024, 80).split("all scorers")
    parts = [part.split("\n\n")[1].splitlines() for part in text if "of each" in part]
    assert [name for part in parts for name in part[0].split()[1:]] == list(machines) and len(parts) > 1
    assert max(len(line) for part in parts for line in part) <= 80
    means = [cell for part in parts for line in part if "mean ±" in line for cell in line.split()[6:]]
    assert len(means) == 2 * 2 * 9
