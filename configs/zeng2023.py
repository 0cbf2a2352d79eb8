"""Zeng et al. (CQUPT), 'General anomalous sound detection using sound event classification and detection', DCASE 2023.

    python -m asdjax.main --config=configs/zeng2023.py:mv2_sec --config.data.root=data/dcase2023t2
    python -m asdjax.main --config=configs/zeng2023.py:ensemble4 --config.data.root=data/dcase2023t2

One general network learns the machine type of 3-s pieces of all machines' normal sound: as classes (SEC), or as events
that may sound at once, with other machines mixed in (SED). A 10-s clip is 15 windows, whose mean embedding is compared
with those of training clips of its machine: Mahalanobis distance to the mean of either domain.

Variants:
    mv2_sec, mv2_sed  MobileNetV2 as PANNs have it; the report starts from a network that has learnt AudioSet's tags,
                      these from scratch unless told: --config.init_from=FOLDER
    vit_sec, vit_sed  a vision transformer of one block, from scratch
    mv2_pretrain      the tags of AudioSet (data.root: its folder; '' a synthetic miniature of the same format)
    ensemble1 to 4    mv2_sec + mv2_sed, vit_sec + vit_sed, the sum and the product of both sums (table 3), of runs
                      beside this one's folder; members that are not there are trained. NAME_standardised is ours
    ,strides=sandler  after a MobileNetV2: its rows are halved where Sandler et al. (2018) do, not where PANNs do

A published PANNs checkpoint (MobileNetV2) becomes a start by python -m asdjax.convert panns FILE.pth FOLDER. A try on
few recordings (network and frontend are what they are; fewer steps, smaller batches):

    python -m asdjax.main --config=configs/zeng2023.py:ensemble4 --config.data.root=FOLDER --config.data.level=rms \\
        --config.train.steps=300 --config.train.batch_size=16

On 369 clips of 10 s and two cores that takes five minutes: 98 s for mv2_sec, 165 s for mv2_sed, 16 s for each ViT.

The report's numbers, 2023 development set, harmonic mean over machines in percent. Its AUCs count only anomalies of the
same domain, as their digits show, though it does not say so ('AUC same-domain' in results.csv and in the tables that a
run prints); pAUC is official.

                 AUC source  AUC target   pAUC
    MV2_SEC           69.59       62.83  55.19
    MV2_SED           70.58       62.70  53.95
    ViT_SEC           65.48       64.96  55.67
    ViT_SED           65.21       66.08  54.75
    Ensemble1         71.91       63.95  55.00
    Ensemble2         65.49       66.08  55.32
    Ensemble3         70.09       66.55  55.24
    Ensemble4         70.67       67.16  55.34

Ours: not run on the 2023 data set, which was not at hand, and neither was AudioSet. What the short setting above gives:
official score in percent, mean and deviation of three seeds (train.members=3), in brackets the three together. Real
clips: 369 of slider and valve from 2020 and 2023, levelled (data.level=rms). Their two types, and the four of the
embedded data (data.root=), are told apart after a hundred steps: a task far easier than the report's 14. Statistics
without training (configs/statistics.py) reach 75.6 and 77.3.

                                        real clips            embedded
    mv2_sec            mahalanobis      66.1 +-2.4 [67.2]     63.6 +-2.2 [66.1]
                       nll              61.2 +-2.8 [69.2]     57.7 +-2.4 [60.7]
    mv2_sed            mahalanobis      74.7 +-1.3 [78.0]     67.8 +-0.7 [71.9]
                       nll              55.1 +-3.4 [56.7]     56.9 +-2.4 [59.8]
    vit_sec            mahalanobis      62.4 +-4.7 [63.4]     63.2 +-1.6 [64.4]
                       nll              59.1 +-1.4 [61.0]     48.3 +-0.5 [47.9]
    vit_sed            mahalanobis      68.7 +-1.7 [71.6]     64.1 +-2.2 [65.7]
                       nll              59.5 +-1.3 [60.2]     49.1 +-2.0 [50.9]
    ensemble1                           72.4 +-1.5 [74.3]     68.6 +-0.5 [70.4]
    ensemble2                           66.3 +-3.7 [67.5]     64.6 +-1.0 [65.8]
    ensemble3                           69.4 +-2.2 [70.9]     68.3 +-0.8 [69.2]
    ensemble4                           71.2 +-1.9 [72.1]     69.3 +-0.9 [70.1]
    ensemble4_standardised              72.4 +-3.0 [74.0]     70.1 +-1.4 [71.5]
    mv2_sec, pre-trained on the miniature, mahalanobis        71.1 +-3.4 [74.4]     (real clips)
    mv2_sed, pre-trained on the miniature, mahalanobis        73.2 +-3.7 [74.1]     (real clips)
    untrained mv2      mahalanobis      54.0 +-1.1 [54.2]     64.8 +-1.6 [66.1]
    untrained vit      mahalanobis      60.1 +-2.5 [61.5]     59.8 +-1.5 [60.1]

The loss of classification had levelled off or was near 0, that of detection still fell by 7 to 19 % in the last fifth
of the steps. 'Untrained' are random weights with adapted batch statistics (50 steps, optim.lr=1e-12). The miniature is
the synthetic one of mv2_pretrain: 200 steps of 16 clips, mean average precision 0.94 on its evaluation clips. With so
few clips the bootstrap's 95 % interval is +-6. Detection beats classification throughout; on the embedded data
classification teaches MobileNetV2 nothing that random weights have not. What 14 machines, 40,000 steps and AudioSet
would do, such data cannot say.
"""

from ml_collections import ConfigDict

RATE = 16000  # Hz, section 3.1
PANNS = (  # (t, c, n, s) of table 1, and as PANNs have it
    (1, 16, 1, 1),
    (6, 24, 2, 2),
    (6, 32, 3, 2),
    (6, 64, 4, 2),
    (6, 96, 3, 2),
    (6, 160, 3, 1),
    (6, 320, 1, 1),
)
SANDLER = (*PANNS[:4], (6, 96, 3, 1), (6, 160, 3, 2), PANNS[6])  # as Sandler et al. (2018, table 2) have it

BACKBONES = {
    "mv2": dict(
        name="PannsMobileNetV2",  # table 1; with 14 classes 1,854,286 parameters
        rows=PANNS,
        stem=32,
        features=128,  # section 2.1.2
        downsample="avgpool",  # not stated: PANNs, whose checkpoints then fit; or 'strided'
        head_act="relu6",  # not stated: PANNs; or 'linear', which leaves no embedding dimension dead
        fc=0,  # table 1 has no layer between pooling and classes; PANNs have 1024 there
        dtype="float32",  # or 'bfloat16', for accelerators: slower on CPU
    ),
    "vit": dict(
        name="ViT",  # section 2.2; with 14 classes 242,702 parameters, and 128 of the BatchNorm over the mel bins
        patch=16,
        width=128,
        depth=1,
        heads=8,
        dim_head=16,  # not stated: the width over the heads, as the original ViT; lucidrains' code has 64
        mlp=512,  # four times the width
        style="paper",  # not stated: the original ViT; or 'lucidrains', with two LayerNorms and a bias less
        pool="cls",  # not stated: the original ViT; or 'mean'
        time_fit="crop",  # not stated: 301 frames are no multiple of 16; 288 of them, or 'pad' to 304
        input_bn=True,  # not stated: as MobileNetV2's
        dtype="float32",
    ),
}
EVENTS = (  # section 2.1.2: several events 'with a certain probability'; all numbers are our choice
    dict(name="crop", samples=3 * RATE),  # before mixing, so that loudness is compared of what is heard
    dict(name="event_mix", p=0.5, max_events=3, snr_db=(-5.0, 5.0), unity_gain=False),
)
TASKS = {  # classification, or detection of several events
    "sec": dict(wave_ops=(), head=dict(name="Linear", loss="softmax", kernel_init="glorot_uniform")),  # equation 2
    "sed": dict(wave_ops=EVENTS, head=dict(name="Linear", loss="bce", kernel_init="glorot_uniform")),  # equation 1
}
MEMBERS = {
    f"{network}_{task}": dict(backbone=backbone, **pieces)
    for network, backbone in BACKBONES.items()
    for task, pieces in TASKS.items()
}

E1 = dict(name="ensemble1", scorers=("mv2_sec/mahalanobis", "mv2_sed/mahalanobis"), how="sum")  # table 3
E2 = dict(name="ensemble2", scorers=("vit_sec/mahalanobis", "vit_sed/mahalanobis"), how="sum")
E3 = dict(name="ensemble3", scorers=("ensemble1", "ensemble2"), how="sum")
E4 = dict(name="ensemble4", scorers=("ensemble1", "ensemble2"), how="product")
ENSEMBLES = {"ensemble1": (E1,), "ensemble2": (E2,), "ensemble3": (E1, E2, E3), "ensemble4": (E1, E2, E4)}

PIECES = ("wave_ops", "backbone", "head", "init_from")  # in which the members of an ensemble differ, and scorers
VARIANTS = (*MEMBERS, "mv2_pretrain", *ENSEMBLES)


def get_config(variant: str = "mv2_sec") -> ConfigDict:
    if variant.startswith("mv2") and variant.endswith(",strides=sandler"):
        config = get_config(variant.removesuffix(",strides=sandler"))
        config.backbone.rows = SANDLER
        return config
    if variant not in VARIANTS:
        raise ValueError(
            f"configs/zeng2023.py:{variant}: no such variant; there is: {', '.join(VARIANTS)}, mv2_...,strides=sandler"
        )
    if variant == "mv2_pretrain":
        return pretraining()
    if variant in ENSEMBLES:
        return ensemble(variant)
    pieces = MEMBERS[variant]
    nll = "log_softmax" if pieces["head"]["loss"] == "softmax" else "log_sigmoid"
    config = ConfigDict()
    config.seed = 0  # not stated: our choice
    config.system = dict(name="classify", standardise="none")  # the network's BatchNorm over mel bins does it
    config.data = dict(
        root="data/dcase2023t2",
        year="2023",
        train_on=("dev", "additional"),  # section 3.1: 14 machines
        test_on="dev",  # the report's tables
        ground_truth="",
        group_by="all",  # section 1: one general model
        label="machine",  # section 3.1: 14 classes
        level="as_recorded",
        sample_rate=RATE,
        resample=False,
        channel=0,
        seconds=0.0,  # 0: the longest clip, 18 s with all 14 machines; 10.0: the 15 windows of a 10-s clip alone
        length="tile",  # not stated; shorter clips are repeated, and some of their windows hold the seam
        cache="",
        resident=True,  # the clips live on the device where they fit in half its memory
        bank="waves",
    )
    config.sampler = dict(name="uniform")  # not stated
    config.frontend = frontend()
    config.cut = dict(name="cut", width=3 * RATE, hop=RATE // 2, at="wave", tail="drop", train_hop=1)  # table 2
    config.wave_ops = pieces["wave_ops"]
    config.feature_ops = ()  # none is named; pre-training has SpecAugment
    config.backbone = pieces["backbone"]
    config.init_from = ""  # section 2.1.2: the pre-trained network, of which a run or a converted checkpoint is needed
    config.head = pieces["head"]
    config.optim = dict(name="adam", lr=1e-3, schedule="constant")  # section 3.2, table 2
    config.train = dict(
        steps=40_000,  # table 2
        epochs=0.0,  # passes over the training clips instead, where steps is 0
        batch_size=32,  # section 3.2
        chunk=0,  # steps per compiled call; 0: 1 on CPU, 8 elsewhere
        checkpoint_every=500,
        members=1,
        groups="one_by_one",
    )
    config.score = dict(
        units=128,  # windows through the network at once: 3-s ones of some 8 MB
        scorers=(
            dict(
                name="mahalanobis",
                fit="section",
                detector=dict(
                    name="mahalanobis",  # equation 3, of the nearer domain: which one is taken is not stated
                    covariance="global_ddof1",  # section 2.3: of all training data; or 'within_domain'
                    units="mean",  # section 2.3: 'x is the mean vector'; or 'each': the mean of the windows' scores
                ),
            ),
            dict(name="nll", fit="section", detector=dict(name=nll, **NEGLOG[nll])),  # section 1, the alternative
        ),
        selections=(),
        fusions=(),  # of scorers: dict(name=..., scorers=(...), how=...), see README
        training_free=True,  # print what configs/statistics.py says of the same clips beside
        tsne=1000,  # figures 1 to 4: clips in the picture of the embeddings; 0: none
    )
    config.by_machine = dict()
    return config


NEGLOG = {"log_softmax": dict(form="neglog"), "log_sigmoid": {}}


def frontend() -> dict:
    return dict(
        name="log_mel",
        sample_rate=RATE,
        win=512,  # section 3.2
        hop=160,  # section 3.2
        n_mels=64,  # section 3.2
        f_min=50.0,  # not stated, like all below: the 16-kHz frontend of PANNs, which has the stated sizes
        f_max=8000.0,
        pad="reflect",
        floor=1e-10,
    )


def ensemble(variant: str) -> ConfigDict:
    """Several of the systems, each a run of its own, and sums or products of their scores (table 3)."""
    config, rules = get_config("mv2_sec"), ENSEMBLES[variant]
    names = tuple(name for rule in rules for name in rule["scorers"] if "/" in name)
    config.ensemble = dict()
    for name in [name.split("/")[0] for name in names]:
        own = get_config(name)
        config.ensemble[name] = dict(
            run=f"zeng2023-{name}",  # the folder of the member's run, beside this run's; trained there if it was not
            scorers=own.score.scorers,
            **{piece: own[piece] for piece in PIECES},
        )
    for piece in PIECES:
        del config[piece]
    config.score.scorers = ()  # the members'
    standardised = dict(name=f"{variant}_standardised", scorers=names, how="mean")  # ours, beside: on one scale
    config.score.fusions = (*rules, standardised)
    return config


def pretraining() -> ConfigDict:
    """Tagging of AudioSet by the same network (section 2.1.1)."""
    config = get_config("mv2_sec")
    config.data.update(
        root="",  # '': a synthetic miniature of AudioSet's format
        year="audioset",
        train_on=("balanced_train_segments", "unbalanced_train_segments"),  # not stated: all of it
        test_on="eval_segments",
        label="tags",  # 527 classes, section 2.1.1
        seconds=10.0,  # table 2
        length="pad",  # not stated: PANNs
        bank="files",  # wavs are decoded when they are needed: all of AudioSet is 600 GB
        resident=False,
    )
    config.sampler = dict(name="tag_balanced")  # not stated: PANNs, rare classes as often as others
    config.cut = dict(name="cut", width=10 * RATE, hop=10 * RATE, at="wave", tail="drop")
    config.wave_ops = ()
    # Not stated: PANNs. There both follow the BatchNorm over mel bins. Here they precede it, so that its statistics are
    # of mixed sounds, whose decibels vary less than those of the unmixed ones that it meets later
    config.feature_ops = (
        dict(name="spec_mask", time_stripes=2, time_width=64, freq_stripes=2, freq_width=8, fill="mean"),
        dict(name="mixup", p=1.0, alpha=1.0),  # PANNs draw two clips for each, here a clip is another's partner too
    )
    config.backbone = dict(BACKBONES["mv2"], features=1280)  # table 1; with 527 classes 2,898,511 parameters
    config.head = dict(name="Linear", loss="bce", kernel_init="glorot_uniform")  # equation 1, with the sign mended
    config.train.steps = 5_000_000  # table 2 as printed; 80 passes; PANNs stop at 1,000,000: perhaps 500,000 is meant
    config.train.checkpoint_every = 2000
    config.score.scorers = config.score.fusions = ()  # its numbers are mean average precision and mean AUC
    config.score.units = 32  # 10-s windows
    config.score.training_free = False
    config.score.tsne = 0
    return config
