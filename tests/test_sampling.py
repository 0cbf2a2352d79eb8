import time

import numpy as np
import pytest

from asdjax.core import Clips, InputError, UsageError
from asdjax.data import audioset, sampling


def clips_of(counts, machine="fan"):
    """Clips by {(section, domain): how many}, in shuffled order."""
    column = np.array([key for key, n in counts.items() for _ in range(n)])
    section, domain = column[np.random.default_rng(0).permutation(len(column))].T
    n = len(column)
    same = {"machine": machine, "split": "train", "is_anomaly": 0, "attributes": "", "path": "a.wav"}
    return Clips(section=section, domain=domain, **{k: np.full(n, v) for k, v in same.items()})


def uniform(rows, **options):
    return sampling.uniform(clips_of({("00", "source"): len(rows)}), rows, **options)


def test_every_clip_once_per_epoch():
    rows = np.array([True, False, True, True, False, True, True])  # five clips
    sampler = uniform(rows, batch_size=3)
    assert sampler.epoch == 5 / 3 and sampler.note == ""
    stream = np.concatenate([sampler.draw(0, step) for step in range(10)])  # 30 draws: six epochs
    for epoch in stream.reshape(6, 5):
        assert sorted(epoch) == [0, 2, 3, 5, 6]
    assert not (stream.reshape(6, 5) == stream[:5]).all()


def test_rows_are_a_function_of_seed_and_step():
    rows = np.ones(20, bool)
    one, two = uniform(rows, batch_size=8).draw, uniform(rows, batch_size=8).draw
    later = [two(1, step) for step in (7, 3)]  # out of order, as after a resume
    np.testing.assert_array_equal(later[0], one(1, 7))
    np.testing.assert_array_equal(later[1], one(1, 3))
    assert (one(1, 3) != one(2, 3)).any()


def test_batch_larger_than_the_data():
    assert sorted(uniform(np.ones(2, bool), batch_size=6).draw(0, 0)) == [0, 0, 0, 1, 1, 1]


def test_units_of_the_chosen_clips_each_once_per_epoch():
    sampler = uniform(np.array([True, False, True]), batch_size=4, units=4)
    assert sampler.epoch == 2
    stream = np.concatenate([sampler.draw(0, step) for step in range(6)])  # 24 draws: three epochs of eight units
    for epoch in stream.reshape(3, 8):
        assert sorted(epoch) == [0, 1, 2, 3, 8, 9, 10, 11]


# sections of unequal size, one of clips whose domain is unknown
CLIPS = clips_of(
    {("00", "source"): 70, ("01", "source"): 41, ("02", ""): 30}
    | {("00", "target"): 10, ("01", "target"): 3, ("02", "target"): 1}
)
LEARNT = np.arange(len(CLIPS)) % 9 != 4  # some clips, target ones too, are not learnt from
IS_TARGET = CLIPS.domain == "target"


@pytest.mark.parametrize("units", [1, 4])
def test_domain_mixed_batches(units):
    """Spec: exactly n_target target rows a batch, each source row once per epoch, and the rows drawn evenly."""
    batch, n_target, steps = 32, 5, 600
    sampler = sampling.domain_mixed(CLIPS, LEARNT, batch_size=batch, units=units, n_target=n_target)
    rows = np.stack([sampler.draw(3, step) for step in range(steps)])
    assert rows.dtype == np.int32 and rows.shape == (steps, batch) and sampler.note == ""
    clip, unit = np.divmod(rows, units)
    assert LEARNT[clip].all()
    np.testing.assert_array_equal(IS_TARGET[clip].sum(1), n_target)

    pool = np.flatnonzero(LEARNT & ~IS_TARGET)
    of_source = rows[~IS_TARGET[clip]]  # in the order of the draws, as boolean indexing goes by rows
    length = len(pool) * units
    assert sampler.epoch == length / (batch - n_target)
    whole = [of_source[i * (batch - n_target) : (i + 1) * (batch - n_target)] for i in range(int(sampler.epoch))]
    first = np.concatenate(whole)  # the batches that lie within the first epoch
    assert len(np.unique(first)) == len(first)
    count = np.bincount(of_source, minlength=len(CLIPS) * units)
    pool_rows = (pool[:, None] * units + np.arange(units)).ravel()
    epochs = len(of_source) // length
    assert epochs >= 5 and set(count[pool_rows]) <= {epochs, epochs + 1} and count.sum() == count[pool_rows].sum()

    drawn, drawn_unit = clip[IS_TARGET[clip]], unit[IS_TARGET[clip]]
    even(CLIPS.section[drawn], ["00", "01", "02"])
    of_first = CLIPS.section[drawn] == "00"
    even(drawn[of_first], np.flatnonzero(LEARNT & IS_TARGET & (CLIPS.section == "00")))
    even(drawn_unit, range(units))
    even(np.nonzero(IS_TARGET[clip])[1], range(batch))  # shuffled: a device must not get all the target rows


def even(values, expected):
    """Each of the expected values comes equally often, within 4 standard deviations of a binomial count."""
    count = np.array([(values == value).sum() for value in expected])
    mean = len(values) / len(count)
    assert count.sum() == len(values)
    assert (np.abs(count - mean) <= 4 * np.sqrt(mean * (1 - 1 / len(count)))).all(), count


def test_domain_mixed_rows_are_a_function_of_seed_and_step():
    one, two = (sampling.domain_mixed(CLIPS, LEARNT, batch_size=16, units=4).draw for _ in range(2))
    batches = {(seed, step): one(seed, step) for seed in (0, 7) for step in (0, 1, 50, 1000)}
    for (seed, step), rows in reversed(batches.items()):  # out of order, as after a resume
        np.testing.assert_array_equal(two(seed, step), rows)
    assert len({rows.tobytes() for rows in batches.values()}) == 8


def test_domain_mixed_takes_an_eighth_unless_told():
    for batch, expected in ((64, 8), (16, 2), (15, 1)):
        rows = sampling.domain_mixed(CLIPS, LEARNT, batch_size=batch).draw(0, 0)
        assert IS_TARGET[rows].sum() == expected


def same_as_uniform(clips, batch_size, **options):
    """The note of a sampler whose batches are those of ordinary shuffling."""
    rows = np.ones(len(clips), bool)
    mixed = sampling.domain_mixed(clips, rows, batch_size=batch_size, units=2, **options)
    plain = sampling.uniform(clips, rows, batch_size=batch_size, units=2)
    for step in (0, 9):
        np.testing.assert_array_equal(mixed.draw(1, step), plain.draw(1, step))
    assert mixed.epoch == plain.epoch
    return mixed.note


def test_domain_mixed_without_what_it_needs_shuffles_all_and_says_so():
    assert same_as_uniform(CLIPS, 16, n_target=0) == ""
    only = {domain: clips_of({("00", domain): 9}) for domain in ("source", "target", "")}
    assert "no training clips of the target domain: batches do not mix" in same_as_uniform(only["source"], 16)
    assert "no training clips of the target domain" in same_as_uniform(only[""], 16, n_target=4)
    assert "no training clips of the source domain" in same_as_uniform(only["target"], 16)
    assert "an eighth of a batch of 7 is none" in same_as_uniform(CLIPS, 7)


def test_domain_mixed_names_sections_without_target_clips():
    clips = clips_of({("00", "source"): 5, ("01", "source"): 5, ("02", "source"): 5, ("01", "target"): 2})
    sampler = sampling.domain_mixed(clips, np.ones(len(clips), bool), batch_size=8, n_target=3)
    assert sampler.note.startswith("no training clips of the target domain in fan section 00, fan section 02:")
    drawn = [clip for clip in sampler.draw(0, 0) if clips.domain[clip] == "target"]
    assert len(drawn) == 3 and set(clips.section[drawn]) == {"01"}


@pytest.mark.parametrize("n_target", [-2, 16, 17, 2.5])
def test_domain_mixed_with_a_bad_number_raises(n_target):
    with pytest.raises(UsageError, match=f"n_target={n_target}; expected a whole number, -1 to 15"):
        sampling.domain_mixed(CLIPS, LEARNT, batch_size=16, n_target=n_target)


def test_a_draw_costs_far_less_than_a_step():
    """6,000 clips of 32 units: the host draws for every step, an epoch's permutation included."""
    clips = clips_of({(str(s), "source"): 990 for s in range(6)} | {(str(s), "target"): 10 for s in range(6)})
    draw = sampling.domain_mixed(clips, np.ones(len(clips), bool), batch_size=64, units=32).draw
    draw(0, 0)
    seconds = []
    for step in range(1, 101):
        began = time.perf_counter()
        draw(0, step)
        seconds.append(time.perf_counter() - began)
    assert np.median(seconds) < 1e-3


def tagged(tags, classes):
    """Training clips of these tags."""
    n = len(tags)
    names = tuple(map(str, range(classes)))
    return audioset.Tagged(
        np.full(n, "a.wav", object), np.full(n, "train"), audioset.multi_hot(tags, classes), names, ""
    )


SINGLE = tagged([(c,) for c, n in enumerate((12, 6, 0, 4, 1)) for _ in range(n)] + [(5,), (), (0,)], classes=6)
LEARNT_TAGS = np.arange(26) < 25  # the last of class 0 is none of them; class 2 has no clips


@pytest.mark.parametrize(("units", "batch"), [(1, 3), (1, 16), (4, 7)])
def test_tag_balanced_gives_each_class_its_turn_and_each_of_its_clips_once_a_pass(units, batch):
    """Spec: rounds of the classes that have clips, each round in an order of its own; passes of a class likewise."""
    sampler = sampling.tag_balanced(SINGLE, LEARNT_TAGS, batch_size=batch, units=units)
    assert sampler.epoch == 25 * units / batch
    assert sampler.note == "1 of 25 training clips have no tag and are never drawn"
    rounds, classes = 12 * 8 * units, [0, 1, 3, 4, 5]
    draws = [sampler.draw(3, step) for step in range(-(-rounds * 5 // batch))]
    assert draws[0].dtype == np.int32 and draws[0].shape == (batch,)
    stream = np.concatenate(draws)[: rounds * 5].reshape(rounds, 5)
    which = SINGLE.tags[(stream // units).ravel()].argmax(1).reshape(rounds, 5)
    np.testing.assert_array_equal(np.sort(which, 1), np.tile(classes, (rounds, 1)))
    for place in which.T:
        even(place, classes)
    for c, n in zip(classes, (12, 6, 4, 1, 1), strict=True):
        passes = stream[which == c].reshape(-1, n * units)
        own = np.flatnonzero(SINGLE.tags[:][:, c] * LEARNT_TAGS)
        own = (own[:, None] * units + np.arange(units)).ravel()
        np.testing.assert_array_equal(np.sort(passes, 1), np.tile(own, (len(passes), 1)))
        assert n * units == 1 or len(np.unique(passes, axis=0)) > 1


def test_a_clip_of_several_tags_comes_by_each_of_them():
    """In 24 rounds of classes of 12, 6 and 4 clips, which share clips, each clip comes 2, 4 and 6 times by them."""
    tags = [tuple(c for c, n in enumerate((12, 6, 4)) if i < n) for i in range(12)]
    sampler = sampling.tag_balanced(tagged(tags, 3), np.ones(12, bool), batch_size=8)
    stream = np.concatenate([sampler.draw(0, step) for step in range(9)])
    np.testing.assert_array_equal(np.bincount(stream), [12] * 4 + [6] * 2 + [2] * 6)
    assert sampler.note == "" and sampler.epoch == 1.5


def test_tag_balanced_rows_are_a_function_of_seed_and_step():
    one, two = (sampling.tag_balanced(SINGLE, LEARNT_TAGS, batch_size=16).draw for _ in range(2))
    batches = {(seed, step): one(seed, step) for seed in (0, 7) for step in (0, 1, 50, 1000)}
    for (seed, step), rows in reversed(batches.items()):  # out of order, as after a resume
        np.testing.assert_array_equal(two(seed, step), rows)
        np.testing.assert_array_equal(one(seed, step), rows)
    assert len({rows.tobytes() for rows in batches.values()}) == 8


def test_tag_balanced_needs_tags():
    with pytest.raises(UsageError, match="the clips have no tags"):
        sampling.tag_balanced(CLIPS, LEARNT, batch_size=4)
    with pytest.raises(InputError, match="none of the training clips has a tag"):
        sampling.tag_balanced(SINGLE, np.arange(26) == 24, batch_size=4)


def test_tagged_clips_are_shuffled_too_but_have_no_domains():
    plain, tags = (sampling.uniform(clips, LEARNT_TAGS, batch_size=4) for clips in (None, SINGLE))
    np.testing.assert_array_equal(plain.draw(0, 9), tags.draw(0, 9))
    with pytest.raises(UsageError, match="tags have no domains"):
        sampling.domain_mixed(SINGLE, LEARNT_TAGS, batch_size=4)


def test_tag_balanced_costs_far_less_than_a_step():
    """As many clips and classes as AudioSet has, a third of the tags of few classes."""
    rng = np.random.default_rng(0)
    n, share = 2_000_000, 1 / np.arange(1, 528)
    column = np.sort(rng.choice(527, (n, 2), p=share / share.sum()).astype(np.int32), 1)
    tags = audioset.MultiHot(np.arange(n + 1) * 2, column.ravel(), 527)
    clips = audioset.Tagged(np.full(n, "a", object), np.full(n, "train"), tags, ("",) * 527, "")
    draw = sampling.tag_balanced(clips, np.ones(n, bool), batch_size=32).draw
    seconds = []
    for step in range(200):
        began = time.perf_counter()
        draw(0, step)
        seconds.append(time.perf_counter() - began)
    assert np.median(seconds[20:]) < 1e-3 and max(seconds) < 1
