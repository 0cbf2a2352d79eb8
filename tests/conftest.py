"""Shared by all tests: compiled programs are kept between runs, and paths to optional real recordings."""

import os
import tempfile
from pathlib import Path

CACHE = Path(os.environ.get("ASDJAX_TEST_CACHE", Path(tempfile.gettempdir()) / f"asdjax-tests-{os.getuid()}"))
os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(CACHE / "xla"))
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0.5")
os.environ.setdefault("JAX_PLATFORMS", "cpu")
# Compiling is most of the suite's time, and the numbers of unoptimised code are as good.
os.environ["XLA_FLAGS"] = os.environ.get("XLA_FLAGS", "") + " --xla_backend_optimization_level=0"

from asdjax import parallel  # noqa: E402

parallel.tune_malloc()
