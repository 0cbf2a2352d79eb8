"""AudioSet's format: which file belongs to which segment, what is skipped and said, and what is refused."""

import os

import numpy as np
import pytest
import soundfile

from asdjax.core import InputError, UsageError
from asdjax.data import audioset

RATE = 16000
CLASSES = 'index,mid,display_name\n0,/m/09x0r,"Speech"\n2,/t/dd00088,"Bell, ""ding"""\n1,/m/0g,Shout\n'
TRAIN, TEST = "balanced_train_segments", "eval_segments"
HEAD = "# Segments csv created Sun Mar  5 10:54:31 2017\n# num_ytids=1, num_segs=1\n# YTID, start_seconds, ...\n"


def line(key="--PJHxphWEs", start=30, end=40, labels="/m/09x0r,/t/dd00088"):
    return f'{key}, {start:.3f}, {end:.3f}, "{labels}"\n'


def make(root, *, files=(), folder="", classes=CLASSES, **csvs):
    """A folder with csvs (given without their heads) and audio files of 8 samples."""
    (root / folder).mkdir(parents=True, exist_ok=True)
    (root / folder / "class_labels_indices.csv").write_text(classes)
    for name, text in csvs.items():
        (root / folder / f"{name}.csv").write_text(HEAD + text)
    for name in files:
        wav(root / name)
    return root


def wav(path, n=8, rate=RATE):
    path.parent.mkdir(parents=True, exist_ok=True)
    soundfile.write(path, np.zeros(n), rate)


def index(root, train_on=(TRAIN,), test_on="", **options):
    return audioset.index(root, train_on=train_on, test_on=test_on, **options)


def found(root, clips, split="train"):
    return [os.path.relpath(p, root) for p in clips.path[clips.split == split]]


@pytest.mark.parametrize("folder", ["", "metadata"])
def test_classes_tags_and_splits(tmp_path, folder):
    lines = {TRAIN: line() + line("bbbbbbbbbbb", labels="/m/0g"), TEST: line("ccccccccccc", 0, 8.5, "/m/0g,/m/0g")}
    files = ["audios/b/Y--PJHxphWEs.wav", "audios/b/Ybbbbbbbbbbb.wav", "audios/e/Yccccccccccc.flac"]
    root = make(tmp_path, folder=folder, files=files, **lines)
    clips = index(root, test_on=TEST)
    assert found(root, clips) == files[:2] and found(root, clips, "test") == files[2:]
    assert clips.path.dtype == object and clips.note == ""
    assert clips.classes == ("Speech", "Shout", 'Bell, "ding"')
    np.testing.assert_array_equal(clips.tags[:], [[1, 0, 1], [0, 1, 0], [0, 1, 0]])
    assert found(root, index(root, train_on=(TEST, TRAIN))) == [files[2], *files[:2]]


IDS = ("--PJHxphWEs", "Yabcdefghij", "a_b-c_d_30_", "YYYYYYYYYYY", "-----------")


@pytest.mark.parametrize("prefix", ["Y", ""])
@pytest.mark.parametrize(
    "tail", ["", "_30_40", "_30.000_40.000", "_30.0_40.0", "_30000_40000", "_30", "_30.000", "_30000"]
)
def test_names_seen_in_the_wild(tmp_path, prefix, tail):
    root = make(tmp_path, files=[f"x/{prefix}{key}{tail}.wav" for key in IDS], **{TRAIN: "".join(map(line, IDS))})
    assert found(root, index(root)) == [f"x/{prefix}{key}{tail}.wav" for key in IDS]


@pytest.mark.parametrize("tail", ["_1.5_11.5", "_1.500_11.500", "_1500_11500", "_1.5", "_1500"])
def test_times_that_are_no_whole_seconds(tmp_path, tail):
    root = make(tmp_path, files=[f"Y{IDS[0]}{tail}.flac"], **{TRAIN: line(start=1.5, end=11.5)})
    assert found(root, index(root)) == [f"Y{IDS[0]}{tail}.flac"]


@pytest.mark.parametrize(
    "name", ["--PJHxphWEs_0_10", "X--PJHxphWEs", "--PJHxphWEs_30_41", "--pjhxphwes", "--PJHxphWEs.wav"]
)
def test_files_of_other_segments_are_not_taken(tmp_path, name):
    root = make(tmp_path, files=[f"{name}.wav", "Ybbbbbbbbbbb.wav"], **{TRAIN: line() + line("bbbbbbbbbbb")})
    clips = index(root)
    assert found(root, clips) == ["Ybbbbbbbbbbb.wav"]
    assert clips.note == f"1 of 2 segments of {TRAIN} have no file"


def test_a_name_with_times_decides_and_a_bare_id_serves_the_first(tmp_path):
    same = line(start=0, end=10) + line(start=30, end=40) + line(start=60, end=70)
    root = make(tmp_path, files=["a/Y--PJHxphWEs_30_40.wav", "a/Y--PJHxphWEs.wav"], **{TRAIN: same})
    clips = index(root)
    assert found(root, clips) == ["a/Y--PJHxphWEs.wav", "a/Y--PJHxphWEs_30_40.wav"]
    assert clips.note == f"1 of 3 segments of {TRAIN} have a file that serves a segment of {TRAIN}"


def test_what_is_tested_on_is_not_learnt(tmp_path):
    files = ["Y--PJHxphWEs.wav", "Ybbbbbbbbbbb.wav"]
    root = make(
        tmp_path, files=files, **{TRAIN: line() + line("bbbbbbbbbbb"), "more": line("bbbbbbbbbbb"), TEST: line()}
    )
    clips = index(root, train_on=(TRAIN, "more"), test_on=TEST)
    assert found(root, clips) == files[1:] and found(root, clips, "test") == files[:1]
    assert clips.note == (
        f"1 of 2 segments of {TRAIN} have a file that serves a segment of {TEST}, "
        f"1 of 1 segments of more have a file that serves a segment of {TRAIN}"
    )
    with pytest.raises(
        InputError, match=f"nothing to learn from: 1 of 2 .* no file, 1 of 2 .* serves a segment of {TEST};"
    ):
        (root / files[1]).unlink()
        index(root, test_on=TEST)


def test_files_that_cannot_be_used_are_skipped(tmp_path):
    keys = [c * 11 for c in "abcde"]
    root = make(
        tmp_path, files=[f"Y{k}.wav" for k in keys[:1]], **{TRAIN: "".join(map(line, keys)), TEST: line("f" * 11)}
    )
    wav(root / f"Y{keys[1]}.wav", rate=44100)
    wav(root / f"Y{keys[2]}.wav", n=0)
    (root / f"Y{keys[3]}.wav").write_bytes(b"no audio")
    (root / f"Y{keys[4]}.wav").symlink_to(root / "gone.wav")
    clips = index(root, test_on=TEST)
    assert found(root, clips) == [f"Y{keys[0]}.wav"] and clips.tags.shape == (1, 3)
    first = f"{root}/Y{keys[1]}.wav: sample rate 44100 Hz, expected 16000 Hz"
    assert clips.note.startswith(f"1 of 1 segments of {TEST} have no file, 4 files cannot be used (first: {first}")
    clips = index(root, resample=True)
    assert found(root, clips) == [f"Y{k}.wav" for k in keys[:2]] and "3 files cannot be used" in clips.note


def test_links_to_folders_are_followed_once(tmp_path):
    make(tmp_path / "elsewhere", files=["Ybbbbbbbbbbb.wav"])
    root = make(tmp_path / "root", files=["audio/Y--PJHxphWEs.wav"], **{TRAIN: line() + line("bbbbbbbbbbb")})
    (root / "more").symlink_to(tmp_path / "elsewhere")
    (root / "audio" / "loop").symlink_to(root)
    assert found(root, index(root)) == ["audio/Y--PJHxphWEs.wav", "more/Ybbbbbbbbbbb.wav"]


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ('--PJHxphWEs, 30.000, 40.000, "/m/zzz"', "found the label '/m/zzz'"),
        ('--PJHxphWEs, 30.000, 40.000, ""', "found the label ''"),
        ('--PJHxphWEs, 30.000, 40.000, "/m/0g,"', "found the label ''"),
        ("--PJHxphWEs, 30.000, 40.000", "expected YTID, start, end"),
        ("nonsense", "expected YTID, start, end"),
        ('--PJHxphWEs, 30.000, 3x, "/m/0g"', "found the times '30.000, 3x'"),
        ('--PJHxphWEs, 30.000, nan, "/m/0g"', "found the times"),
        ('--PJHxphWEs, -1, 5, "/m/0g"', "found the times"),
        ('--PJHxphWEs, 40, 30, "/m/0g"', "found the times"),
        ('../../../ab, 30.000, 40.000, "/m/0g"', "found the id '../../../ab'"),
        ('--PJHxphWE, 30.000, 40.000, "/m/0g"', "found the id"),
        ('--PJHxphWEsx, 30.000, 40.000, "/m/0g"', "found the id"),
        ('--PJHxphWE\u00e9, 30.000, 40.000, "/m/0g"', "found the id"),
    ],
)
def test_a_malformed_line_is_named(tmp_path, wrong, said):
    root = make(tmp_path, files=["Y--PJHxphWEs.wav"], **{TRAIN: line() + "\n" + wrong + "\n"})
    with pytest.raises(InputError) as error:
        index(root)
    assert str(error.value).startswith(f"{root}/{TRAIN}.csv line 6: ") and said in str(error.value)


def test_bytes_that_are_no_text_are_named(tmp_path):
    root = make(tmp_path, **{TRAIN: ""})
    (root / f"{TRAIN}.csv").write_bytes(b"\xff# \x00\n")
    with pytest.raises(InputError, match=f"{TRAIN}.csv line 1: found .*, expected YTID"):
        index(root)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "found '', expected index,mid,display_name"),
        ("0,/m/09x0r,Speech\n", "line 1: found '0,/m/09x0r,Speech', expected index,mid"),
        ("index,mid,display_name\n", "0 classes"),
        ("index,mid,display_name\n1,/m/a,A\n2,/m/b,B\n", "2 classes, expected their indices to be 0 to 1"),
        ("index,mid,display_name\n0,/m/a,A\n0,/m/b,B\n", "line 3: class 0 /m/b is there twice"),
        ("index,mid,display_name\n0,/m/a,A\n1,/m/a,B\n", "line 3: class 1 /m/a is there twice"),
        ("index,mid,display_name\nx,/m/a,A\n", "line 2: found 'x,/m/a,A'"),
        ("index,mid,display_name\n0,/m/a\n", "line 2: found '0,/m/a'"),
        ("index,mid,display_name\n0,/m/a,A, B\n", "line 2: found"),
    ],
)
def test_a_wrong_class_index_is_named(tmp_path, text, said):
    root = make(tmp_path, classes=text, files=["Y--PJHxphWEs.wav"], **{TRAIN: line()})
    with pytest.raises(InputError) as error:
        index(root)
    assert f"{root}/class_labels_indices.csv" in str(error.value) and said in str(error.value)


def test_what_is_not_there_is_named(tmp_path):
    root = make(tmp_path / "root", folder="metadata", **{TRAIN: line()})
    (tmp_path / "secret.csv").write_text(line())
    for wrong in ("unbalanced", "../../secret", "../metadata/" + TRAIN, ".."):
        with pytest.raises(InputError, match=f"there is: {TRAIN}, class_labels_indices"):
            index(root, train_on=(wrong,))
    with pytest.raises(
        InputError, match=r"nothing to learn from: 1 of 1 segments .* have no file; expected audio such as Y"
    ):
        index(root)
    (root / "metadata" / "class_labels_indices.csv").unlink()
    with pytest.raises(InputError, match=f"no class_labels_indices.csv, .* there is: {TRAIN}"):
        index(root)
    (root / "metadata" / f"{TRAIN}.csv").unlink()
    with pytest.raises(InputError, match="there is: no csv"):
        index(root)
    with pytest.raises(UsageError, match=r"data\.root: .* is no folder"):
        index(tmp_path / "none")


@pytest.mark.parametrize("train_on, test_on", [(TRAIN, ""), ((), TEST), ((TRAIN, TRAIN), ""), ((TRAIN,), TRAIN)])
def test_wrong_arguments_are_named(tmp_path, train_on, test_on):
    with pytest.raises(UsageError, match=r"data\.train_on: found .* expected a tuple of names"):
        index(make(tmp_path), train_on, test_on)
