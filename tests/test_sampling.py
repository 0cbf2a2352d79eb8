import numpy as np

from asdjax.data import feed, sampling


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


def test_chunks_hold_the_clips_of_their_steps():
    n = 6
    store = feed.Store(
        np.arange(n * 4, dtype=np.int16).reshape(n, 4),
        np.arange(n, dtype=np.float32),
        {"class": np.eye(n, dtype=np.float32)},
    )
    draw = sampling.uniform(np.ones(n, bool), batch_size=2)
    got = list(feed.chunks(store, draw, seed=5, start=4, stop=8, chunk=2))
    assert len(got) == 2
    for part, (some, rows) in enumerate(got):
        assert rows.shape == (2, 2) and len(some.wave) == 4
        for step in range(2):
            expected = draw(5, 4 + 2 * part + step)
            batch = some.take(rows[step])
            np.testing.assert_array_equal(batch.gain, expected)
            np.testing.assert_array_equal(batch.wave, store.wave[expected])
            np.testing.assert_array_equal(batch.label["class"].argmax(1), expected)
