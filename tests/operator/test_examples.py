"""The manifests that users start from are valid, by the operator's own rules and by its reading of files."""

from pathlib import Path

import pytest
import yaml

from smartspec_operator.resource import parse
from smartspec_operator.rules import violations

EXAMPLES = sorted((Path(__file__).parents[2] / "examples").glob("*.yaml"))


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.name)
def test_an_example_is_a_valid_smartspec(path: Path) -> None:
    """Every field exists and every rule holds."""
    # The file that is only for this machine names folders from its own place, which reading it as a file resolves.
    (document,) = yaml.safe_load_all(path.read_text().replace("../", "/"))
    owner = parse(document)
    assert violations(owner.name, owner.spec) == []


def test_there_are_examples() -> None:
    """The glob above finds what it should."""
    assert {"demo.yaml", "quickstart.yaml"} <= {path.name for path in EXAMPLES}
