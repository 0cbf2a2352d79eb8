"""The numbers of DCASE Task 2 as the official evaluators of each year compute them, in float64 numpy.

Per (machine, section); precision, recall and F1 score where there are decisions:

    2020    AUC and pAUC of the machine id; decisions (not official) likewise
    2021    everything on the clips of each domain
    2022+   AUC of a domain: its normals against the anomalies of both domains; AUC 'all' and pAUC: all clips;
            decisions: the clips of the domain; 'AUC same-domain' (not official): normals and anomalies of the domain

The official score is the harmonic mean over machines and sections of {AUC, pAUC} x {source, target} (2021) or of
AUC source, AUC target and pAUC (2022+). 2020 has none: in its place is the mean of the average AUC and the average
pAUC, over ids, then over machines. A machine has one too, over its sections. 2026 is assumed to be as 2025. 'plain' is
as 2020 where no clip has a domain, else as 2025. Float64 because float32 scores move single AUCs by up to 0.39 where
their scale is large.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

from asdjax.core import InputError, UsageError

EPS = np.finfo(np.float64).eps  # the evaluators' floor: a single zero drives a harmonic mean to about 1e-15
DOMAINS = ("source", "target")
METRICS = ("AUC", "pAUC", "precision", "recall", "F1 score")
PROTOCOL = {2020: "by id", 2021: "by domain"} | dict.fromkeys(range(2022, 2027), "pooled")


class Table(NamedTuple):
    """Scored test clips: equal-length arrays.

    Attributes:
        machine, section, domain: (M,) str.
        is_anomaly: (M,) 0, 1, or -1 where the label is unknown.
        score: (M,) float64, higher = more anomalous.
        decision: (M,) 0 or 1, NaN where there is none; None where there are no decisions at all.
    """

    machine: np.ndarray
    section: np.ndarray
    domain: np.ndarray
    is_anomaly: np.ndarray
    score: np.ndarray
    decision: np.ndarray | None = None

    def take(self, index: np.ndarray) -> Table:
        """The clips that a mask or integer array selects."""
        return Table(*(None if column is None else np.asarray(column)[index] for column in self))


class Row(NamedTuple):
    """One number; an aggregate has 'arithmetic mean' or 'harmonic mean' as its section."""

    machine: str
    section: str
    domain: str
    metric: str
    value: float


def auc(is_anomaly: np.ndarray, score: np.ndarray) -> float:
    """Area under the ROC curve, ties counting 1/2.

    Args:
        is_anomaly: (M,) 0 or 1.
        score: (M,), higher = more anomalous.

    Returns:
        the area; NaN when one class is missing.

    Raises:
        InputError: NaN scores, labels other than 0 and 1, or different lengths.
    """
    anomaly, score = _checked(is_anomaly, score)
    return float(_areas("AUC", anomaly, score, np.ones((1, len(score))))[0])


def pauc(is_anomaly: np.ndarray, score: np.ndarray, *, max_fpr: float = 0.1) -> float:
    """Partial area under the ROC curve for false-positive rates up to `max_fpr`, standardised so that chance is 0.5.

    Args and errors are those of `auc`. Source: McClish, Analyzing a portion of the ROC curve, 1989.
    """
    anomaly, score = _checked(is_anomaly, score)
    return float(_areas("pAUC", anomaly, score, np.ones((1, len(score))), max_fpr=max_fpr)[0])


def average_precision(is_positive: np.ndarray, score: np.ndarray) -> float:
    """Average precision: the precision at each distinct score, weighted by the recall that it adds.

    Args:
        is_positive: (M,) 0 or 1.
        score: (M,), higher = more likely positive.

    Returns:
        the precision, not interpolated; NaN when no clip is positive.

    Raises:
        InputError: NaN scores, labels other than 0 and 1, or different lengths.
    """
    positive, score = _checked(is_positive, score, "average precision")
    order = np.argsort(-score, kind="stable")
    ends = _ends(score[order])
    hits, said = np.cumsum(positive[order])[ends], np.flatnonzero(ends) + 1
    with np.errstate(invalid="ignore"):
        return float(np.sum(np.diff(hits, prepend=0) * (hits / said)) / np.float64(positive.sum()))


def harmonic_mean(values: np.ndarray) -> np.ndarray | float:
    """Harmonic mean over the first axis, values floored at the float64 epsilon as the evaluators do."""
    values = np.asarray(values, np.float64)
    return len(values) / np.sum(1 / np.maximum(values, EPS), axis=0) if len(values) else np.nan


def precision_recall_f1(is_anomaly: np.ndarray, decision: np.ndarray) -> tuple[float, float, float]:
    """Precision, recall and F1 score of decisions (M,) 0 or 1; 0 where a denominator is 0, NaN where a decision is."""
    anomaly, decision = np.asarray(is_anomaly) == 1, np.asarray(decision, np.float64)
    hits, said = np.sum(decision * anomaly), np.sum(decision)
    precision, recall = hits / max(said, EPS), hits / max(np.sum(anomaly), EPS)
    if np.isnan(said):
        return np.nan, np.nan, np.nan
    return float(precision), float(recall), float(2 * precision * recall / max(precision + recall, EPS))


def official(
    year: int | str, table: Table, *, official_slices: bool = False, n_bootstrap: int = 1000
) -> tuple[list[Row], list[str]]:
    """Every value that the official evaluator of the year prints, and those of the module's docstring beside.

    Args:
        year: 2020 to 2026, or 'plain'.
        table: the scored test clips. Those without a label are left out, with a note.
        official_slices: repeat a slip of the evaluator of 2022: a machine's 'source' harmonic mean covers the first
            half of its sections' source values only, 'target' everything else.
        n_bootstrap: resamples behind 'official score bootstrap95', half the width of the 95 % percentile interval,
            clips drawn within (machine, section, domain, label). 0 leaves both intervals out. The evaluators' own
            'official score ci95' (2022+) lacks the jackknife factor N - 1, hence is about N times too narrow.

    Returns:
        the rows, and notes (sentences). What cannot be computed has no row; aggregates are over what exists.

    Raises:
        UsageError: unknown year. InputError: NaN scores.
    """
    known = np.asarray(table.is_anomaly) >= 0
    notes = [] if known.all() else [f"{np.sum(~known)} of {len(known)} test clips have no label and are left out"]
    table = table.take(known)
    rule = _protocol(year, table.domain)
    if rule != "by id" and not np.isin(table.domain, DOMAINS).all():
        notes.append(f"{np.sum(~np.isin(table.domain, DOMAINS))} test clips have no domain: in no value of a domain")
    rows, means = [], []
    for machine, section, part in _sections(table):
        found, missing = _section_rows(rule, machine, section, part)
        rows, notes = rows + found, notes + missing
    for machine in dict.fromkeys(row.machine for row in rows):
        own = [row for row in rows if row.machine == machine]
        means += _means(rule, machine, own, official_slices=official_slices and str(year) == "2022")
        means += _official_score(rule, machine, table, own, 0, year)
    means += _means(rule, "all", rows)
    return rows + means + _official_score(rule, "all", table, rows, n_bootstrap, year), notes


def _checked(is_anomaly: np.ndarray, score: np.ndarray, metric: str = "AUC") -> tuple[np.ndarray, np.ndarray]:
    is_anomaly, score = np.asarray(is_anomaly), np.asarray(score, np.float64)
    if is_anomaly.shape != score.shape or not np.isin(is_anomaly, (0, 1)).all() or np.isnan(score).any():
        raise InputError(
            f"{metric}: found {is_anomaly.shape} labels with values {np.unique(is_anomaly)[:5]} and {score.shape} "
            f"scores, {np.isnan(score).sum()} of them NaN; expected as many labels, 0 or 1, as scores, and no NaN"
        )
    return is_anomaly == 1, score


def _ends(score: np.ndarray) -> np.ndarray:
    """(M,) bool, the last of each value among sorted scores: ties are one threshold."""
    return np.append(score[1:] != score[:-1], True)[: len(score)]


def _areas(metric: str, anomaly: np.ndarray, score: np.ndarray, weight: np.ndarray, max_fpr: float = 0.1) -> np.ndarray:
    """AUC or pAUC (S,) of clips that count weight (S, M) times each; in blocks of rows that stay in cache."""
    order = np.argsort(-score, kind="stable")
    ends = _ends(score[order])
    limit = max_fpr if metric == "pAUC" else 1.0
    blocks = np.array_split(weight, max(1, weight.size >> 17))
    area = np.concatenate([_area(anomaly[order], block[:, order], ends, limit) for block in blocks])
    return area if metric != "pAUC" else 0.5 * (1 + (area - limit**2 / 2) / (limit - limit**2 / 2))


def _area(anomaly: np.ndarray, weight: np.ndarray, ends: np.ndarray, limit: float) -> np.ndarray:
    """Area (S,) under the ROC polygon, up to the false-positive rate `limit`; NaN where a class is missing."""

    def vertices(count):
        return np.pad(np.cumsum(count, axis=1)[:, ends], ((0, 0), (1, 0)))

    tp, fp = vertices(weight * anomaly.astype(np.float64)), vertices(weight * (~anomaly).astype(np.float64))
    step = np.diff(fp)
    width = np.diff(np.minimum(fp, limit * fp[:, -1:]))
    reached = np.divide(width, step, out=np.zeros_like(step), where=step > 0)
    with np.errstate(invalid="ignore"):
        return np.sum(width * (tp[:, :-1] + reached * np.diff(tp) / 2), axis=1) / (tp[:, -1] * fp[:, -1])


def _protocol(year: int | str, domain: np.ndarray) -> str:
    if str(year) == "plain":
        return "pooled" if np.isin(domain, DOMAINS).any() else "by id"
    if str(year) not in map(str, PROTOCOL):
        raise UsageError(f"data.year: found {year!r}; there is: {', '.join(map(str, PROTOCOL))}, plain")
    return PROTOCOL[int(year)]


def _sections(table: Table) -> Iterator[tuple[str, str, Table]]:
    for machine, section in sorted(set(zip(table.machine, table.section, strict=True))):
        yield str(machine), str(section), table.take((table.machine == machine) & (table.section == section))


def _subsets(rule: str, table: Table) -> list[tuple[str, str, np.ndarray]]:
    """(domain, metric, mask (M,) of the clips it is computed on) of a section's threshold-free values."""
    everything, anomaly = np.ones(len(table.score), bool), table.is_anomaly == 1
    of = {domain: table.domain == domain for domain in DOMAINS}
    if rule == "by id":
        return [("", "AUC", everything), ("", "pAUC", everything)]
    if rule == "by domain":
        return [(domain, metric, of[domain]) for domain in DOMAINS for metric in ("AUC", "pAUC")]
    pooled = [(domain, "AUC", of[domain] | anomaly) for domain in DOMAINS]
    same = [(domain, "AUC same-domain", of[domain]) for domain in DOMAINS]
    return [*pooled, ("all", "AUC", everything), ("all", "pAUC", everything), *same]


def _section_rows(rule: str, machine: str, section: str, table: Table) -> tuple[list[Row], list[str]]:
    """The rows of one section, and a note when AUCs had to be left out."""
    rows, missing = [], []
    for domain, metric, mask in _subsets(rule, table):
        value = (pauc if metric == "pAUC" else auc)(table.is_anomaly[mask], table.score[mask])
        if np.isfinite(value):
            rows.append(Row(machine, section, domain, metric, value))
        elif metric != "AUC same-domain":
            missing.append(f"{metric} ({domain})" if domain else metric)
    if table.decision is not None:
        for domain in [row.domain for row in rows if row.metric == "AUC" and row.domain != "all"]:
            mask = table.domain == domain if domain else np.ones(len(table.score), bool)
            values = precision_recall_f1(table.is_anomaly[mask], table.decision[mask])
            named = zip(METRICS[2:], values, strict=True)
            rows += [Row(machine, section, domain, metric, value) for metric, value in named if np.isfinite(value)]
    if not missing:
        return rows, []
    kinds = sorted(zip(table.domain, np.where(table.is_anomaly == 1, "anomalous", "normal"), strict=True))
    counts = ", ".join(f"{kinds.count(kind)} {' '.join(kind).strip()}" for kind in dict.fromkeys(kinds))
    return rows, [f"{machine} section {section}: {', '.join(missing)} left out, the test has only {counts} clips"]


def _means(rule: str, machine: str, rows: list[Row], *, official_slices: bool = False) -> list[Row]:
    """Aggregates of the rows of one machine, or of all; the AUC of all clips ('all') takes no part."""
    means = []
    for metric in METRICS:
        own = [row for row in rows if row.metric == metric and (metric, row.domain) != ("AUC", "all")]
        if not own:
            continue
        values = np.array([row.value for row in own])
        average = _overall(rule, own, values) if rule == "by id" else values.mean()
        means.append(Row(machine, "arithmetic mean", "", metric, float(average)))
        means.append(Row(machine, "harmonic mean", "", metric, float(harmonic_mean(values))))
        parts = {domain: [row.value for row in own if row.domain == domain] for domain in DOMAINS}
        if official_slices:
            listed = parts["source"] + parts["target"] or [*values, *values]  # pAUC: once for each domain
            parts = {"source": listed[: len(listed) // 4], "target": listed[len(listed) // 4 :]}
        for domain in [domain for domain in DOMAINS if parts[domain]]:
            means.append(Row(machine, "harmonic mean", domain, metric, float(harmonic_mean(parts[domain]))))
    return means


def _official_score(
    rule: str, machine: str, table: Table, rows: list[Row], n_bootstrap: int, year: int | str
) -> list[Row]:
    """The official score of a machine or of all, and its intervals; no row where there is no AUC of a domain."""
    counted = [row for row in rows if row.metric == "pAUC" or (row.metric == "AUC" and row.domain != "all")]
    if not any(row.metric == "AUC" for row in counted):
        return []
    name = "mean of average AUC and pAUC" if rule == "by id" else "official score"
    values = {name: _overall(rule, counted, np.array([row.value for row in counted]))}
    if n_bootstrap and rule == "pooled" and str(year) != "plain":
        values[f"{name} ci95"] = _ci95(table)
    if n_bootstrap:
        samples = _overall(rule, counted, _resampled(rule, table, counted, n_bootstrap))
        values[f"{name} bootstrap95"] = np.ptp(np.percentile(samples, (2.5, 97.5))) / 2
    return [Row(machine, "", "", metric, float(value)) for metric, value in values.items() if np.isfinite(value)]


def _overall(rule: str, rows: list[Row], values: np.ndarray) -> np.ndarray:
    """The one number, from the values (V, ...) of its rows."""
    if rule != "by id":
        return harmonic_mean(values)
    group = [(row.machine, row.metric) for row in rows]
    return np.mean([values[[g == one for g in group]].mean(axis=0) for one in dict.fromkeys(group)], axis=0)


def _resampled(rule: str, table: Table, rows: list[Row], n: int) -> np.ndarray:
    """The values (V, n) of the rows over n bootstrap resamples of the clips."""
    rng, out, wanted = np.random.default_rng(0), {}, [row[:4] for row in rows]
    for machine, section, part in _sections(table):
        weight = np.zeros((n, len(part.score)), np.uint16)
        for domain, label in sorted(set(zip(part.domain, part.is_anomaly, strict=True))):
            stratum = np.flatnonzero((part.domain == domain) & (part.is_anomaly == label))
            weight[:, stratum] = rng.multinomial(len(stratum), np.full(len(stratum), 1 / len(stratum)), size=n)
        for domain, metric, mask in _subsets(rule, part):
            key = (machine, section, domain, metric)
            if key in wanted:
                out[key] = _areas(metric, part.is_anomaly[mask] == 1, part.score[mask], weight[:, mask])
    return np.stack([out[key] for key in wanted])


def _ci95(table: Table) -> float:
    """The evaluators' interval: over the leave-one-out AUCs and pAUCs of the clips of all machines together."""
    from scipy import stats

    n = len(table.score)
    left_out = (_areas(m, table.is_anomaly == 1, table.score, ~np.eye(n, dtype=bool)) for m in ("AUC", "pAUC"))
    return stats.t.ppf(0.975, n - 1) * np.mean([np.std(area, ddof=1) for area in left_out]) / np.sqrt(n)
