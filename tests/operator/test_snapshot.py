"""What a cluster's snapshot knows of drift: lists that others have put something into."""

from typing import Any

import pytest

from smartspec_operator.snapshot import has_more

WISH: dict[str, Any] = {"spec": {"containers": [{"name": "a", "env": [{"name": "X", "value": "1"}]}], "args": ["x"]}}


@pytest.mark.parametrize(
    ("live", "more"),
    [
        (WISH, False),
        ({"spec": {**WISH["spec"], "status": {"list": [1, 2]}}, "metadata": {"managedFields": [1]}}, False),
        ({"spec": {**WISH["spec"], "args": ["x", "y"]}}, True),
        ({"spec": {**WISH["spec"], "containers": [*WISH["spec"]["containers"], {"name": "b"}]}}, True),
        ({"spec": {"containers": [{"name": "a", "env": [{"name": "X"}, {"name": "Y"}]}]}}, True),
        ({"spec": {"containers": [{"name": "a", "ports": [1, 2], "env": [{"name": "X"}]}]}}, False),
        ({}, False),
    ],
)
def test_only_lists_of_ours_can_have_more(live: dict[str, Any], more: bool) -> None:
    """Fields that we do not name are the server's, or other people's, and left alone."""
    assert has_more(live, WISH) is more
