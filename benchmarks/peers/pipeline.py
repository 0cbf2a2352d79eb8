"""The work of `python -m asdjax.main --config=configs/mfn.py` as an ordinary PyTorch program.

    python -m benchmarks.peers.pipeline ROOT OUT --steps=160 [--workers=0] [--tuned]

ROOT holds MACHINE/{train,test}/*.wav of DCASE 2023; OUT gets scores.csv, results.json and timing.json. The settings are
those of configs/mfn.py. Wavs are read in every epoch by a DataLoader, layouts and memory are as PyTorch comes. With
--tuned the recordings are decoded once and kept on the device, and maps are channels-last; the caller adds the
variables of `common.tuned_environment`, which must be there when the process starts.

It does somewhat less than a run of asdjax: no checkpoints, no scores of training clips, hence no thresholds and
decisions, and no bootstrap intervals.
"""

from __future__ import annotations

import time

BEGAN = time.perf_counter()  # importing PyTorch and scikit-learn takes seconds, which count

import argparse  # noqa: E402
import csv  # noqa: E402
import json  # noqa: E402
import math  # noqa: E402
import re  # noqa: E402
from collections.abc import Iterator, Mapping  # noqa: E402
from pathlib import Path  # noqa: E402
from typing import Any, NamedTuple  # noqa: E402

import numpy as np  # noqa: E402
import soundfile  # noqa: E402
import torch  # noqa: E402
from scipy.stats import hmean  # noqa: E402
from sklearn.metrics import roc_auc_score  # noqa: E402
from sklearn.neighbors import LocalOutlierFactor, NearestNeighbors  # noqa: E402
from torch.nn import functional  # noqa: E402
from torch.utils.data import BatchSampler, DataLoader, Dataset, RandomSampler, TensorDataset  # noqa: E402

from benchmarks.peers.mobilefacenet import MobileFaceNet  # noqa: E402
from benchmarks.peers.training import ArcFace, Frontend, crop, mixup  # noqa: E402

NAME = re.compile(r"section_(\d\d)_(source|target)_(train|test)_(normal|anomaly)_\d{4}(?:_(.*))?")
COLUMNS = ("scorer", "machine", "section", "domain", "file", "label", "score")


class Clip(NamedTuple):
    """One recording, by its name."""

    path: Path
    machine: str
    section: str
    domain: str
    split: str
    is_anomaly: bool
    attributes: str


def index(root: Path) -> list[Clip]:
    """The recordings ROOT/MACHINE/{train,test}/*.wav, sorted."""
    clips = []
    for path in sorted(root.glob("*/*/*.wav")):
        section, domain, split, label, attributes = NAME.fullmatch(path.stem).groups()
        machine = path.parents[1].name
        clips.append(Clip(path, machine, section, domain, split, label == "anomaly", attributes or ""))
    return clips


def classes(train: list[Clip]) -> tuple[list[tuple], torch.Tensor]:
    """The C different (machine, section, attributes) of training clips, and each clip's number among them (N,)."""
    keys = [(clip.machine, clip.section, clip.attributes) for clip in train]
    names = sorted(set(keys))
    return names, torch.tensor([names.index(key) for key in keys])


class Wavs(Dataset):
    """Recordings read from disk whenever they are asked for, the shorter ones repeated to `samples`."""

    def __init__(self, clips: list[Clip], samples: int):
        self.clips, self.samples = clips, samples

    def __len__(self) -> int:
        return len(self.clips)

    def __getitem__(self, i: int) -> tuple[torch.Tensor, int]:
        """wave (T,) and its number i."""
        wave, _ = soundfile.read(self.clips[i].path, dtype="float32")
        return torch.from_numpy(np.resize(wave, self.samples)), i


def loader(data: Dataset, batch_size: int, workers: int, sampler=None) -> DataLoader:
    """Batches (wave (B, T), number (B,)); data in memory are gathered at once, others clip by clip."""
    sampler = sampler or range(len(data))
    if isinstance(data, TensorDataset):
        return DataLoader(data, sampler=BatchSampler(sampler, batch_size, drop_last=False), batch_size=None)
    return DataLoader(data, batch_size, sampler=sampler, num_workers=workers, pin_memory=torch.cuda.is_available())


def learning_rate(step: int, *, steps: int, lr: float, end: float, warmup: int) -> float:
    """Factor of lr: linear from 0 over `warmup` steps, then a cosine down to end / lr."""
    if step < warmup:
        return step / warmup
    cosine = (1 + math.cos(math.pi * (step - warmup) / max(1, steps - warmup))) / 2
    return end / lr + (1 - end / lr) * cosine


class Network(MobileFaceNet):
    """MobileFaceNet in the memory layout that PyTorch has unless told otherwise, (B, C, H, W)."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.body(x.transpose(1, 2)[:, None].contiguous()).flatten(1)


def train(net, features, data: Dataset, number: torch.Tensor, config: Mapping[str, Any], workers: int, tuned: bool):
    """Trains the network in place to tell apart the classes `number` (N,) of the training clips `data`."""
    steps, batch_size, optim = config["train"]["steps"], config["train"]["batch_size"], config["optim"]
    op, top, width, device = config["wave_ops"][0], config["head"], config["cut"]["width"], number.device
    onehot = functional.one_hot(number).float()
    head = ArcFace(onehot.shape[1], config["backbone"]["embedding"], top["s"], top["margin"]).to(device)
    optimizer = torch.optim.Adam([*net.parameters(), *head.parameters()], lr=optim["lr"], fused=tuned)
    ramp = {k: optim[k] for k in ("lr", "end", "warmup")}
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: learning_rate(step, steps=steps, **ramp))
    draws = RandomSampler(data, num_samples=steps * batch_size)  # epoch after epoch, in one go for the workers
    net.train()
    for step, (wave, clip) in enumerate(loader(data, batch_size, workers, draws), 1):
        wave, clip = wave.to(device, non_blocking=True), clip.to(device, non_blocking=True)
        wave, label = mixup(wave, onehot[clip], op["p"], op["alpha"])
        loss = head(net(crop(features(wave), width)), label).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
        if step % 10 == 0 or step == steps:
            print(f"step {step} of {steps}  loss {loss.item():.3f}", flush=True)


def starts(frames: int, width: int, hop: int) -> list[int]:
    """Where a clip's windows begin; one more ends with the clip where the hop leaves a rest."""
    return sorted({*range(0, frames - width + 1, hop), frames - width})


@torch.inference_mode()
def embed(net, features, data: Dataset, config: Mapping[str, Any], workers: int, device) -> np.ndarray:
    """The mean embedding (N, D) of all windows of each clip."""
    width, hop = config["cut"]["width"], config["cut"]["hop"]
    frames = 1 + len(data[0][0]) // config["frontend"]["hop"]
    begin = starts(frames, width, hop)
    out = []
    net.eval()
    for wave, _ in loader(data, max(1, config["score"]["units"] // len(begin)), workers):
        x = features(wave.to(device, non_blocking=True))
        units = torch.stack([x[:, first : first + width] for first in begin], 1)
        out.append(net(units.flatten(0, 1)).unflatten(0, units.shape[:2]).mean(1).cpu())
    return torch.cat(out).double().numpy()


def scores(clips: list[Clip], embedding: np.ndarray, config: Mapping[str, Any]) -> Iterator[tuple]:
    """Rows (COLUMNS) of every test clip by kNN and LOF, fitted on the training clips of its section."""
    knn, lof = (scorer["detector"] for scorer in config["score"]["scorers"])
    for place in sorted({(clip.machine, clip.section) for clip in clips}):
        own = [i for i, clip in enumerate(clips) if (clip.machine, clip.section) == place]
        test = [i for i in own if clips[i].split == "test"]
        normal = embedding[[i for i in own if clips[i].split == "train"]]
        nearest = NearestNeighbors(n_neighbors=knn["k"], metric="cosine").fit(normal)
        density = LocalOutlierFactor(n_neighbors=lof["n_neighbors"], novelty=True).fit(normal)
        found = {
            "knn": nearest.kneighbors(embedding[test])[0].mean(1),
            "lof": -density.score_samples(embedding[test]),
        }
        for scorer, values in found.items():
            for i, value in zip(test, values.tolist(), strict=True):
                clip = clips[i]
                yield scorer, *place, clip.domain, clip.path.name, int(clip.is_anomaly), value


def official_score(rows: list[tuple]) -> float:
    """The official score of 2023 of one scorer's rows: harmonic mean of AUC source, AUC target and pAUC of sections.

    The normals of a domain are held against the anomalies of both.
    """
    values = []
    for place in sorted({row[1:3] for row in rows}):
        domain, label, score = (np.array([row[i] for row in rows if row[1:3] == place]) for i in (3, 5, 6))
        for one in ("source", "target"):
            counted = (domain == one) | (label == 1)
            values.append(roc_auc_score(label[counted], score[counted]))
        values.append(roc_auc_score(label, score, max_fpr=0.1))
    return float(hmean(np.maximum(values, np.finfo(float).eps)))


def run(config: Mapping[str, Any], root: Path, out: Path, *, workers: int = 2, tuned: bool = False) -> dict[str, float]:
    """Wavs in `root` -> files in `out`; returns the official score by scorer."""
    torch.manual_seed(config["seed"])
    torch.backends.cudnn.benchmark = tuned
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    clips = index(root)
    learnt = [clip for clip in clips if clip.split == "train"]
    samples = max(soundfile.info(clip.path).frames for clip in clips)
    names, number = classes(learnt)
    print(f"{root}: {len(clips)} clips, {len(learnt)} of them for training, {len(names)} classes", flush=True)
    data, known = Wavs(clips, samples), Wavs(learnt, samples)
    if tuned:
        bank = torch.stack([wave for wave, _ in data]).to(device)
        row = torch.arange(len(clips), device=device)
        is_train = torch.tensor([clip.split == "train" for clip in clips], device=device)
        data, known = TensorDataset(bank, row), TensorDataset(bank[is_train], row[: len(learnt)])
    log_mel = Frontend(config["frontend"]).to(device)
    sample = np.linspace(0, len(learnt) - 1, min(512, len(learnt))).astype(int).tolist()
    x = torch.cat([log_mel(wave.to(device)) for wave, _ in loader(known, 64, workers, sample)])
    mean, std = x.mean((0, 1)), x.std((0, 1)).clamp(min=1e-3)

    def features(wave: torch.Tensor) -> torch.Tensor:
        return (log_mel(wave) - mean) / std

    parts = {k: config["backbone"][k] for k in ("rows", "stem", "features", "embedding")}
    kind = MobileFaceNet if tuned else Network
    net = kind(**parts, bins=config["frontend"]["n_mels"], frames=config["cut"]["width"]).to(device)
    net = net.to(memory_format=torch.channels_last) if tuned else net
    timing, lap = {"start-up": time.perf_counter() - BEGAN}, time.perf_counter()
    train(net, features, known, number.to(device), config, workers, tuned)
    timing["train"], lap = time.perf_counter() - lap, time.perf_counter()
    embedding = embed(net, features, data, config, workers, device)
    timing["embed"], lap = time.perf_counter() - lap, time.perf_counter()
    rows = list(scores(clips, embedding, config))
    result = {scorer: official_score([row for row in rows if row[0] == scorer]) for scorer in ("knn", "lof")}
    out.mkdir(parents=True, exist_ok=True)
    with open(out / "scores.csv", "w", newline="") as file:
        csv.writer(file).writerows([COLUMNS, *rows])
    timing["score"] = time.perf_counter() - lap
    (out / "results.json").write_text(json.dumps(result))
    (out / "timing.json").write_text(json.dumps({"seconds": timing}))
    return result


def main() -> None:
    from configs.mfn import get_config

    flags = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    flags.add_argument("root", type=Path)
    flags.add_argument("out", type=Path)
    flags.add_argument("--steps", type=int, required=True)
    flags.add_argument("--workers", type=int, default=2)
    flags.add_argument("--tuned", action="store_true")
    args = flags.parse_args()
    config = get_config().to_dict()
    config["train"]["steps"] = args.steps
    print(run(config, args.root, args.out, workers=args.workers, tuned=args.tuned))


if __name__ == "__main__":
    main()
