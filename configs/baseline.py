"""The official baselines of DCASE Task 2: autoencoder (2020 to 2026) and MobileNetV2 (2021, 2022).

    python -m asdjax.main --config=configs/baseline.py:ae                                   the embedded data set
    python -m asdjax.main --config=configs/baseline.py:ae --config.data.root=FOLDER         DCASE 2023 layout
    python -m asdjax.main --config=configs/baseline.py:ae_2022 --config.data.root=FOLDER    a year's rules and settings
    python -m asdjax.main --config=configs/baseline.py:mnv2_2022 --config.data.root=FOLDER

`ae`: vectors of five log-mel frames through a narrow layer of 8; a clip's score is its mean squared error (`mse`), or
the Mahalanobis norm of its mean error under the covariance of either domain, the smaller one (`mahala`, the official
'selective Mahalanobis' since 2023; `mahala_per_row` is the textbook's form of it, a mean over frames). One network per
machine, or since 2023 per machine and section. `mnv2`: which section is this? by MobileNetV2 on windows of 64 frames.

Published, harmonic means over machines in percent (AUC source, AUC target, pAUC): 2023 dev AE mse 64.79 49.59 52.84,
mahala 68.84 52.37 52.36; 2022 dev AE 68.6 43.7 53.8, MobileNetV2 64.1 47.7 56.3; 2021 dev AE (AUC, pAUC) 62.01 53.43,
MobileNetV2 59.24 55.95. `python -m asdjax.results published --year 2023 --all` prints all that is known.

Ours on the embedded data set, mean and deviation of three seeds, official score of 2023 in percent: mse 73.6 +-
0.8, mahala 67.2 +- 0.6, mahala_per_row 71.7 +- 0.7; statistics without any training (configs/statistics.py) 77.3.

What is not as in the official code: all vectors are learnt from (it holds a random tenth out, for a loss that decides
nothing; the Keras code of 2021 and 2022 the last tenth of the files, hence all target clips of the last section);
decision thresholds come from the scores of training clips (since 2023 it fits them to losses of mini-batches);
covariances are centred on the domain's mean (there on each batch's, which makes distances to a target domain of one
clip in a hundred about 13 % larger); the autoencoder begins with PyTorch's random weights in all years (Keras' until
2022); the code of 2020 adds the floor of the logarithm, the later ones and ours cut at it.
"""

from ml_collections import ConfigDict

YEARS = ("2020", "2021", "2022", "2023", "2024", "2025", "2026")
VARIANTS = ("ae", *(f"ae_{year}" for year in YEARS), "ae_plain", "mnv2", "mnv2_2021", "mnv2_2022")

AE_SCORERS = (
    dict(name="mse", fit="section", detector=dict(name="passthrough", key="score")),
    dict(name="mahala", fit="section", detector=dict(name="selective_mahalanobis", form="official")),
    dict(name="mahala_per_row", fit="section", detector=dict(name="selective_mahalanobis", form="per_row")),
)
MNV2_SCORERS = (
    dict(name="log_softmax", fit="section", detector=dict(name="log_softmax", form="logit_2022")),
    # as the code of 2021 has it
    dict(name="log_softmax_typo", fit="section", detector=dict(name="log_softmax", form="baseline_2021_typo")),
)


def get_config(variant: str = "ae") -> ConfigDict:
    if variant not in VARIANTS:
        raise ValueError(f"configs/baseline.py:{variant}: no such variant; there is: {', '.join(VARIANTS)}")
    name, _, year = variant.partition("_")
    autoencoder, keras = name == "ae", year in ("2020", "2021", "2022")  # the code that was official then
    config = ConfigDict()
    config.seed = 13711 if autoencoder else 0  # of the official code since 2023; not stated before
    config.system = dict(name="reconstruct") if autoencoder else dict(name="classify")
    config.data = dict(
        root="" if not year else f"data/dcase{year}t2" if year.isdigit() else "data",  # '': embedded data set
        year=year or "2023",
        train_on=("dev", "additional"),
        test_on="dev",
        ground_truth="",  # eval only: the official evaluator's folder
        group_by="machine" if keras else "machine_section" if autoencoder else "all",  # one network for each
        # mnv2 without a year: of machines with one section each it learns to tell the machines apart (our choice)
        label="none" if autoencoder else "section" if keras else "machine_section",
        level="as_recorded",  # or 'rms': every clip at one level
        sample_rate=16000,  # Hz, of all DCASE sets
        resample=False,
        channel=0,  # 2026 has two: the official code takes the first
        seconds=0.0,  # 0: the longest clip
        length="tile",  # not stated: the official code expects one length
        cache="",  # '': the user's cache folder
        resident=True,  # the features live on the device where they fit in half its memory
        bank="features",  # batches are vectors of many clips
    )
    config.sampler = dict(name="uniform")  # every training clip once per epoch
    config.frontend = dict(
        name="log_mel",
        sample_rate=16000,  # Hz
        win=1024,  # samples, like the next
        hop=512,
        n_mels=128,
        pad="reflect" if year in ("2020", "2021") else "constant",  # librosa 0.6.0 there, 0.9 and later since
    )
    config.cut = (
        dict(name="cut", width=5, hop=1, at="frames", tail="drop")
        if autoencoder
        else dict(name="cut", width=64, hop=1, train_hop=8, at="frames", tail="drop")
    )
    config.wave_ops = ()
    config.feature_ops = ()
    config.backbone = (
        dict(name="Autoencoder", widths=(128, 128, 128, 128, 8, 128, 128, 128, 128))  # 267,928 parameters
        if autoencoder
        else dict(name="KerasMobileNetV2", alpha=0.5)  # 713,910 parameters with six classes
    )
    config.init_from = ""  # mnv2: or a folder, of a run whose backbone this one begins with
    config.head = dict() if autoencoder else dict(name="Linear", kernel_init="glorot_uniform")
    config.optim = (
        dict(name="adam", lr=1e-3, schedule="constant", eps=1e-7 if keras else 1e-8)
        if autoencoder
        else dict(name="adam", lr=1e-5, schedule="constant", eps=1e-7)  # eps: Keras' default
    )
    config.train = dict(
        steps=0,
        epochs=100.0 if autoencoder else 20.0,
        batch_size=(512 if keras else 256) if autoencoder else 32,  # vectors, windows
        chunk=50 if autoencoder else 0,  # steps per compiled call: those of the autoencoder take milliseconds
        checkpoint_every=10_000 if autoencoder else 100,  # steps: about a minute
        members=1,  # networks that differ by their seed
        groups="one_by_one",  # or 'together': on CPU 0 to 4 % faster, with all machines in step
    )
    config.score = dict(
        units=16 if autoencoder else 256,  # clips, windows through the network at once
        scorers=AE_SCORERS if autoencoder else MNV2_SCORERS,
        selections=(),
        fusions=(),
        training_free=True,  # print what configs/statistics.py says of the same clips beside
        tsne=0,  # clips in a t-SNE picture of the embeddings
    )
    config.by_machine = dict()  # {machine: {section of this config: what replaces it}}
    return config
