from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from asdjax import scoretable
from asdjax.core import InputError, UsageError
from asdjax.results import fusion

GOLDEN = json.loads((Path(__file__).parent / "golden" / "score_fusion.json").read_text())


def table(rows) -> scoretable.Scores:
    """Scores from (scorer, member, machine, section, split, file, label, score)."""
    scorer, member, machine, section, split, file, label, score = map(np.array, zip(*rows, strict=True))
    values = (scorer, member, machine, section, np.full(len(rows), "source"), split, file, label.astype(np.int8), score)
    return dict(zip(scoretable.COLUMNS, values, strict=True))


def clips(scorer, train, test, *, member="0", machine="fan", section="00", label=0) -> list[tuple]:
    """Rows of a section's clips, named after it."""
    named = [("train", i, x) for i, x in enumerate(train)] + [("test", i, x) for i, x in enumerate(test)]
    return [
        (scorer, member, machine, section, split, f"{machine}/{split}/{section}_{i}.wav", label, float(x))
        for split, i, x in named
    ]


def random(*, scorers=("near", "far"), machines=("fan", "pump"), sections=("00", "01"), n=8, members=1, seed=0):
    rng, rows = np.random.default_rng(seed), []
    for member in range(members):
        for scale, scorer in enumerate((*scorers, "rms-only")[: None if member == 0 else -1], 1):
            for machine in machines:
                for section in sections:
                    a, b = rng.normal(scale, 10.0**scale, (2, n))
                    rows += clips(scorer, a, b, member=str(member), machine=machine, section=section)
    return table(rows)


def of(scores, **wanted) -> np.ndarray:
    return scores["score"][np.logical_and.reduce([scores[name] == value for name, value in wanted.items()])]


def by_file(scores, scorer: str) -> np.ndarray:
    """The scorer's scores in the order of the files' names: an ensemble's rows are sorted, a run's are not."""
    return of(scores, scorer=scorer)[np.argsort(scores["file"][scores["scorer"] == scorer])]


def test_mean_of_standard_scores_matches_the_golden():
    a, out = GOLDEN["inputs"], GOLDEN["outputs"]
    scores = table(clips("nll", a["train_nll"], a["test_nll"]) + clips("p", a["train_p"], a["test_p"]))
    fused = fusion.fuse(scores, name="both")
    np.testing.assert_allclose(of(fused, split="test"), out["fused_train_stats"], rtol=1e-12)
    highest = fusion.fuse(scores, name="both", scorers=("p", "nll"), how="max")
    expected = np.maximum(out["z_nll_train"], out["z_p_train"])
    np.testing.assert_allclose(of(highest, split="test"), expected, rtol=1e-12)
    one = fusion.fuse(scores, name="one", scorers=("nll",))
    np.testing.assert_allclose(of(one, split="test"), out["z_nll_train"], rtol=1e-12)
    train = of(fused, split="train")
    assert len(train) == 5 and train.mean() == pytest.approx(0, abs=1e-12)
    assert set(fused["scorer"]) == {"both"}


def test_every_section_and_member_is_standardised_by_its_own_training_clips():
    scores = random(members=2)
    one = fusion.fuse(scores, name="one", scorers=("far",))
    for member in "01":
        for machine in ("fan", "pump"):
            for section in ("00", "01"):
                where = dict(member=member, machine=machine, section=section)
                raw = of(scores, scorer="far", split="train", **where)
                expected = (of(scores, scorer="far", split="test", **where) - raw.mean()) / raw.std()
                np.testing.assert_allclose(of(one, split="test", **where), expected, rtol=1e-12)
    both = fusion.fuse(scores, name="both")  # without the loudness
    near = fusion.fuse(scores, name="one", scorers=("near",))
    np.testing.assert_allclose(both["score"], (near["score"] + one["score"]) / 2, rtol=1e-12)
    assert both["file"].tolist() == near["file"].tolist() and len(both["file"]) == 2 * 2 * 2 * 16


def test_the_rule_sees_no_test_clip_and_no_label():
    scores = random()
    before = fusion.fuse(scores, name="both")
    changed = scores | {"score": scores["score"].copy(), "label": 1 - scores["label"]}
    odd = (scores["split"] == "test") & (scores["file"] != scores["file"][-1])
    changed["score"][odd] = 1e6
    after = fusion.fuse(changed, name="both")
    kept = (after["split"] == "train") | (after["file"] == scores["file"][-1])
    np.testing.assert_array_equal(after["score"][kept], before["score"][kept])
    assert (after["score"][~kept] > before["score"][~kept]).all() and kept.sum() == 33


def test_rows_of_scorers_may_come_in_any_order():
    scores = random()
    order = np.random.default_rng(1).permutation(len(scores["score"]))
    mixed = {name: column[order] for name, column in scores.items()}
    expected = fusion.fuse(scores, name="both")
    found = fusion.fuse(mixed, name="both")
    place = {file: score for file, score in zip(found["file"].tolist(), found["score"].tolist(), strict=True)}
    np.testing.assert_allclose([place[file] for file in expected["file"].tolist()], expected["score"], rtol=1e-12)


def test_few_or_equal_training_scores_are_standardised_by_the_machines():
    other = [1.0, 2.0, 3.0, 4.0, 5.0]
    for train in ([7.0, 9.0], [0.1] * 6, []):  # few, a mean of which is rounded, a section that only the test has
        scores = table(clips("near", train, [10.0]) + clips("near", other, [10.0], section="01"))
        pooled = np.array([*train, *other])
        found = of(fusion.fuse(scores, name="one"), section="00", split="test")
        np.testing.assert_allclose(found, [(10 - pooled.mean()) / pooled.std()], rtol=1e-12)
    equal = fusion.fuse(table(clips("near", [0.1] * 6, [0.1, 2.1])), name="one")  # there is no unit but its own
    np.testing.assert_allclose(of(equal, split="test"), [0.0, 2.0], atol=1e-12)


def test_infinite_scores_stay_and_do_not_disturb():
    rows = clips("near", [1.0, 2.0, 3.0, 4.0, 5.0, np.inf], [6.0, np.inf]) + clips("far", np.arange(6.0), [0.0, 1.0])
    fused = fusion.fuse(table(rows), name="both")
    expected = ((6 - 3) / np.sqrt(2) + (0 - 2.5) / np.arange(6).std()) / 2
    np.testing.assert_allclose(of(fused, split="test"), [expected, np.inf], rtol=1e-12)
    assert np.isposinf(of(fused, split="train")).tolist() == [False] * 5 + [True]


def test_training_clips_that_one_scorer_lacks_are_left_out():
    scores = table(clips("near", range(8), [1.0]) + clips("far", range(7), [1.0]))
    assert len(of(fusion.fuse(scores, name="both"), split="train")) == 7


def test_what_cannot_be_fused_is_told():
    scores = random()
    for kwargs, message in (
        (dict(name="near"), "a scorer 'near' is there already; expected another name"),
        (dict(name="rms-only"), "a scorer 'rms-only' is there already"),
        (dict(name="a", scorers=("near", "nearer")), "no scorer 'nearer', or twice; there is: near, far"),
        (dict(name="a", scorers=("near", "near")), "no scorer 'near', or twice"),
    ):
        with pytest.raises(UsageError, match=message):
            fusion.fuse(scores, **kwargs)
    with pytest.raises(UsageError, match="how='median'; expected one of mean, max"):
        fusion.fuse(scores, name="a", how="median")
    lacking = table(clips("near", range(8), [1.0, 2.0]) + clips("far", range(8), [1.0]))
    with pytest.raises(InputError, match=r"fuse 'a', fan: 'far' has no score of test clip fan/test/00_1.wav, others"):
        fusion.fuse(lacking, name="a")
    with pytest.raises(InputError, match="fan: scorer 'near' has no score of a training clip"):
        fusion.fuse(table(clips("near", [], [1.0])), name="a")
    with pytest.raises(InputError, match="'near' scores a clip twice"):
        fusion.fuse(table(2 * clips("near", range(8), [1.0])), name="a")
    rows = clips("near", range(8), [1.0]) + clips("near", range(8), [1.0], member="1") + clips("far", range(8), [1.0])
    with pytest.raises(InputError, match="'far' has no member 1, 'near' has"):
        fusion.fuse(table(rows), name="a")


def test_runs_are_fused_by_their_ensembles():
    few, one = random(members=3), random(scorers=("near", "deep"), seed=1)
    few = scoretable.concatenate([few, scoretable.ensemble(few)])
    scores = fusion.fuse_runs({"runs/few": few, "runs/one": one})
    names = ["rms-only", "runs/few/near", "far", "runs/one/near", "deep", "fusion"]
    assert list(dict.fromkeys(scores["scorer"].tolist())) == names and set(scores["member"]) == {"0"}
    assert (scores["scorer"] == "rms-only").sum() == (few["scorer"] == "rms-only").sum()
    where = dict(machine="pump", section="01", split="train")
    expected = of(few, scorer="far", member="ensemble", **where)
    np.testing.assert_array_equal(of(scores, scorer="far", **where), expected)
    parts = [by_file(fusion.fuse(scores, name="part", scorers=(name,)), "part") for name in names[1:5]]
    np.testing.assert_allclose(by_file(scores, "fusion"), np.mean(parts, axis=0), rtol=1e-12)
    chosen = fusion.fuse_runs({"a": few, "b": one}, name="pair", scorers=("a/near", "b/near"), how="max")
    np.testing.assert_allclose(by_file(chosen, "pair"), np.maximum(parts[0], parts[2]), rtol=1e-12)


def test_runs_over_other_clips_are_refused():
    first, second = random(), random(machines=("fan", "valve"))
    with pytest.raises(InputError) as error:
        fusion.fuse_runs({"a": first, "b": second})
    clip = ("pump", "00", "source", "test", "pump/test/00_0.wav")
    columns = zip(*(first[name].tolist() for name in ("machine", "section", "domain", "split", "file")), strict=True)
    line = next(i for i, row in enumerate(columns, 2) if row == clip)
    assert str(error.value) == (
        "scores.csv of run 'b': no row for test clip pump/test/00_0.wav (pump, 00, source), which that of 'a' has in "
        f"line {line}; expected runs over the same data set"
    )
    with pytest.raises(InputError, match="b: 'near' has members 0, 1 and no ensemble"):
        fusion.fuse_runs({"a": first, "b": random(members=2)})
    with pytest.raises(UsageError, match="no runs"):
        fusion.fuse_runs({})


def test_runs_that_contradict_each_other_are_refused():
    first, second = random(), random(scorers=("other",))
    at = np.flatnonzero(second["split"] == "test")[3]
    same = np.logical_and.reduce([second[name] == second[name][at] for name in ("machine", "section", "file")])
    second["label"] = np.where(same, 1 - second["label"], second["label"])
    line, clip = np.flatnonzero(same)[0] + 2, second["file"][at]
    with pytest.raises(InputError, match=f"scores.csv of run 'b' line {line}: label .* of test clip {clip}"):
        fusion.fuse_runs({"a": first, "b": second})


def test_the_baseline_beside_two_runs_takes_part_once():
    beside = random(scorers=("training-free",))
    beside = {name: column[beside["scorer"] == "training-free"] for name, column in beside.items()}
    runs = {n: scoretable.concatenate([random(scorers=(n,), seed=i), beside]) for i, n in enumerate("ab")}
    scores = fusion.fuse_runs(runs)
    assert set(scores["scorer"]) == {"rms-only", "a", "training-free", "b", "fusion"}
    assert (scores["scorer"] == "training-free").sum() == len(beside["score"])


def test_a_scorer_without_a_section_has_no_voice_in_it():
    scores = random()
    lacks = (scores["scorer"] == "far") & (scores["machine"] == "pump")
    fewer = {name: column[~lacks] for name, column in scores.items()}
    found, whole = fusion.fuse(fewer, name="both"), fusion.fuse(scores, name="both")
    alone = fusion.fuse(scores, name="both", scorers=("near",))
    pump = dict(machine="pump", split="test")
    np.testing.assert_array_equal(of(found, **pump), of(alone, **pump))
    np.testing.assert_array_equal(of(found, machine="fan"), of(whole, machine="fan"))
    assert not np.allclose(of(whole, **pump), of(alone, **pump))


def test_who_is_not_heard_is_told():
    scores = random()
    lacks = (scores["scorer"] == "far") & (scores["machine"] == "pump") & (scores["section"] == "01")
    fewer = {name: column[~lacks] for name, column in scores.items()}
    assert fusion.unheard(fewer) == ["pump section 01 is without far"]
    assert fusion.unheard(fewer, ("near",)) == [] and fusion.unheard(scores) == []


def test_sum_and_product_are_of_the_raw_scores():
    """Zeng 2023, table 3; the numbers by hand."""
    scores = table(
        clips("a", [1.0, 2.0], [3.0, 4.0]) + clips("b", [5.0, 6.0], [7.0, 8.0]) + clips("c", [2.0, 2.0], [2.0, -1.0])
    )
    total = fusion.fuse(scores, name="e1", scorers=("a", "b"), how="sum")
    assert of(total, split="test").tolist() == [10.0, 12.0] and of(total, split="train").tolist() == [6.0, 8.0]
    times = fusion.fuse(scores, name="e4", scorers=("a", "b"), how="product")
    assert of(times, split="test").tolist() == [21.0, 32.0] and of(times, split="train").tolist() == [5.0, 12.0]
    with pytest.raises(InputError, match="'c' has negative scores"):
        fusion.fuse(scores, name="e", scorers=("a", "c"), how="product")


def test_a_rule_may_take_what_the_one_before_made():
    rules = [
        {"name": "e1", "scorers": ("near", "far"), "how": "sum"},
        {"name": "e2", "scorers": ("e1", "near"), "how": "product"},
    ]
    fusion.check(rules, ["near", "far"])
    with pytest.raises(UsageError, match="no scorer 'e1'"):
        fusion.check(rules[::-1], ["near", "far"])
