import types

import numpy as np
import pytest

from asdjax.core import Clips, UsageError, build

MODULE = types.ModuleType("parts")


def scaled(*, by=1.0, inner=None):
    return ("scaled", by, inner)


scaled.__module__ = "parts"
MODULE.scaled = scaled
MODULE.imported = len  # not the module's own


def clips(n=3, **columns):
    text = np.array([f"{i}" for i in range(n)])
    base = dict(path=text, machine=text, section=text, domain=text, attributes=text, is_anomaly=np.zeros(n, np.int8))
    return Clips(**{**base, "split": np.array(["train", "test", "supplemental"])[:n], **columns})


def test_clips_select_all_columns_alike():
    some = clips()[np.array([True, False, True])]
    assert len(some) == 2
    assert some.path.tolist() == ["0", "2"] and some.split.tolist() == ["train", "supplemental"]
    assert clips().is_train.tolist() == [True, False, False] and clips().is_test.tolist() == [False, True, False]


def test_clips_of_unequal_columns_raise():
    with pytest.raises(ValueError, match="differ in length"):
        clips(path=np.array(["one"]))


def test_build_recurses_into_named_specs():
    spec = {"name": "scaled", "inner": {"name": "scaled", "by": 3.0}}
    assert build(MODULE, spec, by=2.0) == ("scaled", 2.0, ("scaled", 3.0, None))


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ({"name": "scled"}, "no 'scled'; there is: scaled"),
        ({"name": "imported"}, "no 'imported'"),
        ({"name": "scaled", "bye": 1.0}, "bye.*it takes"),
    ],
)
def test_build_says_what_there_is(spec, message):
    with pytest.raises(UsageError, match=message):
        build(MODULE, spec)
