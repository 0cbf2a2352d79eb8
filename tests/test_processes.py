"""Several processes as one run: they agree with one process, stop together, and say so when one of them is lost."""

import os
import signal
import socket

import numpy as np
import pytest
import train_worker
from test_train import losses, start, wait_for

from asdjax import parallel
from asdjax.core import InputError, UsageError

STEPS = 24


def free_port():
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


def start_two(folder, pause):
    address = f"127.0.0.1:{free_port()}"
    return [start(folder, pause, address, "2", str(i)) for i in range(2)]


def test_two_processes_stop_resume_and_agree_with_one(tmp_path):
    train_worker.main(tmp_path / "one", STEPS)

    both = start_two(tmp_path / "two", 0.3)
    wait_for(tmp_path / "two", both[0], 4)
    both[1].send_signal(signal.SIGTERM)  # to one of them: both must stop, at one step
    said = [process.communicate(timeout=120)[0] for process in both]
    assert [process.returncode for process in both] == [75, 75], said
    done = len(losses(tmp_path / "two"))
    for by, text in zip(("a signal to another process", "SIGTERM"), said, strict=True):
        assert f"stopped by {by} at step {done} of {STEPS}" in text

    both = start_two(tmp_path / "two", 0.3)
    wait_for(tmp_path / "two", both[0], done + 2)
    both[1].kill()
    said, _ = both[0].communicate(timeout=120)
    both[1].communicate()
    assert both[0].returncode == 1 and parallel.LOST in said, said
    assert f"resumed at step {done} of {STEPS}" in said

    train_worker.main(tmp_path / "two", STEPS)  # one process goes on with what two have saved
    np.testing.assert_allclose(losses(tmp_path / "two"), losses(tmp_path / "one"), rtol=2e-4)
    np.testing.assert_allclose(losses(tmp_path / "two")[:4], losses(tmp_path / "one")[:4], rtol=2e-6)


def test_mistakes_are_told_before_jax_would_end_the_process():
    address = f"127.0.0.1:{free_port()}"
    with pytest.raises(InputError, match=f"nobody answers at {address} after 0 s.*is process 0 up"):
        parallel.join(address, 2, 1, patience=0.0)
    with pytest.raises(UsageError, match="expected HOST:PORT"):
        parallel.join("here", 2, 1)
    with pytest.raises(UsageError, match="expected 0 to 1"):
        parallel.join(address, 2, 2)


def test_without_other_processes_nothing_is_exchanged():
    arrays = {"a": np.arange(3)}
    assert parallel.from_first(arrays) is arrays and parallel.from_first(None) is None
    assert parallel.anyone(True) and not parallel.anyone(False)
    assert parallel.in_turn(lambda: os.getpid()) == os.getpid()
