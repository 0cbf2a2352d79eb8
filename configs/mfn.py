"""Quick start: MobileFaceNet with ArcFace on log-mel windows, kNN and LOF on its embeddings.

    python -m asdjax.main --config=configs/mfn.py                                  the embedded data set, no download
    python -m asdjax.main --config=configs/mfn.py --config.data.root=FOLDER        DCASE 2022-2026 layout
    python -m asdjax.main --config=configs/mfn.py:2021 --config.data.root=FOLDER   a year's data set by its rules
    python -m asdjax.main --config=configs/mfn.py:plain --config.data.root=FOLDER  MACHINE/{train,test}/*.wav, any names

One network learns to tell machines, sections and attributes of all machines apart; a clip is abnormal where its
embedding is far from those of the normal clips of its section.

Ours on the embedded data set, seed 0, official score of 2023 in percent with its 95 % bootstrap interval: kNN
64.0 +- 5.4, LOF 67.8 +- 5.4; seeds 0 to 2: kNN 61.3 +- 1.1, LOF 67.4 +- 1.2 (mean and deviation), ensembles 63.6 and
70.2. Loudness alone 50.1; statistics without a network (configs/statistics.py) 77.3: 160 steps are a trial.

Variants: a DCASE year, 2020 to 2026, or plain. The default is the layout and the metrics of 2023.
"""

from ml_collections import ConfigDict

VARIANTS = ("", "2020", "2021", "2022", "2023", "2024", "2025", "2026", "plain")


def get_config(variant: str = "") -> ConfigDict:
    if variant not in VARIANTS:
        raise ValueError(f"configs/mfn.py:{variant}: no such variant; there is: {', '.join(VARIANTS[1:])}")
    config = ConfigDict()
    config.seed = 0  # our choice
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
        group_by="all",  # our choice: one network over all machines, so that a data set of one section each works too
        label="machine_section_attribute",  # our choice: the finest classes there are, as the recipes of 2023 to 2026
        level="as_recorded",  # or 'rms': every clip at one level, so that loudness cannot be what is learnt
        sample_rate=16000,  # Hz, of all DCASE sets
        resample=False,
        channel=0,  # 2026 has two: 0 is the near microphone
        seconds=0.0,  # 0: the longest clip
        length="tile",  # our choice: shorter clips are repeated
        cache="",  # '': the user's cache folder
        resident=True,  # the clips live on the device where they fit in half its memory
        bank="waves",  # or 'features': the frontend runs once for all steps, where nothing is done to the waveform
    )
    config.sampler = dict(name="uniform")  # every training clip once per epoch
    config.frontend = dict(
        name="log_mel",
        sample_rate=16000,  # Hz
        win=1024,  # samples: as the official baselines, like the next two
        hop=512,
        n_mels=128,
    )
    config.cut = dict(
        name="cut",
        width=64,  # frames, 2 s: as the official MobileNetV2 baselines
        hop=32,  # our choice: windows overlap by half when a clip is scored
        at="frames",
        tail="align",  # our choice: no sound of a clip goes unheard
        train_hop=1,  # our choice: training windows begin anywhere, more to learn from than those of the grid
    )
    config.wave_ops = (
        dict(
            name="mixup",  # our choice: standard in recipes since 2023
            p=0.5,
            alpha=1.0,  # even weights
        ),
    )
    config.feature_ops = ()
    config.backbone = dict(
        name="MobileFaceNet",  # 993,280 parameters; all sizes are those of its paper (Chen et al. 2018)
        rows=((2, 64, 5, 2), (4, 128, 1, 2), (2, 128, 6, 1), (4, 128, 1, 2), (2, 128, 2, 1)),  # t, c, n, s
        stem=64,
        features=512,
        embedding=128,
        dtype="float32",  # or 'bfloat16', for accelerators: slower on CPU
    )
    config.init_from = ""  # or a folder: another run's, or a converted network's, whose backbone this one begins with
    config.head = dict(
        name="ArcFace",
        s=30.0,  # our choice: the public MobileFaceNets with ArcFace on DCASE data
        margin=0.5,  # radians: ditto
    )
    config.optim = dict(name="adam", lr=1e-3, schedule="cosine", end=1e-5, warmup=10)  # our choice: a short run
    config.train = dict(
        steps=160,  # our choice: two minutes on two cores, and the loss has levelled off
        epochs=0.0,  # passes over the training clips instead, where steps is 0
        batch_size=32,  # our choice: windows, one of each clip drawn
        chunk=0,  # steps per compiled call; 0: 1 on CPU, 8 elsewhere
        checkpoint_every=40,  # steps: half a minute
        members=1,  # networks that differ by their seed: seed, seed + 1, ...; more give error bars and an ensemble
        groups="one_by_one",  # or 'together': the networks of all groups in one program
    )
    config.score = dict(
        units=256,  # our choice: windows through the network at once, 1 GB
        scorers=(
            dict(
                name="knn",
                fit="section",
                detector=dict(name="knn", k=1, metric="cosine", units="mean"),  # as Morita 2021, section 2.3
            ),
            dict(
                name="lof",
                fit="section",
                detector=dict(name="lof", n_neighbors=4, units="mean"),  # as Morita 2021, section 2.3
            ),
        ),
        selections=(),
        fusions=(),  # of scorers: dict(name=..., scorers=(...), how="mean", "max", "sum" or "product")
        training_free=True,  # print what configs/statistics.py says of the same clips beside
        tsne=1000,  # clips in the t-SNE picture of the embeddings; 0: none
    )
    config.by_machine = dict()  # {machine: {section of this config: what replaces it}}
    return config
