"""What is wrong with a config is told before anything is read, or at least before anything is trained."""

import pytest

from asdjax import checks
from asdjax.core import UsageError


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"fit": "by_test_domain"}, "only the protocol of 2021"),
        ({"fit": "nonsense"}, "there is: section, by_test_domain"),
        ({"detector": {"name": "knm"}}, "no 'knm'"),
        ({"name": "rms-only"}, "names that differ, also from rms-only and training-free"),
        (
            {"normalise": True},
            r"found keys \['detector', 'fit', 'name', 'normalise'\], expected \['detector', 'fit', 'name'\]",
        ),
    ],
)
def test_scorers_are_checked_before_data_is_read(change, message):
    spec = {"name": "near", "fit": "section", "detector": {"name": "knn"}, **change}
    with pytest.raises(UsageError, match=message):
        checks.check_scorers((spec,), gives_test_domain=False)


@pytest.mark.parametrize(
    ("selection", "message"),
    [
        ({"source": "near", "target": "far"}, "only the protocol of 2021"),
        ({"source": "near", "target": "near", "by_machine": {"fan": {"source": "near", "target": "far"}}}, "only"),
        ({"source": "nearer", "target": "nearer"}, r"no scorer \['nearer'\]; there is: \['near', 'far'\]"),
    ],
)
def test_selections_are_checked_before_data_is_read(selection, message):
    with pytest.raises(UsageError, match=message):
        checks.check_selections(({"name": "both", **selection},), ["near", "far"], gives_test_domain=False)
