"""Bai et al. (JLESS), 'JLESS submission to DCASE2022 Task2: batch mixing strategy based method with anomaly detector
for anomalous sound detection', DCASE 2022.

    python -m asdjax.main --config=configs/bai2022.py:mfn_mel --config.data.root=data/dcase2022t2
    python -m asdjax.main --config=configs/bai2022.py:ensemble --config.data.root=data/dcase2022t2

One network per machine type tells its sections apart. A fixed part of every batch (which, is not stated: here an
eighth) is of the target domain, of which there is one clip in a hundred ('batch mixing'), and all examples are blended
with each other by mixup, or by mixup and FMix in turn. Three systems: MobileFaceNet on spectrograms (`mfn_stft`) and on
log-mel (`mfn_mel`), and a dual-path transformer that also reconstructs what is masked (`dpt`). What is submitted is for
each machine another of them, with its own loss, augmentation and detector (table 3).

Variants:
    mfn_stft, mfn_mel, dpt  the three systems of table 2
    ensemble                submission 1 (table 3); ensemble_valve_stft: valve from the spectrogram, as table 2 suggests
    sub2_mfn, sub2_dpt      submission 2: mfn_mel, and dpt with focal loss for bearing (table 3), under that name. On
                            gearbox sub2_mfn and the ensemble are the same by all that is told; their numbers are not
    sub3                    submission 3, which table 4 calls MFN: its numbers fit neither mfn_stft nor mfn_mel on all
                            machines. This is a mixture that they fit: as the ensemble, but bearing and slider from the
                            spectrogram
    ,loss= and ,mixing=     after a variant, the same for all machines: bai2022.py:mfn_mel,loss=arcface,mixing=none

A try on few recordings (network and frontend are what they are; fewer steps, smaller batches, a higher learning rate):

    python -m asdjax.main --config=configs/bai2022.py:ensemble --config.data.root=FOLDER --config.data.level=rms \\
        --config.train.epochs=0 --config.train.steps=150 --config.train.batch_size=16 --config.optim.lr=1e-3

The report's numbers, 2022 development set, in percent. Table 2, harmonic mean of the AUC over sections. Which AUC,
the official or another, is not told; our tables have the official one.

                        ToyCar  ToyTrain  bearing    fan  gearbox  slider  valve
    MFN STFT    source   89.47     69.58    66.70  75.92    66.00   89.60  93.81
                target   75.52     59.46    81.11  58.63    68.00   76.00  89.46
    MFN log-mel source   75.09     68.78    68.88  72.62    86.97   95.42  88.95
                target   71.71     55.45    76.52  48.59    86.56   78.04  85.71
    DPT         source   61.55     57.16    76.18  52.20    71.93   93.32  80.60
                target   71.54     51.24    83.47  48.96    71.64   74.23  63.31

Table 4, Omega (the official score of each machine), and the harmonic mean over machines (computed from it):

                        ToyCar  ToyTrain  bearing    fan  gearbox  slider  valve   all
    submission 1         72.28     59.56    72.31  66.71    81.51   81.74  85.41  73.2
    submission 2 MFN     69.25     57.68    66.19  60.56    80.21   81.74  84.47  70.0
    submission 2 DPT     61.91     52.33    72.31  50.42    68.16   75.59  70.53  63.1
    submission 3         72.28     59.56    63.84  66.71    81.51   66.55  85.41  69.8

Ours: not run on the 2022 data set, which was not at hand. What each factor does, one at a time, to mfn_mel with
ArcFace and mixup on all machines: official score in percent, 150 steps of 16 windows, lr 1e-3 (end as it is), levelled
(data.level=rms), scored on every fourth window (cut.hop=32, cut.train_hop=8). Real clips: 369 of slider and valve from
2020 and 2023 (162 to learn from, 8 of them target), mean and deviation of three seeds (train.members=3); statistics
without any training (configs/statistics.py) reach 75.6 on these. Embedded (data.root=, data.year=2023): one seed.

                                      real clips                              embedded
                                      LOF         cosine      log-softmax     LOF   cosine  log-softmax
    loss=arcface,mixing=mixup         59.1 +-2.2  62.7 +-1.9  56.6 +-1.1      62.4    51.2         55.1
    mixing=none                       60.6 +-3.8  64.1 +-8.1  56.7 +-1.0      62.2    49.7         58.1
    mixing=fmix                       57.9 +-0.6  60.2 +-6.6  56.7 +-2.3      60.7    50.8         52.2
    mixing=fmix_mixup                 58.3 +-4.8  66.0 +-1.2  57.1 +-3.4      62.7    49.7         57.0
    n_target=0, as they come          59.8 +-3.0  63.4 +-1.6  57.0 +-2.2      62.3    50.6         49.6
    n_target=1                        59.5 +-1.5  63.2 +-1.1  57.5 +-2.3      59.6    53.0         48.5
    loss=focal                        56.1 +-2.8  50.9 +-0.7  58.7 +-1.0      57.2    50.9         54.6

The loss had flattened in the embedded runs with mixing (the last fifth of the steps took at most a tenth off), but not
quite on the real clips (up to a fifth); without mixing it was on its way to 0. With focal loss the cosine distance is
worse on the real clips; all other differences are within what seeds and few clips (+-6 to 7 by bootstrap) make by
themselves. Of the real clips n_target changes valve alone, as slider has no target clips. Of what the report is about,
one target clip in a hundred, six sections to tell apart and long training, such data can say nothing: a fifth of
valve's training clips are target, and most machines have one section, hence attributes for classes.

A machine without target clips gets ordinary batches, which is said; the target's metrics are left out. A machine with
one section has nothing to tell apart by section: its attributes become the classes, which is said, and log-softmax
then asks how sure the network is of the likeliest of them; without attributes either, the classes of all machines are
learnt.
"""

from ml_collections import ConfigDict

ERROR_WEIGHT = 1.0  # of the transformer's reconstruction error, in loss and score; not stated: our choice

FEATURES = {
    "stft": dict(
        frontend=dict(
            name="spectrogram",
            win=1024,  # section 3.2
            hop=512,  # section 3.2
            pad="constant",  # not stated: librosa since 0.9.1
            scale="log_power",  # not stated: decibels, as in the official baselines
            drop_bin="last",  # section 3.3 has 512 rows where the STFT has 513: the Nyquist bin goes
        ),
        cut=dict(
            name="cut",
            width=32,  # frames, section 3.2
            hop=16,  # frames between the windows that are scored; not stated: as Morita 2021, whose network this is
            train_hop=16,  # and of those that are learnt: ditto
            at="frames",
            tail="drop",
        ),
    ),
    "mel": dict(
        frontend=dict(
            name="log_mel",
            sample_rate=16000,  # Hz, section 3.2
            win=1024,  # section 3.2
            hop=512,  # section 3.2
            n_mels=128,  # section 3.2
            pad="constant",  # not stated: librosa since 0.9.1
        ),
        cut=dict(
            name="cut",
            width=64,  # frames, section 3.2
            hop=8,  # frames between the windows that are scored; not stated: as the next; SSDPT and the baseline have 1
            train_hop=8,  # and of those that are learnt; not stated: the authors' SSDPT and the baseline
            at="frames",
            tail="drop",
        ),
    ),
}

MFN_ROWS = {
    "stft": (
        (2, 64, 5, 2),
        (4, 128, 1, 2),
        (2, 128, 6, 2),
        (4, 128, 1, 2),
        (2, 128, 2, 1),
    ),  # 'the same as' Morita 2021
    "mel": ((2, 64, 5, 2), (4, 128, 1, 2), (2, 128, 6, 1), (4, 128, 1, 2), (2, 128, 2, 1)),  # table 1
}

HEADS = {
    "arcface": dict(
        name="ArcFace",  # section 2.3
        s=30.0,  # not stated: the public MobileFaceNet with ArcFace on DCASE 2022 sections
        margin=0.5,  # not stated: ditto
        mode="th_mm",  # not stated: the guarded form of the public ASD code
    ),
    "focal": dict(name="Linear", loss="focal", gamma=2.0),  # section 2.3; gamma is not stated: that of its paper
    "softmax": dict(name="Linear", loss="softmax"),  # section 3.3, the transformer's
}

MIXUP = dict(
    name="mixup",  # section 2.1
    p=1.0,  # not stated: every batch, as the authors' SSDPT
    alpha=1.0,  # not stated: ditto
    lam="batch",  # not stated: one weight for the batch, as mixup's reference code
    pairing="random",  # figure 1 is not to be had; or 'cross_domain': partners are of the other domain
)
FMIX = dict(
    name="fmix",  # section 2.1
    p=1.0,  # not stated
    alpha=1.0,  # not stated: the default of its reference code, like the next
    decay=3.0,
    variant="paper",  # not stated: its formula; 'official' is the reference code, which mixes up two axes
    layout="freq_time",  # not stated; 'paper' cuts out bands of frequency in either layout, 'official' times in this
    pairing="random",  # as of mixup
)
MIXING = {
    "none": (),
    "mixup": (MIXUP,),
    "fmix": (FMIX,),
    "fmix_mixup": (dict(name="alternate", ops=(FMIX, MIXUP)),),  # not stated how: in turn, as FMix's own code
}

# Each variant's network and detector for each machine, and for those of other data, which are our choice.
CHOICES = {
    "mfn_stft": dict(  # table 2
        dict.fromkeys(("bearing", "gearbox", "slider"), ("mfn_stft", "cosine")), others=("mfn_stft", "lof")
    ),
    "mfn_mel": dict(  # table 2
        dict.fromkeys(("ToyCar", "ToyTrain", "gearbox"), ("mfn_mel", "lof")), others=("mfn_mel", "log_softmax")
    ),
    "dpt": dict(others=("dpt", "log_softmax_mse")),  # table 2
    "ensemble": dict(  # table 3
        ToyCar=("mfn_stft", "lof"),
        ToyTrain=("mfn_stft", "lof"),
        bearing=("dpt", "log_softmax_mse"),
        fan=("mfn_stft", "lof"),
        gearbox=("mfn_mel", "lof"),
        slider=("mfn_mel", "log_softmax"),
        valve=("mfn_mel", "lof"),
        others=("mfn_mel", "lof"),
    ),
}
CHOICES |= {
    # table 2: on log-mel valve had log-softmax, and LOF on the spectrogram
    "ensemble_valve_stft": dict(CHOICES["ensemble"], valve=("mfn_stft", "lof")),
    "sub2_mfn": CHOICES["mfn_mel"],
    "sub2_dpt": CHOICES["dpt"],
    "sub3": dict(CHOICES["ensemble"], bearing=("mfn_stft", "cosine"), slider=("mfn_stft", "cosine")),
}
VARIANTS = tuple(CHOICES)

# Table 3, which is of the ensemble; that MobileFaceNet had the same loss and augmentation in table 2 is our reading.
LOSS = dict(
    ToyCar="arcface", ToyTrain="arcface", bearing="focal", fan="arcface", gearbox="focal", slider="focal",
    valve="arcface", others="arcface",
)  # fmt: skip
MIXED_BY = dict(
    ToyCar="mixup", ToyTrain="fmix_mixup", bearing="mixup", fan="fmix_mixup", gearbox="fmix_mixup",
    slider="fmix_mixup", valve="mixup", others="mixup",
)  # fmt: skip
MACHINES = tuple(name for name in LOSS if name != "others")

SCORERS = {
    "mfn": (
        dict(
            name="lof",
            fit="section",  # section 2.4; the domain is not known in the test
            detector=dict(name="lof", n_neighbors=4, units="mean"),  # section 2.4
        ),
        dict(name="cosine", fit="section", detector=dict(name="cosine_mean", units="mean")),  # section 2.4
        dict(
            name="log_softmax",
            fit="section",
            # section 2.4; or 'baseline_2021_typo', as in the authors' SSDPT, or 'neglog'
            detector=dict(name="log_softmax", form="logit_2022"),
        ),
    ),
    "dpt": (
        dict(
            name="log_softmax_mse",  # table 2
            fit="section",
            detector=dict(name="log_softmax_mse", weight=ERROR_WEIGHT, form="logit_2022"),
        ),
        dict(name="log_softmax", fit="section", detector=dict(name="log_softmax", form="logit_2022")),
        dict(name="mse", fit="section", detector=dict(name="passthrough", key="mse")),
    ),
}


def mfn(feature: str, loss: str, mixing: str) -> dict:
    """The sections of a machine's MobileFaceNet."""
    return dict(
        FEATURES[feature],
        system=dict(
            name="classify",
            standardise="none",  # not stated: decibels go in as they are, as in the official baselines
        ),
        feature_ops=MIXING[mixing],
        backbone=dict(
            name="MobileFaceNet",  # 993,280 parameters on log-mel, 985,088 on the spectrogram
            rows=MFN_ROWS[feature],
            stem=64,
            features=512,
            embedding=128,
            dtype="float32",  # not stated; or 'bfloat16', for accelerators: slower on CPU
        ),
        head=HEADS[loss],
        scorers=SCORERS["mfn"],
    )


def dpt(loss: str, mixing: str) -> dict:
    """The sections of a machine's dual-path transformer."""
    return dict(
        FEATURES["mel"],
        system=dict(
            name="dual_path",
            masks=3,  # not stated, like the next: the authors' SSDPT
            mask_size=5,  # frames and bins
            # not stated: the input after BatchNorm, since the output is normalised too; SSDPT has 'raw', and then both
            # weights of the error, the next and the scorer's, are 0.001
            target="normalised",
            reconstruction_weight=ERROR_WEIGHT,
            classification_weight=1.0,  # not stated: SSDPT
        ),
        feature_ops=MIXING[mixing],
        backbone=dict(
            name="DualPathTransformer",  # 288,256 parameters; not stated, like the next: SSDPT
            blocks=3,
            heads=8,
            feedforward=32,
            dtype="float32",  # not stated; or 'bfloat16', for accelerators
        ),
        head=HEADS[loss],
        scorers=SCORERS["dpt"],
    )


def network(name: str, loss: str, mixing: str) -> dict:
    """The sections of one of the three networks."""
    return copied(dpt(loss, mixing) if name == "dpt" else mfn(name.removeprefix("mfn_"), loss, mixing))


def copied(value):
    """The same dicts and tuples anew: a flag that changes one machine's would change those that share it."""
    if isinstance(value, dict):
        return {k: copied(v) for k, v in value.items()}
    return tuple(map(copied, value)) if isinstance(value, tuple) else value


def losses_of(variant: str) -> dict[str, str]:
    """The loss of each machine, and of 'others'."""
    transformers = [name for name in LOSS if CHOICES[variant].get(name, CHOICES[variant]["others"])[0] == "dpt"]
    # section 3.3 says cross-entropy, table 3 focal for bearing, which is in submission 2 too by its number
    return LOSS | {name: "softmax" for name in transformers if name != "bearing" or variant == "dpt"}


def mixing_of(variant: str) -> dict[str, str]:
    """The augmentation of each machine, and of 'others'."""
    return MIXED_BY if variant not in ("dpt", "sub2_dpt") else dict.fromkeys(MIXED_BY, "mixup")  # our reading


def get_config(variant: str = "ensemble") -> ConfigDict:
    variant, *options = variant.split(",")
    if variant not in VARIANTS:
        raise ValueError(f"configs/bai2022.py:{variant}: no such variant; there is: {', '.join(VARIANTS)}")
    loss_of, mixed_by = losses_of(variant), mixing_of(variant)
    for option in options:
        name, _, value = option.partition("=")
        if name == "loss" and value in HEADS:
            loss_of = dict.fromkeys(LOSS, value)
        elif name == "mixing" and value in MIXING:
            mixed_by = dict.fromkeys(LOSS, value)
        else:
            there = f"loss={'|'.join(HEADS)}, mixing={'|'.join(MIXING)}"
            raise ValueError(f"configs/bai2022.py:{variant},{option}: no such option; there is: {there}")
    choice = {name: CHOICES[variant].get(name, CHOICES[variant]["others"]) for name in LOSS}
    own = {name: network(which, loss_of[name], mixed_by[name]) for name, (which, _) in choice.items()}
    base = own["others"]
    config = ConfigDict()
    config.seed = 0  # not stated: our choice
    config.system = base["system"]
    config.data = dict(
        root="data/dcase2022t2",
        year="2022",
        train_on=("dev", "additional"),  # section 4: six sections
        test_on="dev",  # the report's tables
        ground_truth="",
        group_by="machine",  # table 3: one network per machine type
        label="section",  # section 2.2: 'machine IDs'
        level="as_recorded",  # or 'rms': every clip at one level
        sample_rate=16000,  # Hz, section 3.2
        resample=False,
        channel=0,
        seconds=0.0,
        length="tile",
        cache="",
        resident=True,  # the features live on the device where they fit in half its memory
        # the frontend runs once for all steps, and batches are windows of many clips; or 'waves', where they are clips
        # of which a window is drawn, and an epoch has as many times fewer steps as a clip has windows
        bank="features",
    )
    config.sampler = dict(
        name="domain_mixed",  # section 2.1: 'batch mixing'
        n_target=-1,  # windows of the target domain in a batch; not stated: -1, an eighth of the batch; 0: as they come
    )
    config.frontend = base["frontend"]
    config.cut = base["cut"]
    config.wave_ops = ()
    config.feature_ops = base["feature_ops"]
    config.backbone = base["backbone"]
    config.init_from = ""  # or a folder: another run's, or a converted network's, whose backbone this one begins with
    config.head = base["head"]
    config.optim = dict(
        name="adamw",  # not stated, like all below: the authors' SSDPT
        lr=1e-4,
        schedule="exponential",
        end=1e-4 * 0.95**30,  # x 0.95 per epoch there, here a little at every step; it does not follow lr
        weight_decay=0.01,
        clip=0.5,  # of the gradient's norm
    )
    config.train = dict(
        steps=0,
        epochs=30.0,  # not stated: SSDPT; passes over the windows of the source domain
        batch_size=64,  # not stated: our choice, that every section's target may be in a batch; SSDPT has 16
        chunk=0,  # steps per compiled call; 0: 1 on CPU, 8 elsewhere
        checkpoint_every=100,  # steps: a minute or two on two cores
        members=1,  # not stated: no ensemble of seeds is reported
        groups="one_by_one",  # or 'together': in one program the networks of machines that differ by classes alone
    )
    named = dict(ensemble="submission_1", ensemble_valve_stft="submission_1", sub3="submission_3")
    detector = {name: dict(source=of, target=of) for name, (_, of) in choice.items()}  # the test's domain is not known
    others = detector.pop("others")
    config.score = dict(
        units=256,  # windows through the network at once
        scorers=base["scorers"],
        selections=(
            dict(
                name=named.get(variant, "submission_2" if variant.startswith("sub2") else "table_2"),
                **others,
                by_machine={name: of for name, of in detector.items() if of != others},
            ),
        ),
        fusions=(),  # of scorers: dict(name=..., scorers=(...), how="mean", "max", "sum" or "product")
        training_free=True,  # print what configs/statistics.py says of the same clips beside
        tsne=0,  # clips in a t-SNE picture of the embeddings, e.g. 1000
    )
    differing = {name: {k: v for k, v in own[name].items() if v != base[k]} for name in MACHINES}
    config.by_machine = {name: sections for name, sections in differing.items() if sections}  # tables 2 and 3
    return config
