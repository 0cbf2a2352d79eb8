"""The picture of embeddings: its file, its coordinates against scikit-learn's own, what it refuses."""

import csv

import numpy as np
import pytest

from asdjax import pictures
from asdjax.core import Clips

MACHINES = ("fan", "pump", "$valve_")


def clips(n=45, *, labels=(0, 1, -1)):
    """Clips of three machines: a third of training, the others of test, normal, anomalous and unlabelled in turn."""
    i = np.arange(n)
    split = np.where(i % 3 == 0, "train", "test")
    is_anomaly = np.where(split == "train", 0, np.array(labels)[i // 3 % len(labels)]).astype(np.int8)
    machine = np.array(MACHINES)[i % 5 % 3]
    path = np.array([f"/data/{m}/{s}/clip_{k:03d}.wav" for m, s, k in zip(machine, split, i, strict=True)])
    blank = np.full(n, "")
    return Clips(path, machine, np.full(n, "00"), np.full(n, "source"), split, is_anomaly, blank)


def vectors(n=45, d=6):
    rng = np.random.default_rng(0)
    return (3 * rng.standard_normal((3, d)))[np.arange(n) % 5 % 3] + rng.standard_normal((n, d))


def table(path):
    with open(path, newline="") as file:
        return list(csv.DictReader(file))


@pytest.fixture(scope="module")
def drawn(tmp_path_factory):
    file = tmp_path_factory.mktemp("pictures") / "new" / "tsne.png"
    assert pictures.tsne(file, vectors(), clips(), title="$^$, of 3") == ""  # no formula, though it looks like one
    return file


def test_a_png_of_the_stated_size_is_written(drawn):
    data = drawn.read_bytes()
    assert data[:8] == b"\x89PNG\r\n\x1a\n"
    assert (int.from_bytes(data[16:20]), int.from_bytes(data[20:24])) == (1600, 1200)
    assert not list(drawn.parent.glob("*.tmp"))


def test_every_kind_of_clip_and_every_machine_is_drawn():
    """A marker for each kind, at its clips' points, in the colour that the legend gives their machine."""
    from matplotlib import colors

    own, at = clips(), vectors()[:, :2]
    figure = pictures._figure(at, own, "title", np.arange(len(own)))
    legend = figure.legends[0]
    texts = [text.get_text() for text in legend.get_texts()]
    colour = {name: h.get_color() for name, h in zip(texts, legend.legend_handles, strict=True) if name in MACHINES}
    kinds = {
        "training": own.is_train,
        "test, normal": own.is_test & (own.is_anomaly == 0),
        "test, anomalous": own.is_test & (own.is_anomaly == 1),
        "test, unlabelled": own.is_test & (own.is_anomaly == -1),
    }
    assert texts[:4] == list(kinds) and len(figure.axes[0].collections) == 4
    for rows, drawn in zip(kinds.values(), figure.axes[0].collections, strict=True):
        np.testing.assert_array_equal(drawn.get_offsets(), at[rows])
        expected = [colors.to_rgb(colour[machine]) for machine in own.machine[rows]]
        found = drawn.get_facecolors() if len(drawn.get_facecolors()) else drawn.get_edgecolors()
        np.testing.assert_allclose(found[:, :3], expected)


def test_coordinates_are_those_of_scikit_learn(drawn):
    from sklearn.manifold import TSNE
    from threadpoolctl import threadpool_limits

    rows, own = table(drawn.with_suffix(".csv")), clips()
    with threadpool_limits(1):  # more wait for each other
        x = vectors()
        x = x / np.abs(x - x.mean(0)).max()
        expected = TSNE(perplexity=44 / 3, init="pca", random_state=0).fit_transform(x)
    np.testing.assert_allclose([[float(r["x"]), float(r["y"])] for r in rows], expected, rtol=1e-6)
    assert [r["machine"] for r in rows] == own.machine.tolist() and rows[1]["file"].endswith("clip_001.wav")
    assert {(r["split"], r["label"]) for r in rows} == {("train", "0"), ("test", "0"), ("test", "1"), ("test", "")}


def test_so_many_clips_at_most_are_drawn_evenly_over_machines_and_splits(tmp_path):
    n = 300
    own = clips(n)
    assert pictures.tsne(tmp_path / "a.png", vectors(n), own, most=30) == ""
    rows = table(tmp_path / "a.csv")
    assert len(rows) == 30
    strata = [(r["machine"], r["split"]) for r in rows]
    assert {strata.count(stratum) for stratum in set(strata)} == {5} and len(set(strata)) == 6
    pictures.tsne(tmp_path / "b.png", vectors(n), own, most=30)
    assert (tmp_path / "a.csv").read_text() == (tmp_path / "b.csv").read_text()
    pictures.tsne(tmp_path / "c.png", vectors(n), own, most=30, seed=1)
    assert (tmp_path / "a.csv").read_text() != (tmp_path / "c.csv").read_text()


@pytest.mark.parametrize(
    ("x", "reason"),
    [
        (vectors(4), "4 clips with embeddings of 6 numbers, expected at least 5"),
        (vectors(9, 1), "9 clips with embeddings of 1 numbers"),
        (np.where(np.arange(9)[:, None] < 2, np.nan, vectors(9)), "2 of 9 clips are not finite"),
        (np.ones((9, 3)), "all 9 clips are the same"),
    ],
)
def test_where_there_is_nothing_to_draw_a_sentence_says_why(tmp_path, x, reason):
    assert reason in pictures.tsne(tmp_path / "a.png", x, clips(len(x)))
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("scale", [1e-30, 1e30])
def test_the_scale_of_embeddings_does_not_matter(tmp_path, drawn, scale):
    """At the least of these scikit-learn would take the whole process with it."""
    assert pictures.tsne(tmp_path / "a.png", scale * vectors(), clips()) == ""
    found, expected = (
        np.array([[float(r["x"]), float(r["y"])] for r in table(file)])
        for file in (tmp_path / "a.csv", drawn.with_suffix(".csv"))
    )
    assert np.isfinite(found).all() and np.corrcoef(found[:, 0], expected[:, 0])[0, 1] > 0.9


@pytest.mark.parametrize("n", [1, 16, 40])
def test_machines_are_told_apart_by_colour(n):
    own = clips(n)
    names = [f"machine {i}" for i in range(n)]
    figure = pictures._figure(
        vectors(n)[:, :2],
        Clips(own.path, np.array(names), own.section, own.domain, own.split, own.is_anomaly, own.attributes),
        "title",
        np.arange(n),
    )
    squares = [h for h in figure.legends[0].legend_handles if h.get_marker() == "s"]
    assert len(squares) == n and len({str(h.get_color()) for h in squares}) == n
