"""Quick start: MobileFaceNet with ArcFace on log-mel windows, kNN and LOF on its embeddings.

    python -m asdjax.main --config=configs/mfn.py                                  the embedded data set, no download
    python -m asdjax.main --config=configs/mfn.py --config.data.root=FOLDER        DCASE 2022-2026 layout
    python -m asdjax.main --config=configs/mfn.py:2021 --config.data.root=FOLDER   a year's data set by its rules
    python -m asdjax.main --config=configs/mfn.py:plain --config.data.root=FOLDER  MACHINE/{train,test}/*.wav, any names

One network learns to tell machines, sections and attributes of all machines apart; a clip is abnormal where its
embedding is far from those of the normal clips of its section.

Variants: a DCASE year, 2020 to 2026, or plain. The default is the layout and the metrics of 2023.
"""

from ml_collections import ConfigDict

VARIANTS = ("", "2020", "2021", "2022", "2023", "2024", "2025", "2026", "plain")


def get_config(variant: str = "") -> ConfigDict:
    if variant not in VARIANTS:
        raise ValueError(f"configs/mfn.py:{variant}: no such variant; there is: {', '.join(VARIANTS[1:])}")
    config = ConfigDict()
    config.seed = 0
    config.system = dict(
        name="classify",
        standardise="bins",  # our choice: zero padding of raw decibels would draw a bright border round each window
    )
    config.data = dict(
        root="" if not variant else f"data/dcase{variant}t2" if variant.isdigit() else "data",  # '': embedded data set
        year=variant or "2023",
        train_on=("dev", "additional"),
        test_on="dev",
        ground_truth="",  # eval only: the official evaluator's folder
        group_by="all",  # one network over all machines
        label="machine_section_attribute",
        level="as_recorded",  # or 'rms': every clip at one level, so that loudness cannot be what is learnt
        sample_rate=16000,  # Hz
        resample=False,
        channel=0,  # 2026 has two: 0 is the near microphone
        seconds=0.0,  # 0: the longest clip
        length="tile",  # shorter clips are repeated
        cache="",  # '': the user's cache folder
    )
    config.frontend = dict(
        name="log_mel", sample_rate=16000, win=1024, hop=512, n_mels=128
    )  # as the official baselines
    config.cut = dict(
        name="cut", width=64, hop=32, at="frames", tail="align", start="any"
    )  # 2 s windows, half overlapped
    config.wave_ops = (dict(name="mixup", p=0.5, alpha=1.0),)  # the most helpful one in the recipes of 2024-2026
    config.feature_ops = ()
    config.backbone = dict(
        name="MobileFaceNet",  # 993,280 parameters
        rows=((2, 64, 5, 2), (4, 128, 1, 2), (2, 128, 6, 1), (4, 128, 1, 2), (2, 128, 2, 1)),  # t, c, n, s: its paper
        stem=64,
        features=512,
        embedding=128,
    )
    config.head = dict(name="ArcFace", s=30.0, margin=0.5)
    config.optim = dict(name="adam", lr=1e-3, schedule="cosine", end=1e-5, warmup=10)  # our choice
    config.train = dict(
        steps=160,  # our choice: two minutes on two cores, and the loss has levelled off
        batch_size=32,  # our choice: windows
        chunk=0,  # steps per compiled call; 0: 1 on CPU, 8 elsewhere
        checkpoint_every=40,  # steps
    )
    config.score = dict(
        units=256,  # windows through the network at once
        scorers=(
            dict(name="knn", fit="section", detector=dict(name="knn", k=1, metric="cosine", units="mean")),
            dict(name="lof", fit="section", detector=dict(name="lof", n_neighbors=4, units="mean")),
        ),
        selections=(),
    )
    return config
