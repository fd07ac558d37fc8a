"""A file in place of an API server."""

from pathlib import Path

import pytest

from smartspec_operator.local_file import FileError, ResourceFile

TEXT = """\
apiVersion: smartspec.io/v1alpha1
kind: SmartSpec
metadata: {name: demo}
spec:
  model: {source: weights}
  speculation: {draft: {source: org/draft}}
"""


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """A file that serves the folder `weights` beside it."""
    (tmp_path / "weights").mkdir()
    path = tmp_path / "demo.yaml"
    path.write_text(TEXT)
    return path


def test_folders_are_found_from_the_files_own_and_hub_ids_left_alone(path: Path) -> None:
    """Wherever the command is run, the same weights are served."""
    spec = ResourceFile(path).read().resource["spec"]
    assert spec["model"]["source"] == str(path.parent / "weights")
    assert spec["speculation"]["draft"]["source"] == "org/draft"


def test_the_generation_rises_with_edits_of_the_spec_alone(path: Path) -> None:
    """As an API server counts: a comment or a label is no new generation."""
    file = ResourceFile(path)
    assert file.read().resource["metadata"]["generation"] == 1
    path.write_text("# a comment\n" + TEXT.replace("{name: demo}", "{name: demo, labels: {a: b}}"))
    labelled = file.read().resource["metadata"]
    assert (labelled["generation"], labelled["labels"]) == (1, {"a": "b"})
    path.write_text(TEXT + "  replicas: 2\n")
    assert file.read().resource["metadata"]["generation"] == 2


def test_secrets_may_stand_beside_the_smartspec(path: Path) -> None:
    """Where there is no `kubectl create secret`, the file holds it."""
    path.write_text(TEXT + "---\napiVersion: v1\nkind: Secret\nmetadata: {name: keys}\nstringData: {key: s3cret}\n")
    (secret,) = ResourceFile(path).read().companions
    assert secret["stringData"] == {"key": "s3cret"}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a: [", "while parsing"),
        ("- 1", "every document must be an object"),
        ("", "needs one document of kind SmartSpec, has 0"),
        (TEXT + "---\n" + TEXT, "needs one document of kind SmartSpec, has 2"),
        (TEXT.replace("v1alpha1", "v2"), "apiVersion: must be smartspec.io/v1alpha1, not smartspec.io/v2"),
        (TEXT.replace("name: demo", "labels: {}"), "metadata.name: is required"),
        (TEXT.replace("weights", "./absent"), "spec.model.source: there is no folder"),
        (TEXT.replace("org/draft", "../absent"), "spec.speculation.draft.source: there is no folder"),
        (TEXT + "---\nkind: Pod\nmetadata: {name: a}", "kind: Pod means nothing here"),
    ],
)
def test_nonsense_is_named(path: Path, text: str, message: str) -> None:
    """One line that says where and what, never a traceback."""
    path.write_text(text)
    with pytest.raises(FileError, match=message.replace("[", r"\[")) as caught:
        ResourceFile(path).read()
    assert "\n" not in str(caught.value)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    """The system's own words with the path."""
    with pytest.raises(FileError, match=r"absent\.yaml: No such file"):
        ResourceFile(tmp_path / "absent.yaml").read()


def test_a_broken_edit_is_refused_and_the_next_good_one_taken(path: Path) -> None:
    """In between nothing is lost: the generation goes on from the last good text."""
    file = ResourceFile(path)
    file.read()
    path.write_text("half an edi")
    with pytest.raises(FileError):
        file.read()
    path.write_text(TEXT + "  replicas: 2\n")
    assert file.read().resource["metadata"]["generation"] == 2


def test_a_running_resource_keeps_its_name(path: Path) -> None:
    """Another name would be another SmartSpec."""
    file = ResourceFile(path)
    file.read()
    path.write_text(TEXT.replace("name: demo", "name: other"))
    with pytest.raises(FileError, match=r"metadata\.name is immutable"):
        file.read()
