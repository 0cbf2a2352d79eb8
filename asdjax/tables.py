"""Results as tables on the terminal, in the form of the reports, and what others have printed beside them."""

from __future__ import annotations

import re
import string
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from asdjax import metrics
from asdjax.core import UsageError
from asdjax.results import Result, published
from asdjax.scoretable import ENSEMBLE, RMS

_WIDTH = 140  # columns: the nine machines of 2024 need as many
_LEGEND = {
    "*": "* computed here from printed numbers",
    "(": "( ) not the official metric, not to be compared",
}


class _Line(NamedTuple):
    """Numbers of a scorer: of its one member, of the ensemble, or means over members with their std."""

    label: str
    values: Mapping[tuple, float]  # (machine, section, domain, metric) -> value
    std: Mapping[tuple, float]


def print_tables(rows: Iterable[Result], year: int | str, *, detail: Collection[str] = (), console: Any = None) -> None:
    """Prints a table per scorer in the form of the reports, then all of them in one; in percent.

    Of several members the tables show mean and std, and the last one the ensemble. No scorer is singled out: the choice
    between them must not be made by test labels.

    Args:
        rows: those of results.csv.
        year: for the title; the columns follow from the rows.
        detail: the scorers that get a table of their own; (): all.
        console: a rich Console; the terminal by default.
    """
    from rich.markup import escape

    console = console or _console(110)  # mean ± std need more than 80 columns
    systems: dict[str, dict[str, dict]] = {}
    for row in rows:
        systems.setdefault(escape(row.scorer), {}).setdefault(row.member, {})[row[2:6]] = row.value
    columns = _table_columns({key for members in systems.values() for values in members.values() for key in values})
    lines = {scorer: _lines(members) for scorer, members in systems.items()}
    named = {escape(scorer) for scorer in detail} or set(lines)
    for scorer, (first, *_) in lines.items():
        if scorer not in named:
            continue
        of = f"{scorer}, {year}" + (f": {first.label}" if first.std else "")
        console.print(_detail(f"{of}, in %", first, columns))
    if lines:
        console.print(_summary(f"all scorers, {year}: means over machines and sections, in %", lines, columns))


def print_published(rows: Iterable[Result], year: int | str, part: str, *, console: Any = None) -> None:
    """Prints a run's numbers beside the published ones of the same test clips: means, then machine by machine.

    The means only where the run is of exactly that year's machines and sections, else only the machines that it has
    whole; nothing where nothing is published. All scorers are shown, and all systems. The names do not tell whether the
    recordings are the challenge's: call it for those only.

    Args:
        rows: those of results.csv.
        year, part: of the test clips; part is 'dev' or 'eval'.
        console: a rich Console; the terminal by default.
    """
    rows, theirs = list(rows), published.systems(year, part)
    machines = {name: published.sections(year, part)[name] for name in published.complete(rows, year, part)}
    if not machines or not theirs:
        return
    console, own = console or _console(_WIDTH), published.own_systems(rows, year, machines)
    title, score = f"published, DCASE {year} {part}", published.score_name(year)
    per_machine = {name: (name, "", score) for name in machines}
    cells = []
    if published.comparable(rows, year, part):
        columns = published.columns(year, theirs)
        cells += _side_by_side(console, f"{title}: means over machines, in %", own, theirs, columns, year)
        per_machine["all"] = ("all", "", score)
    theirs = [system for system in theirs if any((name, "", "", score) in system.values for name in machines)]
    cells += _side_by_side(console, f"{title}: {score} of each machine, in %", own, theirs, per_machine, year)
    if cells:
        legend = [text for mark, text in _LEGEND.items() if any(mark in cell for cell in cells)]
        more = f"every printed number, and notes: python -m asdjax.results published --year {year} --part {part}"
        console.print("\n".join([*legend, more]), markup=False, highlight=False, soft_wrap=True)


def print_published_tables(year: int | str, part: str | None = None, *, console: Any = None) -> None:
    """Prints what is published of a year: the means of all systems, then every printed number, then the notes.

    Args:
        year: 2020 to 2025.
        part: 'dev' or 'eval'; both by default.
        console: a rich Console; the terminal by default.

    Raises:
        UsageError: nothing is published of that; the message lists what there is.
    """
    parts = [each for each in ("dev", "eval") if part in (None, each) and published.of(year, each)]
    if not parts:
        there = ", ".join(dict.fromkeys(f"{row.year} {row.part}" for row in published.read()))
        raise UsageError(f"published tables: found {year} {part or ''}".rstrip() + f"; there is: {there}")
    console = console or _console(_WIDTH)
    for each in parts:
        _print_part(console, year, each)


def _console(least: int) -> Any:
    from rich.console import Console

    console = Console()
    if not console.is_terminal:  # else a file would get 80 columns
        console.width = max(console.width, least)
    return console


def _lines(members: Mapping[str, Mapping]) -> list[_Line]:
    """What the tables show of a scorer, the line of its own table first."""
    if "mean" not in members:
        return [_Line("", values, {}) for values in members.values()]
    numbered = members.keys() - {"mean", "std", ENSEMBLE}
    mean = _Line(f"mean ± std of {len(numbered)} members", members["mean"], members["std"])
    return [mean] + [_Line(f"{ENSEMBLE} ± 95 %", members[ENSEMBLE], {})] * (ENSEMBLE in members)


def _table_columns(keys: set[tuple]) -> list[tuple[str, str]]:
    """(metric, domain) of the columns that fit the rows' year; domain '' is all clips, or the mean over both."""
    given = {(metric, domain) for _, _, domain, metric in keys}
    columns = []
    for metric in ("AUC", "pAUC", f"{RMS} AUC"):
        split = [(metric, domain) for domain in metrics.DOMAINS if (metric, domain) in given]
        columns += split or [(metric, "")]
    return columns


def _mean(columns: list[tuple[str, str]]) -> tuple[str, str]:
    """The section name of the mean that the year's tables show, and its short form."""
    by_domain = any(domain for _, domain in columns)
    return ("harmonic mean", "h. mean") if by_domain else ("arithmetic mean", "average")


def _detail(title: str, line: _Line, columns: list[tuple[str, str]]) -> Any:
    """The table of one scorer: its sections, the mean of each machine with several, the mean of all."""
    mean, label = _mean(columns)
    table = _new_table(title, ("machine", "section"), columns)

    def add(machine, section, label):
        table.add_row(machine, label, *(_cell(line, machine, section, *column) for column in columns))

    for machine in dict.fromkeys(key[0] for key in line.values if key[0] != "all"):
        sections = dict.fromkeys(key[1] for key in line.values if key[0] == machine and not key[1].endswith(" mean"))
        for section in sections:
            add(machine, section, section)
        if len(sections) > 1:
            add(machine, mean, label)
            table.add_section()
    table.add_section()
    add("all", mean, label)
    return table


def _summary(title: str, lines: Mapping[str, list[_Line]], columns: list[tuple[str, str]]) -> Any:
    """The table of all scorers: means over machines and sections, official score with its bootstrap interval."""
    mean, label = _mean(columns)
    columns = [column for column in columns if column[0] == "AUC"] + [("pAUC", ""), (f"{RMS} AUC", "")]
    score = "mean of average AUC and pAUC" if label == "average" else "official score"
    several = any(own[0].std for own in lines.values())  # then each row says what its ± is
    table = _new_table(title, ("scorer",), columns)
    last = "mean of both" if label == "average" else "official score"
    table.add_column(last if several else f"{last}\n± 95 %", justify="right")
    for scorer, own in lines.items():
        if own[0].std:
            table.add_row(scorer)
        for line in own:
            omega, width = _percent(line.values, "all", "", score, ""), _percent(line.std, "all", "", score, "")
            if not line.std:
                width = _percent(line.values, "all", "", f"{score} bootstrap95", "")
            name = f"  {line.label}" if line.label else scorer
            table.add_row(name, *(_cell(line, "all", mean, *column) for column in columns), f"{omega} ± {width}")
    return table


def _new_table(title: str, names: tuple[str, ...], columns: list[tuple[str, str]]) -> Any:
    from rich import box
    from rich.table import Table

    table = Table(title=title, title_justify="left", box=box.SIMPLE_HEAD, pad_edge=False)
    for name in names:
        table.add_column(name, overflow="fold")
    for metric, domain in columns:
        first, _, second = metric.partition(" ")  # 'rms-only AUC' takes two lines
        table.add_column(f"{first}\n{domain or second}".strip(), justify="right")
    return table


def _cell(line: _Line, machine: str, section: str, metric: str, domain: str) -> str:
    value, std = (_percent(values, machine, section, metric, domain) for values in (line.values, line.std))
    return value if std == "-" else f"{value} ±{std}"


def _percent(values: Mapping[tuple, float], machine: str, section: str, metric: str, domain: str) -> str:
    for where in (domain,) if domain else ("", "all"):
        if (machine, section, where, metric) in values:
            return f"{100 * values[machine, section, where, metric]:.2f}"
    return "-"


def _side_by_side(
    console: Any,
    title: str,
    own: Sequence[published.System],
    theirs: Sequence[published.System],
    columns: Mapping[str, tuple[str, str, str]],
    year: int | str,
) -> list[str]:
    """Prints a run's systems above the published ones and returns the latter's cells; nothing without any."""
    from rich.markup import escape

    def filled(systems):
        lines = [
            (system.name, [published.shown(system, *column, year) for column in columns.values()]) for system in systems
        ]
        return [(name, cells) for name, cells in lines if set(cells) != {"-"}]

    if not filled(theirs):
        return []
    table = _plain_table(title, ["system"], columns)
    for name, cells in filled(own):
        table.add_row(escape(f"this run: {name}"), *cells)
    table.add_section()
    for name, cells in filled(theirs):
        table.add_row(escape(name), *cells)
    console.print(table)
    return [cell for _, cells in filled(theirs) for cell in cells]


def _plain_table(title: str, names: Sequence[str], columns: Iterable[str]) -> Any:
    """A table with these columns, names of machines on two lines where they are of two words."""
    table = _new_table(title, tuple(names), [])
    for name in columns:
        table.add_column(re.sub("(?<=[a-z])(?=[A-Z][a-z])", "\n", name), justify="right", overflow="fold")
    return table


def _print_part(console: Any, year: int | str, part: str) -> None:
    """Prints everything that is published of one part of a year."""
    title, systems = f"DCASE {year} {part}", published.systems(year, part)
    columns = published.columns(year, systems)
    cells = _side_by_side(console, f"{title}: means over machines, in %", [], systems, columns, year)
    texts = dict.fromkeys(text for system in systems for notes in system.notes.values() for text in notes)
    letters = dict(zip(texts, string.ascii_letters, strict=False))
    keys = [key for system in systems for key in system.printed if key[0] != "all"]
    for metric, domain in dict.fromkeys((metric, domain.replace("all", "")) for _, _, domain, metric in keys):
        name = f"{title}: {metric} {domain}".rstrip() + ", in %"
        console.print(_listing(name, systems, published.sections(year, part), (metric, domain), letters))
    legend = [text for mark, text in _LEGEND.items() if any(mark in cell for cell in cells)]
    legend += [f"{letter} {text}" for text, letter in letters.items()]
    console.print("\n".join(legend) + "\n", markup=False, highlight=False)


def _listing(
    title: str,
    systems: Sequence[published.System],
    machines: Iterable[str],
    column: tuple[str, str],
    letters: Mapping[str, str],
) -> Any:
    """The table of every printed number of one (metric, domain), with the letters of its notes."""
    from rich.markup import escape

    def marks(notes):
        return f" {''.join(letter for text, letter in letters.items() if text in notes)}".rstrip()

    found = [{key[:2]: key for key in s.printed if (key[3], key[2].replace("all", "")) == column} for s in systems]
    known = {machine for where in found for machine, _ in where}
    shown = [machine for machine in (*machines, "all") if machine in known]
    several = len({section for where in found for _, section in where}) > 1
    table = _plain_table(title, ["system", "section"] if several else ["system"], shown)
    for system, where in zip(systems, found, strict=True):
        for section in sorted({section for _, section in where}, key=lambda name: (not name.isdigit(), name)):
            keys = [where.get((machine, section)) for machine in shown]
            common = set.intersection(*(set(system.notes[key]) for key in keys if key))
            cells = [system.printed[key] + marks(set(system.notes[key]) - common) if key else "-" for key in keys]
            table.add_row(escape(system.name) + marks(common), *[section] * several, *cells)
    return table
