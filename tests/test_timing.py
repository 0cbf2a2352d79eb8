"""Start-up: what is reported of it, and that a second start compiles nothing."""

import os
import subprocess
import sys
from pathlib import Path

from asdjax import timing

PROGRAM = """
import jax, train_worker
from asdjax import parallel, timing
parallel.keep_compiled_programs()
jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
train_worker.main({folder!r}, 2)
print("compiled", timing.compiling["compiled"], "cached", timing.compiling["from cache"])
"""


def test_a_second_start_compiles_nothing(tmp_path):
    env = {k: v for k, v in os.environ.items() if not k.startswith(("JAX_COMPILATION", "JAX_PERSISTENT"))}
    env |= {"ASDJAX_CACHE": str(tmp_path), "PYTHONPATH": str(Path(__file__).parent)}
    found = []
    for name in ("first", "second"):
        command = [sys.executable, "-c", PROGRAM.format(folder=str(tmp_path / name))]
        done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=200)
        assert done.returncode == 0, done.stderr
        found.append([int(number) for number in done.stdout.split()[1::2]])
    (compiled, cached), second = found
    assert compiled >= 2 and cached == 0  # init and the chunk, at least
    assert second == [0, compiled]
    assert list((tmp_path / "xla").iterdir())


def test_a_watch_sums_by_phase_and_tells_of_the_first_step_once(monkeypatch):
    clock = iter([0.0, 2.0, 5.0, 6.5, 10.0, 11.0])
    monkeypatch.setattr(timing.time, "perf_counter", lambda: next(clock))
    monkeypatch.setattr(timing.asdjax, "BEGAN", -1.0)
    watch = timing.Watch()
    for _ in range(2):
        with watch.phase("load"):
            pass
    assert watch.seconds == {"load": 3.5}
    assert "first step 11.0 s after the start, with " in watch.first_step() and watch.first_step() == ""
    assert watch.summary()["seconds"] == {"load": 3.5, "start-up": 11.0, "total": 12.0}
