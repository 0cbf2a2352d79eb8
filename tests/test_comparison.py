"""Published tables on the terminal, alone and beside a run's numbers."""

import io
import re

import numpy as np
import pytest
from rich.console import Console

from asdjax import comparison, metrics
from asdjax.core import UsageError
from asdjax.results import Result, published


def lines(call, width=140) -> list[str]:
    """What is printed, a space between words."""
    console = Console(width=width, file=io.StringIO(), color_system=None)
    call(console)
    return [" ".join(line.split()) for line in console.file.getvalue().splitlines()]


def results_of(year, part, scorers=("kNN", "LOF [x]"), machines=None) -> list[Result]:
    rng, rows = np.random.default_rng(0), []
    for scorer in scorers:
        columns = [
            (machine, section, domain, label, rng.normal() + label)
            for machine, sections in published.sections(year, part).items()
            if machines is None or machine in machines
            for section in sections
            for domain in metrics.DOMAINS
            for label in (0, 1) * 8
        ]
        table = metrics.Table(*map(np.array, zip(*columns, strict=True)))
        rows += [Result(scorer, "0", *row) for row in metrics.official(year, table, n_bootstrap=0)[0]]
    return rows


def value(rows, scorer, *key) -> str:
    return f"{100 * next(row.value for row in rows if row.scorer == scorer and row[2:6] == key):.2f}"


def beside(rows, year, part, clips=None):
    clips = clips or {machine: 200 * len(found) for machine, found in published.sections(year, part).items()}
    return lines(lambda console: comparison.print_published(rows, year, part, clips, console=console))


def test_a_whole_year_is_printed_beside_the_published_means():
    rows = results_of(2023, "dev")
    text = beside(rows, "2023", "dev")
    assert text[0] == "published, DCASE 2023 dev: means over machines, in %"
    assert "official baseline: AE MSE 64.79 49.59 52.84 55.02 - -" in text
    assert "Zeng 2023: Ensemble4 - - 55.34 - 70.67 67.16" in text
    assert "Zhang 2023: Adversarial learning - - (58.62*) (58.21) 58.10* 62.12*" in text
    for scorer in ("kNN", "LOF [x]"):
        mean = [value(rows, scorer, "all", "harmonic mean", domain, "AUC") for domain in metrics.DOMAINS]
        pauc = value(rows, scorer, "all", "harmonic mean", "", "pAUC")
        score = value(rows, scorer, "all", "", "", "official score")
        line = next(line for line in text if line.startswith(f"this run: {scorer} "))
        assert line.startswith(f"this run: {scorer} {' '.join(mean)} {pauc} {score} ")
        assert len([line for line in text if line.startswith(f"this run: {scorer} ")]) == 5
    at = text.index("published, DCASE 2023 dev: official score of each machine, in %")
    shown = [line for line in text[at:] if re.match("official baseline|Z|Hai", line)]
    assert [re.sub(" [0-9].*", "", line) for line in shown] == [
        "official baseline: AE MSE",  # the others have no official score of a machine
        "official baseline: AE MAHALA",
    ]
    car = 3 / (1 / 0.7010 + 1 / 0.4689 + 1 / 0.5247)
    assert shown[0].startswith(f"official baseline: AE MSE {100 * car:.2f}* ") and shown[0].endswith(" 55.02")
    assert "* computed here from printed numbers" in text
    assert "( ) not the official metric, not to be compared" in text
    assert text[-1].endswith("python -m asdjax.results published --year 2023 --part dev --all")


def test_of_a_part_of_the_machines_only_those_are_printed():
    text = beside(results_of(2021, "dev", machines=("fan", "valve")), 2021, "dev")
    assert not any("means over machines" in line for line in text)
    assert "system fan valve" in text
    assert "Morita 2021: Our best source 90.36 95.87" in text  # Table 3
    best = [line for line in text if line.startswith("Morita 2021: Our best")][-1]
    fan = 4 / (1 / 0.9036 + 1 / 0.7267 + 1 / 0.7966 + 1 / 0.6667)
    valve = 4 / (1 / 0.9587 + 1 / 0.7867 + 1 / 0.8478 + 1 / 0.6412)
    assert best == f"Morita 2021: Our best {100 * fan:.2f}* {100 * valve:.2f}*"


MACHINES_2022 = ("ToyCar", "ToyTrain", "bearing", "fan", "gearbox", "slider", "valve")
BAI_TABLE_2 = {  # the report's last three systems, source above target
    "MFN STFT": ("89.47 69.58 66.70 75.92 66.00 89.60 93.81", "75.52 59.46 81.11 58.63 68.00 76.00 89.46"),
    "MFN Log-Mel": ("75.09 68.78 68.88 72.62 86.97 95.42 88.95", "71.71 55.45 76.52 48.59 86.56 78.04 85.71"),
    "DPT Log-Mel": ("61.55 57.16 76.18 52.20 71.93 93.32 80.60", "71.54 51.24 83.47 48.96 71.64 74.23 63.31"),
}


def hmean(values) -> float:
    values = list(values)
    return len(values) / sum(1 / value for value in values)


def test_aucs_of_machines_stand_as_in_table_2_of_bai():
    rows = results_of(2022, "dev")
    text = beside(rows, 2022, "dev")
    titles = [line.removeprefix("published, DCASE 2022 dev: ") for line in text if line.endswith("in %")]
    assert titles == [
        "means over machines, in %",
        "AUC of each machine, in %",
        "official score of each machine, in %",
    ]
    table = text[
        text.index(f"published, DCASE 2022 dev: {titles[1]}") : text.index(f"published, DCASE 2022 dev: {titles[2]}")
    ]
    assert table[2:4] == ["Toy Toy", "system domain Car Train bearing fan gearbox slider valve all"]
    for system, printed in BAI_TABLE_2.items():
        at = next(i for i, line in enumerate(table) if line.startswith(f"Bai 2022: {system} source "))
        for line, domain, numbers in zip(table[at : at + 2], metrics.DOMAINS, printed, strict=True):
            cells = [f"({number})" for number in numbers.split()]
            mean = f"({hmean(map(float, numbers.split())):.2f}*)"
            assert line.removeprefix(f"Bai 2022: {system} ") == " ".join([domain, *cells, mean])
    for scorer in ("kNN", "LOF [x]"):
        at = table.index(next(line for line in table if line.startswith(f"this run: {scorer} source ")))
        for line, domain in zip(table[at : at + 2], metrics.DOMAINS, strict=True):
            aucs = [
                [row.value for row in rows if row[:1] + row[2:3] + row[4:6] == (scorer, machine, domain, "AUC")]
                for machine in MACHINES_2022
            ]
            means = [hmean(own[:3]) for own in aucs]  # the fourth row is the program's own mean
            expected = " ".join(f"{100 * value:.2f}" for value in (*means, hmean(means)))
            assert line.removeprefix(f"this run: {scorer} ") == f"{domain} {expected}"
    assert "official baseline: AE source - - - 78.5 - - 51.9 68.6" in table
    assert not any("Submission" in line for line in table)  # of them only scores are printed
    assert "( ) not the official metric, not to be compared" in text


def raw(rows, year, part, width) -> list[str]:
    console = Console(width=width, file=io.StringIO(), color_system=None)
    counts = {machine: 200 * len(found) for machine, found in published.sections(year, part).items()}
    comparison.print_published(rows, year, part, counts, console=console)
    return console.file.getvalue().splitlines()


@pytest.mark.parametrize("year,part,width", [(2022, "dev", 122), (2024, "eval", 150)])
def test_seven_and_nine_machines_fit_a_wide_console(year, part, width):
    text = raw(results_of(year, part), year, part, width)
    assert max(map(len, text[:-1])) <= width
    assert len([line for line in text if "of each machine" in line]) == 2


def test_a_narrow_console_gets_the_machines_in_parts():
    rows = results_of(2022, "dev")
    text = raw(rows, 2022, "dev", 80)
    assert max(map(len, text[:-1])) <= 80
    assert len([line for line in text if "AUC of each machine" in line]) == 3
    lines = [" ".join(line.split()) for line in text]
    for domain, numbers in zip(metrics.DOMAINS, BAI_TABLE_2["MFN STFT"], strict=True):
        cells, found = [f"({number})" for number in numbers.split()], []
        for i, line in enumerate(lines):
            if line.startswith("Bai 2022: MFN STFT source "):
                found += lines[i + (domain == "target")].removeprefix("Bai 2022: MFN STFT ").split()[1:]
        assert found[:-1] == cells and found[-1].endswith("*)")


def test_a_scorer_of_a_part_of_the_machines_has_no_mean_of_all():
    rows = results_of(2022, "dev", scorers=("kNN",)) + results_of(2022, "dev", ("few",), ("bearing", "fan"))
    assert any(row.scorer == "few" and row.machine == "all" for row in rows)
    text = [line for line in beside(rows, 2022, "dev") if line.startswith("this run: few")]
    auc = value(rows, "few", "fan", "harmonic mean", "source", "AUC")
    assert len(text) == 2  # nothing to say among the means
    assert text[0].startswith("this run: few source - - ") and text[0].endswith(f" {auc} - - - -")
    assert text[1].endswith(" - - - -")


def test_a_reprint_with_one_other_number_is_no_system_of_its_own():
    text = beside(results_of(2023, "dev"), 2023, "dev")
    assert "official baseline: AE MAHALA source 74.53 55.98 65.16 87.10 71.88 84.02 56.31 68.84" in text
    assert not any(line.startswith("Hai 2024") for line in text)
    assert not any("dev: AUC of each" in line for line in beside(results_of(2020, "dev"), 2020, "dev"))


def test_nothing_is_printed_where_nothing_can_be_compared():
    rows = results_of(2023, "dev")
    assert beside(rows, "plain", "dev") == []
    assert beside(rows, 2023, "eval") == []  # other machines
    assert beside(rows, 2025, "dev") == []  # the same machines, nothing published
    assert beside([row for row in rows if row.machine == "all"], 2023, "dev") == []
    assert beside([], 2023, "dev") == []


def listed(year, part=None, whole=True):
    return lines(lambda console: comparison.print_published_tables(year, part, whole=whole, console=console))


def test_the_means_come_with_the_notes_on_them():
    text = listed(2023, whole=False)
    assert [line for line in text if line.endswith("in %")] == [
        f"DCASE 2023 {part}: means over machines, in %" for part in ("dev", "eval")
    ]
    (row,) = [line[0] for line in text if line[1:].startswith(" the row is labelled 'AUC (source)'")]
    (slip,) = [line[0] for line in text if line[1:].startswith(" the 21 printed cells give 59.73")]
    (zeng,) = [line[0] for line in text if "111 of the 112 cells" in line]
    (zhang,) = [line[0] for line in text if "55 of the 56 cells" in line]
    ensemble = next(line for line in text if line.startswith("Zhang 2023: Ensemble"))
    assert re.search(rf"\(61.48\) {row}{slip} 64.83\* {zhang} 64.39\* {zhang}$", ensemble)
    assert any(re.match(rf"Zeng 2023: MV2_SEC - - 55.19 \w - 69.59 {zeng} 62.83 {zeng}$", line) for line in text)
    assert not any("probably a slip in a digit" in line for line in text)  # of a cell that is not shown


@pytest.mark.parametrize("whole", [True, False])
@pytest.mark.parametrize("year", published.years())
def test_every_note_is_on_something_that_is_shown(year, whole):
    for part in ("dev", "eval"):
        if not published.of(year, part):
            continue
        text = listed(year, part, whole)
        texts = {note for row in published.of(year, part) for note in row.notes}
        letters = {line[0]: line[2:] for line in text if line[1:2] == " " and line[2:] in texts}
        assert len(letters) == len(texts) or not whole
        names = sorted({f"{row.source}: {row.system}" for row in published.of(year, part)}, key=len, reverse=True)
        shown = [line.removeprefix(name) for line in text if (name := next(filter(line.startswith, names), ""))]
        words = {word for line in shown for word in line.split()} - {"harmonic", "arithmetic", "mean"}
        used = {letter for word in words if word.isalpha() for letter in word}
        assert used == set(letters)


def test_every_printed_number_is_listed_with_its_note():
    text = listed(2023, "dev")
    for title in ("means over machines", "AUC target", "AUC same-domain source", "pAUC one domain"):
        assert f"DCASE 2023 dev: {title}, in %" in text
    (slip,) = [line[0] for line in text if line.endswith("probably a slip in a digit")]
    (same,) = [line[0] for line in text if "111 of the 112 cells" in line]
    target = f"Zeng 2023: MV2_SEC {same} 54.04 63.28 69.20 51.00 66.59 {slip} 88.84 59.60 62.83"
    assert target in text
    (reprint,) = [line[0] for line in text if line[1:].startswith(" Table 1 of Hai 2024 reprints")]
    assert any(re.match(f"Hai 2024: AE MSE {reprint}[- ]* 60.78[- ]*$", line) for line in text)
    words = {word for line in text for word in line.split()}
    assert {row.percent for row in published.of(2023, "dev")} <= words | {word.strip("()") for word in words}


@pytest.mark.parametrize("year", range(2020, 2026))
def test_a_year_lists_both_parts_and_cuts_nothing_off(year):
    text = listed(year)
    for part in ("dev", "eval"):
        wanted = published.of(year, part)
        assert bool(wanted) == (f"DCASE {year} {part}: means over machines, in %" in text)
        if wanted:
            assert set(listed(year, part)) <= set(text)
    assert not any("…" in line for line in text)
    words = {word for line in text for word in line.split()}
    assert {row.percent for row in published.read() if row.year == year} <= words | {w.strip("()") for w in words}


def test_sections_and_both_means_have_rows_of_their_own():
    text = listed(2022, "dev")
    assert any(re.match(r"official baseline: MobileNetV2 \w 01 36.2 63.7 -$", line) for line in text)
    assert any(re.match(r"official baseline: MobileNetV2 \w harmonic mean 49.0 \w 61.0 47.7$", line) for line in text)
    assert any(re.match(r"official baseline: AE \w arithmetic mean - - 48.3$", line) for line in text)
    both = listed(2021, "dev")
    at = both.index("DCASE 2021 dev: AUC, in %")
    assert any(re.match(r"official baseline: AE \w harmonic mean 63.19 53.73 62.01$", line) for line in both[at:])


def test_what_is_not_published_is_said_with_what_is():
    with pytest.raises(UsageError, match=r"found 2025 dev; there is: 2020 dev, 2020 eval, .*2025 eval"):
        comparison.print_published_tables(2025, "dev")
    with pytest.raises(UsageError, match="found 1999; there is"):
        comparison.print_published_tables(1999)


def test_other_test_clips_of_the_same_names_are_told():
    rows = results_of(2023, "dev", machines=("valve",))
    assert not any("not to be compared: " in line for line in beside(rows, 2023, "dev"))
    text = beside(rows, 2023, "dev", {"valve": 95})
    assert "not the challenge's test clips, not to be compared: valve (95 of 200)" in text


def tables(text: list[str]) -> dict[str, list[str]]:
    """The lines of each table of 'published, ...', by what its title says."""
    out, name = {}, ""
    for line in text:
        if line.startswith("published, "):
            name = line.split(": ", 1)[1]
        out.setdefault(name, []).append(line)
    return out


def test_zengs_tables_stand_beside_ours_by_his_reading():
    """Tables 4 to 6 of the report, digit by digit, and the run's numbers by the same reading above them."""
    rows = results_of(2023, "dev")
    found = tables(beside(rows, "2023", "dev"))
    same = next(v for k, v in found.items() if k.startswith("AUC same-domain of each machine (normal and anomalous"))
    at = same.index("Zeng 2023: Ensemble1 source 62.20 65.96 75.64 65.64 78.00 94.88 70.00 71.91")
    assert same[at + 1] == "target 54.88 58.84 65.72 53.68 70.48 89.16 66.68 63.95"
    machines = published.sections(2023, "dev")
    for domain in metrics.DOMAINS:
        numbers = [value(rows, "kNN", m, s, domain, "AUC same-domain") for m, (s,) in machines.items()]
        assert any(f"{domain} {' '.join(numbers)} " in line for line in same)
    pauc = found["pAUC of each machine, in %"]
    assert "Zeng 2023: Ensemble4 50.89 49.00 54.15 51.36 53.47 87.95 54.26 55.34" in pauc
    assert not any("Zhang" in line for line in pauc)  # whose pAUC is of one domain
    numbers = [value(rows, "kNN", m, s, "all", "pAUC") for m, (s,) in machines.items()]
    assert any(line.startswith(f"this run: kNN {' '.join(numbers)} ") for line in pauc)
    assert any("Zhang 2023" in line for line in same)


@pytest.mark.parametrize("year", [2021, 2022, 2024])
def test_other_years_have_no_table_of_that_reading(year):
    titles = list(tables(beside(results_of(year, "dev", machines=("fan", "gearbox")), year, "dev")))
    assert not any("same-domain" in t or t.startswith("pAUC") for t in titles) and len(titles) > 1
