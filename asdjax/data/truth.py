"""The labels and domains of evaluation clips, as the organisers publish them after a challenge.

FOLDER/ground_truth_{data,domain,attributes}/ground_truth_MACHINE_section_NN_test.csv, or an eval_data_list csv
"""

from __future__ import annotations

import logging
import re
from collections.abc import Set
from pathlib import Path
from typing import NamedTuple

from asdjax.core import InputError
from asdjax.data.names import ID_HIDDEN, SECTION_DOMAIN, YEARS, Year, csv_rows, stem, year_of


class Truth(NamedTuple):
    """What the organisers say of one evaluation clip.

    Attributes:
        section: as in its name, e.g. '03' (2020: the machine id).
        is_anomaly: 0 normal, 1 anomaly.
        domain: 'source' or 'target', '' in 2020.
        where: 'FILE line 3', the row that says so.
        renamed: the labelled stem that was published for it, '' where none was.
    """

    section: str
    is_anomaly: int
    domain: str
    where: str
    renamed: str


Key = tuple[str, str, str]  # machine, section, and the domain where the names of hidden clips give it, else ''

KINDS = ("data", "domain", "attributes")
FORMS = {("id", ""): "2020", ("section", "_{source|target}"): "2021", ("section", ""): "2022 and later"}
WRONG = "its rows of ToyCar and ToyTrain give wrong labels and domains"
NAMED_WRONG = (
    "evaluation clips of ToyCar and ToyTrain of 2022 that were renamed by the official list, which gives wrong labels "
    "and domains; expected their first names, section_NN_NNNN.wav, and the evaluator's ground_truth_... folders"
)


def is_named_wrong(machine: str, section: str, year: int | str) -> bool:
    """Whether a labelled name of a test clip can only come from the official list of 2022, where it is wrong."""
    return str(year) == "2022" and machine in ("ToyCar", "ToyTrain") and section in ("03", "04", "05")


def read(path: str | Path, year: int | str, *, only: Set[Key] | None = None) -> dict[tuple[str, str], Truth]:
    """What is published of the evaluation clips.

    Args:
        path: a folder with the official evaluator's ground_truth_data/ and, from 2022 on, ground_truth_domain/ (or its
            ground_truth_data/ itself), or with an official eval_data_list csv; or such a csv. 2022 has no csv that
            serves: labels and domains of its ToyCar and ToyTrain are wrong there.
        year: 2020 to 2026.
        only: the (machine, section, domain in the names of its clips) to read; of folders no other file is opened.

    Returns:
        (machine, stem of the hidden file name) -> its truth.

    Raises:
        UsageError: an unknown year. InputError: another year's folder, a missing or damaged file, a wrong row.
    """
    rules, path = year_of(year), Path(path).expanduser()
    if path.name == "ground_truth_data":
        path = path.parent
    try:
        lists = [path] if path.is_file() else [path / f"eval_data_list{ending}.csv" for ending in (f"_{year}", "")]
        lists = [p for p in lists if p.is_file()]
        if "data" in rules.truth and (path / "ground_truth_data").is_dir():
            if lists and str(year) == "2022":
                logging.warning("%s is not used: %s, the folders ground_truth_... beside it do not", lists[0], WRONG)
            truth, source = _of_folders(path, rules, year, only), path / "ground_truth_data"
        elif "list" in rules.truth and lists:
            truth, source = _of_list(lists[0], rules, year, only), lists[0]
        else:
            raise InputError(_unserved(path, lists, rules, year))
    except OSError as error:
        raise InputError(f"{error.filename or path}: cannot be read ({error.strerror})") from error
    if only is None:
        _check_machines(source, {machine for machine, _ in truth}, rules, year)
    return truth


def _unserved(path: Path, lists: list[Path], rules: Year, year: int | str) -> str:
    """Why a path gives no labels of a year, and what to give instead."""
    folders = " and ".join(f"ground_truth_{kind}/" for kind in rules.truth if kind in ("data", "domain"))
    folders = folders and f"a folder with the official evaluator's {folders}"
    wanted = " or ".join(filter(None, (folders, "an eval_data_list csv" * ("list" in rules.truth))))
    wanted = wanted or "none: in plain data sets the names are the labels"
    why = "" if path.exists() else "nothing is there; "
    if lists and str(year) == "2022":
        why = f"{WRONG}; "
    return f"ground truth: {lists[0] if lists else path} does not serve {year}: {why}expected {wanted}"


def _check_machines(source: Path, machines: set[str], rules: Year, year: int | str) -> None:
    """Names are alike since 2022: only the machines tell the years apart. Machines of no year are the user's own."""
    if not machines:
        raise InputError(f"{source}: says nothing of any clip, expected the labels of the evaluation clips of {year}")
    others = [y for y, r in YEARS.items() if machines <= set(r.additional) and r.hidden == rules.hidden]
    if others and not machines & {*rules.dev, *rules.additional}:
        raise InputError(
            f"{source}: found {', '.join(sorted(machines))}, which are machines of {others[0]}, "
            f"expected those of {year}: {', '.join(rules.additional)}"
        )


# ---------------------------------------------------------------- folders


def _of_folders(path: Path, rules: Year, year: int | str, only: Set[Key] | None) -> dict[tuple[str, str], Truth]:
    """The csvs `ground_truth_MACHINE_section_NN[_DOMAIN]_test.csv` (2020: id for section) of each kind's folder."""
    data, domain = path / "ground_truth_data", path / "ground_truth_domain"
    wanted = only
    if only is None or not all((data / _file(key, rules)).is_file() for key in only):
        there = _keys(data, rules, year)  # may find why a file is missing: it is another year's folder
        wanted = there if only is None else only
        if only is None and "domain" in rules.truth and domain.is_dir():
            for odd in sorted(_keys(domain, rules, year) - there):
                raise InputError(f"{data / _file(odd, rules)}: not there, expected one as in {domain.name}/")
    truth = {}
    for key in sorted(wanted):
        truth |= _of_section(path, key, rules)
    return truth


def _of_section(path: Path, key: Key, rules: Year) -> dict[tuple[str, str], Truth]:
    """The csvs of one machine's section, joined by name: their rows are sorted differently."""
    data, domain, attributes = (path / f"ground_truth_{kind}" / _file(key, rules) for kind in KINDS)
    labels = _flags(data, key, rules)
    domains = _flags(domain, key, rules) if "domain" in rules.truth else {}
    if "domain" in rules.truth and (odd := sorted(labels.keys() ^ domains.keys())):
        has, lacks = (data, domain) if odd[0] in labels else (domain, data)
        raise InputError(f"{lacks}: no row for {odd[0]}.wav, expected one as in {has.parent.name}/")
    truth = {}
    for name, (flag, where) in labels.items():
        of = ("source", "target")[domains[name][0]] if domains else key[2]
        truth[key[0], name] = Truth(key[1], flag, of, where, "")
    if "attributes" in rules.truth and attributes.is_file():
        truth |= _renamed(attributes, key[0], truth, rules)
    return truth


def _form(rules: Year) -> tuple[str, str]:
    """What names of ground-truth csvs have in a year: the word for a section, and the domain after it or ''."""
    return "id" if rules.hidden is ID_HIDDEN else "section", "_{source|target}" * (rules.hidden is SECTION_DOMAIN)


def _file(key: Key, rules: Year) -> str:
    """The csv of a machine's section."""
    machine, section, domain = key
    return f"ground_truth_{machine}_{_form(rules)[0]}_{section}{domain and f'_{domain}'}_test.csv"


def _keys(folder: Path, rules: Year, year: int | str) -> set[Key]:
    """The machines and sections that a folder of ground truth has csvs for."""
    files = sorted(p for p in folder.iterdir() if p.suffix.lower() == ".csv" and not p.name.startswith("."))
    word, domain = _form(rules)
    expected = f"ground_truth_MACHINE_{word}_NN{domain}_test.csv"
    keys = set()
    for file in files:
        form = "ground_truth_([^_]+)_(id|section)_([0-9]{2})(?:_(source|target))?_test.csv"
        match = re.fullmatch(form, file.name)
        found = match and (match[2], "_{source|target}" * bool(match[4]))
        if found != (word, domain):
            of = f"a name of {FORMS[found]}" if found in FORMS else "not a name of a ground-truth csv"
            raise InputError(f"{file}: {of}, expected {expected} in {year}")
        keys.add((match[1], match[3], match[4] or ""))
    if not keys:
        raise InputError(f"{folder}: nothing there, expected {expected}")
    return keys


def _flags(path: Path, key: Key, rules: Year) -> dict[str, tuple[int, str]]:
    """stem -> (0 or 1, where) of a csv whose rows are `name,0` or `name,1`."""
    flags = {}
    for where, fields in csv_rows(path):
        if len(fields) != 2 or fields[1] not in ("0", "1"):
            raise InputError(f"{where}: found {','.join(fields)!r}, expected NAME.wav,0 or NAME.wav,1")
        name = stem(fields[0])
        match = re.fullmatch(rules.hidden.regex, name)
        if not match or (match["section"], match.groupdict().get("domain", "")) != key[1:]:
            of = " ".join(filter(None, key[1:]))
            raise InputError(f"{where}: found {fields[0]!r}, expected {rules.hidden.words}.wav of {of}")
        if flags.setdefault(name, (int(fields[1]), where))[1] != where:
            raise InputError(f"{where}: {fields[0]} a second time, expected each clip once")
    if not flags:
        raise InputError(f"{path}: no rows, expected NAME.wav,0 or NAME.wav,1")
    return flags


def _renamed(path: Path, machine: str, truth: dict, rules: Year) -> dict[tuple[str, str], Truth]:
    """The clips of a csv whose rows are `name,labelled stem[,name with all attributes]`, with these stems."""
    found = {}
    for where, fields in csv_rows(path):
        key = machine, stem(fields[0])
        if key not in truth or len(fields) not in (2, 3):
            raise InputError(
                f"{where}: found {','.join(fields)!r}, expected NAME.wav,LABELLED NAME of a clip with label"
            )
        if key in found:
            raise InputError(f"{where}: {fields[0]} a second time, expected each clip once")
        said, before = _labelled(fields[1], rules), truth[key]
        if said is None or said != (before.section, before.is_anomaly, before.domain):
            told = f"section {before.section}, {before.domain}, {('normal', 'anomaly')[before.is_anomaly]}"
            raise InputError(f"{where}: found {fields[1]!r}, expected a name of {told}, as {before.where} says")
        found[key] = before._replace(renamed=stem(fields[1]))
    return found


def _labelled(name: str, rules: Year) -> tuple[str, int, str] | None:
    """(section, is_anomaly, domain) that a labelled name says."""
    match = re.fullmatch(rules.labelled.regex, stem(name))
    return match and (match["section"], int(match["label"] == "anomaly"), match.groupdict().get("domain", ""))


# ---------------------------------------------------------------- lists


def _of_list(path: Path, rules: Year, year: int | str, only: Set[Key] | None) -> dict[tuple[str, str], Truth]:
    """An official list: a row of one field names a machine; `hidden name,labelled name[,label]` follow."""
    if (other := re.fullmatch(r"eval_data_list_([0-9]{4})\.csv", path.name)) and other[1] != str(year):
        raise InputError(f"{path}: the list of {other[1]}, expected that of {year}")
    truth, machine = {}, ""
    for where, fields in csv_rows(path):
        if len(fields) == 1:
            machine = fields[0]
            continue
        hidden, said = re.fullmatch(rules.hidden.regex, stem(fields[0])), _labelled(fields[1], rules)
        if not (machine and hidden and said and hidden["section"] == said[0]):
            names = ",".join(f"{n.words}.wav" for n in (rules.hidden, rules.labelled))
            raise InputError(f"{where}: found {','.join(fields)!r}, expected a machine, or {names} of one section")
        if fields[2:] not in ([], [str(said[1])]):
            raise InputError(f"{where}: found {','.join(fields)!r}, where label and name contradict each other")
        if only is None or (machine, said[0], hidden.groupdict().get("domain", "")) in only:
            found = Truth(*said, where, stem(fields[1]))
            if truth.setdefault((machine, hidden[0]), found) != found:
                raise InputError(f"{where}: {fields[0]} of {machine} a second time, expected each clip once")
    return truth
