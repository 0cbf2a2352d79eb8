"""Detectors of what the network itself says, against the official baselines' numbers."""

import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from asdjax.core import InputError, UsageError
from asdjax.detectors import log_sigmoid, log_softmax, log_softmax_mse, outputs, passthrough, selective_mahalanobis

GOLDEN = Path(__file__).parent / "golden"


def read(name):
    return json.loads((GOLDEN / f"{name}.json").read_text())


def of_clips(residual) -> dict:
    """What the system says of clips with residuals (N, V, w, F)."""
    residual = np.asarray(residual, np.float64)
    n, vectors, width, bins = residual.shape
    rows = residual.reshape(n, -1, bins)
    return {
        "score": (rows**2).mean((1, 2)).reshape(n, 1, 1),
        "residual": rows.mean(1)[:, None],
        "scatter": (np.einsum("nmi,nmj->nij", rows, rows) / rows.shape[1])[:, None],
        "vectors": np.full((n, 1, 1), float(vectors)),
        "rows": np.full((n, 1, 1), float(vectors * width)),
    }


@pytest.fixture(scope="module")
def official():
    """(residuals of training vectors (V, w, F), is_target, batches, residual of the test clip (M, w, F), outputs)."""
    golden = read("official_selective_mahalanobis")
    given = golden["inputs"]
    shape = (-1, given["frames"], given["n_mels"])
    train, test = (
        (np.array(given[f"recon_{k}"]) - np.array(given[f"x_{k}"])).reshape(shape) for k in ("train", "test")
    )
    batches = [np.arange(*span) for span in given["batches"]]
    return train, np.array(given["is_target"]), batches, test, golden["outputs"]


def test_covariances_of_the_official_code(official):
    train, is_target, batches, _, expected = official
    source, target = outputs.batch_centred_covariance(train, is_target, batches)
    np.testing.assert_allclose(source, expected["cov_source"], rtol=1e-9)
    np.testing.assert_allclose(target, expected["cov_target"], rtol=1e-9)


def test_covariances_of_the_official_code_on_spectra():
    with np.load(GOLDEN / "baseline_ae.npz") as stored:
        residual = stored["residual"].astype(np.float64)
        n, size = residual.shape[:2]
        batches = np.arange(n * size).reshape(n, size)
        found = outputs.batch_centred_covariance(residual.reshape(-1, 5, 8), stored["is_target"].ravel(), list(batches))
        for covariance, domain in zip(found, ("source", "target"), strict=True):
            expected = stored[f"cov8_{domain}"]
            np.testing.assert_allclose(covariance, expected, rtol=0, atol=1e-6 * np.abs(expected).max())


@pytest.mark.parametrize("form, score", [("official", "score_{}"), ("per_row", "per_row_{}")])
def test_scores_of_the_official_code(official, form, score):
    train, is_target, batches, test, expected = official
    found = outputs.batch_centred_covariance(train, is_target, batches)
    with jax.enable_x64(True):
        detector, e = selective_mahalanobis(form=form), of_clips(test[None])
        roots = np.stack([outputs.inverse_root(covariance) for covariance in found])
        for i, domain in enumerate(("source", "target")):
            value = detector.score({"whitener": jnp.asarray(roots[i : i + 1])}, e)
            np.testing.assert_allclose(value, expected[score.format(domain)], rtol=1e-9)
        np.testing.assert_allclose(
            detector.score({"whitener": jnp.asarray(roots)}, e),
            min(expected[score.format(domain)] for domain in ("source", "target")),
            rtol=1e-9,
        )
        np.testing.assert_allclose(passthrough().score({}, e), expected["mse_score"], rtol=1e-9)


def test_scores_of_the_official_code_on_spectra():
    """Its float32 inverse is good to some 1e-7 here."""
    with np.load(GOLDEN / "baseline_ae.npz") as stored:
        lower = np.tril_indices(128)
        roots = []
        for domain in ("source", "target"):
            covariance = np.zeros((128, 128))
            covariance[lower] = stored[f"cov_{domain}"]
            roots.append(outputs.inverse_root(covariance + np.tril(covariance, -1).T))
        e = of_clips(stored["clip_residual"].reshape(1, -1, 5, 128))
        detector = selective_mahalanobis()
        for root, expected in zip(roots, stored["score_source_target"], strict=True):
            value = detector.score({"whitener": jnp.asarray(root[None], jnp.float32)}, e)
            np.testing.assert_allclose(value, expected, rtol=2e-6)
        np.testing.assert_allclose(
            detector.score({"whitener": jnp.asarray(np.stack(roots), jnp.float32)}, e),
            stored["score_mahala"],
            rtol=2e-6,
        )
        np.testing.assert_allclose(passthrough().score({}, e), stored["score_mse"], rtol=1e-6)


def clips(n=40, seed=0):
    rng = np.random.default_rng(seed)
    mixing = rng.standard_normal((6, 6))
    return rng.standard_normal((n, 30, 5, 6)) @ mixing + 0.3


@pytest.mark.parametrize("form", ["official", "per_row"])
def test_fitted_scores_by_hand(form):
    """Covariance of a domain's rows and the sum over a clip's rows, in float64 numpy."""
    train, test, is_target = clips(), clips(3, seed=1), np.arange(40) < 8
    detector = selective_mahalanobis(form=form)
    state = detector.fit(of_clips(train), is_target)
    expected = []
    for domain in (~is_target, is_target):
        rows = train[domain].reshape(-1, 6)
        scale = len(rows) - 1 if form == "per_row" else len(rows) / 5 - 1
        precision = np.linalg.inv((rows - rows.mean(0)).T @ (rows - rows.mean(0)) / scale)
        each = test.reshape(3, -1, 6)
        if form == "per_row":
            expected.append(np.einsum("nmi,ij,nmj->nm", each, precision, each).mean(1))
        else:
            expected.append(np.einsum("ni,ij,nj->n", each.mean(1), precision, each.mean(1)))
    np.testing.assert_allclose(detector.score(state, of_clips(test)), np.min(expected, axis=0), rtol=1e-4)


def test_the_official_covariance_is_a_little_smaller_and_five_times_too_large():
    """What the docstring says of centring on batch means, and of the divisor."""
    vectors = clips(64).reshape(-1, 5, 6)
    rng = np.random.default_rng(1)
    batches = np.array_split(rng.permutation(len(vectors)), len(vectors) // 16)
    official, _ = outputs.batch_centred_covariance(vectors, np.zeros(len(vectors), bool), batches)
    rows = vectors.reshape(-1, 6)
    ratio = np.trace(official) / np.trace(np.cov(rows.T))
    assert ratio == pytest.approx(5 * (1 - 1 / (16 * 5)), rel=2e-3)


def test_without_target_clips_the_source_alone_counts():
    state = selective_mahalanobis().fit(of_clips(clips()), np.zeros(40, bool))
    assert state["whitener"].shape == (1, 6, 6)


def test_a_singular_covariance_is_refused():
    flat = clips()
    flat[..., 0] = 0
    with pytest.raises(InputError, match="singular"):
        selective_mahalanobis().fit(of_clips(flat), np.zeros(40, bool))


def first(n, n_classes):
    """own_classes of n clips of the first class."""
    return np.eye(n_classes, dtype=bool)[np.zeros(n, int)]


def test_log_softmax_equals_the_baselines():
    golden = read("logsoftmax_gamma")
    p = np.array(golden["p_units"], np.float64)
    with jax.enable_x64(True), np.errstate(divide="ignore"):
        logits = jnp.asarray(np.log(np.stack([p, 1 - p], -1)))
        for form in ("logit_2022", "baseline_2021_typo", "neglog"):
            detector, e = log_softmax(form=form), {"logits": logits, "own_classes": first(len(p), 2)}
            found = detector.score(detector.fit(e, None), e)
            np.testing.assert_allclose(found, golden[form], rtol=0, atol=5.1e-11)  # it has ten decimals


def test_log_softmax_keeps_its_digits_in_float32():
    """Sure networks, of logits up to 25 ahead of five others, against float64."""
    for ahead in (5.0, 10.0, 14.0, 20.0, 25.0):
        for offset in (0.0, 64.0):
            logits = np.array([[[offset + ahead, *[offset] * 5]]], np.float32)
            e = {"logits": logits, "own_classes": first(1, 6)}
            odds = 5 * np.exp(-ahead)  # (1 - p) / p
            log_p, log_rest = -np.log1p(odds), np.log(odds) - np.log1p(odds)
            assert log_softmax().score({}, e)[0] == pytest.approx(log_rest - log_p, rel=1e-6)
            assert log_softmax(form="neglog").score({}, e)[0] == pytest.approx(-log_p, rel=1e-5)
            typo = np.log(np.exp(log_rest) - log_p)
            assert log_softmax(form="baseline_2021_typo").score({}, e)[0] == pytest.approx(typo, rel=1e-5)


def test_log_softmax_needs_a_class_of_its_own():
    allowed = np.array([[False, True, False, False], [False] * 4])
    e = {"logits": np.zeros((2, 3, 4)), "own_classes": allowed, "mse": np.zeros((2, 3, 1))}
    for detector in (log_softmax(), log_softmax_mse(), log_sigmoid()):
        for ask in (lambda d: d.fit(e, None), lambda d: d.score({}, e)):
            with pytest.raises(InputError, match=r"expected classes .*data\.group_by='all'"):
                ask(detector)


@pytest.mark.parametrize(
    "form, of_p",
    [
        ("logit_2022", lambda p: np.log(1 - p) - np.log(p)),
        ("baseline_2021_typo", lambda p: np.log(1 - p - np.log(p))),
        ("neglog", lambda p: -np.log(p)),
    ],
)
def test_log_softmax_of_several_classes_takes_the_likeliest_of_each_unit(form, of_p):
    p = np.array([[[0.1, 0.2, 0.7], [0.5, 0.3, 0.2]], [[0.1, 0.2, 0.7], [0.25, 0.25, 0.5]]])
    allowed = np.array([[True, True, False], [False, True, True]])
    found = log_softmax(form=form).score({}, {"logits": jnp.log(p) + 7, "own_classes": allowed})
    likeliest = np.array([[0.2, 0.5], [0.7, 0.5]])
    np.testing.assert_allclose(found, of_p(likeliest).mean(1), rtol=0, atol=3e-6)


def test_an_own_class_without_any_probability_is_still_the_own_one():
    e = {"logits": np.array([[[0.0, 1.0, -np.inf]]], np.float32), "own_classes": np.array([[False, False, True]])}
    assert log_softmax(form="neglog").score({}, e)[0] == pytest.approx(-np.log(outputs.EPS), rel=1e-6)


@pytest.mark.parametrize("x64, tolerance", [(True, 1e-13), (False, 3e-7)])
def test_log_sigmoid_keeps_its_digits(x64, tolerance):
    """Against scipy in float64; what the other classes get does not count."""
    from scipy.special import log_expit

    z = np.array([-35.0, -20.0, -3.0, 0.0, 0.5, 3.0, 20.0, 80.0])
    with jax.enable_x64(x64):
        logits = jnp.asarray(np.stack([np.full(8, 50.0), z], -1)[:, None])
        e = {"logits": logits, "own_classes": np.tile([False, True], (8, 1))}
        detector = log_sigmoid()
        found = detector.score(detector.fit(e, None), e)
    np.testing.assert_allclose(found, -log_expit(z), rtol=tolerance)
    assert (np.diff(found) < 0).all()  # the less it is believed, the more anomalous


def test_log_sigmoid_takes_the_likeliest_own_class_of_each_unit_and_a_floor():
    p = np.array([[[0.1, 0.2, 0.9], [0.5, 0.3, 0.9]], [[0.9, 0.2, 0.3], [0.9, 0.5, 0.4]]])
    allowed = np.array([[True, True, False], [False, True, True]])
    e = {"said": jnp.log(p) - jnp.log1p(-p), "own_classes": allowed}
    likeliest = np.array([[0.2, 0.5], [0.3, 0.5]])
    np.testing.assert_allclose(log_sigmoid(key="said").score({}, e), -np.log(likeliest).mean(1), rtol=1e-6)
    for logit in (-1e3, -np.inf):
        e = {"logits": np.array([[[0.0, logit]]], np.float32), "own_classes": np.array([[False, True]])}
        assert log_sigmoid().score({}, e)[0] == pytest.approx(-np.log(outputs.EPS), rel=1e-6)


def test_log_softmax_mse_by_hand():
    """p = 0.8 and 0.5, errors 1 and 2: logits of -log 4 and 0."""
    p = np.array([[[0.8, 0.2], [0.5, 0.5]], [[0.5, 0.5], [0.5, 0.5]]])
    e = {"logits": jnp.log(p), "own_classes": first(2, 2), "mse": np.array([[[1.0], [2.0]], [[0.0], [3.0]]])}
    belief = np.array([-np.log(4) / 2, 0])
    for weight in (0.0, 1.0, 10.0):
        detector = log_softmax_mse(weight=weight)
        state = detector.fit(e, np.zeros(2, bool))
        np.testing.assert_allclose(detector.score(state, e), belief + weight * 1.5, rtol=0, atol=2e-6)
    neglog = log_softmax_mse(weight=2.0, form="neglog", key="said", error="off")
    renamed = {"said": e["logits"], "own_classes": e["own_classes"], "off": e["mse"]}
    expected = [np.log([1.25, 2]).mean() + 3, np.log(2) + 3]
    np.testing.assert_allclose(neglog.score({}, renamed), expected, rtol=1e-6)


def test_what_the_network_does_not_give_is_named():
    with pytest.raises(UsageError, match="outputs are embedding"):
        passthrough().fit({"embedding": np.zeros((2, 3, 4))}, None)
    with pytest.raises(UsageError, match="one number per unit"):
        passthrough(key="embedding").fit({"embedding": np.zeros((2, 3, 4))}, None)
    with pytest.raises(UsageError, match="gives no residual, rows, scatter, vectors"):
        selective_mahalanobis().fit({"embedding": np.zeros((2, 3, 4))}, np.zeros(2, bool))
    with pytest.raises(UsageError, match="expected one of logit_2022"):
        log_softmax(form="2023")
    e = {"logits": np.zeros((2, 3, 4)), "own_classes": first(2, 4)}
    with pytest.raises(UsageError, match="needs 'logits' and own_classes; the network's outputs are logits"):
        log_softmax().fit({"logits": e["logits"]}, None)
    with pytest.raises(UsageError, match="log_sigmoid: needs 'said' and own_classes; the network's outputs are logits"):
        log_sigmoid(key="said").score({}, e)
    with pytest.raises(UsageError, match=r"outputs are logits, own_classes; expected 'mse', .*dual_path"):
        log_softmax_mse().fit(e, None)
    with pytest.raises(UsageError, match="one number per unit"):
        log_softmax_mse().fit(e | {"mse": np.zeros((2, 3, 4))}, None)
    for weight in (-1.0, np.nan, np.inf):
        with pytest.raises(UsageError, match="expected a finite number, at least 0"):
            log_softmax_mse(weight=weight)
