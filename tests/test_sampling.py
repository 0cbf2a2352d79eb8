import numpy as np

from asdjax.data import sampling


def test_every_clip_once_per_epoch():
    rows = np.array([True, False, True, True, False, True, True])  # five clips
    draw = sampling.uniform(rows, batch_size=3)
    stream = np.concatenate([draw(0, step) for step in range(10)])  # 30 draws: six epochs
    for epoch in stream.reshape(6, 5):
        assert sorted(epoch) == [0, 2, 3, 5, 6]
    assert not (stream.reshape(6, 5) == stream[:5]).all()


def test_rows_are_a_function_of_seed_and_step():
    rows = np.ones(20, bool)
    one, two = sampling.uniform(rows, batch_size=8), sampling.uniform(rows, batch_size=8)
    later = [two(1, step) for step in (7, 3)]  # out of order, as after a resume
    np.testing.assert_array_equal(later[0], one(1, 7))
    np.testing.assert_array_equal(later[1], one(1, 3))
    assert (one(1, 3) != one(2, 3)).any()


def test_batch_larger_than_the_data():
    assert sorted(sampling.uniform(np.ones(2, bool), batch_size=6)(0, 0)) == [0, 0, 0, 1, 1, 1]


def test_units_of_the_chosen_clips_each_once_per_epoch():
    draw = sampling.uniform(np.array([True, False, True]), batch_size=4, units=4)
    stream = np.concatenate([draw(0, step) for step in range(6)])  # 24 draws: three epochs of eight units
    for epoch in stream.reshape(3, 8):
        assert sorted(epoch) == [0, 1, 2, 3, 8, 9, 10, 11]
