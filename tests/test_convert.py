"""`python -m asdjax.convert`: published weights become ours, and files that are anything else are refused."""

import contextlib
import importlib
import json
import os
import pickle
import sys

import jax
import numpy as np
import pytest
from test_models import quick_jit
from test_panns import BINS, CLASSES, NETS, ROWS, filled, golden

from asdjax import checkpoint, convert, core, heads, models
from asdjax.core import InputError, TrainState

SMALL = models.PannsMobileNetV2(**NETS["panns"])


def arrays():
    return filled(golden("panns")["shapes"])


def from_panns(tensors):
    return convert.from_panns(tensors, SMALL, n_classes=CLASSES, bins=BINS)


def run(capsys, *argv):
    code = convert.main(["panns", *map(str, argv)])
    out = capsys.readouterr()
    return code, out.out, out.err


# --- the tensors -----------------------------------------------------------------------------------------------------


def test_each_tensor_goes_to_its_place_once():
    """Element by element: (O, I, kh, kw) is (kh, kw, I, O) here, of a pointwise one (I, O), and (O, I) is (I, O)."""
    theirs = arrays()
    params, stats = from_panns(theirs)
    body, norms = params["backbone"], stats["backbone"]["batch_stats"]
    pairs = [
        (body["stem_conv"]["kernel"][2, 0, 0, 3], theirs["features.0.0.weight"][3, 0, 2, 0]),
        (body["row0_0"]["depthwise"]["kernel"][0, 1, 0, 4], theirs["features.1.conv.0.weight"][4, 0, 0, 1]),
        (body["row1_1"]["expand"]["kernel"][1, 5], theirs["features.3.conv.0.weight"][5, 1, 0, 0]),
        (body["row1_1"]["depthwise_norm"]["scale"][7], theirs["features.3.conv.5.weight"][7]),
        (body["fc1"]["kernel"][6, 2], theirs["fc1.weight"][2, 6]),
        (params["head"]["Dense_0"]["kernel"][4, 1], theirs["fc_audioset.weight"][1, 4]),
        (norms["bn0"]["mean"][9], theirs["bn0.running_mean"][9]),
        (norms["features_norm"]["var"][2], theirs["features.4.1.running_var"][2]),
    ]
    for ours, their in pairs:
        assert ours == their
    taken = jax.tree.leaves((params, stats["backbone"]))
    assert len(taken) == len(theirs) and sum(leaf.size for leaf in taken) == sum(x.size for x in theirs.values())
    assert {leaf.dtype for leaf in taken} == {np.dtype(np.float32)}
    np.testing.assert_array_equal(stats["head"]["classes"]["known"], np.ones(CLASSES))
    assert stats["data"] == {}


def changed(**changes):
    """The tensors with others under these names; None takes one away. '_' stands for '.'."""
    made = arrays()
    for name, value in changes.items():
        name = name.replace("_", ".", 1)
        made.pop(name) if value is None else made.update({name: value})
    return made


@pytest.mark.parametrize(
    "changes, message",
    [
        (dict(fc1_bias=None), r"^tensor fc1\.bias: found nothing, expected \(6,\)$"),
        (dict(fc1_bias=np.zeros(5)), r"^tensor fc1\.bias: found \(5,\), expected \(6,\)$"),
        (dict(bn0_running_var=np.full(BINS, -1.0)), r"^tensor bn0\.running_var: found a negative variance$"),
        (dict(bn0_weight=np.full(BINS, np.nan)), r"^tensor bn0\.weight: found NaN or infinite values$"),
        (dict(bn0_bias=np.zeros(BINS, int)), r"^tensor bn0\.bias: found int64, expected floating point numbers$"),
        (dict(a_b=np.zeros(2)), r"^tensor 'a\.b': found \(2,\), expected no such tensor$"),
        (
            dict(bn0_weight=None, bn0_bias=None, fc1_bias=None, a_b=np.zeros(2), a_c=np.zeros(2)),
            r"tensor bn0\.bias: found nothing.*; and 2 more$",
        ),
    ],
)
def test_tensors_that_do_not_fit_are_named(changes, message):
    with pytest.raises(InputError, match=message):
        from_panns(changed(**changes))


# --- PyTorch's files -------------------------------------------------------------------------------------------------


@pytest.fixture
def torch():
    return pytest.importorskip("torch")


def test_outputs_are_those_of_the_pytorch_network(torch):
    """All seventeen blocks, at small width: random weights and running statistics.

    Both compute in float64: in float32 rounding grows through the blocks, and PyTorch's own is off by up to 1.5e-5 of
    the largest output, ours by as much, more or less with the number of threads.
    """
    rows = tuple((t, max(2, c // 16), n, s) for t, c, n, s in models.panns.ROWS)
    net = models.PannsMobileNetV2(rows=rows, stem=4, features=24, fc=16)
    torch.manual_seed(1)
    peer = importlib.import_module("benchmarks.peers.panns").MobileNetV2(rows, 4, 24, fc=16, classes=10)
    with torch.no_grad():
        x = 20 * torch.randn(2, 75, 64) - 30
        for name, tensor in peer.state_dict().items():
            if name.endswith("bias") or (tensor.ndim == 1 and name.endswith("weight")):
                tensor.add_(0.3 * torch.randn(tensor.shape))
        for module in peer.modules():
            if hasattr(module, "running_var"):
                module.momentum = None  # the statistics of this batch, lest all maps die on the way; then others
        peer.train()(x)
        for name, tensor in peer.state_dict().items():
            if "running" in name:
                tensor.mul_(1 + 0.2 * torch.rand(tensor.shape))
        state = {k: v.numpy().copy() for k, v in peer.state_dict().items() if not k.endswith("num_batches_tracked")}
        peer, y = peer.double().eval(), x.double()
        expected = peer.embedding(y).numpy(), peer(y).numpy()
    params, stats = convert.from_panns(state, net, n_classes=10)
    head = heads.Linear(10)

    def function(params, stats, x):
        embedding = net.apply({"params": params["backbone"], **stats["backbone"]}, x, False)
        return embedding, head.apply({"params": params["head"], **stats["head"]}, embedding, None, False)[1]

    with jax.enable_x64(True):
        wide = jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), (params, stats, x.numpy()))
        found = jax.device_get(quick_jit(function)(*wide))
    for ours, theirs in zip(found, expected, strict=True):
        assert np.std(theirs, axis=0).max() > 1e-3 * np.abs(theirs).max()  # the two units differ
        np.testing.assert_allclose(ours, theirs, rtol=0, atol=1e-9 * np.abs(theirs).max())


@pytest.fixture(scope="module")
def published(tmp_path_factory):
    """A checkpoint of the published form and size, of random weights: its state_dict and a file with all beside."""
    torch = pytest.importorskip("torch")
    torch.manual_seed(0)
    peer = importlib.import_module("benchmarks.peers.panns").MobileNetV2(
        models.panns.ROWS, 32, 1280, fc=1024, classes=527
    )
    state = dict(peer.state_dict())
    mel = torch.zeros(513, 64)
    mel[2:448] = 1  # 14 kHz of 32 is bin 448
    frontend = {"spectrogram_extractor.stft.conv_real.weight": torch.zeros(513, 1, 8), "logmel_extractor.melW": mel}
    sampler = {"indexes_per_class": [np.arange(5), np.arange(3)], "queue": [3], "pointers_of_classes": [0, np.int64(1)]}
    file = tmp_path_factory.mktemp("published") / "MobileNetV2_mAP=0.383.pth"
    torch.save({"iteration": 600000, "model": {**state, **frontend}, "sampler": sampler}, file)
    return state, file


def test_a_published_checkpoint_becomes_one_of_ours(published, tmp_path, capsys):
    """With a sampler's numpy arrays beside, which torch refuses by default."""
    state, file = published
    code, out, err = run(capsys, file, tmp_path / "out")
    assert (code, err) == (0, "")
    assert "268 tensors of iteration 600,000, 4,075,343 parameters, 540,175 of the classes" in out
    assert "left out: num_batches_tracked (53), spectrogram_extractor (1), logmel_extractor (1)" in out
    assert "its mel filters are 64, over windows of 1024 samples, up to 0.44 of the sample rate" in out
    assert f"--config.init_from={tmp_path / 'out'}" in out
    made_of = {"from": file.name, "format": "panns", "tensors": 268}
    assert json.loads((tmp_path / "out" / "config.json").read_text()) == {"converted": made_of}
    like = convert.template(convert.PUBLISHED, 527, 64)
    with contextlib.closing(checkpoint.manager(tmp_path / "out" / "checkpoints")) as checkpoints:
        found = checkpoint.restore(checkpoints, like)
    assert jax.tree.structure(found) == jax.tree.structure(like) and found.step == 0
    kernel = found.params["backbone"]["row6_0"]["project"]["kernel"]
    np.testing.assert_array_equal(kernel, state["features.17.conv.7.weight"].numpy()[:, :, 0, 0].T)
    code, _, err = run(capsys, file, tmp_path / "out")
    assert code == 2 and "not empty, expected a new folder" in err


def test_the_checkpoint_has_the_form_of_a_run(torch):
    """Names, shapes and types of a state that systems.classify makes from waves."""
    import tiny

    from asdjax import train

    backbone = {"name": "PannsMobileNetV2", **NETS["panns"]}
    system = train.make(
        tiny.config(system={"name": "classify"}, backbone=backbone, head={"name": "Linear"}), n_classes=4
    )
    data = tiny.tones(n=2)
    state = jax.eval_shape(system.init, jax.random.key(0), data.batch(np.arange(2), np.arange(2)))
    net = core.build(models, backbone)
    bins = state.params["backbone"]["bn0"]["scale"].shape[0]
    like = convert.template(net, state.params["head"]["Dense_0"]["kernel"].shape[1], bins)
    assert like.params == state.params and like.stats == state.stats and like.step == state.step
    assert like.opt_state == ()


@pytest.mark.parametrize("legacy", [False, True])
def test_state_dicts_are_read_bare_of_data_parallel_and_in_the_old_format(torch, tmp_path, legacy):
    tensors = {name: torch.tensor(x) for name, x in arrays().items()}
    contents = {
        "bare": tensors,
        "parallel": {f"module.{name}": x for name, x in tensors.items()},
        "whole": {"model": tensors, "iteration": 7, "sampler": {"indexes": np.arange(4), "pointer": np.int64(2)}},
    }
    for name, content in contents.items():
        torch.save(content, tmp_path / name, _use_new_zipfile_serialization=not legacy)
        found, iteration = convert.read(tmp_path / name)
        assert iteration == (7 if name == "whole" else None)
        jax.tree.map(np.testing.assert_array_equal, found, arrays())


def test_numpy_1_arrays_are_passed_over_too(torch, tmp_path):
    """Published files are older than numpy 2, where the modules have other names of the same length less one."""
    file = tmp_path / "old.pth"
    torch.save({"model": {"a": torch.ones(2)}, "sampler": np.arange(4)}, file, _use_new_zipfile_serialization=False)
    content = file.read_bytes()
    assert content.count(b"numpy._core.multiarray") == 1
    file.write_bytes(content.replace(b"numpy._core.multiarray", b"numpy.core.multiarray"))
    assert convert.read(file)[0]["a"].tolist() == [1, 1]


class Command:
    """A pickle that runs a command when read."""

    def __init__(self, target):
        self.target = target

    def __reduce__(self):
        return os.system, (f"touch '{self.target}'",)


@pytest.mark.parametrize("form", ["zip", "legacy", "pickle", "within the sampler"])
def test_code_in_a_file_is_not_run(torch, tmp_path, capsys, form):
    file, trace = tmp_path / "evil.pth", tmp_path / "ran"
    if form == "pickle":
        file.write_bytes(pickle.dumps(Command(trace), protocol=2))
    elif form == "within the sampler":
        sampler = np.empty(1, object)
        sampler[0] = Command(trace)
        torch.save({"model": {"a": torch.ones(2)}, "sampler": sampler}, file)
    else:
        torch.save({"model": Command(trace)}, file, _use_new_zipfile_serialization=form == "zip")
    code, out, err = run(capsys, file, tmp_path / "out")
    assert (code, out) == (1, "") and not trace.exists() and not (tmp_path / "out").exists()
    assert err.count("\n") == 1 and f"error: {file}: holds 'posix.system', which may be code" in err
    with contextlib.suppress(Exception):  # the file does what it is meant to where nothing holds it back
        torch.load(file, weights_only=False)
    assert trace.exists()


def test_files_that_are_no_checkpoint_are_refused_in_one_line(torch, tmp_path, capsys, published):
    cut, text, empty = (tmp_path / name for name in ("cut.pth", "text.pth", "empty.pth"))
    cut.write_bytes(published[1].read_bytes()[:100_000])
    text.write_text("this is no checkpoint\n")
    empty.write_bytes(b"")
    said = {file: "damaged, or no checkpoint of PyTorch" for file in (cut, text, empty)}
    said |= {tmp_path / "none.pth": r"cannot be read (No such file or directory)", tmp_path: "(Is a directory)"}
    for name, content, message in (
        ("list", [torch.ones(2)], "found a list, expected a state_dict of named tensors"),
        ("nothing", {"model": {}}, "found a dict, expected a state_dict of named tensors"),
        ("number", {"model": {"a": 3}}, "'a': found int, expected a dense tensor of numpy's types"),
        ("half", {"model": {"a": torch.ones(2, dtype=torch.bfloat16)}}, "'a': found torch.bfloat16, expected a dense"),
        ("other", {"model": {"conv_block1.weight": torch.ones(2)}}, "; and 266 more"),
    ):
        torch.save(content, tmp_path / name)
        said[tmp_path / name] = message
    for file, message in said.items():
        code, out, err = run(capsys, file, tmp_path / "out")
        assert (code, out) == (1, ""), file
        assert err.startswith(f"error: {file}: ") and message in err and err.count("\n") == 1, err
    assert not (tmp_path / "out").exists()


def test_huge_tensors_of_few_bytes_are_not_spread_out(torch, tmp_path):
    """A stride of 0 makes 2^50 numbers of one: refused by its shape."""
    file = tmp_path / "huge.pth"
    torch.save({**{k: torch.tensor(v) for k, v in arrays().items()}, "fc1.bias": torch.ones(1).expand(1 << 50)}, file)
    tensors, _ = convert.read(file)
    with pytest.raises(InputError, match=r"tensor fc1\.bias: found \(1125899906842624,\), expected \(6,\)"):
        from_panns(tensors)


def test_a_missing_or_old_torch_is_said(monkeypatch, tmp_path, capsys):
    monkeypatch.setitem(sys.modules, "torch", None)
    code, _, err = run(capsys, tmp_path / "x.pth", tmp_path / "out")
    assert code == 1 and "needs torch: pip install '.[bench]'" in err
    monkeypatch.setitem(sys.modules, "torch", type(sys)("torch"))
    sys.modules["torch"].__version__ = "2.5.1+cpu"
    code, _, err = run(capsys, tmp_path / "x.pth", tmp_path / "out")
    assert code == 1 and "torch is 2.5.1+cpu; expected 2.6 at least" in err


def test_usage(tmp_path, capsys):
    assert convert.main([]) == 2
    (tmp_path / "file").write_text("")
    for out, message in ((tmp_path, "not empty"), (tmp_path / "file", "a file")):
        code, _, err = run(capsys, tmp_path / "x.pth", out)
        assert code == 2 and f"OUT: {out} is {message}, expected a new folder" in err


def test_the_frontend_is_told_where_the_file_tells_it():
    assert "does not tell its frontend" in convert.frontend_note({})
    mel = np.zeros((257, 64))
    mel[3:257] = 1
    assert "64, over windows of 512 samples, up to 0.50 of the sample rate" in convert.frontend_note(
        {"logmel_extractor.melW": mel}
    )


def test_names_of_all_blocks():
    """Of PANNs' rows: seventeen blocks, numbered through; the first has no expanding convolution."""
    names = convert.module_names(models.panns.ROWS)
    assert names["row0_0/depthwise"] == "features.1.conv.0" and "row0_0/expand" not in names
    assert names["row1_1/project_norm"] == "features.3.conv.8" and names["row6_0/expand"] == "features.17.conv.0"
    assert names["features_conv"] == "features.18.0" and len(set(names.values())) == len(names)
    assert convert.module_names(ROWS)["features_norm"] == "features.4.1"


def test_a_state_is_saved_and_found_again(tmp_path):
    """Without torch: what `panns` writes can be restored into the template."""
    params, stats = from_panns(arrays())
    with contextlib.closing(checkpoint.manager(tmp_path)) as checkpoints:
        checkpoint.save(checkpoints, TrainState(np.zeros((), np.int32), params, stats, ()))
        found = checkpoint.restore(checkpoints, convert.template(SMALL, CLASSES, BINS))
    jax.tree.map(np.testing.assert_array_equal, (found.params, found.stats), (params, stats))
