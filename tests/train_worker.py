"""Trains a tiny network in a folder; run as a program so that a test can stop, kill or shard it.

python tests/train_worker.py FOLDER STEPS [PAUSE [HOST:PORT PROCESSES PROCESS]]
"""

import logging
import os
import sys
import time
from pathlib import Path

os.environ.setdefault("JAX_PLATFORMS", "cpu")

import tiny

from asdjax import parallel, train
from asdjax.core import Preempted
from asdjax.data import feed, sampling


def networks(folder, store, members=1, seed=3):
    config = tiny.config()
    labelled = store.label["class"].any(1)
    system = train.make(config, store.label["class"].shape[1])
    sampler = sampling.uniform(None, labelled, batch_size=config["train"]["batch_size"]).draw
    folders = [Path(folder)] if members == 1 else [Path(folder, f"member_{i}") for i in range(members)]
    return [train.Network(path, system, store.label, labelled, sampler, seed + i) for i, path in enumerate(folders)]


def main(folder, steps, pause=0.0, *, store=None, members=1, seed=3, resident=True, **options):
    """The trained states. Each chunk of two steps takes `pause` seconds longer, so that a test can interrupt it."""
    store = store or tiny.tones()
    mesh = parallel.data_mesh()
    options = {"chunk": 2, "checkpoint_every": 4, **options}
    some = networks(folder, store, members, seed)
    held = feed.resident(store, mesh) if resident else store
    return train.train(some, held, steps=steps, mesh=mesh, progress=lambda *_: time.sleep(pause), **options)


if __name__ == "__main__":
    logging.basicConfig(level=logging.INFO)
    arguments = sys.argv[1:]
    try:
        if arguments[3:]:
            parallel.join(arguments[3], int(arguments[4]), int(arguments[5]))
        main(arguments[0], int(arguments[1]), float(arguments[2]))
        parallel.leave()
    except Preempted as stop:
        print(stop, flush=True)
        os._exit(75)
    except Exception as error:
        print(parallel.LOST if parallel.is_of_peer(error) else "", repr(error), flush=True)
        os._exit(1)
