"""`python -m asdjax.convert panns FILE.pth OUT`: makes published weights of PyTorch a checkpoint to start from."""

from __future__ import annotations

import argparse
import contextlib
import re
import sys
import warnings
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import traverse_util

from asdjax import checkpoint, commandline, frontends, heads, rundir, systems
from asdjax.core import InputError, Parts, TrainState, UsageError
from asdjax.models import panns as networks

PUBLISHED = networks.PannsMobileNetV2(features=1280, fc=1024)
CLASSES, BINS = 527, 64  # of AudioSet, and mels
FRONTEND = ("spectrogram_extractor", "logmel_extractor")  # parts of PANNs' networks that hold windows and mel filters

# Leaves of our modules and their names in PyTorch; the last two are of running statistics.
LEAVES = dict(kernel="weight", scale="weight", bias="bias", mean="running_mean", var="running_var")
# Layers of an inverted residual and their places in PANNs' `conv`, without and with the expanding convolution.
PLACES = {
    True: dict(depthwise=0, depthwise_norm=2, project=4, project_norm=5),
    False: dict(expand=0, expand_norm=1, depthwise=3, depthwise_norm=5, project=7, project_norm=8),
}


def from_panns(
    arrays: Mapping[str, np.ndarray],
    net: networks.PannsMobileNetV2 = PUBLISHED,
    *,
    n_classes: int = CLASSES,
    bins: int = BINS,
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Weights and running statistics of PANNs' MobileNetV2 as ours.

    PyTorch's running variances are of n - 1, ours of n; they are taken as they are.

    Args:
        arrays: the state_dict, without frontend and batch counts; names as in PANNs' code.
        net: the network that they are of.
        n_classes: C of the last layer, fc_audioset.
        bins: F.

    Returns:
        params and stats of a TrainState of systems.classify with `net` and heads.Linear, float32.

    Raises:
        InputError: tensors that are missing, unknown, of another shape or not finite; the message names them.
    """
    like = template(net, n_classes, bins)
    flat = traverse_util.flatten_dict({"params": like.params, "stats": like.stats})
    modules, sources = module_names(net.rows), {}
    for path in flat:
        if path[-1] in LEAVES:
            module = "/".join(path[2:-1] if path[0] == "params" else path[3:-1])
            sources[path] = f"{modules[module]}.{LEAVES[path[-1]]}"
    shapes = {name: theirs_of(np.zeros(flat[path].shape, bool), name).shape for path, name in sources.items()}
    if found := list(problems(arrays, shapes)):
        raise InputError("; ".join(found[:3]) + (f"; and {len(found) - 3} more" if len(found) > 3 else ""))
    taken = {path: ours_of(np.asarray(arrays[name], np.float32)) for path, name in sources.items()}
    known = {path: np.ones(leaf.shape, leaf.dtype) for path, leaf in flat.items() if path not in sources}
    tree = traverse_util.unflatten_dict(taken | known)  # all classes are known, see heads.known_classes
    return tree["params"], {**like.stats, **tree["stats"]}


def template(net: networks.PannsMobileNetV2, n_classes: int, bins: int) -> TrainState:
    """Shapes of the state of a classifier with this network."""
    cut = frontends.cut(width=64, hop=64, at="frames")  # of any width: no weight depends on it
    parts = Parts((), None, cut, (), net, heads.Linear(n_classes), optax.identity())
    sample = {"features": jnp.zeros((1, 64, bins)), "label": {"class": jnp.zeros((1, n_classes))}}
    return jax.eval_shape(systems.classify(parts).init, jax.random.key(0), sample).replace(opt_state=())


def module_names(rows: tuple[tuple[int, int, int, int], ...]) -> dict[str, str]:
    """Our modules, of backbone and head, and their names in PANNs' network."""
    names = {"bn0": "bn0", "stem_conv": "features.0.0", "stem_norm": "features.0.2", "fc1": "fc1"}
    blocks = [(f"row{r}_{i}", t) for r, (t, _, n, _) in enumerate(rows) for i in range(n)]
    for b, (block, t) in enumerate(blocks):
        names |= {f"{block}/{layer}": f"features.{b + 1}.conv.{place}" for layer, place in PLACES[t == 1].items()}
    last = f"features.{len(blocks) + 1}"
    return names | {"features_conv": f"{last}.0", "features_norm": f"{last}.1", "Dense_0": "fc_audioset"}


def theirs_of(x: np.ndarray, name: str) -> np.ndarray:
    """Our array in PyTorch's order of axes: (kh, kw, I, O) -> (O, I, kh, kw), and (I, O) -> (O, I) or (O, I, 1, 1)."""
    if x.ndim == 2:
        return x.T if name.startswith("fc") else x.T[..., None, None]
    return x.transpose(3, 2, 0, 1) if x.ndim == 4 else x


def ours_of(x: np.ndarray) -> np.ndarray:
    """The inverse of `theirs_of`; depthwise and stem kernels keep four axes, pointwise ones have two."""
    if x.ndim == 4 and x.shape[2:] == (1, 1):
        x = x[..., 0, 0]
    return np.ascontiguousarray(x.transpose(2, 3, 1, 0) if x.ndim == 4 else x.T)


def problems(arrays: Mapping[str, np.ndarray], shapes: Mapping[str, tuple[int, ...]]) -> Iterator[str]:
    """What is wrong with the tensors of a file, given the shapes that they should have."""
    for name, expected in shapes.items():
        if name not in arrays:
            yield f"tensor {name}: found nothing, expected {expected}"
        elif (found := arrays[name]).shape != expected:
            yield f"tensor {name}: found {found.shape}, expected {expected}"
        elif not np.issubdtype(found.dtype, np.floating):
            yield f"tensor {name}: found {found.dtype}, expected floating point numbers"
        elif not np.isfinite(found).all():
            yield f"tensor {name}: found NaN or infinite values"
        elif name.endswith("running_var") and found.min() < 0:
            yield f"tensor {name}: found a negative variance"
    for name in arrays:
        if name not in shapes:
            yield f"tensor {name!r}: found {arrays[name].shape}, expected no such tensor"


def read(file: Path) -> tuple[dict[str, np.ndarray], int | None]:
    """The tensors of a PyTorch checkpoint, without running any code that it may hold.

    Args:
        file: a state_dict, or a dict with one under 'model', as PANNs saves; each name may begin with 'module.'.

    Returns:
        the tensors by name, and the iteration that the file tells.

    Raises:
        InputError: no such file, no checkpoint, one that holds more than data, or no (or too old a) torch.
    """
    try:
        import torch
    except ImportError as error:
        raise InputError("reading PyTorch's checkpoints needs torch: pip install '.[bench]'") from error
    if tuple(map(int, re.findall(r"\d+", torch.__version__)[:2])) < (2, 6):
        raise InputError(f"torch is {torch.__version__}; expected 2.6 at least, older ones may run a checkpoint's code")
    try:
        with open(file, "rb") as stream, torch.serialization.safe_globals(unread()), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of torch, about damaged files: the error says all
            content = torch.load(stream, map_location="cpu", weights_only=True)
    except OSError as error:
        raise InputError(f"{file}: cannot be read ({error.strerror or error}), expected a checkpoint") from error
    except Exception as error:  # pickle, zip and torch raise a dozen types for what is damaged
        if refused := re.search(r"GLOBAL (\S+)", str(error)):
            what = f"holds {refused[1]!r}, which may be code; nothing of it was run. Expected tensors only"
        else:
            what = "damaged, or no checkpoint of PyTorch"
        raise InputError(f"{file}: {what}") from error
    state = content.get("model", content) if isinstance(content, dict) else content
    if not isinstance(state, dict) or not state or not all(isinstance(name, str) for name in state):
        raise InputError(f"{file}: found a {type(state).__name__}, expected a state_dict of named tensors")
    prefix = "module." if all(name.startswith("module.") for name in state) else ""  # of DataParallel
    arrays = {}
    for name, tensor in state.items():
        try:
            arrays[name.removeprefix(prefix)] = tensor.detach().numpy()  # no copy: its shape is not checked yet
        except (AttributeError, TypeError, RuntimeError, ValueError) as error:
            kind = getattr(tensor, "dtype", type(tensor).__name__)
            raise InputError(f"{file}: {name!r}: found {kind}, expected a dense tensor of numpy's types") from error
    iteration = content.get("iteration") if state is not content else None
    return arrays, iteration if isinstance(iteration, int) and 0 <= iteration < 1 << 63 else None


def unread() -> list[type]:
    """What takes the place of numpy's arrays while a checkpoint is read: PANNs saves its sampler's, nobody needs them.

    They are never built: what a file says of an array is ignored, and no code of numpy sees it.
    """

    def ignore(self, *args):
        pass

    places = [("numpy", "ndarray"), ("numpy", "dtype")]
    places += [(f"numpy.{core}.multiarray", name) for core in ("core", "_core") for name in ("_reconstruct", "scalar")]
    own = {"__init__": ignore, "__setstate__": ignore}
    return [type(name, (), {"__module__": module, **own}) for module, name in places]


def panns(args: argparse.Namespace) -> int:
    """A checkpoint of PANNs' MobileNetV2 (Kong et al. 2020), to start networks from."""
    file, out = Path(args.file).expanduser(), Path(args.out).expanduser()
    if out.is_file() or (out.is_dir() and any(out.iterdir())):
        raise UsageError(f"OUT: {out} is {'a file' if out.is_file() else 'not empty'}, expected a new folder")
    arrays, iteration = read(file)
    kept, left = {}, {}
    for name, array in arrays.items():
        (left if name.startswith(FRONTEND) or name.endswith(".num_batches_tracked") else kept)[name] = array
    try:
        params, stats = from_panns(kept)
    except InputError as error:
        raise InputError(f"{file}: {error}") from error
    state = TrainState(np.zeros((), np.int32), params, stats, ())
    with contextlib.closing(checkpoint.manager(out / "checkpoints")) as checkpoints:
        checkpoint.save(checkpoints, state)
    made_of = {"from": file.name, "format": "panns", "tensors": len(kept)}
    rundir.write_json(out / "config.json", {"converted": made_of})
    count = {part: sum(leaf.size for leaf in jax.tree.leaves(tree)) for part, tree in params.items()}
    at = f" of iteration {iteration:,}" if iteration is not None else ""
    counts = Counter(name.split(".")[0] if name.startswith(FRONTEND) else "num_batches_tracked" for name in left)
    print(f"read {file}: {len(kept)} tensors{at}, {sum(count.values()):,} parameters, {count['head']:,} of the classes")
    print(f"left out: {', '.join(f'{name} ({n})' for name, n in counts.items()) or 'nothing'}")
    print(f"note: {frontend_note(left)}")
    print(f"wrote {out}; a network starts from it with --config.init_from={out}")
    return 0


def frontend_note(left: Mapping[str, np.ndarray]) -> str:
    """What is known of the frontend that a checkpoint's network was trained behind."""
    said = "the file does not tell its frontend; published networks had 64 mels from 50 Hz to 14 kHz at 32 kHz"
    mel = left.get("logmel_extractor.melW")  # (window / 2 + 1, F)
    if mel is not None and mel.ndim == 2 and mel.shape[0] > 1 and mel.size < 1 << 24 and mel.any():
        top = mel.any(1).nonzero()[0].max() / (2 * (mel.shape[0] - 1))
        said = (
            f"its mel filters are {mel.shape[1]}, over windows of {2 * (mel.shape[0] - 1)} samples, up to {top:.2f} of "
            "the sample rate (published: 32 kHz, 1,024 samples, 50 Hz to 14 kHz)"
        )
    return f"{said}. Mels at 16 kHz are others: the network has to be fine-tuned"


def main(argv: list[str] | None = None) -> int:
    """Exit code: 0 done, 1 something is wrong with the file, 2 bad usage."""
    parser = argparse.ArgumentParser(prog="python -m asdjax.convert", description=__doc__)
    commands = parser.add_subparsers(title="commands", metavar="COMMAND")
    own = commands.add_parser("panns", help="MobileNetV2 of PANNs", description=panns.__doc__)
    own.add_argument("file", metavar="FILE.pth", help="a checkpoint of PyTorch")
    own.add_argument("out", metavar="OUT", help="a new folder")
    own.set_defaults(act=panns)
    return commandline.run(parser, argv)


if __name__ == "__main__":
    sys.exit(main())
