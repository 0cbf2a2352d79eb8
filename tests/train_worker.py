"""Trains the tiny system in a process of its own: python train_worker.py FOLDER STEPS SECONDS_PER_CHUNK."""

import logging
import sys
import time
from pathlib import Path

import numpy as np
import tiny

from asdjax import parallel, train
from asdjax.core import Preempted
from asdjax.data import sampling


def main(folder, steps=8, pause=0.0, store=None, **changes):
    config, mesh = tiny.config(**changes), parallel.data_mesh()
    store = tiny.tones() if store is None else store
    every = sampling.uniform(rows := np.ones(len(store.gain), bool), batch_size=config["train"]["batch_size"])
    return train.train(
        train.make(config, store.label["class"].shape[1]), store, every, train.sample(store, rows), Path(folder),
        steps=steps, chunk=2, checkpoint_every=4, seed=3, mesh=mesh, progress=lambda *_: time.sleep(pause),
    )  # fmt: skip


if __name__ == "__main__":
    logging.basicConfig(level=logging.INFO)
    try:
        main(sys.argv[1], int(sys.argv[2]), float(sys.argv[3]))
    except Preempted as stop:
        print(stop, flush=True)
        sys.exit(75)
