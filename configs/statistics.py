"""Statistics of log-mel spectrograms and distances between them: nothing is trained, seconds on a CPU.

    python -m asdjax.main --config=configs/statistics.py                                  the embedded data set
    python -m asdjax.main --config=configs/statistics.py --config.data.root=FOLDER        DCASE 2022-2026 layout
    python -m asdjax.main --config=configs/statistics.py:2021 --config.data.root=FOLDER   a year's data set
    python -m asdjax.main --config=configs/statistics.py:plain --config.data.root=FOLDER  MACHINE/{train,test}/*.wav
    python -m asdjax.main --config=configs/statistics.py:moments                          one choice instead of all

The spectrogram of each clip is pooled over time in seven ways, and each of these is compared with the training clips
of its section in four ways. Which of the 28 suits a machine cannot be known without recordings of its faults; the
default therefore reports 'fusion': all scores in standard deviations of the training clips' own, and their mean.

Ours, official score of 2023 in percent with its 95 % bootstrap interval: embedded data set 77.3 +- 4.5; 369 recordings
of sliders and valves of DCASE 2020 and 2023, with data.level=rms, 75.6 +- 6.3. By variant, on these two: mean 67.3 and
55.9, moments 70.7 and 59.3, max 68.3 and 78.6. Loudness alone: 50.1 and 50.0.

Variants: a DCASE year, 2020 to 2026, or plain; or a single choice, with the nearest neighbour, in the layout of 2023:

    mean      the mean over time
    moments   mean, standard deviation and 95 % quantile side by side
    max       the maximum over time. On the recordings it is far better than the mean, but that is known from their
              labels alone, and not so on the embedded data: a hint for short, rare sounds, and no result.
"""

from ml_collections import ConfigDict

SINGLE = ("mean", "moments", "max")
VARIANTS = ("", "2020", "2021", "2022", "2023", "2024", "2025", "2026", "plain", *SINGLE)
POOLINGS = ("mean", "gwrp_0.95", "gwrp_0.8", "gwrp_0.5", "max", "std", "moments")
DETECTORS = {
    "knn": dict(name="knn", k=1, metric="euclidean"),  # our choice: decibels are one unit, bins need no standardising
    "density": dict(
        name="knn",
        k=1,
        metric="euclidean",
        density="ratio",  # of the two forms of Wilkinghoff et al., ICASSP 2025, the one without a unit
        density_k=4,  # as the public ASDKit
    ),
    "mahalanobis": dict(
        name="mahalanobis",
        covariance="ledoit_wolf",  # our choice: a section may have fewer clips than there are bins
    ),
    "gmm": dict(
        name="gmm",
        n_components=2,  # as Zhang 2023
        covariance_type="diag",  # our choice: a full covariance has 8256 numbers, and a section may have 40 clips
        reg_covar=1e-3,  # dB squared: as the public STgram-MFN
    ),
}


def get_config(variant: str = "") -> ConfigDict:
    if variant not in VARIANTS:
        raise ValueError(f"configs/statistics.py:{variant}: no such variant; there is: {', '.join(VARIANTS[1:])}")
    single = (variant,) if variant in SINGLE else ()
    year = "" if single else variant
    config = ConfigDict()
    config.seed = 0  # nothing is drawn
    config.system = dict(
        name="statistics",
        ranks=(0.95, 0.8, 0.5),  # our choice: 1 / (1 - r), that is 20, 5 and 2, of the highest frames weigh most
        quantiles=(0.95,),  # our choice: the level that is exceeded for half a second of ten
    )
    config.data = dict(
        root="" if not year else f"data/dcase{year}t2" if year.isdigit() else "data",  # '': embedded data set
        year=year or "2023",
        train_on=("dev", "additional"),
        test_on="dev",
        ground_truth="",  # eval only: the official evaluator's folder
        group_by="all",  # one pass over all clips; scorers are fitted per section all the same
        label="none",  # nothing is trained
        level="as_recorded",  # or 'rms': every clip at one level, so that loudness cannot be what is heard
        sample_rate=16000,  # Hz, of all DCASE sets
        resample=False,
        channel=0,  # 2026 has two: 0 is the near microphone
        seconds=0.0,  # 0: the longest clip
        length="tile",  # our choice: shorter clips are repeated
        cache="",  # '': the user's cache folder
        resident=True,  # the clips live on the device where they fit in half its memory
        bank="waves",
    )
    config.sampler = dict(name="uniform")  # every training clip once per epoch
    config.frontend = dict(
        name="log_mel",
        sample_rate=16000,  # Hz
        win=1024,  # samples: as the official baselines, like the next two
        hop=512,
        n_mels=128,
    )
    config.cut = {}  # a clip is one unit
    config.wave_ops = ()
    config.feature_ops = ()
    config.backbone = {}
    config.init_from = ""  # there are no weights
    config.head = {}
    config.optim = {}
    config.train = dict(  # nothing is trained: the least that is allowed
        steps=1,
        epochs=0.0,
        batch_size=2,
        chunk=1,
        checkpoint_every=1,
        members=1,
        groups="one_by_one",
    )
    config.score = dict(
        units=64,  # our choice: clips at once, 0.1 GB
        scorers=tuple(
            dict(name=f"{pooling}-{name}", fit="section", detector=dict(key=pooling, **detector))
            for pooling in single or POOLINGS
            for name, detector in DETECTORS.items()
            if not single or name == "knn"
        ),
        selections=(),
        fusions=() if single else (dict(name="fusion", scorers=(), how="mean"),),  # (): all scorers; no label is seen
        training_free=False,  # this is it
        tsne=0,  # clips in a t-SNE picture of the embeddings
    )
    config.by_machine = dict()  # {machine: {section of this config: what replaces it}}
    return config
