from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from asdjax import metrics, threshold
from asdjax.core import InputError, UsageError

GOLDEN = Path(__file__).parent / "golden"
CASES = {
    "2020": ("gauss", "ties"),
    "2021": ("gauss", "extreme"),
    "2022": ("gauss", "ties", "extreme"),
    "2023": ("gauss", "renamed", "extreme"),
    "2024_multi": ("gauss", "ties"),
}


def golden(year: str, case: str) -> tuple[metrics.Table, dict]:
    """A seeded submission, and what the official evaluator of the year printed for it."""
    pack = json.loads((GOLDEN / f"metrics_{year}.json").read_text())
    sections, chosen = pack["sections"], pack["cases"][case]
    machine, section = (np.concatenate([[s[k]] * len(s["label"]) for s in sections]) for k in ("machine", "section"))
    domain = np.array([{"s": "source", "t": "target", "-": ""}[c] for s in sections for c in s["domain"]])
    label = np.array([int(c) for s in sections for c in s["label"]])
    decision = np.array([int(c) for text in chosen["decision"] for c in text]) if chosen["decision"] else None
    score = np.concatenate([np.array(values, np.float64) for values in chosen["score"]])
    return metrics.Table(machine, section, domain, label, score, decision), chosen["expected"]


def values(rows: list[metrics.Row]) -> dict[tuple, float]:
    found = {row[:4]: row.value for row in rows}
    assert len(found) == len(rows)
    return found


def expected_rows(year: str, expected: dict) -> dict[tuple, float]:
    """What the evaluator printed, under the keys of our rows."""
    out = {}
    for machine, sections in expected["per_section"].items():
        for section, printed in sections.items():
            for name, value in printed.items():
                if year == "2021":
                    out |= {(machine, section, name, metric): v for metric, v in value.items()}
                elif year == "2020":
                    out[machine, section, "", name] = value
                else:
                    metric, _, domain = name.partition(" (")
                    out[machine, section, domain.rstrip(")") or "all", metric] = value
    for machine, means in (*expected["per_machine"].items(), ("all", expected["overall"])):
        for name, printed in means.items():
            kind = "arithmetic mean" if name in ("Average", "arithmetic mean") else "harmonic mean"
            domain = name.split()[0] if name.startswith(metrics.DOMAINS) else ""
            out |= {(machine, kind, domain, metric): value for metric, value in printed.items()}
    if "official_score" in expected:
        out["all", "", "", "official score"] = expected["official_score"]
    return out


@pytest.mark.parametrize("year,case", [(year, case) for year in CASES for case in CASES[year]])
def test_official_equals_the_evaluators(year, case):
    table, printed = golden(year, case)
    order = np.random.default_rng(0).permutation(len(table.score))
    rows, notes = metrics.official(int(year[:4]), table.take(order), official_slices=True, n_bootstrap=0)
    found, expected = values(rows), expected_rows(year, printed)
    assert notes == [] and len(expected) > 40
    for (machine, section, domain, metric), value in expected.items():
        key = (machine, section, domain, metric)
        if year > "2021" and metric == "pAUC" and domain in metrics.DOMAINS and key not in found:
            key = (machine, section, "", metric)  # the evaluators print the one pAUC for both domains
        np.testing.assert_allclose(found[key], value, rtol=1e-12, atol=0, err_msg=str(key))


@pytest.mark.parametrize(
    "year,case", [("2022", "ties"), ("2023", "gauss"), ("2023", "extreme"), ("2024_multi", "gauss")]
)
def test_ci95_equals_the_evaluators(year, case):
    table, printed = golden(year, case)
    found = values(metrics.official(year[:4], table, n_bootstrap=1)[0])
    np.testing.assert_allclose(
        found["all", "", "", "official score ci95"], printed["official_score_ci95"], rtol=1e-10, atol=0
    )


def test_the_golden_case_extreme_needs_float64():
    table, _ = golden("2023", "extreme")
    exact, rough = (
        values(metrics.official(2023, table._replace(score=score), n_bootstrap=0)[0])
        for score in (table.score, table.score.astype(np.float32))
    )
    assert max(abs(exact[key] - rough[key]) for key in exact) > 0.1


def test_machine_means_of_2022_cover_all_sections_of_a_domain():
    table, printed = golden("2022", "gauss")
    found = values(metrics.official(2022, table, n_bootstrap=0)[0])
    for machine, sections in printed["per_section"].items():
        for domain in metrics.DOMAINS:
            mean = 3 / sum(1 / section[f"AUC ({domain})"] for section in sections.values())
            np.testing.assert_allclose(found[machine, "harmonic mean", domain, "AUC"], mean, rtol=1e-12)
            assert (machine, "harmonic mean", domain, "pAUC") not in found
    slip = values(metrics.official(2022, table, official_slices=True, n_bootstrap=0)[0])
    assert slip["alpha", "harmonic mean", "source", "AUC"] != found["alpha", "harmonic mean", "source", "AUC"]


def test_small_goldens():
    pack = json.loads((GOLDEN / "metrics_small.json").read_text())
    one, two = pack["metrics"], pack["metrics_dcase2023"]

    def run(year, label, domain, score):
        machine = np.full(len(score), "fan")
        return values(
            metrics.official(year, metrics.Table(machine, machine, *map(np.array, (domain, label, score))))[0]
        )

    found = run(2021, one["y"], one["domain"], one["score"])
    for domain in metrics.DOMAINS:
        assert found["fan", "fan", domain, "AUC"] == pytest.approx(one["dcase2021"][domain]["auc"], rel=1e-12)
        assert found["fan", "fan", domain, "pAUC"] == pytest.approx(one["dcase2021"][domain]["pauc"], rel=1e-12)
    assert found["all", "", "", "official score"] == pytest.approx(one["dcase2021_official_like"], rel=1e-12)
    found = run(2022, one["y"], one["domain"], one["score"])
    assert found["all", "", "", "official score"] == pytest.approx(one["dcase2022_omega_single_section"], rel=1e-12)
    found, out = run(2023, two["inputs"]["label"], two["inputs"]["domain"], two["inputs"]["score"]), two["outputs"]
    assert found["fan", "fan", "source", "AUC"] == pytest.approx(out["auc_source"], rel=1e-12)
    assert found["fan", "fan", "target", "AUC"] == pytest.approx(out["auc_target"], rel=1e-12)
    assert found["fan", "fan", "all", "pAUC"] == pytest.approx(out["pauc"], rel=1e-12)
    assert found["fan", "fan", "source", "AUC same-domain"] == pytest.approx(
        out["auc_source_own_domain_anomalies_only"], rel=1e-12
    )
    assert found["all", "", "", "official score"] == pytest.approx(out["hmean"], rel=1e-12)


def test_harmonic_mean_of_the_autoencoder_published_for_2025():
    printed = (
        ".8102 .3436 .5421 .8140 .4976 .5284 .6770 .3670 .5500 .5284 .6272 .5553 "
        ".7198 .3956 .5205 .7304 .4436 .5342 .6686 .4430 .5232 .6486 .6592 .6211"
    )
    assert metrics.harmonic_mean([float(text) for text in printed.split()]) == pytest.approx(0.54428, abs=1e-5)


def test_harmonic_mean_by_hand():
    assert metrics.harmonic_mean([0.5, 1.0]) == pytest.approx(2 / 3)
    assert metrics.harmonic_mean([0.0, 1.0]) == pytest.approx(2 * np.finfo(float).eps, rel=1e-12)
    assert np.isnan(metrics.harmonic_mean([]))


def test_auc_by_hand():
    label = np.array([0, 0, 1, 1])
    assert metrics.auc(label, [1, 2, 3, 4]) == 1
    assert metrics.auc(label, [4, 3, 2, 1]) == 0
    assert metrics.auc(label, [7, 7, 7, 7]) == 0.5
    assert metrics.auc(label, [1, 3, 2, 3]) == (1 + 0 + 1 + 0.5) / 4
    assert metrics.auc(label, [-np.inf, 0, 0, np.inf]) == 3.5 / 4
    assert (
        np.isnan(metrics.auc([0, 0], [1, 2]))
        and np.isnan(metrics.pauc([1, 1], [1, 2]))
        and np.isnan(metrics.auc([], []))
    )


def test_pauc_by_hand():
    # 1 of 20 normals above the only anomaly: TPR is 0 up to FPR 0.05, then 1; McClish: (1 + (0.05 - 0.005) / 0.095) / 2
    label, score = np.array([1] + 20 * [0]), np.array([0.5, 1.0] + 19 * [0.0])
    assert metrics.pauc(label, score) == pytest.approx((1 + 0.045 / 0.095) / 2, rel=1e-14)
    assert metrics.pauc(label, np.zeros(21)) == pytest.approx(0.5, rel=1e-14)
    assert metrics.pauc(label, -score) == pytest.approx((1 - 0.005 / 0.095) / 2, rel=1e-14)


@pytest.mark.parametrize("kinds", [3, 12, 10**9])
def test_areas_equal_scikit_learn(kinds):
    from sklearn.metrics import roc_auc_score

    rng = np.random.default_rng(kinds)
    for n in (5, 37, 200):
        label = np.append([0, 1], rng.integers(0, 2, n))
        score = rng.integers(0, kinds, n + 2) + 0.3 * label
        assert metrics.auc(label, score) == pytest.approx(roc_auc_score(label, score), rel=1e-12, abs=1e-15)
        for max_fpr in (0.05, 0.1, 0.37, 1.0):
            reference = roc_auc_score(label, score, max_fpr=max_fpr)
            assert metrics.pauc(label, score, max_fpr=max_fpr) == pytest.approx(reference, rel=1e-12, abs=1e-15)


def test_weights_are_repetitions():
    from sklearn.metrics import roc_auc_score

    rng = np.random.default_rng(1)
    label, score = np.tile([0, 1], 30), rng.integers(0, 20, 60).astype(float)
    weight = rng.integers(0, 4, (3, 60))
    for row, full, part in zip(
        weight, *(metrics._areas(name, label == 1, score, weight) for name in ("AUC", "pAUC")), strict=True
    ):
        repeated = np.repeat(label, row), np.repeat(score, row)
        assert full == pytest.approx(roc_auc_score(*repeated), rel=1e-12)
        assert part == pytest.approx(roc_auc_score(*repeated, max_fpr=0.1), rel=1e-12)


def test_average_precision_by_hand():
    assert metrics.average_precision([0, 1, 1], [3, 2, 1]) == (1 / 2 + 2 / 3) / 2
    assert metrics.average_precision([0, 1, 1, 0], [7, 7, 7, 7]) == 1 / 2  # ties are one threshold
    assert metrics.average_precision([0, 1, 1], [1, 1, -np.inf]) == (1 / 2 + 2 / 3) / 2
    assert metrics.average_precision([1, 1], [0, 1]) == 1
    assert np.isnan(metrics.average_precision([0, 0], [1, 2])) and np.isnan(metrics.average_precision([], []))


@pytest.mark.parametrize("kinds", [1, 3, 12, 10**9])
def test_average_precision_equals_scikit_learn(kinds):
    from sklearn.metrics import average_precision_score

    rng = np.random.default_rng(kinds)
    for n in (5, 37, 500):
        label = np.append([0, 1], rng.random(n) < rng.uniform(0.02, 0.9)).astype(int)
        score = rng.integers(0, kinds, n + 2) + 0.3 * label * (kinds > 1)
        for order in (score, -score, score.astype(np.float32)):
            expected = average_precision_score(label, order)
            assert metrics.average_precision(label, order) == pytest.approx(expected, rel=1e-12)


def test_bad_scores_and_labels_are_refused():
    with pytest.raises(InputError, match=r"average precision: .*1 of them NaN"):
        metrics.average_precision([0, 1], [0.0, np.nan])
    with pytest.raises(InputError, match="1 of them NaN"):
        metrics.auc([0, 1], [0.0, np.nan])
    with pytest.raises(InputError, match="0 or 1"):
        metrics.auc([-1, 1], [0.0, 1.0])
    with pytest.raises(InputError):
        metrics.pauc([0, 1, 1], [0.0, 1.0])


def test_precision_recall_f1_equal_scikit_learn():
    from sklearn.metrics import precision_recall_fscore_support

    rng = np.random.default_rng(0)
    label, decision = rng.integers(0, 2, (2, 50))
    for said in (decision, np.zeros(50), np.ones(50)):
        reference = precision_recall_fscore_support(label, said, average="binary", zero_division=0)[:3]
        assert metrics.precision_recall_f1(label, said) == pytest.approx(reference, rel=1e-12)
    assert np.isnan(metrics.precision_recall_f1(label, np.full(50, np.nan))).all()


@pytest.mark.parametrize("name", ["mse_like", "mahala_like", "negative", "few", "degenerate", "log_softmax"])
def test_gamma_threshold_equals_the_baseline(name):
    case = json.loads((GOLDEN / "metrics_gamma.json").read_text())["baseline"][name]
    raw, _ = threshold.gamma_threshold(case["y"], guard=False)
    # the search may end a little apart in other versions of scipy; equal to 11 digits in those tried
    assert raw == pytest.approx(case["threshold90"], rel=1e-8 if name != "log_softmax" else 1e-4)
    guarded, note = threshold.gamma_threshold(case["y"])
    if case["shape"] < 1:
        assert "shape below 1" in note and guarded == np.quantile(case["y"], 0.9) < 0.1 < raw
    else:
        assert (guarded, note) == (raw, "")


def test_gamma_threshold_of_odd_scores():
    assert threshold.gamma_threshold(np.full(50, -3.0))[0] == -3
    limit, note = threshold.gamma_threshold([1.0, 2.0, 3.0])
    assert limit == pytest.approx(2.8) and "too few" in note
    scores = np.random.default_rng(0).gamma(3, size=200)
    clean, _ = threshold.gamma_threshold(scores)
    assert threshold.gamma_threshold(np.append(scores, [np.inf, -np.inf])) == (clean, "2 infinite scores left out")
    with pytest.raises(InputError, match="1 NaN"):
        threshold.gamma_threshold(np.append(scores, np.nan))
    with pytest.raises(InputError, match="0 finite"):
        threshold.gamma_threshold([])
    with pytest.raises(InputError, match="gamma fit"):
        threshold.gamma_threshold(np.ones(50), guard=False)
    for other in (scores - 100, 1e-9 * scores, 1e9 * scores):  # the fit runs away on the last two
        assert 0.09 < np.mean(other > threshold.gamma_threshold(other)[0]) < 0.12


def small_table(domains: tuple[str, ...], seed: int = 0) -> metrics.Table:
    """Two machines, one section, 10 normal and 10 anomalous clips per domain."""
    rng = np.random.default_rng(seed)
    rows = [(m, "00", d, y) for m in ("fan", "pump") for d in domains for y in (0, 1) for _ in range(10)]
    machine, section, domain, label = map(np.array, zip(*rows, strict=True))
    return metrics.Table(machine, section, domain, label, rng.normal(size=len(rows)) + label)


def test_a_missing_domain_is_left_out_and_said():
    full = small_table(("source", "target"))
    cut = full.take(~((full.machine == "pump") & (full.domain == "target")))
    (rows, notes), (before, _) = (metrics.official(2023, t, n_bootstrap=10) for t in (cut, full))
    found, before = values(rows), values(before)
    assert ("pump", "00", "target", "AUC") not in found
    assert notes == [
        "pump section 00: AUC (target) left out, the test has only 10 source anomalous, 10 source normal clips"
    ]
    assert found["all", "harmonic mean", "target", "AUC"] == before["fan", "00", "target", "AUC"]
    keys = [("fan", "source", "AUC"), ("fan", "target", "AUC"), ("fan", "all", "pAUC")]
    keys += [("pump", "source", "AUC"), ("pump", "all", "pAUC")]
    omega = 5 / sum(1 / found[machine, "00", domain, metric] for machine, domain, metric in keys)
    assert found["all", "", "", "official score"] == pytest.approx(omega, rel=1e-12)
    assert all(np.isfinite(value) for value in found.values())


def test_unknown_labels_are_left_out_and_said():
    table = small_table(("source", "target"))
    hidden = table.take(np.r_[np.arange(80), 0, 1])
    hidden.is_anomaly[80:] = -1
    assert values(metrics.official(2024, hidden, n_bootstrap=0)[0]) == values(
        metrics.official(2024, table, n_bootstrap=0)[0]
    )
    assert metrics.official(2024, hidden, n_bootstrap=0)[1] == ["2 of 82 test clips have no label and are left out"]
    rows, notes = metrics.official(2024, table._replace(is_anomaly=np.full(80, -1)))
    assert rows == [] and len(notes) == 1


def test_no_domains_from_2022_give_no_official_score():
    rows, notes = metrics.official(2022, small_table(("",)), n_bootstrap=5)
    found = values(rows)
    assert ("fan", "00", "all", "AUC") in found and ("fan", "00", "all", "pAUC") in found
    assert not any("official" in metric for *_, metric in found)
    assert "40 test clips have no domain" in notes[0]


def test_plain_is_2020_without_domains_and_2025_with():
    table = small_table(("",))
    plain, first = (values(metrics.official(year, table, n_bootstrap=0)[0]) for year in ("plain", 2020))
    assert plain == first
    mean = np.mean([plain[machine, "00", "", metric] for machine in ("fan", "pump") for metric in ("AUC", "pAUC")])
    assert plain["all", "", "", "mean of average AUC and pAUC"] == pytest.approx(mean, rel=1e-12)
    table = small_table(("source", "target"))
    results = [values(metrics.official(year, table, n_bootstrap=0)[0]) for year in ("plain", 2023, 2024, 2025, "2026")]
    assert all(other == results[0] for other in results[1:])
    with pytest.raises(UsageError, match="found 2019; there is: 2020"):
        metrics.official(2019, table)


def test_average_of_2020_is_over_ids_then_over_machines():
    table = small_table(("",))
    more = table.take(table.machine == "pump")
    more = more._replace(section=np.full(20, "02"), score=-more.score)
    both = metrics.Table(*(None if a is None else np.concatenate([a, b]) for a, b in zip(table, more, strict=True)))
    found = values(metrics.official(2020, both, n_bootstrap=0)[0])
    pump = (found["pump", "00", "", "AUC"] + found["pump", "02", "", "AUC"]) / 2
    assert found["pump", "arithmetic mean", "", "AUC"] == pytest.approx(pump, rel=1e-12) == pytest.approx(0.5)
    assert found["all", "arithmetic mean", "", "AUC"] == pytest.approx((found["fan", "00", "", "AUC"] + pump) / 2)


def test_decisions_are_those_of_the_domain():
    table = small_table(("source", "target"))
    table = table._replace(decision=(table.domain == "source").astype(float))
    found = values(metrics.official(2025, table, n_bootstrap=0)[0])
    assert found["fan", "00", "source", "precision"] == 0.5 and found["fan", "00", "source", "recall"] == 1
    assert found["fan", "00", "target", "F1 score"] == 0
    undecided = table._replace(decision=np.where(table.machine == "fan", np.nan, table.decision))
    found = values(metrics.official(2025, undecided, n_bootstrap=0)[0])
    assert ("fan", "00", "source", "recall") not in found and ("pump", "00", "source", "recall") in found


def test_bootstrap_equals_resampling_clip_by_clip():
    from sklearn.metrics import roc_auc_score

    table = small_table(("source", "target"), seed=4)
    width = values(metrics.official(2025, table)[0])["all", "", "", "official score bootstrap95"]
    rng, scores = np.random.default_rng(99), []
    strata = [np.arange(first, first + 10) for first in range(0, 80, 10)]
    for _ in range(150):
        chosen, inverse = table.take(np.concatenate([rng.choice(s, 10) for s in strata])), 0
        for machine in ("fan", "pump"):
            part = chosen.take(chosen.machine == machine)
            for domain in metrics.DOMAINS:
                own = (part.domain == domain) | (part.is_anomaly == 1)
                inverse += 1 / roc_auc_score(part.is_anomaly[own], part.score[own])
            inverse += 1 / roc_auc_score(part.is_anomaly, part.score, max_fpr=0.1)
        scores.append(6 / inverse)
    low, high = np.percentile(scores, (2.5, 97.5))
    assert width == pytest.approx((high - low) / 2, rel=0.15)
    assert width == values(metrics.official(2025, table)[0])["all", "", "", "official score bootstrap95"]
