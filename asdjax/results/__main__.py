"""Scores of anybody's system: checked, evaluated as the organisers do, and packed for handing in."""

from __future__ import annotations

import argparse
import json
import shutil
import sys
import tempfile
from pathlib import Path

import numpy as np

from asdjax import commandline, comparison, outcome, results, rundir, scoretable, tables
from asdjax.core import InputError, UsageError
from asdjax.data import truth
from asdjax.data.names import YEARS, year_of
from asdjax.results import evaluation, fusion, handing_in, submission


def evaluate(args: argparse.Namespace) -> int:
    """Writes results.csv and prints the tables."""
    year, out = _official_year(args.year), Path(args.out).expanduser()
    if (out / "config.json").exists() or out.is_file():
        raise UsageError(
            f"--out: {out} is {'a file' if out.is_file() else 'the folder of a run'}, expected another folder"
        )
    systems, found = submission.read_submissions(args.submission, year)
    given = truth.read(args.truth, year) if args.truth else None
    if not args.as_official:
        found += [problem for system in systems for problem in evaluation.problems(system, year, given)]
    if found:
        raise InputError(evaluation.listed(found))
    act, rows = evaluation.evaluate_as_official if args.as_official else evaluation.evaluate, []
    names_of: dict[str, list[str]] = {}  # of the systems with a note
    for system in systems:
        of_system, notes = act(system, year, evaluation.truth_of_names(system, year) if given is None else given)
        rows += [results.Result(system.name, "0", *row) for row in of_system]
        for note in notes:
            names_of.setdefault(note, []).append(system.name)
    _say(*(f"note: {_whose(names, len(systems))}{note}" for note, names in names_of.items()))
    if given is None:
        _say("note: without --truth nobody knows whether all clips are there")
    results.write_results(out / "results.csv", rows)
    tables.print_tables(rows, year)
    _say(f"wrote {out / 'results.csv'}")
    return 0


def validate(args: argparse.Namespace) -> int:
    """Prints everything that is wrong, or how much is right."""
    year = _official_year(args.year)
    systems, found = submission.read_submissions(args.submission, year)
    given = truth.read(args.truth, year) if args.truth else None
    found += [problem for system in systems for problem in evaluation.problems(system, year, given)]
    if found:
        _say(evaluation.listed(found), f"not valid: {len(found)} problem{'s' * (len(found) > 1)}")
        return 1
    for system in systems:
        _say(f"{f'{system.name}: ' * (len(systems) > 1)}valid: {evaluation.summary(system)}")
    if given is None:
        _say("only the form was checked: --truth tells whether all clips are there")
    return 0


def pack(args: argparse.Namespace) -> int:
    """Writes the submission files of a run's scorers, and checks them."""
    run, out = Path(args.run).expanduser(), Path(args.out).expanduser()
    if not run.is_dir():
        raise UsageError(f"--run: {run} is {'a file' if run.exists() else 'not there'}, expected the folder of a run")
    if out.is_file() or (out.is_dir() and any(out.iterdir())):
        raise UsageError(f"--out: {out} is {'a file' if out.is_file() else 'not empty'}, expected a new folder")
    year, scores = _year_of_run(run), scoretable.read_scores(run / "scores.csv")
    scores = _chosen(scores, args.scorer, args.member)
    if not (scores["split"] == "test").any():
        raise InputError(f"{run / 'scores.csv'}: no scores of test clips, expected some")
    with tempfile.TemporaryDirectory() as folder:  # all or nothing
        written = Path(folder, "submission")
        handing_in.write_submission(written, scores, year, results.thresholds(scores))
        systems, found = submission.read_submissions(written, year)
        found += [problem for system in systems for problem in evaluation.problems(system, year)]
        if found:
            raise InputError(evaluation.listed([text.replace(f"{written}/", "") for text in found]))
        alone = args.scorer is not None and len(systems) == 1
        shutil.copytree(systems[0].folder if alone else written, out, dirs_exist_ok=True)
    for system in systems:
        _say(f"wrote {out if alone else out / system.name}: {system.name}: {evaluation.summary(system)}")
    return 0


def fuse(args: argparse.Namespace) -> int:
    """Writes the fused scores of runs as a run of its own: scores.csv, results.csv, submission/; prints the tables."""
    out, runs = Path(args.out).expanduser(), [Path(run).expanduser() for run in args.runs]
    if out.is_file() or (out.is_dir() and any(out.iterdir())):
        raise UsageError(f"--out: {out} is {'a file' if out.is_file() else 'not empty'}, expected a new folder")
    if missing := [run for run in runs if not run.is_dir()]:
        raise UsageError(f"--runs: {missing[0]} is no folder, expected the folders of runs")
    years = {str(run): _year_of_run(run) for run in runs}
    if len(set(years.values())) > 1:
        raise InputError(f"runs of different years cannot be fused: {years}")
    files, members = {}, []
    for run in runs:
        scores = scoretable.read_scores(run / "scores.csv")
        fused = [] if args.scorers else _fusions_of_run(run)  # made of the others: they would count twice
        kept = ~np.isin(scores["scorer"], fused)
        files[_name(run, runs)] = own = {name: column[kept] for name, column in scores.items()}
        counts = [len(found) - 1 for _, found in scoretable.systems(own) if scoretable.ENSEMBLE in found]
        several = max(counts, default=0)
        members += [f"{_name(run, runs)}: of its {several} members the ensemble takes part"] * (several > 0)
        members += [f"{_name(run, runs)}: left out, as made of the others: {', '.join(fused)}"] * bool(fused)
    scores = fusion.fuse_runs(files, name=args.name, scorers=args.scorers, how=args.how)
    members += fusion.unheard(scores, args.scorers)
    year = next(iter(years.values()))
    out.mkdir(parents=True, exist_ok=True)
    made_of = {
        "runs": [str(run.resolve()) for run in runs],
        "scorers": args.scorers,
        "how": args.how,
        "name": args.name,
    }
    rundir.write_json(out / "config.json", {"data": {"year": year}, "fuse": made_of})
    rows, notes = outcome.write(out, scores, year)
    tables.print_tables(rows, year, detail=[args.name])
    _say(*members, *(f"note: {note}" for note in notes), f"wrote {out}")
    return 0


def published(args: argparse.Namespace) -> int:
    """Prints what reports and organisers have published: means over machines with their notes, or all of it."""
    comparison.print_published_tables(args.year, args.part, whole=args.all)
    return 0


def _whose(names: list[str], n: int) -> str:
    """Which of n systems a note is of."""
    if n == 1 or len(names) == 1:
        return f"{names[0]}: " * (n > 1)
    return f"all {n} systems: " if len(names) == n else f"{len(names)} of {n} systems ({evaluation.some(names)}): "


def _name(run: Path, runs: list[Path]) -> str:
    """A run's folder name, with as many of the folders above as tell it from the others."""
    parts = run.resolve().parts
    for n in range(1, len(parts)):
        name = "/".join(parts[-n:])
        if sum(other.resolve().parts[-n:] == parts[-n:] for other in runs) == 1:
            return name
    raise UsageError(f"--runs: {run} is given twice")


def _official_year(text: str) -> str:
    known = [str(year) for year in YEARS if year != "plain"]  # plain data sets have no official evaluation
    if text not in known:
        raise UsageError(f"--year: found {text!r}, expected one of {', '.join(known)}")
    return text


def _year_of_run(run: Path) -> str:
    file = run / "config.json"
    try:
        year = str(json.loads(file.read_text())["data"]["year"])
    except OSError as error:
        raise InputError(f"{file}: cannot be read ({error.strerror}), expected the config.json of a run") from error
    except (ValueError, KeyError, TypeError) as error:
        raise InputError(f"{file}: says no data.year, expected the config.json of a run") from error
    if year == "audioset":
        raise InputError(f"{file}: a run that learns tags has no scores, expected a run over machines")
    year_of(year)
    return year


def _fusions_of_run(run: Path) -> list[str]:
    """Names of the scorers that the run itself has fused."""
    config = json.loads((run / "config.json").read_text())  # read once before, for its year
    rules = [*config.get("score", {}).get("fusions", ()), *([config["fuse"]] if "fuse" in config else [])]
    return [rule["name"] for rule in rules]


def _chosen(scores: scoretable.Scores, scorer: str | None, member: str | None) -> scoretable.Scores:
    """The rows of a scorer and of a member, of all where it is None."""
    there = [(name, own) for name, members in scoretable.systems(scores) for own in members]
    taken = [key for key in there if scorer in (None, key[0]) and member in (None, key[1])]
    if not taken:
        known = ", ".join(dict.fromkeys(f"{name} (member {own})" for name, own in there)) or "nothing"
        wanted = " ".join(f"--{flag} {value}" for flag, value in (("scorer", scorer), ("member", member)) if value)
        raise UsageError(f"{wanted or 'scores.csv'}: not in the run's scores; there is: {known}")
    wanted = set(taken)
    keep = [key in wanted for key in zip(scores["scorer"].tolist(), scores["member"].tolist(), strict=True)]
    return {name: column[np.array(keep)] for name, column in scores.items()}


def _say(*texts: str) -> None:
    for line in "\n".join(texts).splitlines():
        print(commandline.printable(line))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m asdjax.results", description=__doc__)
    commands = parser.add_subparsers(title="commands", metavar="COMMAND")
    for act, says in (
        (evaluate, "the official numbers of a submission"),
        (validate, "what is wrong with a submission"),
    ):
        own = commands.add_parser(act.__name__, help=says, description=act.__doc__)
        own.add_argument("--submission", required=True, help="a folder of csvs, or one of such folders")
        own.add_argument("--truth", help="the official evaluator's ground truth; not needed where names say the labels")
        own.add_argument("--year", required=True, help="2020 to 2026")
        own.set_defaults(act=act)
        if act is evaluate:
            own.add_argument("--out", required=True, help="the folder for results.csv")
            own.add_argument("--as_official", action="store_true", help="with the slips of the official script")
    own = commands.add_parser("pack", help="submission files of a run", description=pack.__doc__)
    own.add_argument("--run", required=True, help="the folder of a run")
    own.add_argument("--out", required=True, help="a new folder")
    own.add_argument("--scorer", help="one of the run's scorers; default: all, each in a folder of its own")
    own.add_argument("--member", help="0, 1, ... or ensemble; default: all")
    own.set_defaults(act=pack)
    own = commands.add_parser("fuse", help="scorers of one or several runs made into one", description=fuse.__doc__)
    own.add_argument("--runs", required=True, nargs="+", help="folders of runs over the same clips")
    own.add_argument("--out", required=True, help="a new folder")
    own.add_argument("--scorers", nargs="*", default=(), help="default: all; RUN/SCORER where runs share a name")
    own.add_argument("--how", default="mean", choices=sorted(fusion.RULES), help="over scorers; default: %(default)s")
    own.add_argument("--name", default="fused", help="of the new scorer; default: %(default)s")
    own.set_defaults(act=fuse)
    own = commands.add_parser("published", help="published numbers of a year", description=published.__doc__)
    own.add_argument("--year", required=True, help=f"one of {', '.join(comparison.published.years())}")
    own.add_argument("--part", choices=("dev", "eval"), help="default: both")
    own.add_argument("--all", action="store_true", help="every printed number, machine by machine, and all notes")
    own.set_defaults(act=published)
    return parser


def main(argv: list[str] | None = None) -> int:
    """Exit code: 0 done, 1 something is wrong with the data, 2 bad usage."""
    return commandline.run(_parser(), argv)


if __name__ == "__main__":
    sys.exit(main())
