"""Pictures of what a network has learnt: t-SNE of the embeddings of clips."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np

from asdjax import scoretable
from asdjax.core import Clips

COLUMNS = (*scoretable.CLIP, "x", "y")
# Neighbours in the legend differ in hue. As many as machines of a year, and a little more.
_COLOURS = (
    *("tab:blue", "tab:orange", "tab:green", "tab:red", "tab:purple", "gold", "black", "deepskyblue"),
    *("saddlebrown", "hotpink", "limegreen", "navy", "gray", "fuchsia", "olive", "darkturquoise"),
)
# Below to above: (marker, size, opacity, line width); test clips are what is looked for.
_KINDS = {
    "training": (".", 18, 0.45, 0.0),
    "test, normal": ("o", 22, 0.9, 0.0),
    "test, anomalous": ("x", 22, 0.9, 1.0),
    "test, unlabelled": ("^", 22, 0.9, 0.0),
}


def tsne(file: Path, embedding: np.ndarray, clips: Clips, *, most: int = 1000, seed: int = 0, title: str = "") -> str:
    """Draws the embeddings of clips in two dimensions, and writes the coordinates beside the picture.

    A colour for each machine, or section where there is one machine, or domain where there is one section; a marker
    for training clips and for normal, anomalous and unlabelled test clips. Labels are drawn, nothing more.

    Args:
        file: the PNG, of 1600 x 1200 pixels; its namesake .csv has COLUMNS.
        embedding: (N, D), one vector per clip.
        clips: the N clips, of training and test.
        most: clips that are drawn at most, as many of each machine and split as there are.
        seed: of the choice of clips and of t-SNE.
        title: of the picture; how many clips are drawn is added.

    Returns:
        a sentence on why there is no picture; '' where there is one.

    Source: Zeng 2023, figures 1 to 4 (t-SNE of the embeddings; how, it does not say). Van der Maaten, Hinton,
    Visualizing data using t-SNE, 2008; scikit-learn's, begun from principal components.
    """
    rows = _evenly(clips, most, seed)
    drawn, x = clips[rows], np.asarray(embedding, np.float64)[rows]
    if wrong := _unfit(x):
        return f"{file.name}: no picture, {wrong}"
    at = _coordinates(x, seed)
    text = f"{title or 't-SNE of embeddings'}: {len(rows)} of {len(clips)} clips"
    figure = _figure(at, drawn, text, np.random.default_rng(seed).permutation(len(rows)))
    file.parent.mkdir(parents=True, exist_ok=True)
    temporary = file.with_name(f"{file.name}.tmp")
    figure.savefig(temporary, format="png")
    os.replace(temporary, file)
    label = np.where(drawn.is_anomaly < 0, "", drawn.is_anomaly.astype(str))
    names = (drawn.machine, drawn.section, drawn.domain, drawn.split, scoretable.file_names(drawn), label)
    lines = zip(*names, map(repr, at[:, 0].tolist()), map(repr, at[:, 1].tolist()), strict=True)
    scoretable.write_csv(file.with_suffix(".csv"), [COLUMNS, *lines])
    return ""


def _evenly(clips: Clips, most: int, seed: int) -> np.ndarray:
    """Rows of at most so many clips, in order: as many of each (machine, split) as there are, at random."""
    order = np.random.default_rng(seed).permutation(len(clips))
    turn, seen = np.zeros(len(clips), int), {}
    for row in order:
        stratum = clips.machine[row], clips.split[row]
        turn[row] = seen[stratum] = seen.get(stratum, 0) + 1
    return np.sort(order[np.argsort(turn[order], kind="stable")][:most])


def _unfit(x: np.ndarray) -> str:
    """Why t-SNE cannot be taken of vectors (N, D); '' where it can."""
    if len(x) < 5 or x.shape[1] < 2:
        return f"found {len(x)} clips with embeddings of {x.shape[1]} numbers, expected at least 5 of at least 2"
    if not np.isfinite(x).all():
        return f"the embeddings of {np.sum(~np.isfinite(x).all(axis=1))} of {len(x)} clips are not finite"
    if not np.ptp(x, axis=0).any():
        return f"the embeddings of all {len(x)} clips are the same"
    return ""


def _coordinates(x: np.ndarray, seed: int) -> np.ndarray:
    """t-SNE (N, 2) of vectors (N, D)."""
    from sklearn.manifold import TSNE
    from threadpoolctl import threadpool_limits

    x = x / np.abs(x - x.mean(0)).max()  # the picture hangs on no scale, but scikit-learn crashes on the smallest
    perplexity = min(30, (len(x) - 1) / 3)  # about the neighbours that count: a third of the others at most
    with threadpool_limits(1):  # more threads wait for each other: ten times as long on two busy cores
        return TSNE(perplexity=perplexity, init="pca", random_state=seed).fit_transform(x)


def _groups(clips: Clips) -> tuple[np.ndarray, list[str]]:
    """What colours tell apart: each clip's name (N,), and the names in order."""
    for column in (clips.machine, clips.section, clips.domain):
        if len(names := np.unique(column).tolist()) > 1:
            return column, names
    return clips.machine, np.unique(clips.machine).tolist()


def _kinds(clips: Clips) -> np.ndarray:
    """What markers tell apart: each clip's key of _KINDS (N,)."""
    of_test = np.array(["test, normal", "test, anomalous", "test, unlabelled"])[clips.is_anomaly]
    return np.where(clips.is_test, of_test, "training")


def _figure(at: np.ndarray, clips: Clips, title: str, order: np.ndarray) -> Any:
    """The picture of clips at points (N, 2), drawn in this order within a kind lest the last machine hide others."""
    import matplotlib
    from matplotlib.figure import Figure
    from matplotlib.lines import Line2D

    group, names = _groups(clips)
    many = matplotlib.colormaps["turbo"](np.linspace(0, 1, len(names)))
    colours = dict(zip(names, _COLOURS if len(names) <= len(_COLOURS) else many, strict=False))
    kinds, texts, handles = _kinds(clips), [], []
    figure = Figure(figsize=(8, 6), dpi=200, layout="constrained")  # without pyplot: no state, no display
    axes = figure.add_subplot(xticks=[], yticks=[])
    axes.set_aspect("equal", adjustable="datalim")
    axes.set_title(title.replace("$", r"\$"), fontsize=10, wrap=True)  # wrapped text is parsed for formulas
    for kind, (marker, size, alpha, width) in _KINDS.items():
        rows = order[kinds[order] == kind]
        if len(rows):
            own = dict(marker=marker, alpha=alpha)
            axes.scatter(*at[rows].T, s=size, c=[colours[group[row]] for row in rows], linewidths=width, **own)
            handles.append(Line2D([], [], linestyle="", color="dimgray", markersize=6, **own))
            texts.append(kind)
    for name in names:
        handles.append(Line2D([], [], linestyle="", marker="s", color=colours[name], markersize=6))
        texts.append(name or "unknown")
    columns = -(-len(texts) // 32)
    legend = figure.legend(handles, ["-"] * len(texts), loc="outside right upper", fontsize=8, ncols=columns)
    for label, text in zip(legend.get_texts(), texts, strict=True):  # names are the user's: no formulas, no '_' rule
        label.set(text=text if len(text) <= 24 else f"{text[:23]}…", parse_math=False)
    return figure
