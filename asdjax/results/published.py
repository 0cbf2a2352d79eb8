"""What others have printed: the official baselines of DCASE Task 2 from 2020 to 2025, and five reports.

published.csv holds one number a row, a fraction with the digits that were printed, under the names of results.csv.
Where a table has one number per machine, section is empty. Slips stand as they were printed, with a note. What is not
the official metric has another name, so that like is compared with like:

    AUC same-domain   normal and anomalous clips of one domain (Zeng and Zhang 2023); also in results.csv
    pAUC one domain   which one is not stated (Zhang 2023)
    h-AUC             'harmonic mean AUC', of anomalies of one domain or of both (Bai 2022)
    official score    of one machine too, where a report prints that
"""

from __future__ import annotations

import csv
import functools
from collections.abc import Iterable, Mapping
from decimal import Decimal
from importlib import resources
from typing import Any, NamedTuple

import numpy as np

from asdjax import metrics
from asdjax.data import names
from asdjax.scoretable import ENSEMBLE

Key = tuple[str, str, str, str]  # machine, section, domain, metric: as in results.csv
METRICS = ("AUC", "pAUC", "AUC same-domain", "pAUC one domain", "h-AUC")
# Printed where the official metric is not: shown in its column, in brackets.
STAND_IN = {"AUC": "h-AUC", "pAUC": "pAUC one domain", "official score": "AUC same-domain and pAUC one domain"}
# Readings of a metric that are not the official one, for titles.
READINGS = {"AUC same-domain": "normal and anomalous clips of one domain: Zeng and Zhang, by their digits"}
_IDS_2020 = {
    ("ToyCar", "dev"): ("01", "02", "03", "04"),
    ("ToyCar", "eval"): ("05", "06", "07"),
    ("ToyConveyor", "dev"): ("01", "02", "03"),
    ("ToyConveyor", "eval"): ("04", "05", "06"),
    ("", "dev"): ("00", "02", "04", "06"),
    ("", "eval"): ("01", "03", "05"),
}


class Published(NamedTuple):
    """A printed number.

    Attributes:
        year, part: of the data set; part is 'dev' or 'eval'.
        source, system: who printed it, and of which system.
        machine, section, domain, metric: as in results.csv, or see the module's docstring.
        value: a fraction.
        percent: the same in percent, with the printed digits.
        notes: sentences on slips and on what is not as its name says.
    """

    year: int
    part: str
    source: str
    system: str
    machine: str
    section: str
    domain: str
    metric: str
    value: float
    percent: str
    notes: tuple[str, ...]


class System(NamedTuple):
    """The numbers of one system, published or of a run.

    Attributes:
        name: who and what.
        values: fractions, with the means that follow from them.
        printed: what a report prints, in percent; empty for a run's own.
        notes: those of printed numbers.
    """

    name: str
    values: Mapping[Key, float]
    printed: Mapping[Key, str]
    notes: Mapping[Key, tuple[str, ...]]


@functools.cache
def read() -> tuple[Published, ...]:
    """All published numbers, in the order of the reports' tables."""
    texts = dict(_rows("published_notes.csv"))
    return tuple(
        Published(int(year), *where, float(value), f"{Decimal(value).scaleb(2):f}", tuple(map(texts.get, note.split())))
        for year, *where, value, note in _rows("published.csv")
    )


def of(year: int | str, part: str) -> list[Published]:
    """The published numbers on the test clips of a year's 'dev' or 'eval' part; none of what has no such table."""
    return [row for row in read() if (str(row.year), row.part) == (str(year), part)]


def years() -> list[str]:
    """The years that something is published of."""
    return list(dict.fromkeys(str(row.year) for row in read()))


def sections(year: int | str, part: str) -> dict[str, tuple[str, ...]]:
    """The sections (2020: ids) of every machine in the test of a year's part; none of 'plain'.

    Raises:
        UsageError: unknown year.
    """
    rules = names.year_of(year)
    machines = rules.dev if part == "dev" else rules.additional
    if str(year) == "2020":
        return {name: _IDS_2020.get((name, part), _IDS_2020["", part]) for name in machines}
    several = ("00", "01", "02") if part == "dev" else ("03", "04", "05")
    return dict.fromkeys(machines, several if str(year) in ("2021", "2022") else ("00",))


def complete(rows: Iterable[Any], year: int | str, part: str) -> list[str]:
    """The machines of a year's part that the rows of results.csv have, all of their sections and no other."""
    found: dict[str, set] = {}
    for row in rows:
        if row.section and not row.section.endswith(" mean"):
            found.setdefault(row.machine, set()).add(row.section)
    return [name for name, own in sections(year, part).items() if found.get(name) == set(own)]


def comparable(rows: Iterable[Any], year: int | str, part: str) -> bool:
    """Whether a run's means may stand beside published ones: exactly the machines and sections of that year's part.

    Machines that are `complete` may be compared one by one even where this is False. The names do not tell whether the
    recordings are those of the challenge: the caller must know.
    """
    rows = [row for row in rows if row.machine != "all"]
    wanted = sections(year, part)
    return bool(wanted) and {row.machine for row in rows} == set(wanted) == set(complete(rows, year, part))


def score_name(year: int | str) -> str:
    """The name of a year's one number in results.csv."""
    return "mean of average AUC and pAUC" if str(year) == "2020" else "official score"


def mean_name(year: int | str) -> str:
    """The name of a year's means in the column `section`."""
    return "arithmetic mean" if str(year) == "2020" else "harmonic mean"


def with_means(values: Mapping[Key, float], year: int | str, machines: Mapping[str, Iterable[str]]) -> dict[Key, float]:
    """The values, and the year's means that follow from them where they are not among them.

    Of each machine over its sections, of all machines, of both domains (2021), and the official score of each machine
    and of all. A mean is there only if all its parts are. All machines count alike: with as many sections each, the
    mean of their means is the official one.

    Args:
        values: fractions.
        year: 2020 to 2026.
        machines: the sections of each machine that 'all' is taken over.
    """
    name, score, year = mean_name(year), score_name(year), int(year)
    mean = np.mean if year == 2020 else metrics.harmonic_mean
    found = dict(values)
    for (machine, section, domain, metric), value in values.items():
        if machine != "all" and not section and metric in METRICS:  # the one section of the machine
            found[machine, name, "" if domain == "all" else domain, metric] = value

    def add(key: Key, parts: list[Key]) -> None:
        if key not in found and parts and all(part in found for part in parts):
            found[key] = float(mean([found[part] for part in parts]))

    for metric in METRICS:
        for domain in (*metrics.DOMAINS, ""):
            at = "all" if metric == "pAUC" and year > 2021 else domain
            for machine, own in machines.items():
                add((machine, name, domain, metric), [(machine, section, at, metric) for section in own])
            add(("all", name, domain, metric), [(machine, name, domain, metric) for machine in machines])
    for machine in (*machines, "all"):
        for metric in ("AUC", "pAUC") if year == 2021 else ():
            add((machine, name, "", metric), [(machine, name, domain, metric) for domain in metrics.DOMAINS])
        auc = [(machine, name, domain, "AUC") for domain in (metrics.DOMAINS if year > 2021 else ("",))]
        add((machine, "", "", score), [*auc, (machine, name, "", "pAUC")])
    add(("all", "", "", score), [(machine, "", "", score) for machine in machines])
    return found


def systems(year: int | str, part: str) -> list[System]:
    """Every published system of a year's part."""
    found: dict[str, list[Published]] = {}
    for row in of(year, part):
        found.setdefault(f"{row.source}: {row.system}", []).append(row)
    out = []
    for name, rows in found.items():
        values = {_key(row): row.value for row in rows}
        printed, notes = {_key(row): row.percent for row in rows}, {_key(row): row.notes for row in rows}
        out.append(System(name, with_means(values, year, sections(year, part)), printed, notes))
    return out


def own_systems(rows: Iterable[Any], year: int | str, machines: Mapping[str, Iterable[str]]) -> list[System]:
    """Every scorer of a run, with the means of its numbered members where it has several, and their ensemble.

    Args:
        rows: those of results.csv.
        year: 2020 to 2026.
        machines: the sections of each machine that 'all' is taken over.
    """
    found: dict[str, dict[str, dict]] = {}
    for row in rows:
        if row.member not in ("mean", "std"):
            found.setdefault(row.scorer, {}).setdefault(row.member, {})[row[2:6]] = row.value
    out = []
    for scorer, members in found.items():
        full = {member: with_means(values, year, machines) for member, values in members.items()}
        joint = full.pop(ENSEMBLE, None)
        first, *others = full.values()
        keys = [key for key in first if all(key in other for other in others)]
        label = f"{scorer}, mean of {len(full)} members" if others else scorer
        out.append(System(label, {key: float(np.mean([own[key] for own in full.values()])) for key in keys}, {}, {}))
        out += [System(f"{scorer}, {ENSEMBLE}", joint, {}, {})] if joint else []
    return out


def has_same_domain(systems: Iterable[System]) -> bool:
    """Whether a system's AUCs are of the normal and anomalous clips of one domain."""
    return any(key[3] == "AUC same-domain" for system in systems for key in system.values)


def has_all(system: System, domains: Iterable[str], metric: str, year: int | str) -> bool:
    """Whether a system has a metric, and no stand-in, of every machine of the year: its mean is there, in all domains.

    `domains` are those of the means: '' for a metric over both domains.
    """
    return all(("all", mean_name(year), domain, metric) in system.values for domain in domains)


def columns(year: int | str, systems: Iterable[System]) -> dict[str, tuple[str, str, str]]:
    """The means that the year's tables show, and AUCs of one domain where a system has them.

    Returns:
        title -> (machine, domain, metric).
    """
    score, domains = score_name(year), metrics.DOMAINS if str(year) != "2020" else ("",)
    found = {f"AUC\n{domain}".strip(): ("all", domain, "AUC") for domain in domains}
    found["pAUC"] = ("all", "", "pAUC")
    found["official\nscore" if score == "official score" else "mean\nof both"] = ("all", "", score)
    if has_same_domain(systems):
        found |= {f"same-domain\nAUC {domain}": ("all", domain, "AUC same-domain") for domain in domains}
    return found


def shown(system: System, machine: str, domain: str, metric: str, year: int | str) -> str:
    """A mean in percent: as printed where it is, '*' where it follows from that, in brackets a `STAND_IN`, else '-'."""
    for name, form in ((metric, "{}"), (STAND_IN.get(metric), "({})")):
        key = machine, "" if name == score_name(year) else mean_name(year), domain, name
        if key in system.printed:
            return form.format(system.printed[key])
        if key in system.values:
            return form.format(f"{100 * system.values[key]:.2f}" + "*" * bool(system.printed))
    return "-"


def notes_on(system: System, machine: str, domain: str, metric: str, year: int | str) -> tuple[str, ...]:
    """The notes on what is `shown`: its own where it is printed, else those that all of its parts share."""
    for name in (metric, STAND_IN.get(metric)):
        key = machine, "" if name == score_name(year) else mean_name(year), domain, name
        if key in system.notes:
            return system.notes[key]
        if key not in system.values:
            continue
        for parts in ((name,), ("AUC", "pAUC")):  # a score follows from scores of machines, or from AUCs and pAUCs
            found = [
                notes
                for (of, _, at, what), notes in system.notes.items()
                if of != "all" and machine in ("all", of) and domain in ("", at) and what in parts
            ]
            if found:
                return tuple(note for note in found[0] if all(note in notes for notes in found))
    return ()


def _rows(name: str) -> list[list[str]]:
    """The rows of a csv of this package, without its header."""
    text = resources.files("asdjax.results").joinpath(name).read_text(encoding="utf-8")
    return list(csv.reader(text.splitlines()))[1:]


def _key(row: Published) -> Key:
    """Where a number stands in tables: that of a machine's one section stands as the machine's mean."""
    if row.section or row.machine == "all" or row.metric not in METRICS:
        return row.machine, row.section, row.domain, row.metric
    return row.machine, mean_name(row.year), "" if row.domain == "all" else row.domain, row.metric
