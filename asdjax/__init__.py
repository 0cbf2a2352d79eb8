"""asdjax: anomalous sound detection in JAX."""

import time

__version__ = "0.1.0"
BEGAN = time.perf_counter()  # start-up is counted from here
