"""Published numbers as tables on the terminal, alone and beside those of a run."""

from __future__ import annotations

import string
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from asdjax import metrics
from asdjax.core import UsageError
from asdjax.results import Result, published
from asdjax.tables import console_of, machine_table, show, show_parts

CLIPS_OF_SECTION = dict.fromkeys(("2022", "2023", "2024", "2025"), 200)  # test clips, in every section
_WIDTH = 150  # columns: the nine machines of 2024 need as many
_LEGEND = {
    "*": "* computed here from printed numbers",
    "(": "( ) not the official metric, not to be compared",
}


def print_published(
    rows: Iterable[Result], year: int | str, part: str, clips: Mapping[str, int], *, console: Any = None
) -> None:
    """Prints a run's numbers beside the published ones of the same test clips: means, AUCs and scores by machine.

    The means only where the run is of exactly that year's machines and sections, else only the machines that it has
    whole; nothing where nothing is published. Where a report reads AUC in its own way, the run's AUC of that reading
    stands beside it. All of the given scorers are shown, and all systems. Names alone do not tell whether the
    recordings are the challenge's: a line says where their number does not fit.

    Args:
        rows: those of results.csv.
        year, part: of the test clips; part is 'dev' or 'eval'.
        clips: the number of test clips of each machine.
        console: a rich Console; the terminal by default.
    """
    rows, theirs = list(rows), published.systems(year, part)
    machines = {name: published.sections(year, part)[name] for name in published.complete(rows, year, part)}
    if not machines or not theirs:
        return
    console, own = console or console_of(_WIDTH), _own(rows, year, part, machines)
    title, shown, cells = f"published, DCASE {year} {part}", list(machines), []
    if published.comparable(rows, year, part):
        columns = published.columns(year, theirs)
        cells += _side_by_side(console, f"{title}: means over machines, in %", own, theirs, {"": columns}, year, {})
        shown += ["all"]
    for name, lines, some in _by_machine(theirs, shown, year):
        cells += _side_by_side(console, f"{title}: {name}, in %", own, some, lines, year, {})
    if cells:
        legend = [text for mark, text in _LEGEND.items() if any(mark in cell for cell in cells)]
        if str(year) in CLIPS_OF_SECTION:
            wanted = {name: CLIPS_OF_SECTION[str(year)] * len(sections) for name, sections in machines.items()}
            odd = [f"{name} ({clips[name]} of {n})" for name, n in wanted.items() if clips[name] != n]
            legend += ["not the challenge's test clips, not to be compared: " + ", ".join(odd)] * bool(odd)
        more = f"every printed number, and notes: python -m asdjax.results published --year {year} --part {part} --all"
        console.print("\n".join([*legend, more]), markup=False, highlight=False, soft_wrap=True)


def print_published_tables(
    year: int | str, part: str | None = None, *, whole: bool = False, console: Any = None
) -> None:
    """Prints what is published of a year: the means of all systems with the notes on them.

    Args:
        year: one of `published.years()`.
        part: 'dev' or 'eval'; both by default.
        whole: every printed number too, and all notes.
        console: a rich Console; the terminal by default.

    Raises:
        UsageError: nothing is published of that; the message lists what there is.
    """
    parts = [each for each in ("dev", "eval") if part in (None, each) and published.of(year, each)]
    if not parts:
        there = ", ".join(dict.fromkeys(f"{row.year} {row.part}" for row in published.read()))
        raise UsageError(f"published tables: found {year} {part or ''}".rstrip() + f"; there is: {there}")
    console = console or console_of(_WIDTH)
    for each in parts:
        _print_part(console, year, each, whole)
    if not whole:
        flags = f"--year {year}" + f" --part {part}" * bool(part)
        more = f"every printed number, and all notes: python -m asdjax.results published {flags} --all"
        console.print(more, markup=False, highlight=False, soft_wrap=True)


def _own(rows: Sequence[Result], year: int | str, part: str, machines: Mapping) -> list[published.System]:
    """The run's systems, without a mean over all machines where a scorer is of a part of them only."""
    of: dict[str, list[Result]] = {}
    for row in rows:
        of.setdefault(row.scorer, []).append(row)
    whole = {scorer for scorer, own in of.items() if published.complete(own, year, part) == list(machines)}
    return published.own_systems((r for r in rows if r.machine != "all" or r.scorer in whole), year, machines)


def _by_machine(
    theirs: Sequence[published.System], shown: Sequence[str], year: int | str
) -> Iterator[tuple[str, dict[str, dict[str, tuple[str, str, str]]], list[published.System]]]:
    """(name, lines, published systems) of the tables with a column for each of `shown`, machines and 'all'."""
    as_read = ("AUC same-domain", "pAUC") if published.has_same_domain(theirs) else ()
    for metric in (*("AUC",) * (str(year) != "2020"), *as_read, published.score_name(year)):
        domains = metrics.DOMAINS if metric.startswith("AUC") else ("",)
        lines = {domain: {name: (name, domain, metric) for name in shown} for domain in domains}
        reading = f" ({published.READINGS[metric]})" if metric in published.READINGS else ""
        if metric in as_read:  # no stand-ins: a table of one reading
            some = [system for system in theirs if published.has_all(system, domains, metric, year)]
        else:
            some = [system for system in theirs if _has_machine(system, lines, set(shown) - {"all"}, year)]
        yield f"{metric} of each machine{reading}", lines, some


def _has_machine(
    system: published.System, lines: Mapping[str, Mapping[str, tuple]], machines: Iterable[str], year: int | str
) -> bool:
    """Whether a system has all lines of a machine; a single corrected number of a reprint is none."""
    return any(
        all(published.shown(system, *columns[name], year) != "-" for columns in lines.values()) for name in machines
    )


def _side_by_side(
    console: Any,
    title: str,
    own: Sequence[published.System],
    theirs: Sequence[published.System],
    lines: Mapping[str, Mapping[str, tuple[str, str, str]]],
    year: int | str,
    letters: Mapping[str, str],
) -> list[str]:
    """Prints a run's systems above the published ones and returns the latter's cells; nothing without any.

    `lines` are those of each system, {domain: {title of the column: (machine, domain, metric)}}.
    """
    names = ["system", "domain"] if len(lines) > 1 else ["system"]

    def filled(systems, form):
        rows = []
        for system in systems:
            name = form.format(system.name)
            for label, columns in lines.items():
                cells = [published.shown(system, *column, year) for column in columns.values()]
                if set(cells) != {"-"}:
                    notes = [published.notes_on(system, *column, year) for column in columns.values()]
                    rows.append(_marked(name, [label] * (len(names) - 1), cells, notes, letters))
                    name = ""  # once for all of its lines
        return rows

    above, below = filled(own, "this run: {}"), filled(theirs, "{}")
    if not below:
        return []
    titles = list(next(iter(lines.values())))

    def table_of(columns):
        table = machine_table(title, tuple(names), columns)
        at = [*range(len(names)), *(len(names) + titles.index(column) for column in columns)]
        for rows in (above, below):
            for row in rows:
                table.add_row(*(row[i] for i in at))
            table.add_section()
        return table

    show_parts(console, table_of, titles)
    return [cell for row in below for cell in row[len(names) :]]


def _marked(
    name: str, names: Sequence[str], cells: Sequence[str], notes: Sequence[Sequence[str]], letters: Mapping[str, str]
) -> list[str]:
    """A row of a table, with the letters of notes: beside the system's name of those that all its numbers share."""
    from rich.markup import escape

    def marks(found):
        return f" {''.join(letter for text, letter in letters.items() if text in found)}".rstrip()

    common = set.intersection(*(set(own) for cell, own in zip(cells, notes, strict=True) if cell != "-"))
    marked = [cell + marks(set(own) - common) for cell, own in zip(cells, notes, strict=True)]
    return [escape(name) + marks(common), *names, *marked]


def _print_part(console: Any, year: int | str, part: str, whole: bool) -> None:
    """Prints the means that are published of one part of a year, or the whole, with the notes on what is shown."""
    title, systems = f"DCASE {year} {part}", published.systems(year, part)
    columns = published.columns(year, systems)
    on = [published.notes_on(system, *column, year) for system in systems for column in columns.values()]
    on += [notes for system in systems for notes in system.notes.values()] if whole else []
    letters = dict(zip(dict.fromkeys(text for notes in on for text in notes), string.ascii_letters, strict=False))
    cells = _side_by_side(console, f"{title}: means over machines, in %", [], systems, {"": columns}, year, letters)
    keys = [key for system in systems for key in system.printed if whole and key[0] != "all"]
    for metric, domain in dict.fromkeys((metric, domain.replace("all", "")) for _, _, domain, metric in keys):
        name = f"{title}: {metric} {domain}".rstrip() + ", in %"
        show(console, _listing(name, systems, published.sections(year, part), (metric, domain), letters))
    legend = [text for mark, text in _LEGEND.items() if any(mark in cell for cell in cells)]
    legend += [f"{letter} {text}" for text, letter in letters.items()]
    console.print("\n".join(legend) + "\n", markup=False, highlight=False, soft_wrap=True)


def _listing(
    title: str,
    systems: Sequence[published.System],
    machines: Iterable[str],
    column: tuple[str, str],
    letters: Mapping[str, str],
) -> Any:
    """The table of every printed number of one (metric, domain), with the letters of its notes."""
    found = [{key[:2]: key for key in s.printed if (key[3], key[2].replace("all", "")) == column} for s in systems]
    known = {machine for where in found for machine, _ in where}
    shown = [machine for machine in (*machines, "all") if machine in known]
    several = len({section for where in found for _, section in where}) > 1
    table = machine_table(title, ("system", "section") if several else ("system",), shown)
    for system, where in zip(systems, found, strict=True):
        for section in sorted({section for _, section in where}, key=lambda name: (not name.isdigit(), name)):
            keys = [where.get((machine, section)) for machine in shown]
            cells = [system.printed.get(key, "-") for key in keys]
            notes = [system.notes.get(key, ()) for key in keys]
            table.add_row(*_marked(system.name, [section] * several, cells, notes, letters))
    return table
