"""What asdjax costs beside its peers: `python -m benchmarks.NAME [--short] [--out FILE]`.

The package itself never imports PyTorch; the benchmarks do (`pip install asdjax[bench]`).
"""
