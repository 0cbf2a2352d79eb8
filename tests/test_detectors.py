from __future__ import annotations

import io
import json
import tracemalloc
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from asdjax import core, detectors
from asdjax.detectors import device, mixture, neighbours

GOLDEN = {
    name: json.loads((Path(__file__).parent / "golden" / f"{name}.json").read_text())
    for name in ("lof", "knn_cosine", "mahalanobis_domain_means")
}
PRECISION = [(jnp.float64, 1e-9), (jnp.float32, 1e-5)]
FACTORIES = [
    detectors.knn,
    detectors.lof,
    detectors.lof_host,
    detectors.cosine_mean,
    detectors.mahalanobis,
    detectors.gmm,
    partial(detectors.knn, density="ratio"),
    partial(detectors.knn, density="difference"),
]


def outputs(x, dtype=jnp.float32) -> dict:
    """What a network says of clips: (N, D) with one unit each, or (N, U, D)."""
    x = np.asarray(x)
    return dict(embedding=jnp.asarray(x if x.ndim == 3 else x[:, None], dtype))


def scores(detector, train, test, dtype=jnp.float32, is_target=None) -> np.ndarray:
    is_target = np.zeros(len(train), bool) if is_target is None else is_target
    with jax.enable_x64(dtype == jnp.float64):
        state = detector.fit(outputs(train, dtype), is_target)
        return np.asarray(detector.score(state, outputs(test, dtype)), np.float64)


def normal(*shape, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=shape)


def lof_of_sklearn(train, test, n_neighbors: int, metric: str = "euclidean") -> np.ndarray:
    from sklearn.neighbors import LocalOutlierFactor

    model = LocalOutlierFactor(n_neighbors=min(n_neighbors, len(train) - 1), metric=metric, novelty=True)
    return -model.fit(np.asarray(train, np.float64)).score_samples(np.asarray(test, np.float64))


def distances_of_sklearn(train, test, k: int, metric: str) -> np.ndarray:
    from sklearn.neighbors import NearestNeighbors

    return NearestNeighbors(n_neighbors=k, metric=metric).fit(train).kneighbors(test)[0].mean(1)


# --- golden numbers ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "factory, dtype, tolerance", [(detectors.lof, *p) for p in PRECISION] + [(detectors.lof_host, jnp.float64, 1e-9)]
)
def test_lof_matches_the_golden(factory, dtype, tolerance):
    golden = GOLDEN["lof"]
    found = scores(factory(n_neighbors=4), golden["train"], golden["query"], dtype)
    np.testing.assert_allclose(found, golden["score"], rtol=0, atol=tolerance)
    twins = golden["duplicates"]
    found = scores(factory(n_neighbors=4), twins["train"], twins["query"], dtype)
    np.testing.assert_allclose(found, twins["score"], rtol=max(1e-6, tolerance))


@pytest.mark.parametrize("factory", [detectors.lof, detectors.lof_host])
def test_lof_of_directions_matches_the_golden(factory):
    golden = GOLDEN["lof"]
    variant = golden["l2_normalised_variant"]
    found = scores(factory(normalise=True), golden["train"], variant["query"], jnp.float64)
    np.testing.assert_allclose(found, variant["score_euclid_on_l2norm"], rtol=0, atol=1e-9)
    found = scores(factory(metric="cosine"), golden["train"], variant["query"], jnp.float64)
    np.testing.assert_allclose(found, variant["score_cosine_metric"], rtol=0, atol=1e-9)


@pytest.mark.parametrize("dtype, tolerance", PRECISION)
def test_densities_of_the_training_clips_match_the_golden(dtype, tolerance):
    golden = GOLDEN["lof"]
    with jax.enable_x64(dtype == jnp.float64):
        state = detectors.lof(n_neighbors=4).fit(outputs(golden["train"], dtype), np.zeros(12, bool))
    np.testing.assert_allclose(state["k_distance"], golden["train_kdist"], rtol=tolerance)
    np.testing.assert_allclose(state["lrd"], golden["train_lrd"], rtol=tolerance)


@pytest.mark.parametrize("dtype, atol", [(jnp.float64, 1e-9), (jnp.float32, 1e-6)])
def test_cosine_detectors_match_the_golden(dtype, atol):
    golden = GOLDEN["knn_cosine"]
    for k, expected in golden["knn"].items():  # 1, 2 and 4
        found = scores(detectors.knn(k=int(k)), golden["train"], golden["query"], dtype)
        np.testing.assert_allclose(found, expected, rtol=0, atol=atol)
    for normalise, name in [(False, "cos_to_mean_raw"), (True, "cos_to_mean_of_normalised")]:
        detector = detectors.cosine_mean(normalise=normalise)
        found = scores(detector, golden["train"], golden["query"], dtype)
        np.testing.assert_allclose(found, golden[name], rtol=0, atol=atol)


@pytest.mark.parametrize("dtype, rtol", [(jnp.float64, 1e-9), (jnp.float32, 1e-4)])
@pytest.mark.parametrize("covariance", ["global_ddof1", "global_ddof0", "within_domain", "global_ddof1_ridge_1e-3"])
def test_mahalanobis_matches_the_golden(covariance, dtype, rtol):
    golden = GOLDEN["mahalanobis_domain_means"]
    inputs, expected = golden["inputs"], golden["outputs"][covariance]
    train, is_target = np.array(inputs["source"] + inputs["target"]), np.arange(11) >= 8
    # The golden's ridge is absolute, ours is in units of the mean variance.
    ridge = 1e-3 / (np.cov(train.T).trace() / 3) if covariance.endswith("1e-3") else 0.0
    kwargs = dict(covariance=covariance.removesuffix("_ridge_1e-3"), ridge=ridge)
    found = scores(detectors.mahalanobis(**kwargs), train, inputs["test"], dtype, is_target)
    np.testing.assert_allclose(found, expected["score_min"], rtol=rtol)
    if kwargs["covariance"] != "within_domain":  # without target clips the covariance is another
        return
    with jax.enable_x64(dtype == jnp.float64):
        state = detectors.mahalanobis(**kwargs).fit(outputs(train, dtype), is_target)
    np.testing.assert_allclose(
        state["mean"], [golden["outputs"]["mu_source"], golden["outputs"]["mu_target"]], rtol=rtol
    )


# --- scikit-learn and scipy ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "n, n_neighbors, metric", [(80, 4, "euclidean"), (80, 1, "cosine"), (6, 20, "cosine"), (2, 4, "euclidean")]
)
def test_lof_matches_sklearn(n, n_neighbors, metric):
    train, test = normal(n, 7).astype(np.float32), normal(9, 7, seed=1).astype(np.float32)
    test[0] = train[0]
    expected = lof_of_sklearn(train, test, n_neighbors, metric)
    found = scores(detectors.lof(n_neighbors=n_neighbors, metric=metric), train, test)
    np.testing.assert_allclose(found, expected, rtol=1e-5)
    found = scores(detectors.lof_host(n_neighbors=n_neighbors, metric=metric), train, test)
    np.testing.assert_allclose(found, expected, rtol=1e-12)


@pytest.mark.parametrize("metric", ["euclidean", "cosine"])
def test_knn_matches_sklearn_with_dead_embeddings(metric):
    train, test = normal(10, 3), normal(5, 3, seed=1)
    train[4:6] = test[2] = 0  # at cosine distance 1 from everything, each other included
    expected = distances_of_sklearn(train, test, 7, metric)
    np.testing.assert_allclose(scores(detectors.knn(k=7, metric=metric), train, test, jnp.float64), expected, rtol=1e-9)


@pytest.mark.parametrize("metric, spread, rtol", [("euclidean", 1e-3, 1e-5), ("cosine", 0.1, 1e-3)])
def test_float32_holds_in_tight_clusters_far_from_the_origin(metric, spread, rtol):
    from scipy.stats import spearmanr

    centres = 100 * np.sign(normal(3, 32))
    train, test = ((np.tile(centres, (n, 1)) + spread * normal(3 * n, 32, seed=n)).astype(np.float32) for n in (60, 20))
    expected = lof_of_sklearn(train, test, 4, metric)
    found = scores(detectors.lof(metric=metric), train, test)
    np.testing.assert_allclose(found, expected, rtol=rtol)
    assert spearmanr(found, expected).statistic > 0.9999
    expected = distances_of_sklearn(train.astype(np.float64), test.astype(np.float64), 1, metric)
    np.testing.assert_allclose(scores(detectors.knn(metric=metric), train, test), expected, rtol=rtol)


@pytest.mark.parametrize("units", ["mean", "std", "each"])
def test_units_are_merged_before_or_scored_each(units):
    train, test = normal(20, 3, 6), normal(5, 3, 6, seed=1)
    merged = dict(mean=lambda x: x.mean(1), std=lambda x: x.std(1), each=lambda x: x.reshape(-1, 6))[units]
    a, b = merged(train), merged(test)
    found = scores(detectors.knn(k=2, units=units), train, test, jnp.float64)
    np.testing.assert_allclose(found, distances_of_sklearn(a, b, 2, "cosine").reshape(5, -1).mean(1), rtol=1e-9)
    expected = lof_of_sklearn(a, b, 4).reshape(5, -1).mean(1)
    for factory in (detectors.lof, detectors.lof_host):
        found = scores(factory(units=units), train, test, jnp.float64)
        np.testing.assert_allclose(found, expected, rtol=1e-9)


@pytest.mark.parametrize("n, ridge", [(40, 1e-6), (5, 1e-2)])  # more clips than dimensions, and fewer
def test_mahalanobis_matches_scipy(n, ridge):
    from scipy.spatial.distance import mahalanobis

    train, test = normal(n, 3, 8), normal(4, 3, 8, seed=1)
    is_target = np.arange(n) >= n - 2
    for units, merge in [("mean", lambda x: x.mean(1, keepdims=True)), ("each", lambda x: x)]:
        a, b = merge(train), merge(test)
        rows = a.reshape(-1, 8)
        covariance = np.cov(rows.T)
        added = (1e-6 if units == "each" else ridge) * covariance.trace() / 8  # 15 rows, if each, and 8 dimensions
        inverse = np.linalg.inv(covariance + added * np.eye(8))
        means = [a[~is_target].mean((0, 1)), a[is_target].mean((0, 1))]
        for by_domain, centres in [(True, means), (False, [rows.mean(0)])]:
            each = [[min(mahalanobis(u, m, inverse) for m in centres) for u in clip] for clip in b]
            detector = detectors.mahalanobis(units=units, by_domain=by_domain)
            found = scores(detector, train, test, jnp.float64, is_target)
            np.testing.assert_allclose(found, np.mean(each, axis=1), rtol=1e-6)


def test_mahalanobis_without_target_clips_is_that_of_the_source():
    train, test = normal(30, 4), normal(6, 4, seed=1)
    one_mean = scores(detectors.mahalanobis(by_domain=False), train, test)
    np.testing.assert_array_equal(scores(detectors.mahalanobis(), train, test), one_mean)
    np.testing.assert_array_equal(scores(detectors.mahalanobis(), train, test, is_target=np.ones(30, bool)), one_mean)


def density_of_sklearn(train, test, k: int, metric: str, density: str, density_k: int) -> np.ndarray:
    """Local-density normalisation by its definition, with scikit-learn's distances."""
    from sklearn.metrics import pairwise_distances
    from sklearn.neighbors import NearestNeighbors

    near, _ = NearestNeighbors(n_neighbors=density_k + 1, metric=metric).fit(train).kneighbors(train)
    usual = near[:, 1:].mean(1)  # the first is the vector itself
    distance = pairwise_distances(test, train, metric=metric)
    measure = distance / usual if density == "ratio" else distance - usual
    return np.sort(measure)[:, :k].mean(1)


@pytest.mark.parametrize("density", ["ratio", "difference"])
@pytest.mark.parametrize("metric", ["euclidean", "cosine"])
def test_knn_by_density_matches_its_definition(metric, density):
    train, test = normal(40, 6), normal(12, 6, seed=1)
    train[:20] = 2 + train[:20] / 5  # two densities, so that the nearest is not always the one
    for k, density_k in ((1, 4), (3, 1), (1, 39)):
        expected = density_of_sklearn(train, test, k, metric, density, density_k)
        detector = detectors.knn(k=k, metric=metric, density=density, density_k=density_k)
        np.testing.assert_allclose(scores(detector, train, test, jnp.float64), expected, rtol=1e-7, atol=1e-12)
        np.testing.assert_allclose(scores(detector, train, test), expected, rtol=1e-4, atol=1e-5)
    all_others = detectors.knn(metric=metric, density=density, density_k=100)  # there are 39
    expected = density_of_sklearn(train, test, 1, metric, density, 39)
    np.testing.assert_allclose(scores(all_others, train, test, jnp.float64), expected, rtol=1e-7, atol=1e-12)


@pytest.mark.parametrize("density", ["ratio", "difference"])
def test_density_in_blocks_and_of_clips_that_coincide(density, monkeypatch):
    train, test = normal(30, 4), normal(11, 4, seed=1)
    monkeypatch.setattr(neighbours, "BLOCK", 30 * 4 * 3)
    jax.clear_caches()
    expected = density_of_sklearn(train, test, 1, "euclidean", density, 4)
    detector = detectors.knn(metric="euclidean", density=density)
    np.testing.assert_allclose(scores(detector, train, test, jnp.float64), expected, rtol=1e-7)
    train[:8] = train[0]  # a spacing of 0
    found = scores(detector, train, np.concatenate([train[:1], test]), jnp.float64)
    assert np.isfinite(found).all()
    assert density == "difference" or found[0] == 0 < found[1:].min()


@pytest.mark.parametrize("n", [12, 40])  # fewer clips than dimensions, and more
def test_ledoit_wolf_matches_sklearn(n):
    from sklearn.covariance import LedoitWolf

    train, test = normal(n, 20) @ normal(20, 20, seed=2), normal(5, 20, seed=1)
    detector = detectors.mahalanobis(covariance="ledoit_wolf", by_domain=False)
    for dtype, rtol in ((jnp.float64, 1e-10), (jnp.float32, 1e-4)):
        found = scores(detector, train, test, dtype)
        np.testing.assert_allclose(found**2, LedoitWolf().fit(train).mahalanobis(test), rtol=rtol)
    ridged = scores(detectors.mahalanobis(covariance="ledoit_wolf", ridge=0.5), train, test)
    assert (ridged < found).all()


# --- each training clip against a bank without it ------------------------------------------------------------------


def refitted(detector, e: dict, is_target: np.ndarray) -> np.ndarray:
    """Each clip's score by a detector fitted on the others: slow, and beyond doubt."""
    out = []
    for i in range(len(is_target)):
        rest = np.arange(len(is_target)) != i
        state = detector.fit({key: x[rest] for key, x in e.items()}, is_target[rest])
        out.append(float(detector.score(state, {key: x[i : i + 1] for key, x in e.items()})[0]))
    return np.array(out)


def check_own(detector, x: np.ndarray, is_target: np.ndarray, rtol: float) -> None:
    with jax.enable_x64(True):
        e = dict(embedding=x)
        found = detector.own(detector.fit(e, is_target), e)
        np.testing.assert_allclose(found, refitted(detector, e, is_target), rtol=rtol, atol=1e-12)


@pytest.mark.parametrize(
    "kwargs",
    [
        dict(),
        dict(k=3, metric="euclidean", units="each"),
        dict(density="ratio", units="std"),
        dict(density="ratio", k=2, units="each"),
        dict(density="difference", metric="euclidean", density_k=2),
        dict(density="difference", density_k=30, units="each"),  # as many as there are
    ],
)
def test_own_scores_of_knn_are_those_of_detectors_fitted_without_the_clip(kwargs):
    x = normal(8, 3, 5)
    x[5] = x[2] + 1e-3  # a near twin
    check_own(detectors.knn(**kwargs), x, np.zeros(8, bool), rtol=1e-9)


@pytest.mark.parametrize("covariance", mixture.COVARIANCES)
@pytest.mark.parametrize("n, n_target", [(25, 4), (6, 1), (10, 0), (9, 2)])  # 9 dimensions; a domain's only clip
def test_own_scores_of_mahalanobis_are_those_of_detectors_fitted_without_the_clip(n, n_target, covariance):
    x, is_target = normal(n, 2, 9) @ normal(9, 9, seed=1), np.arange(n) >= n - n_target
    for kwargs in (dict(), dict(ridge=1e-3, by_domain=False, units="std")):
        check_own(detectors.mahalanobis(covariance=covariance, **kwargs), x, is_target, rtol=1e-7)


def test_own_scores_need_other_clips():
    for detector, n in (
        (detectors.knn(k=3), 3),
        (detectors.knn(density="ratio"), 2),
        (detectors.mahalanobis(), 2),
        (detectors.mahalanobis(covariance="within_domain"), 3),
    ):
        e, is_target = outputs(normal(n, 4)), np.arange(n) >= n - 1
        state = detector.fit(e, is_target)
        with pytest.raises(core.InputError, match=r"too few|expected at least"):
            detector.own(state, e)
    assert detectors.mahalanobis(units="each").own is None


def test_detectors_of_several_outputs_share_their_programs(monkeypatch):
    jax.clear_caches()
    traced, by_clip = [], device.by_clip
    for module in (device, mixture):
        monkeypatch.setattr(module, "by_clip", lambda x, n: traced.append(n) or by_clip(x, n))
    e = {key: np.float32(normal(11, 1, 7, seed=i)) for i, key in enumerate("abc")}
    for key in e:
        for factory in (detectors.knn, partial(detectors.knn, density="ratio"), detectors.mahalanobis, detectors.gmm):
            detector = factory(key=key)
            state = detector.fit(e, np.zeros(11, bool))
            detector.score(state, {k: x[:5] for k, x in e.items()})
            if detector.own:
                detector.own(state, e)
    assert sorted(traced) == [5, 5, 5, 5, 11, 11]  # that of mahalanobis is on the host


# --- large reference sets ------------------------------------------------------------------------------------------


def check_nearest(x, reference, k: int, metric: str, skip_self: bool = False, rtol: float = 1e-5) -> np.ndarray:
    """neighbours.nearest in float32 against the k smallest distances of the same vectors in float64; its indices."""
    from sklearn.metrics import pairwise_distances

    x, reference = (np.asarray(a, np.float32) for a in (x, reference))
    if metric == "cosine":
        x, reference = neighbours.unit_length(x), neighbours.unit_length(reference)
    search = jax.jit(partial(neighbours.nearest, k=k, metric=metric, skip_self=skip_self))
    distance, index = jax.tree.map(np.asarray, search(x, reference))
    for first in range(0, len(x), 1000):  # memory
        rows = slice(first, first + 1000)
        true = pairwise_distances(x[rows].astype(np.float64), reference.astype(np.float64), metric=metric)
        if skip_self:
            true[np.arange(len(true)), np.arange(len(x))[rows]] = np.inf
        expected = np.sort(np.partition(true, k - 1)[:, :k])
        np.testing.assert_allclose(distance[rows], expected, rtol=rtol, atol=1e-7)
        # Equally near ones may swap: what was named must be as near as the nearest, and nothing named twice.
        np.testing.assert_allclose(np.take_along_axis(true, index[rows], 1), expected, rtol=rtol, atol=1e-7)
        assert (np.diff(np.sort(index[rows])) > 0).all()
    return index


@pytest.mark.parametrize("metric", ["euclidean", "cosine"])
def test_large_sets_match_sklearn(metric):
    from sklearn.neighbors import NearestNeighbors

    train, test = normal(20_000, 16).astype(np.float32), normal(100, 16, seed=1).astype(np.float32)
    expected, index = NearestNeighbors(algorithm="brute", metric=metric).fit(train).kneighbors(test, 4)
    assert (check_nearest(test, train, 4, metric) == index).mean() > 0.99  # float32 may swap near ties
    for k in (1, 4):
        found = scores(detectors.knn(k=k, metric=metric), train, test)
        np.testing.assert_allclose(found, expected[:, :k].mean(1), rtol=1e-5)


@pytest.mark.parametrize("metric", ["euclidean", "cosine"])
def test_lof_of_a_large_set_matches_sklearn(metric):
    train, test = normal(2_500, 16).astype(np.float32), normal(100, 16, seed=1).astype(np.float32)
    expected = lof_of_sklearn(train, test, 4, metric)
    np.testing.assert_allclose(scores(detectors.lof(metric=metric), train, test), expected, rtol=1e-5)


@pytest.mark.parametrize("metric, spread, rtol", [("euclidean", 1e-3, 1e-5), ("cosine", 0.1, 1e-3)])
def test_thousands_of_near_duplicates_far_from_the_origin(metric, spread, rtol):
    """Rounding moves the matrix product's distances by more than those within a cluster, which has 38 groups."""
    centres = 100 * np.sign(normal(2, 32))
    train, test = (np.repeat(centres, n, 0) + spread * normal(2 * n, 32, seed=n) for n in (1200, 10))
    check_nearest(test, train, 4, metric, rtol=rtol)
    train, test = train.astype(np.float32), test.astype(np.float32)
    expected = lof_of_sklearn(train, test, 4, metric)
    np.testing.assert_allclose(scores(detectors.lof(metric=metric), train, test), expected, rtol=rtol)


@pytest.mark.parametrize("n", [1025, 1055, 4096 + 1, 2 * 4096 - 31])
def test_references_that_fill_no_whole_group_or_block(n):
    train = normal(n, 3)
    test = train[[0, 1023, 1024, n - 130, n - 2, n - 1]]  # each is found at distance 0, itself and once
    check_nearest(test, train, 2, "euclidean")


@pytest.mark.parametrize("metric", ["euclidean", "cosine"])
@pytest.mark.parametrize("n", [101, 96, 8])  # the last block moved back, whole blocks, no more than one round
def test_groups_and_blocks_of_any_size(n, metric, monkeypatch):
    monkeypatch.setattr(neighbours, "FEW", 0)
    monkeypatch.setattr(neighbours, "GROUP", 4)
    monkeypatch.setattr(neighbours, "GROUPS", 2)
    monkeypatch.setattr(neighbours, "ROWS", 32)
    monkeypatch.setattr(neighbours, "BLOCK", 5 * 3 * 12)
    train = normal(n, 3)
    train[5:9] = train[-1] = 0
    check_nearest(np.concatenate([train[-3:], normal(40, 3, seed=1)]), train, 2, metric)
    check_nearest(train, train, 2, metric, skip_self=True)
    check_nearest(train[:9], train, min(n, 60), metric)  # more than there are groups
    near = np.array([[100, 100, 100], [-100, 100, -100]])[np.arange(n) % 2] + 0.1 * normal(n, 3)
    check_nearest(near[:9], near, 2, metric, rtol=1e-3)  # all groups are looked into, none twice


@pytest.mark.parametrize("metric", ["euclidean", "cosine"])
def test_bounds_are_below_the_distances_and_not_by_much(metric, monkeypatch):
    monkeypatch.setattr(neighbours, "GROUP", 4)
    monkeypatch.setattr(neighbours, "ROWS", 32)
    train = (100 * np.sign(normal(2, 64))[np.arange(150) % 2] + 1e-3 * normal(150, 64)).astype(np.float32)
    test = np.concatenate([train[:20] + np.float32(1e-3), np.zeros((1, 64), np.float32)])
    if metric == "cosine":
        train, test = neighbours.unit_length(train), neighbours.unit_length(test)
    first, fresh, bounds = neighbours._screen(jnp.asarray(train), metric)
    found = np.asarray(jax.jit(bounds)(test))
    true = ((test[:, None].astype(np.float64) - train.astype(np.float64)) ** 2).sum(-1)
    members = [[row for row in range(a, a + 4) if row >= b] for a, b in zip(first, fresh, strict=True)]
    assert sorted(row for rows in members for row in rows) == list(range(150))
    for bound, rows in zip(found.T, members, strict=True):
        if not rows:
            assert np.isinf(bound).all()
            continue
        expected = true[:, rows].min(1)
        if metric == "cosine":  # the zero vector is at 1 from all: nothing to look for
            assert bound[-1] > 2
            bound, expected = bound[:-1], expected[:-1]
        assert (bound <= expected).all()
        assert (bound > expected - 2e-5 * (train**2).sum(1).max()).all()


def test_one_round_unless_rounding_hides_which_is_nearest(monkeypatch):
    monkeypatch.setattr(neighbours, "FEW", 0)
    monkeypatch.setattr(neighbours, "GROUP", 4)
    monkeypatch.setattr(neighbours, "GROUPS", 3)
    rounds, squared_distances = [], neighbours.squared_distances

    def counted(*args):
        jax.debug.callback(lambda: rounds.append(0))
        return squared_distances(*args)

    monkeypatch.setattr(neighbours, "squared_distances", counted)
    search = jax.jit(partial(neighbours.nearest, k=2, metric="cosine"))

    def rounds_for(test, train):
        rounds.clear()
        distance, _ = search(*(jnp.asarray(neighbours.unit_length(a), jnp.float32) for a in (test, train)))
        jax.effects_barrier()
        return len(rounds), np.asarray(distance)

    train, test = normal(200, 8), normal(2, 8, seed=1)
    assert rounds_for(test, train)[0] == 1
    equal = np.repeat(train[:2], 100, 0)
    n, distance = rounds_for(np.stack([train[0], np.zeros(8)]), equal)  # none is nearer than at 0, or than at 1
    assert n == 1
    np.testing.assert_allclose(distance, [[0, 0], [1, 1]], atol=1e-6)
    near = equal + 1e-5 * train
    assert rounds_for(near[:1] + 1e-5 * test, near)[0] == 9  # all 25 groups of its cluster, 3 a round
    one_cluster = train[:1] + 1e-5 * train  # small differences from its mean, which have their digits
    assert rounds_for(one_cluster[:1] + 1e-5 * test, one_cluster)[0] == 1


@pytest.mark.parametrize("n", [20, 1100])
def test_a_clip_whose_output_is_not_a_number_has_no_score(n):
    test = normal(3, 4)
    test[1] = np.nan
    for factory in (detectors.knn, detectors.lof):
        np.testing.assert_array_equal(np.isnan(scores(factory(), normal(n, 4), test)), [False, True, False])


def test_memory_of_a_large_set_is_less_than_a_copy_of_it():
    shapes = [jax.ShapeDtypeStruct((n, 128), jnp.float32) for n in (1000, 200_000)]
    search = jax.jit(partial(neighbours.nearest, k=4, metric="cosine"))
    used = search.lower(*shapes).compile().memory_analysis()
    assert used.temp_size_in_bytes < 1.5 * 4 * neighbours.BLOCK < shapes[1].size * 4
    lof_fit = jax.jit(lambda x: neighbours.nearest(x, x, 4, "euclidean", skip_self=True))
    used = lof_fit.lower(jax.ShapeDtypeStruct((100_000, 128), jnp.float32)).compile().memory_analysis()
    assert used.temp_size_in_bytes < 1.5 * 4 * neighbours.BLOCK


@pytest.mark.parametrize("covariance", ["global_ddof1", "within_domain"])
def test_large_sets_are_fitted_without_copies_in_float64(covariance):
    n, dimensions = 60_000, 32
    train = (100 + normal(n, dimensions) * np.arange(1, dimensions + 1)).astype(np.float32)
    is_target = np.arange(n) % 3 == 0
    e = dict(embedding=train[:, None])
    states = []
    # mahalanobis and cosine_mean: the means over the units, blocks of 1/15; knn: its references of unit length too
    for detector, most in [
        (detectors.mahalanobis(covariance=covariance), 2),
        (detectors.cosine_mean(), 2),
        (detectors.knn(), 2.5),
    ]:
        tracemalloc.start()
        states.append(detector.fit(e, is_target))
        assert tracemalloc.get_traced_memory()[1] < most * train.nbytes
        tracemalloc.stop()
    state, mean = states[0], states[1]["mean"]
    rows = train.astype(np.float64)
    domains = [rows[~is_target], rows[is_target]]
    within = covariance == "within_domain"
    residual = np.concatenate([d - d.mean(0) for d in domains]) if within else rows - rows.mean(0)
    expected = residual.T @ residual / (n - (2 if within else 1))
    expected += 1e-6 * expected.trace() / dimensions * np.eye(dimensions)
    inverse = np.linalg.inv(expected)
    np.testing.assert_allclose(state["whitener"] @ state["whitener"].T, inverse, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(state["mean"], [d.mean(0) for d in domains], rtol=1e-7)
    np.testing.assert_allclose(mean, rows.mean(0), rtol=1e-7)


# --- the contract of every detector --------------------------------------------------------------------------------


@pytest.mark.parametrize("units", ["mean", "std", "each"])
@pytest.mark.parametrize("factory", FACTORIES)
def test_higher_is_more_anomalous(factory, units):
    train, test = normal(40, 6, 8), normal(12, 6, 8, seed=1)
    train[..., 0] += 5
    test[..., 0] += 5
    test[7] = 0  # far away, on the other side of the origin, and its units differ from each other in one direction
    test[7, :, 0] = -20
    test[7, :, 1] = 50 * np.array([1, -1, 1, -1, 1, -1])
    found = scores(factory(units=units), train, test, is_target=np.arange(40) >= 35)
    assert found.shape == (12,)
    assert found[7] > 1.5 * np.delete(found, 7).max()


@pytest.mark.parametrize("factory", FACTORIES)
def test_state_is_stored_arrays_and_score_compiles_once_a_shape(factory, monkeypatch):
    traced = []
    jax.clear_caches()  # programs are shared by the detectors of all tests
    by_clip = device.by_clip
    for module in (device, mixture):
        monkeypatch.setattr(module, "by_clip", lambda x, n: traced.append(n) or by_clip(x, n))
    detector = factory()
    e = outputs(normal(9, 2, 4)) | dict(own_classes=np.ones((9, 1), bool))
    state = detector.fit(e, np.arange(9) >= 7)
    file = io.BytesIO()
    np.savez(file, **state)
    file.seek(0)
    stored = dict(np.load(file))
    assert all(array.dtype.kind == "f" for array in stored.values())
    test = outputs(normal(5, 2, 4, seed=1)) | dict(own_classes=np.ones((5, 1), bool))
    expected = detector.score(state, test)
    np.testing.assert_array_equal(detector.score(stored, test), expected)
    one = jax.tree.map(lambda x: x[3:4], test)
    np.testing.assert_allclose(detector.score(state, one), expected[3:4], rtol=1e-5)
    if factory is not detectors.lof_host:
        assert traced == [5, 1]


def test_memory_is_bounded_by_blocks_of_queries(monkeypatch):
    train, test = normal(50, 5), normal(23, 5, seed=1)
    monkeypatch.setattr(neighbours, "BLOCK", 50 * 5 * 4)
    np.testing.assert_allclose(scores(detectors.lof(), train, test), lof_of_sklearn(train, test, 4), rtol=1e-5)
    jaxpr = str(
        jax.make_jaxpr(lambda x, y: neighbours.nearest(x, y, 1, "euclidean"))(jnp.zeros((23, 5)), jnp.zeros((50, 5)))
    )
    assert "f32[4,50,5]" in jaxpr
    assert "f32[23,50,5]" not in jaxpr


def test_a_half_precision_network_is_scored_in_float32():
    train, test = normal(20, 4), normal(6, 4, seed=1)
    half = scores(detectors.lof(), train, test, jnp.bfloat16)
    rounded = [np.asarray(jnp.asarray(x, jnp.bfloat16), np.float64) for x in (train, test)]
    np.testing.assert_allclose(half, lof_of_sklearn(*rounded, 4), rtol=1e-5)


def test_detectors_are_built_by_name():
    detector = core.build(detectors, dict(name="knn", k=2, metric="euclidean"))
    train, test = normal(10, 3), normal(4, 3, seed=1)
    expected = distances_of_sklearn(train, test, 2, "euclidean")
    np.testing.assert_allclose(scores(detector, train, test), expected, rtol=1e-5)
    with pytest.raises(core.UsageError, match=r"there is: cosine_mean, gmm, knn, lof, lof_host, .*mahalanobis"):
        core.build(detectors, dict(name="oracle"))


@pytest.mark.parametrize(
    "spec, message",
    [
        (dict(name="knn", metric="manhattan"), "knn: metric='manhattan'; expected one of cosine, euclidean"),
        (dict(name="knn", k=0), "knn: k=0"),
        (dict(name="knn", density_k=0), "knn: k=1, density_k=0"),
        (dict(name="knn", density="log"), "knn: density='log'; expected one of none, ratio, difference"),
        (dict(name="lof", units="all"), "lof: units='all'; expected one of mean, std, each"),
        (dict(name="lof_host", n_neighbors=0), "lof_host: n_neighbors=0"),
        (dict(name="lof_host", metric="l1"), "lof_host: metric='l1'"),
        (dict(name="cosine_mean", units="sum"), "cosine_mean: units='sum'"),
        (dict(name="mahalanobis", covariance="tied"), "mahalanobis: covariance='tied'; expected one of global_ddof1"),
    ],
)
def test_wrong_options_are_refused_before_any_data(spec, message):
    with pytest.raises(core.UsageError, match=message):
        core.build(detectors, spec)


@pytest.mark.parametrize(
    "factory, x, message",
    [
        (detectors.lof, normal(1, 4), "1 training vectors of 'embedding'; expected at least 2"),
        (detectors.lof_host, normal(1, 4), "1 training vectors of 'embedding'; expected at least 2"),
        (lambda: detectors.knn(k=4), normal(3, 4), "3 training vectors of 'embedding'; expected at least 4"),
        (
            lambda: detectors.knn(density="ratio"),
            normal(1, 4),
            "1 training vectors of 'embedding'; expected at least 2",
        ),
        (detectors.cosine_mean, normal(0, 4), "0 training vectors"),
        (detectors.knn, np.where(np.eye(5) > 0, np.nan, 1)[:, :3], "3 of 5 training vectors .* not finite"),
        (detectors.mahalanobis, np.ones((5, 3)), "the covariance of their vectors is singular"),
        (lambda: detectors.mahalanobis(ridge=0.0), normal(3, 4), "the covariance .* is singular"),
        (lambda: detectors.mahalanobis(ridge=0.0), np.ones((9, 3)), "the covariance .* is singular"),
        (lambda: detectors.mahalanobis(covariance="ledoit_wolf"), np.ones((3, 4)), "the covariance .* is singular"),
        (lambda: detectors.knn(key="logits"), normal(3, 4), "key='logits'; the network's outputs are embedding"),
        (lambda: detectors.lof_host(key="logits"), normal(3, 4), "key='logits'; the network's outputs are embedding"),
        (detectors.lof, normal(3, 1, 2, 2), r"'embedding' has shape \(3, 1, 2, 2\); expected \(clips, units"),
    ],
)
def test_training_clips_that_cannot_be_used_are_refused(factory, x, message):
    e = dict(embedding=jnp.asarray(x, jnp.float32)) if x.ndim == 4 else outputs(x)
    with pytest.raises(core.InputError, match=message):
        factory().fit(e, np.zeros(len(x), bool))
