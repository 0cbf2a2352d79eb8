"""The networks in PyTorch that the benchmarks compare with are ours: parameters, outputs, losses, steps and FLOPs."""

import importlib
import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import linen as nn
from test_autoencoder import WIDTHS, filled, rule

from asdjax import frontends, heads, models, optim, systems
from asdjax.core import Parts
from benchmarks import flops

torch = pytest.importorskip("torch")
training = importlib.import_module("benchmarks.peers.training")
autoencoder = importlib.import_module("benchmarks.peers.autoencoder")
dual_path = importlib.import_module("benchmarks.peers.dual_path")
vit = importlib.import_module("benchmarks.peers.vit")

FRAMES, BINS, D, C = 16, 32, 8, 5
SPECS = {
    "MobileFaceNet": dict(rows=((2, 8, 2, 2), (4, 12, 1, 2)), stem=8, features=16, embedding=D),
    "MobileNetV2": dict(rows=((1, 8, 2, 1), (3, 12, 1, 2)), stem=8, features=16, embedding=D),
    "PannsMobileNetV2": dict(
        rows=((1, 8, 2, 1), (3, 12, 1, 2)), stem=8, features=D, downsample="avgpool", head_act="linear", fc=0
    ),
}
RNG = np.random.default_rng(0)


@pytest.fixture(scope="module", params=SPECS)
def pair(request):
    """Our network, its variables filled at random, and the peer with the same weights."""
    net = getattr(models, request.param)(**SPECS[request.param])
    shapes = jax.eval_shape(lambda: net.init(jax.random.key(0), jnp.zeros((1, FRAMES, BINS)), train=False))
    variables = jax.tree.map(lambda leaf: np.float32(RNG.uniform(0.2, 1.0, leaf.shape)), shapes)
    variables["params"] = jax.tree.map(lambda leaf: leaf - np.float32(0.6), variables["params"])
    peer = training.network(dict(name=request.param, **SPECS[request.param]), FRAMES, BINS)
    copy(net, variables, peer)
    return net, variables, peer


def copy(net, variables, peer):
    """Puts our variables into the peer, whose layers come in the order in which ours are called."""
    ours = iter(in_order(net, variables))
    with torch.no_grad():
        for module in peer.modules():
            match module:
                case torch.nn.Conv2d():
                    kernel = next(ours)["kernel"]
                    kernel = kernel[None, None] if kernel.ndim == 2 else kernel  # (kh, kw, I, O) -> (O, I, kh, kw)
                    module.weight.copy_(torch.from_numpy(kernel.transpose(3, 2, 0, 1)))
                case torch.nn.Linear():
                    weights = next(ours)
                    module.weight.copy_(torch.from_numpy(weights["kernel"].T))
                    module.bias.copy_(torch.from_numpy(weights["bias"]))
                case torch.nn.BatchNorm2d():
                    norm = next(ours)
                    for name, leaf in dict(weight="scale", bias="bias", running_mean="mean", running_var="var").items():
                        getattr(module, name).copy_(torch.from_numpy(norm[leaf]))
                case torch.nn.PReLU():
                    module.weight.copy_(torch.from_numpy(norm["slope"]))
    assert next(ours, None) is None


def stem(tree):
    """Of the parameters of a network, the first kernel, as PyTorch has it."""
    layer = tree["stem_conv" if "stem_conv" in tree else "Conv3x3_0"]
    return np.asarray(layer["kernel"]).transpose(3, 2, 0, 1)


def in_order(net, variables):
    """The variables of each of our layers, as they are called."""
    found = []

    def note(call, args, kwargs, context):
        if context.method_name == "__call__":
            found.append(context.module.path)
        return call(*args, **kwargs)

    with nn.intercept_methods(note):
        jax.eval_shape(lambda x: net.apply(variables, x, train=False), jnp.zeros((1, FRAMES, BINS)))
    leaves = {}
    for tree in variables.values():
        for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
            *module, name = (key.key for key in path)
            leaves.setdefault(tuple(module), {})[name] = leaf
    return [leaves[path] for path in found if path in leaves]


def test_parameters(pair):
    _, variables, peer = pair
    assert sum(p.numel() for p in peer.parameters()) == sum(leaf.size for leaf in jax.tree.leaves(variables["params"]))


def test_forward(pair):
    net, variables, peer = pair
    x = RNG.normal(size=(3, FRAMES, BINS)).astype(np.float32)
    ours = jax.jit(lambda v, x: net.apply(v, x, train=False))(variables, x)
    with torch.no_grad():
        theirs = peer.eval()(torch.from_numpy(x)).numpy()
    assert np.abs(theirs).max() > 1e-3
    np.testing.assert_allclose(ours, theirs, rtol=0, atol=1e-4 * np.abs(theirs).max())


def test_a_step_moves_both_alike(pair):
    """The same batch, ArcFace with a mixed label, and Adam: equal losses, gradients and kernels after the step."""
    net, variables, peer = pair
    x = RNG.normal(size=(16, FRAMES, BINS)).astype(np.float32)
    label = RNG.dirichlet(np.ones(C), 16).astype(np.float32)
    weight = RNG.normal(size=(C, D)).astype(np.float32)
    head = training.ArcFace(C, D, s=16.0, margin=0.4)
    with torch.no_grad():
        head.weight.copy_(torch.from_numpy(weight))

    def loss(params):
        embedding, _ = net.apply({**variables, "params": params["body"]}, x, train=True, mutable=["batch_stats"])
        top = heads.ArcFace(C, s=16.0, margin=0.4)
        losses, _ = top.apply({"params": {"kernel": params["head"]}}, embedding, {"class": label}, train=True)
        return losses.mean()

    @jax.jit
    def step(params):
        value, grads = jax.value_and_grad(loss)(params)
        tx = optax.adam(1e-2)
        updates, _ = tx.update(grads, tx.init(params), params)
        return value, grads, optax.apply_updates(params, updates)

    value, grads, params = step({"body": variables["params"], "head": weight})
    peer_loss = training.make_loss(dict(name="classify"), peer.train(), head)
    peer_step = training.make_step(peer_loss, [*peer.parameters(), *head.parameters()], dict(name="adam", lr=1e-2))
    theirs = peer_step(torch.from_numpy(x), torch.from_numpy(label))
    np.testing.assert_allclose(value, theirs.numpy(), rtol=1e-4)
    scale = np.abs(grads["head"]).max()
    np.testing.assert_allclose(head.weight.grad.numpy(), grads["head"], rtol=0, atol=1e-3 * scale)
    first, gradient = next(p for p in peer.parameters() if p.ndim == 4), stem(grads["body"])
    np.testing.assert_allclose(first.grad.numpy(), gradient, rtol=0, atol=1e-3 * np.abs(gradient).max())
    moved = stem(params["body"])
    clear = np.abs(gradient) > 1e-2 * np.abs(gradient).max()  # Adam's first step is the sign of the gradient
    np.testing.assert_allclose(first.detach().numpy()[clear], moved[clear], rtol=0, atol=1e-4)


def test_flops_are_those_that_pytorch_counts(pair):
    """PyTorch counts its operators as they run; every place of the output counts its whole kernel there too."""
    from torch.utils.flop_counter import FlopCounterMode

    net, _, peer = pair
    if isinstance(net, models.PannsMobileNetV2):  # whose averages we compute otherwise, see below
        net = net.clone(downsample="strided")
        peer = training.network(
            {**SPECS["PannsMobileNetV2"], "name": "PannsMobileNetV2", "downsample": "strided"}, FRAMES, BINS
        )
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        peer.eval()(torch.zeros(1, FRAMES, BINS))
    assert flops.forward_flops(net, FRAMES, BINS) == counter.get_total_flops()


def test_flops_of_averaged_convolutions_are_those_of_their_wider_kernels():
    """By hand: stem and depthwise of 4 x 4 at the places that remain, 10 x 6 and 5 x 3 of 21 x 12; pointwise."""
    net = models.PannsMobileNetV2(rows=((1, 4, 1, 2),), stem=2, features=3)
    by_hand = 10 * 6 * 2 * 16 + 5 * 3 * (2 * 16 + 2 * 4 + 4 * 3)
    assert flops.forward_flops(net, 21, 12) == 2 * by_hand


VIT = dict(
    name="ViT", patch=4, width=8, depth=2, heads=2, dim_head=3, mlp=12, style="paper", pool="cls", time_fit="crop"
)


def test_flops_of_a_vision_transformer():
    """Those that PyTorch counts; without them where only the vector of the class goes on, by hand."""
    from torch.nn.attention import SDPBackend, sdpa_kernel
    from torch.utils.flop_counter import FlopCounterMode

    frames, bins, places = 18, 12, 12
    spec, plain = {**VIT, "pool": "mean"}, sdpa_kernel(SDPBackend.MATH)  # it counts no fused attention on a CPU
    with FlopCounterMode(display=False) as counter, torch.no_grad(), plain:
        training.network(spec, frames, bins).eval()(torch.zeros(1, frames, bins))
    assert flops.forward_flops(models.ViT(**without_name(spec)), frames, bins) == counter.get_total_flops()
    first = places * 16 * 8 + 13 * (8 * 18 + 6 * 8 + 2 * 8 * 12) + 2 * 13 * 13 * 6
    last = 13 * 8 * 18 + (6 * 8 + 2 * 8 * 12) + 2 * 13 * 6
    assert flops.forward_flops(models.ViT(**without_name(VIT)), frames, bins) == 2 * (first + last)


@pytest.mark.parametrize("changes", [{}, dict(style="lucidrains", pool="mean", time_fit="pad")], ids=["cls", "mean"])
def test_steps_of_a_vision_transformer_move_both_alike(changes):
    """Six steps of Adam under the cross-entropy, from our first weights."""
    spec, top, frames, bins = {**VIT, **changes}, dict(name="Linear", loss="softmax"), 18, 12
    cut = frontends.Cut("frames", frames, frames, lambda key, x: x, lambda x: x, lambda length: None)
    tx, head = optim.adam(lr=1e-2, schedule="constant", steps=10), heads.Linear(C, loss="softmax")
    ours = systems.classify(Parts((), lambda x: x, cut, (), models.ViT(**without_name(spec)), head, tx))
    x = 3 * RNG.normal(size=(8, frames, bins)).astype(np.float32) - 2
    label = RNG.dirichlet(np.ones(C), 8).astype(np.float32)
    batch = {"wave": x, "label": {"class": label}}
    state = jax.jit(ours.init)(jax.random.key(0), batch)

    net, linear = training.classifier(dict(backbone=spec, head=top), frames, bins, C)
    vit.fill(net, state.params["backbone"], state.stats["backbone"]["batch_stats"])
    with torch.no_grad():
        linear.linear.weight.copy_(torch.tensor(np.asarray(state.params["head"]["Dense_0"]["kernel"]).T.copy()))
        linear.linear.bias.copy_(torch.tensor(np.asarray(state.params["head"]["Dense_0"]["bias"])))
    loss = training.make_loss(dict(name="classify"), net, linear)
    step = training.make_step(loss, [*net.parameters(), *linear.parameters()], dict(name="adam", lr=1e-2))
    update, found, wanted = jax.jit(ours.update), [], []
    for _ in range(6):
        state, metrics = update(state, jax.random.key(1), batch)
        found.append(float(metrics["loss"]))
        wanted.append(float(step(torch.from_numpy(x), torch.from_numpy(label))))
    assert found[-1] < found[0]
    np.testing.assert_allclose(found, wanted, rtol=1e-4)


def test_flops_of_a_transformer_are_those_of_its_products():
    """By hand, for 64 x 128: D^2 per place for each of queries, keys, values and output, and 2 x 32 D; L^2 D twice."""
    frames = 64 * (4 * 128 * 128 + 2 * 128 * 32) + 2 * 64 * 64 * 128
    bins = 128 * (4 * 64 * 64 + 2 * 64 * 32) + 2 * 128 * 128 * 64
    assert (frames, bins) == (5_767_168, 4_718_592)
    assert flops.forward_flops(models.DualPathTransformer(), 64, 128) == 2 * 3 * (frames + bins)


# --- the training of the dual-path transformer ------------------------------------------------------------------------

TINY = dict(name="DualPathTransformer", blocks=1, heads=4, feedforward=8)
DUAL_PATH = dict(name="dual_path", masks=0, target="normalised", reconstruction_weight=0.5, classification_weight=2.0)
ADAMW = dict(name="adamw", lr=1e-2, schedule="constant", weight_decay=0.1, clip=0.05)


@pytest.mark.parametrize(
    "top, target",
    [(dict(name="Linear", loss="focal", gamma=3.0), "normalised"), (dict(name="Linear", loss="softmax"), "raw")],
    ids=["focal", "softmax"],
)
def test_steps_of_the_dual_path_move_both_alike(top, target):
    """Losses of both heads and of both targets, AdamW, and gradients clipped to a norm that they are well above."""
    system = {**DUAL_PATH, "target": target}
    frames, bins = 8, 16
    backbone, head = models.DualPathTransformer(**without_name(TINY)), heads.Linear(C, **without_name(top))
    cut = frontends.Cut("frames", frames, frames, lambda key, x: x, lambda x: x, lambda length: None)
    tx = optim.adamw(**without_name(ADAMW), steps=10)
    ours = systems.dual_path(Parts((), lambda x: x, cut, (), backbone, head, tx), **without_name(system))
    x = 3 * RNG.normal(size=(6, frames, bins)).astype(np.float32) - 2
    label = RNG.dirichlet(np.ones(C), 6).astype(np.float32)
    batch = {"wave": x, "label": {"class": label}}
    state = jax.jit(ours.init)(jax.random.key(0), batch)

    net, linear = training.classifier(dict(backbone=TINY, head=top), frames, bins, C)
    dual_path.fill(net, state.params["backbone"], state.stats["backbone"]["batch_stats"])
    with torch.no_grad():
        linear.linear.weight.copy_(torch.tensor(np.asarray(state.params["head"]["Dense_0"]["kernel"]).T.copy()))
        linear.linear.bias.copy_(torch.tensor(np.asarray(state.params["head"]["Dense_0"]["bias"])))
    loss = training.make_loss(system, net, linear)
    step = training.make_step(loss, [*net.parameters(), *linear.parameters()], ADAMW)
    update, found, wanted, norms = jax.jit(ours.update), [], [], []
    for _ in range(6):
        state, metrics = update(state, jax.random.key(1), batch)
        found.append(float(metrics["loss"]))
        norms.append(float(metrics["gradient_norm"]))
        wanted.append(float(step(torch.from_numpy(x), torch.from_numpy(label))))
    assert min(norms) > 10 * ADAMW["clip"]
    np.testing.assert_allclose(found, wanted, rtol=1e-4)


def without_name(spec):
    return {k: v for k, v in spec.items() if k != "name"}


def test_patches_are_hidden_anywhere_and_cut_off_at_the_border():
    torch.manual_seed(0)
    hidden = training.patch_mask(torch.Size((600, 7, 9)), 1, 3, torch.device("cpu"))
    assert set(hidden.unique().tolist()) == {np.float32(2.2e-16), 1.0}
    hidden = hidden < 1
    rows, columns = hidden.any(2), hidden.any(1)
    assert torch.equal(hidden, rows[:, :, None] & columns[:, None])  # one rectangle
    for ends, places in ((rows, 7), (columns, 9)):
        first, length = ends.int().argmax(1), ends.sum(1)
        assert set(first.tolist()) == set(range(places))
        assert torch.equal(length, (places - first).clamp(max=3))
    several = training.patch_mask(torch.Size((600, 64, 128)), 3, 5, torch.device("cpu")) < 1
    counts = several.sum((1, 2))
    assert counts.max() == 75 and counts.min() >= 1


@pytest.mark.parametrize(
    "spec",
    [
        dict(name="log_mel", sample_rate=4000, win=128, hop=64, n_mels=16),
        dict(name="spectrogram", win=128, hop=64, pad="reflect", scale="log_power", drop_bin="last"),
    ],
    ids=lambda spec: spec["name"],
)
def test_frontends(spec):
    wave = RNG.normal(size=(2, 2000)).astype(np.float32)
    ours = getattr(frontends, spec["name"])(**{k: v for k, v in spec.items() if k != "name"})(wave)
    theirs = training.Frontend(spec)(torch.from_numpy(wave)).numpy()
    np.testing.assert_allclose(theirs, ours, rtol=0, atol=1e-2)  # decibels


def test_batches_are_clips_of_the_bank(tmp_path):
    bank = RNG.integers(-(2**15), 2**15, (6, 50)).astype(np.int16)
    np.save(tmp_path / "bank.npy", bank)
    label = np.eye(6, dtype=np.float32)
    loader = training.batches(training.Bank(tmp_path / "bank.npy", label), 3, torch.device("cpu"), workers=0)
    torch.manual_seed(0)
    waves, labels = zip(*(next(loader) for _ in range(20)), strict=True)
    rows = torch.cat(labels).argmax(1).numpy()
    assert set(rows) == set(range(6)) and len(waves[0]) == 3
    np.testing.assert_array_equal(torch.cat(waves).numpy(), bank[rows] / np.float32(2**15))


def test_mixup_blends_by_one_weight_and_crop_takes_a_window():
    torch.manual_seed(0)
    x, label = torch.eye(8), torch.eye(8)
    mixed, mixed_label = training.mixup(x, label, p=0.5, alpha=1.0)
    assert torch.equal(mixed, mixed_label)
    np.testing.assert_allclose(mixed.sum(1), 1, rtol=1e-6)
    whole = (mixed.max(1).values == 1).sum()
    assert 0 < whole < 8
    x = torch.arange(40.0).reshape(2, 10, 2)
    unit = training.crop(x, 4)
    assert unit.shape == (2, 4, 2)
    np.testing.assert_array_equal(unit.diff(dim=1), 2)


# --- the autoencoder of the official baselines -----------------------------------------------------------------------

GOLDEN = Path(__file__).parent / "golden" / "autoencoder.json"


def test_the_autoencoder_trains_as_the_official_one():
    """Outputs, gradients, running statistics and six steps of Adam, in float64, from the rule's weights."""
    golden = json.loads(GOLDEN.read_text())
    params, stats = filled()
    peer, x = autoencoder_filled(params, stats), torch.from_numpy(rule(100, (12, 640), 20.0, -30.0))
    assert sum(p.numel() for p in peer.parameters()) == golden["parameters"]
    with torch.no_grad():
        np.testing.assert_allclose(peer.eval()(x)[:, ::64], golden["eval"], rtol=1e-9)
    step, losses = autoencoder.make_step(peer.train(), lr=1e-3), []
    for i in range(len(golden["adam_losses"])):
        losses.append(float(step(x)))
        if i == 0:
            np.testing.assert_allclose(peer[-1].bias.grad[::64], golden["grad_last_bias"], rtol=1e-9)
            np.testing.assert_allclose(peer[1].running_mean[::16], golden["running_mean"], rtol=1e-9)
            np.testing.assert_allclose(peer[1].running_var[::16], golden["running_var"], rtol=1e-9)
    np.testing.assert_allclose(losses, golden["adam_losses"], rtol=1e-9)
    fused = autoencoder.make_step(autoencoder_filled(params, stats), lr=1e-3, fused=True)
    np.testing.assert_allclose([float(fused(x)) for _ in losses], golden["adam_losses"], rtol=1e-9)


def autoencoder_filled(params, stats):
    peer = autoencoder.network(WIDTHS, 640).double()
    autoencoder.fill(peer, {layer: {**own, **stats.get(layer, {})} for layer, own in params.items()})
    return peer


@pytest.mark.parametrize("form", ["loaded", "indexed"])
def test_batches_of_vectors_are_each_of_an_epoch_once(form):
    vectors = torch.arange(24.0).reshape(12, 2)
    batches = getattr(autoencoder, form)(vectors, 4)
    torch.manual_seed(0)
    epochs = [torch.cat([next(batches) for _ in range(3)]) for _ in range(2)]
    for epoch in epochs:
        assert torch.equal(epoch[epoch[:, 0].argsort()], vectors)
        assert not torch.equal(epoch, vectors)
    assert not torch.equal(*epochs)
