"""Nearest neighbours on the device, by exact differences: of a few hundred clips or of a million."""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

BLOCK = 2**24  # numbers in one block of query-reference differences: 64 MB in float32
FEW = 2**10  # references that are all compared: a section's; fewer operations would take longer to compile
GROUP = 32  # references that share one lower bound
GROUPS = 8  # groups looked into at once
ROWS = 2**12  # references in one matrix product: with some hundred queries it stays in the cache


def unit_length(x):
    """x / |x| over the last axis; zero stays zero, as in scikit-learn's normalize."""
    # The squares of a million vectors would be a copy of them, whose place on the host's heap the result rarely fits.
    squared = np.vecdot(x, x) if isinstance(x, np.ndarray) else (x**2).sum(-1)
    norm = squared[..., None] ** 0.5
    return x / (norm + (norm == 0))


def squared_distances(x: jax.Array, reference: jax.Array, metric: str) -> jax.Array:
    """Squared Euclidean distances of x (..., D) to reference (..., D), which broadcast: (...).

    For 'cosine', where vectors are of unit length or zero, twice the cosine distance: 1 - ab = |a - b|^2 / 2, and a
    zero vector is at 1 from everything.

    From the differences: |a|^2 + |b|^2 - 2 ab and 1 - ab lose their digits in float32 where clips lie close together,
    which a trained network sees to.
    """
    squared = ((x - reference) ** 2).sum(-1)
    return squared if metric == "euclidean" else squared + _is_zero(x) + _is_zero(reference)


def _is_zero(x: jax.Array) -> jax.Array:
    """1 for each zero vector of x (..., D), else 0: (...)."""
    return (x == 0).all(-1).astype(x.dtype)


def from_squared(squared: jax.Array, metric: str) -> jax.Array:
    return jnp.sqrt(squared) if metric == "euclidean" else squared / 2


def nearest(x: jax.Array, reference: jax.Array, k: int, metric: str, skip_self: bool = False):
    """The k smallest distances of each x (Q, D) to the references (R, D), and which: two (Q, k). Memory is bounded.

    Differences with a million references would take a minute, so a matrix product says first where to look. It gives
    lower bounds of the squared distances, of which the smallest in each group of GROUP references is kept. Differences
    are then taken with the groups of the smallest bounds, and with further ones until no bound is below the k-th
    distance found: the result is that of all differences, and one round does unless thousands of references coincide
    within float32. A small set is one round of all its members, without the product.

    Args:
        x, reference: for 'cosine' of unit length, or zero.
        k: at most R, or R - 1 with skip_self.
        metric: 'cosine' or 'euclidean'.
        skip_self: x is the references, and no vector counts as a neighbour of its own.
    """
    taken = max(GROUPS, k + 1)  # one more than needed: for a vector's own group, with skip_self
    screened = len(reference) > max(FEW, taken * GROUP)
    n_compared = taken * GROUP if screened else len(reference)
    queries = _blocks(len(x), max(n_compared * reference.shape[1], 2 * len(reference) // GROUP))
    first, fresh, bounds = _screen(reference, metric) if screened else (None, None, None)

    def smallest(squared, index):
        negative, order = lax.top_k(-squared, k)
        return -negative, jnp.take_along_axis(index, order, 1)

    def compare(i, vectors, index, skip):
        squared = squared_distances(x[i][:, None], vectors, metric)
        squared = jnp.where(skip | (skip_self & (index == i[:, None])), jnp.inf, squared)
        return smallest(squared, jnp.broadcast_to(index, squared.shape))

    def among_all(i):
        return compare(i, reference, jnp.arange(len(reference)), False)

    def among_groups(i):
        def look(bound):
            low, group = lax.top_k(-bound, taken)
            index = first[group][..., None] + np.arange(GROUP)
            skip = (index < fresh[group][..., None]) | jnp.isneginf(low)[..., None]  # nothing new there
            index, skip = index.reshape(len(i), -1), skip.reshape(len(i), -1)
            found = compare(i, reference[index], index, skip)
            return *found, bound.at[np.arange(len(i))[:, None], group].set(jnp.inf)

        def unsure(search):
            squared, _, bound = search
            return (jnp.maximum(bound.min(1), 0) < squared[:, -1]).any()

        def look_further(search):
            squared, index, bound = search
            further, which, bound = look(bound)
            return *smallest(jnp.hstack([squared, further]), jnp.hstack([index, which])), bound

        return lax.while_loop(unsure, look_further, look(bounds(x[i])))[:2]

    squared, index = lax.map(among_groups if screened else among_all, queries)
    return from_squared(squared.reshape(-1, k)[: len(x)], metric), index.reshape(-1, k)[: len(x)]


def nearest_by_density(x: jax.Array, reference: jax.Array, spacing: Callable, k: int, metric: str, density: str):
    """The k smallest distances of each x (Q, D) to the references (R, D), in terms of those's spacing: (Q, k).

    All references are compared: where they lie apart, the smallest ratio may be that of a distant one.

    Args:
        x, reference: for 'cosine' of unit length, or zero.
        spacing: rows i (q,) of x -> the distances (R,) or (q, R) that are usual around each reference, and which
            references are not to be compared, bool.
        k: at most the number of references that are compared.
        metric: 'cosine' or 'euclidean'.
        density: 'ratio', of the distance to the spacing, or 'difference'.
    """

    def smallest(i):
        distance = from_squared(squared_distances(x[i][:, None], reference, metric), metric)
        usual, skip = spacing(i)
        # references that coincide have no spacing; scikit-learn's constant in the local outlier factor
        measure = distance / (usual + 1e-10) if density == "ratio" else distance - usual
        return -lax.top_k(-jnp.where(skip, jnp.inf, measure), k)[0]

    return lax.map(smallest, _blocks(len(x), reference.size)).reshape(-1, k)[: len(x)]


def _blocks(n: int, n_numbers: int) -> np.ndarray:
    """The row numbers of n queries, each compared with n_numbers, in equal blocks that fit the memory: (blocks, q)."""
    n_blocks = max(1, -(-n // max(1, BLOCK // n_numbers)))
    return np.arange(-(-n // n_blocks) * n_blocks).clip(max=n - 1).reshape(n_blocks, -1)


def _screen(reference: jax.Array, metric: str):
    """Groups of references, and lower bounds of the squared distances to each.

    Returns:
        first: (G,) where the GROUP references of each group begin.
        fresh: (G,) members before this row belong to earlier groups: the last block of rows is moved back to be whole.
        bounds: x (q, D) -> (q, G), at most the smallest of squared_distances to the fresh members of the group.
    """
    n, dimensions = reference.shape
    rows = min(ROWS, n // GROUP * GROUP)
    wanted = np.arange(0, n, rows)
    begin = np.minimum(wanted, n - rows)
    mean = reference.mean(0)  # differences from it are smaller numbers, with smaller rounding errors
    # What rounding does to |a|^2 + |b|^2 - 2 ab, a sum of products of D numbers, is at most this part of |a|^2 + |b|^2.
    slack = (dimensions + 8) * jnp.finfo(reference.dtype).eps

    def centred(x):
        a = x - mean
        return a, (a**2).sum(1) * (1 - slack)

    def bounds(x):
        a, a2 = centred(x)
        if metric == "cosine":
            a2 += 4 * _is_zero(x)  # above twice its distance, 1, from all references: the first will do

        def of_block(place):
            begin, wanted = place
            b, b2 = centred(lax.dynamic_slice_in_dim(reference, begin, rows))
            b2 = jnp.where(begin + np.arange(rows) < wanted, jnp.inf, b2)
            bound = b2[:, None] - 2 * jnp.dot(b, a.T, precision="highest")
            return bound.reshape(-1, GROUP, len(x)).min(1)

        bound = lax.map(of_block, (begin, wanted)).reshape(-1, len(x))
        return bound.T + a2[:, None]

    first = begin[:, None] + np.arange(0, rows, GROUP)
    fresh = np.broadcast_to(wanted[:, None], first.shape)
    return jnp.asarray(first.ravel()), jnp.asarray(fresh.ravel()), bounds
