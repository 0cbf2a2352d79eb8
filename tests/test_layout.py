"""Who may import whom: the layers of the package, read from its own import statements."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "asdjax"

# Layer of each module; a module imports from lower layers, or from its own where the last table allows it.
LAYERS = {
    "asdjax": 0,
    "asdjax.core": 0,
    "asdjax.frontends": 1,
    "asdjax.augment": 1,
    "asdjax.pooling": 1,
    "asdjax.losses": 1,
    "asdjax.metrics": 1,
    "asdjax.threshold": 1,
    "asdjax.optim": 1,
    "asdjax.parallel": 1,
    "asdjax.timing": 1,
    "asdjax.detectors": 1,
    "asdjax.data": 1,
    "asdjax.data.feed": 2,
    "asdjax.data.__main__": 5,
    "asdjax.checkpoint": 2,
    "asdjax.steplog": 2,
    "asdjax.heads": 2,
    "asdjax.models": 2,
    "asdjax.systems": 3,
    "asdjax.chunks": 3,
    "asdjax.transfer": 3,
    "asdjax.train": 4,
    "asdjax.evaluate": 4,
    "asdjax.scoretable": 2,
    "asdjax.results": 4,
    "asdjax.results.__main__": 8,
    "asdjax.progress": 1,
    "asdjax.rundir": 4,
    "asdjax.tables": 5,
    "asdjax.comparison": 6,
    "asdjax.pictures": 3,
    "asdjax.outcome": 5,
    "asdjax.training_free": 5,
    "asdjax.commandline": 1,
    "asdjax.learn": 5,
    "asdjax.by_machine": 1,
    "asdjax.checks": 6,
    "asdjax.plan": 6,
    "asdjax.run": 7,
    "asdjax.ensemble": 8,
    "asdjax.tagging": 8,
    "asdjax.convert": 8,
    "asdjax.main": 9,
}
# A package may import within itself; the pooling of units is shared by detectors and models.
SIDEWAYS = {"asdjax.detectors": {"asdjax.pooling"}}


def module_name(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def imports(path: Path) -> set[str]:
    """Dotted names that a file imports, at any depth of its code."""
    names = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            names |= {node.module} | {f"{node.module}.{alias.name}" for alias in node.names}
    return names


def layer_of(name: str) -> str:
    """The longest entry of LAYERS that is a prefix of the module."""
    return max((k for k in LAYERS if name == k or name.startswith(k + ".")), key=len)


FILES = sorted(PACKAGE.rglob("*.py"))


@pytest.mark.parametrize("path", FILES, ids=module_name)
def test_imports_point_downwards(path):
    here = layer_of(module_name(path))
    assert here != "asdjax" or path == PACKAGE / "__init__.py", f"{path}: give the module a layer"
    for name in imports(path):
        if not name.startswith("asdjax.") or not (
            (ROOT / (name.replace(".", "/") + ".py")).exists() or (ROOT / name.replace(".", "/")).is_dir()
        ):
            continue
        there = layer_of(name)
        allowed = here == there or there in SIDEWAYS.get(here, ()) or LAYERS[there] < LAYERS[here]
        assert allowed, f"{module_name(path)} (layer {LAYERS[here]}) imports {name} (layer {LAYERS[there]})"


@pytest.mark.parametrize("path", FILES, ids=module_name)
def test_libraries_stay_where_they_belong(path):
    name, found = module_name(path), imports(path)
    roots = {n.split(".")[0] for n in found}
    if any(n.startswith("flax.linen") for n in found):
        assert layer_of(name) in ("asdjax.models", "asdjax.heads", "asdjax.systems")
    if "sklearn" in roots:
        assert name in ("asdjax.detectors.host", "asdjax.pictures")
    if "ml_collections" in roots or "absl" in roots:
        assert name == "asdjax.main"
    if "orbax" in roots:
        assert name == "asdjax.checkpoint"


@pytest.mark.parametrize("path", sorted((ROOT / "configs").glob("*.py")), ids=lambda p: p.stem)
def test_configs_can_be_read_without_jax(path):
    assert imports(path) <= {"ml_collections", "ml_collections.ConfigDict"}


def test_slow_imports_are_lazy():
    """librosa, orbax, scikit-learn and scipy cost seconds: no module imports them at its top level."""
    for path in FILES:
        for node in ast.parse(path.read_text()).body:
            if isinstance(node, ast.Import | ast.ImportFrom):
                names = [a.name for a in node.names] if isinstance(node, ast.Import) else [node.module]
                slow = {n.split(".")[0] for n in names} & {"librosa", "orbax", "sklearn", "scipy", "matplotlib"}
                assert not slow, f"{path} imports {slow} at its top level"
