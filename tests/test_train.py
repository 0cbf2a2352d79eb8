import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import jax
import numpy as np
import pytest
import tiny
import train_worker

from asdjax import checkpoint, parallel, steplog, train
from asdjax.core import InputError, Preempted, System, UsageError
from asdjax.data import feed

STEPS = 24


def losses(folder):
    lines = [json.loads(line) for line in (Path(folder) / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == list(range(1, len(lines) + 1))  # each step once, in order
    return np.array([line["loss"] for line in lines])


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory):
    """Folder and state of a run from start to end in this process."""
    folder = tmp_path_factory.mktemp("unbroken")
    (state,) = train_worker.main(folder, STEPS)
    return folder, state


def start(folder, pause, *processes, **env):
    command = [sys.executable, Path(train_worker.__file__), str(folder), str(STEPS), str(pause), *processes]
    return subprocess.Popen(
        command, env={**os.environ, **env}, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )


def wait_for(folder, process, steps):
    log = Path(folder) / "metrics.jsonl"
    deadline = time.monotonic() + 120
    while not (log.exists() and log.read_text().count("\n") >= steps):
        assert process.poll() is None and time.monotonic() < deadline, process.communicate()[0]
        time.sleep(0.02)


def test_it_learns(unbroken):
    loss = losses(unbroken[0])
    assert len(loss) == STEPS and loss[-4:].mean() < 0.7 * loss[:4].mean()


@pytest.mark.parametrize("signals", [[signal.SIGINT], [signal.SIGINT, signal.SIGINT]])
def test_ctrl_c_saves_at_once_and_a_second_one_ends_the_process(signals, tmp_path):
    told = []
    try:
        with train.asked_by(signal.SIGINT, told):
            for number in signals:
                os.kill(os.getpid(), number)
    except KeyboardInterrupt:
        told.append("ended")
    assert told == ["SIGINT", "ended"][: len(signals)]
    with pytest.raises(KeyboardInterrupt):  # as before
        os.kill(os.getpid(), signal.SIGINT)
        time.sleep(1)


def test_stopped_and_killed_runs_end_as_the_unbroken_one(unbroken, tmp_path):
    asked = start(tmp_path, 0.2)
    wait_for(tmp_path, asked, 4)
    asked.send_signal(signal.SIGINT)
    said, _ = asked.communicate(timeout=60)
    assert asked.returncode == 75 and "the same command resumes" in said
    done = len(losses(tmp_path))
    with_checkpoint = checkpoint.manager(tmp_path / "checkpoints")
    assert with_checkpoint.latest_step() == done < STEPS  # SIGINT saved what was done
    with_checkpoint.close()

    killed = start(tmp_path, 0.2)
    wait_for(tmp_path, killed, done + 6)
    killed.kill()
    said, _ = killed.communicate(timeout=60)
    assert f"resumed at step {done} of {STEPS}" in said
    with open(tmp_path / "metrics.jsonl", "a") as log:
        log.write('{"step": 19, "lo')  # a line torn by the kill

    (state,) = train_worker.main(tmp_path, STEPS)
    np.testing.assert_array_equal(losses(tmp_path), losses(unbroken[0]))
    jax.tree.map(np.testing.assert_array_equal, state, unbroken[1])


def test_eight_devices_equal_one(unbroken, tmp_path):
    process = start(tmp_path, 0.0, XLA_FLAGS=os.environ["XLA_FLAGS"] + " --xla_force_host_platform_device_count=8")
    said, _ = process.communicate(timeout=200)
    assert process.returncode == 0, said
    np.testing.assert_allclose(losses(tmp_path), losses(unbroken[0]), rtol=2e-4)
    np.testing.assert_allclose(losses(tmp_path)[:4], losses(unbroken[0])[:4], rtol=2e-6)


def test_eight_devices_with_a_member_each_or_clips_from_the_host(unbroken, tmp_path):
    flags = os.environ["XLA_FLAGS"] + " --xla_force_host_platform_device_count=8"
    code = f"""
import jax, train_worker
from asdjax import frontends, parallel
from asdjax.models import convolutions
mesh = parallel.data_mesh()
split = parallel.sharded(mesh)
for function, shape in (
    (frontends.log_mel(sample_rate=4000, win=128, hop=64, n_mels=16), (16, 4000)),
    (lambda x: jax.grad(lambda w: convolutions.depthwise(x, w).sum())(jax.numpy.ones((3, 3, 1, 4))), (16, 8, 6, 4)),
):
    with jax.set_mesh(mesh):
        program = jax.jit(function).lower(jax.ShapeDtypeStruct(shape, "float32", sharding=split)).compile()
    print("gathers" if "all-gather" in program.as_text() else "stays")
train_worker.main({str(tmp_path / "members")!r}, 4, members=8)
train_worker.main({str(tmp_path / "host")!r}, 4, resident=False)
"""
    command = [sys.executable, "-c", code]
    env = {**os.environ, "XLA_FLAGS": flags, "PYTHONPATH": str(Path(__file__).parent)}
    done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=200)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == ["stays", "stays"]  # FFTs, and loops over images: each device does its own
    np.testing.assert_allclose(losses(tmp_path / "members" / "member_0"), losses(unbroken[0])[:4], rtol=2e-6)
    np.testing.assert_allclose(losses(tmp_path / "host"), losses(unbroken[0])[:4], rtol=2e-6)


def test_clips_from_the_host_give_the_same_losses(unbroken, tmp_path):
    train_worker.main(tmp_path, 8, resident=False)
    np.testing.assert_array_equal(losses(tmp_path), losses(unbroken[0])[:8])


@pytest.mark.parametrize("lowering, rtol", [("map", 0.0), ("vmap", 1e-4)])
def test_members_equal_separate_runs_with_their_seeds(lowering, rtol, unbroken, tmp_path):
    """Member 0 has the seed of the unbroken run; member 1 that of a run of its own."""
    train_worker.main(tmp_path, 6, members=2, lowering=lowering)
    np.testing.assert_allclose(losses(tmp_path / "member_0"), losses(unbroken[0])[:6], rtol=rtol)
    if not rtol:
        train_worker.main(tmp_path / "alone", 6, seed=4)
        np.testing.assert_array_equal(losses(tmp_path / "member_1"), losses(tmp_path / "alone"))


def test_a_kill_between_two_members_checkpoints_is_mended(tmp_path):
    train_worker.main(tmp_path / "whole", 8, members=2)
    train_worker.main(tmp_path / "torn", 8, members=2)
    with checkpoint.manager(tmp_path / "torn" / "member_1" / "checkpoints") as kept:
        kept.delete(8)  # member 0 has steps 4 and 8
    train_worker.main(tmp_path / "torn", 8, members=2)
    for member in ("member_0", "member_1"):
        np.testing.assert_array_equal(losses(tmp_path / "torn" / member), losses(tmp_path / "whole" / member))


def test_machines_with_other_numbers_of_classes_are_trained_together(tmp_path):
    """The smaller network, padded to the classes of the larger, ends as when it is trained alone."""
    few, many = tiny.tones(classes=3, seed=0), tiny.tones(classes=5, seed=0)
    network = {n: train_worker.networks(tmp_path / str(n), store)[0] for n, store in ((3, few), (5, many))}
    mesh, options = parallel.data_mesh(), dict(steps=6, chunk=2, checkpoint_every=4)
    small, large = train.train(list(network.values()), few, mesh=mesh, **options)
    assert small.params["head"]["kernel"].shape == (3, 8) and large.params["head"]["kernel"].shape == (5, 8)
    (alone,) = train.train([network[3]._replace(folder=tmp_path / "alone")], few, mesh=mesh, **options)
    np.testing.assert_allclose(losses(tmp_path / "3"), losses(tmp_path / "alone"), rtol=1e-5)
    assert not np.allclose(losses(tmp_path / "3"), losses(tmp_path / "5"))
    # not the whole state: weights that a later BatchNorm cancels drift with Adam on mere rounding
    np.testing.assert_allclose(small.params["head"]["kernel"], alone.params["head"]["kernel"], rtol=0, atol=1e-4)


def test_networks_that_differ_in_kind_are_not_alike():
    store = tiny.tones()
    (one,) = train_worker.networks("a", store)
    assert train.largest([one, one], store) is one
    config = tiny.config(backbone={**tiny.CONFIG["backbone"], "rows": ((2, 8, 2, 2),)})
    assert train.largest([one, one._replace(system=train.make(config, 4))], store) is None


def test_members_are_traced_once():
    traced = []

    def init(key, batch):
        traced.append(batch["wave"].shape)
        return batch["label"]["class"].sum()

    system = System(init, None, None)
    store = tiny.tones()
    members = [one._replace(system=system) for one in train_worker.networks("a", store, members=3)]
    assert train.largest(members, store) is members[0] and train.shapes(members[2], store).shape == ()
    assert traced == [(2, store.wave.shape[1])]


def test_the_feed_ahead_passes_errors_on_and_ends_with_its_reader():
    def items(upto, fail=False):
        for i in range(upto):
            made.append(i)
            yield i
        if fail:
            raise OSError("disk gone")

    made = []
    assert list(feed.ahead(items(3))) == [0, 1, 2]
    with pytest.raises(OSError, match="disk gone"):
        list(feed.ahead(items(2, fail=True)))
    made.clear()
    reader = feed.ahead(items(100))
    assert next(reader) == 0
    reader.close()
    assert len(made) < 10 and "feed" not in {thread.name for thread in threading.enumerate()}


def test_a_bank_larger_than_its_share_of_memory_does_not_fit(monkeypatch):
    store = tiny.tones(n=4)
    assert feed.fits(store)
    monkeypatch.setattr(feed, "RESIDENT_SHARE", 1e-12)
    assert not feed.fits(store)


def test_a_batch_that_does_not_split_is_refused():
    class EightDevices:
        size = 8

    with pytest.raises(UsageError, match="multiple of 8"):
        parallel.check_batch(EightDevices, 12)
    parallel.check_batch(EightDevices, 16)


def test_divergence_stops_and_keeps_the_last_checkpoint(tmp_path):
    train_worker.main(tmp_path, 4)
    store = tiny.tones()
    store.gain[:] = np.nan
    with pytest.raises(steplog.Diverged, match=r"diverged at step 5: loss nan.*checkpoint of step 4 is kept"):
        train_worker.main(tmp_path, 8, store=store)
    with checkpoint.manager(tmp_path / "checkpoints") as kept:
        assert kept.all_steps() == [4]


def test_steps_are_rounded_up_to_whole_chunks(tmp_path):
    assert int(train_worker.main(tmp_path, 3)[0].step) == 4
    assert int(train_worker.main(tmp_path, 4)[0].step) == 4  # already there


def test_sigterm_in_the_last_chunk_stops_too(tmp_path, monkeypatch):
    """Else a run of several groups would go on to the next one."""
    fake = lambda *_: os.kill(os.getpid(), signal.SIGTERM)  # noqa: E731
    monkeypatch.setattr(train_worker.time, "sleep", fake)  # the worker's progress callback
    with pytest.raises(Preempted, match="at step 2 of 2; saved"):
        train_worker.main(tmp_path, 2)


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # orbax leaves threads behind
def test_damaged_checkpoints_are_told_and_passed_over(unbroken, tmp_path):
    state = unbroken[1]
    with checkpoint.manager(tmp_path) as kept:
        for step in (1, 2):
            checkpoint.save(kept, state.replace(step=np.asarray(step, np.int32)))
    for file in (tmp_path / "2").rglob("d/*"):  # orbax alone may restore such a state without a word
        spoiled = bytearray(file.read_bytes())
        for i in range(len(spoiled) // 4, 3 * len(spoiled) // 4):
            spoiled[i] ^= 0x01
        file.write_bytes(spoiled)
    with checkpoint.manager(tmp_path) as kept:
        assert int(checkpoint.restore(kept, state).step) == 1
        assert kept.all_steps() == [1]  # else the damaged one would pass for saved once step 2 is done again
    for file in (tmp_path / "1").rglob("d/*"):
        file.write_bytes(b"")
    with checkpoint.manager(tmp_path) as kept, pytest.raises(InputError, match=r"no usable checkpoint; step 1: "):
        checkpoint.restore(kept, state)
    with checkpoint.manager(tmp_path / "empty") as none:
        assert checkpoint.restore(none, state) is None


def test_the_content_hash_sees_values_names_and_types():
    tree = {"a": np.arange(3.0), "b": np.zeros(2, np.int32)}
    same = checkpoint.content_hash({"b": np.zeros(2, np.int32), "a": np.arange(3.0)})
    assert checkpoint.content_hash(tree) == same
    others = [{**tree, "a": np.array([0.0, 1.0, 2.0 + 1e-15])}, {"c": tree["a"], "b": tree["b"]}]
    others += [{**tree, "b": np.zeros(2, np.int64)}, {**tree, "b": np.zeros((2, 1), np.int32)}]
    assert same not in {checkpoint.content_hash(other) for other in others}


def test_collapse_is_told(tmp_path):
    def log(cosine, accuracy, steps=60):
        lines = [json.dumps({"embedding_cosine": cosine, "accuracy": accuracy})] * steps
        (tmp_path / "metrics.jsonl").write_text("\n".join(lines))
        return steplog.collapse_warning(tmp_path, n_classes=10)

    assert "collapsed" in log(0.999, 0.9) and "collapsed" in log(0.2, 0.1)
    assert log(0.2, 0.9) == "" and log(0.999, 0.1, steps=20) == ""  # a trial
