"""Results as tables on the terminal, in the form of the reports."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from asdjax import metrics
from asdjax.results import RMS, Result


def print_tables(rows: Iterable[Result], year: int | str, *, console: Any = None) -> None:
    """Prints a table per scorer and member in the form of the reports, then all of them in one; in percent.

    No scorer is singled out: the choice between them must not be made by test labels.

    Args:
        rows: those of results.csv.
        year: for the title; the columns follow from the rows.
        console: a rich Console; the terminal by default.
    """
    from rich.console import Console
    from rich.markup import escape

    console = console or Console()
    systems: dict[tuple[str, int], dict] = {}
    for row in rows:
        systems.setdefault(row[:2], {})[row[2:6]] = row.value
    columns = _table_columns({key for values in systems.values() for key in values})
    several = len({member for _, member in systems}) > 1
    named = {escape(f"{key[0]} member {key[1]}" if several else key[0]): values for key, values in systems.items()}
    for name, values in named.items():
        console.print(_detail(f"{name}, {year}, in %", values, columns))
    if named:
        console.print(_summary(f"all scorers, {year}: means over machines and sections, in %", named, columns))


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


def _detail(title: str, values: Mapping[tuple, float], columns: list[tuple[str, str]]) -> Any:
    """The table of one scorer: its sections, the mean of each machine with several, the mean of all."""
    mean, label = _mean(columns)
    table = _new_table(title, ("machine", "section"), columns)

    def add(machine, section, label):
        table.add_row(machine, label, *(_percent(values, machine, section, *column) for column in columns))

    for machine in dict.fromkeys(key[0] for key in values if key[0] != "all"):
        sections = dict.fromkeys(key[1] for key in values if key[0] == machine and not key[1].endswith(" mean"))
        for section in sections:
            add(machine, section, section)
        if len(sections) > 1:
            add(machine, mean, label)
            table.add_section()
    table.add_section()
    add("all", mean, label)
    return table


def _summary(title: str, named: Mapping[str, Mapping], columns: list[tuple[str, str]]) -> Any:
    """The table of all scorers: means over machines and sections, official score with its bootstrap interval."""
    mean, label = _mean(columns)
    columns = [column for column in columns if column[0] == "AUC"] + [("pAUC", ""), (f"{RMS} AUC", "")]
    score = "mean of average AUC and pAUC" if label == "average" else "official score"
    table = _new_table(title, ("scorer",), columns)
    table.add_column("mean of both\n± 95 %" if label == "average" else "official score\n± 95 %", justify="right")
    for name, values in named.items():
        omega, width = (_percent(values, "all", "", metric, "") for metric in (score, f"{score} bootstrap95"))
        table.add_row(name, *(_percent(values, "all", mean, *column) for column in columns), f"{omega} ± {width}")
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


def _percent(values: Mapping[tuple, float], machine: str, section: str, metric: str, domain: str) -> str:
    for where in (domain,) if domain else ("", "all"):
        if (machine, section, where, metric) in values:
            return f"{100 * values[machine, section, where, metric]:.2f}"
    return "-"
