"""Results as tables on the terminal, in the form of the reports."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from asdjax import metrics
from asdjax.results import Result, published
from asdjax.scoretable import ENSEMBLE, RMS


class _Line(NamedTuple):
    """Numbers of a scorer: of its one member, of the ensemble, or means over members with their std."""

    label: str
    values: Mapping[tuple, float]  # (machine, section, domain, metric) -> value
    std: Mapping[tuple, float]


def print_tables(rows: Iterable[Result], year: int | str, *, detail: Collection[str] = (), console: Any = None) -> None:
    """Prints a table per scorer in the form of the reports, then all of them in one, then by machine; in percent.

    Of several members the tables show mean and std, and the last ones the ensemble. No scorer is singled out: the
    choice between them must not be made by test labels.

    Args:
        rows: those of results.csv.
        year: for the title; the columns follow from the rows, none is empty.
        detail: the scorers that get a table of their own; (): all.
        console: a rich Console; the terminal by default.
    """
    from rich.markup import escape

    console = console or console_of(110)  # mean ± std need more than 80 columns
    systems: dict[str, dict[str, dict]] = {}
    for row in rows:
        systems.setdefault(escape(row.scorer), {}).setdefault(row.member, {})[row[2:6]] = row.value
    columns = _table_columns({key for members in systems.values() for values in members.values() for key in values})
    rules = year if str(year) != "plain" else 2025 if any(domain for _, domain in columns) else 2020
    lines = {scorer: _lines(members) for scorer, members in systems.items()}
    named = {escape(scorer) for scorer in detail} or set(lines)
    for scorer, (first, *_) in lines.items():
        if scorer not in named:
            continue
        of = f"{scorer}, {year}" + (f": {first.label}" if first.std else "")
        show(console, _detail(f"{of}, in %", first, columns))
    if lines:
        show(console, _summary(f"all scorers, {year}: means over machines and sections, in %", lines, columns))
    if len(lines) > 1:
        score = published.score_name(rules)
        _print_machine_scores(console, f"all scorers, {year}: {score} of each machine, in %", lines, score)


def console_of(least: int) -> Any:
    """A rich Console of the terminal, or of at least so many columns where there is none."""
    from rich.console import Console

    console = Console()
    if not console.is_terminal:  # else a file would get 80 columns
        console.width = max(console.width, least)
    return console


def show(console: Any, table: Any) -> None:
    """Prints a table; where it goes to a file, without blanks at the ends of lines."""
    title, table.title = table.title, None  # which rich would break at the width of the table
    with contextlib.nullcontext() if console.is_terminal else console.capture() as captured:
        console.print(title, style="table.title", highlight=False)
        console.print(table)
    if captured:
        console.file.write("\n".join(line.rstrip() for line in captured.get().split("\n")))


def show_parts(console: Any, table_of: Callable[[Sequence[str]], Any], columns: Sequence[str]) -> None:
    """Prints the table of the columns; where the console is too narrow, several of as many columns as it holds."""
    unlimited = console.options.update(width=10_000)
    while columns:
        sizes = range(len(columns), 1, -1)
        fits = (n for n in sizes if console.measure(table_of(columns[:n]), options=unlimited).maximum <= console.width)
        n = next(fits, 1)
        show(console, table_of(columns[:n]))
        columns = columns[n:]


def _lines(members: Mapping[str, Mapping]) -> list[_Line]:
    """What the tables show of a scorer, the line of its own table first."""
    if "mean" not in members:
        return [_Line("", values, {}) for values in members.values()]
    numbered = members.keys() - {"mean", "std", ENSEMBLE}
    mean = _Line(f"mean ± std of {len(numbered)} members", members["mean"], members["std"])
    return [mean] + [_Line(f"{ENSEMBLE} ± 95 %", members[name], {}) for name in members if name == ENSEMBLE]


def _table_columns(keys: set[tuple]) -> list[tuple[str, str]]:
    """(metric, domain) of the columns that fit the rows' year; domain '' is all clips, or the mean over both."""
    given = {(metric, domain) for _, section, domain, metric in keys if not section.endswith(" mean")}
    columns = []
    for metric in ("AUC", "pAUC", f"{RMS} AUC"):
        split = [(metric, domain) for domain in metrics.DOMAINS if (metric, domain) in given]
        columns += split or [(metric, "")] * any(metric == name for name, _ in given)
    return columns


def _mean(columns: list[tuple[str, str]]) -> tuple[str, str]:
    """The section name of the mean that the year's tables show, and its short form."""
    by_domain = any(domain for _, domain in columns)
    return ("harmonic mean", "h. mean") if by_domain else ("arithmetic mean", "average")


def _detail(title: str, line: _Line, columns: list[tuple[str, str]]) -> Any:
    """The table of one scorer: its sections, the mean of each machine with several, the mean of all."""
    mean, label = _mean(columns)
    table = new_table(title, ("machine", "section"), columns)

    def add(machine, section, label):
        table.add_row(machine, label, *(_cell(line, machine, section, *column) for column in columns))

    for machine in dict.fromkeys(key[0] for key in line.values if key[0] != "all"):
        own = [key for key in line.values if key[0] == machine and key[3] in ("AUC", "pAUC", f"{RMS} AUC")]
        sections = dict.fromkeys(section for _, section, *_ in own if not section.endswith(" mean"))
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
    shown = [line for own in lines.values() for line in own]
    columns = [column for column in columns if any(_cell(line, "all", mean, *column) != "-" for line in shown)]
    score = "mean of average AUC and pAUC" if label == "average" else "official score"
    several = any(own[0].std for own in lines.values())  # then each row says what its ± is
    table = new_table(title, ("scorer",), columns)
    last = "mean of both" if label == "average" else "official score"
    table.add_column(last if several else f"{last}\n± 95 %", justify="right")
    machines = {s: {key[0] for key in own[0].values if key[3] == "AUC"} - {"all"} for s, own in lines.items()}
    most = max(map(len, machines.values()))
    for scorer, own in lines.items():
        few = len(machines[scorer])
        scorer = scorer if few == most else f"{scorer} ({few} of {most} machines)"
        if own[0].std:
            table.add_row(scorer)
        for line in own:
            omega, width = _percent(line.values, "all", "", score, ""), _percent(line.std, "all", "", score, "")
            if not line.std:
                width = _percent(line.values, "all", "", f"{score} bootstrap95", "")
            name = f"  {line.label}" if line.label else scorer
            table.add_row(name, *(_cell(line, "all", mean, *column) for column in columns), f"{omega} ± {width}")
    return table


def _print_machine_scores(console: Any, title: str, lines: Mapping[str, list[_Line]], score: str) -> None:
    """Prints the score of each machine by each scorer, where there are several machines and a score of one."""
    keys = {key for own in lines.values() for line in own for key in line.values}
    machines = sorted({machine for machine, *_ in keys} - {"all"})

    def table_of(machines):
        table = machine_table(title, ("scorer",), machines)
        for scorer, own in lines.items():
            if own[0].std:
                table.add_row(scorer)
            for line in own:
                name = f"  {line.label.removesuffix(' ± 95 %')}" if line.label else scorer
                table.add_row(name, *(_cell(line, machine, "", score, "") for machine in machines))
        return table

    if len(machines) > 1 and any((machine, "", "", score) in keys for machine in machines):
        show_parts(console, table_of, machines)


def machine_table(title: str, names: tuple[str, ...], machines: Iterable[str]) -> Any:
    """An empty table with a column for each machine, whose name is on two lines where it is of two words."""
    from rich.markup import escape

    table = new_table(title, names, [])
    for name in machines:
        table.add_column(escape(re.sub("(?<=[a-z])(?=[A-Z][a-z])", "\n", name)), justify="right", overflow="fold")
    return table


def new_table(title: str, names: tuple[str, ...], columns: list[tuple[str, str]]) -> Any:
    """An empty table with columns of names, then one for each (metric, domain)."""
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
