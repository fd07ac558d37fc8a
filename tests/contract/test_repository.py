"""The repository keeps the promises that no linter checks."""

import re
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text()
MODULES = sorted([*(ROOT / "runtime/smartspec").rglob("*.py"), *(ROOT / "operator/smartspec_operator").rglob("*.py")])


@pytest.mark.parametrize("module", MODULES, ids=lambda path: str(path.relative_to(ROOT)))
def test_no_module_outgrows_one_sitting(module: Path) -> None:
    """A module of over 320 lines is two modules."""
    assert len(module.read_text().splitlines()) <= 320


@pytest.mark.parametrize("folder", ["runtime", "operator", "tests"])
def test_no_folder_shadows_a_package(folder: str) -> None:
    """`operator/__init__.py` would shadow the standard library's module, and tests are imported by path."""
    assert not (ROOT / folder / "__init__.py").exists()


def test_every_make_target_the_readme_names_exists() -> None:
    """Nobody copies a command from the README that make does not know."""
    targets = set(re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(), flags=re.MULTILINE))
    named = set(re.findall(r"\bmake ([a-z]+)\b", "".join(re.findall(r"```.*?```|`[^`]+`", README, flags=re.DOTALL))))
    assert named
    assert named <= targets


def test_every_relative_link_of_a_page_leads_somewhere() -> None:
    """Links and pictures between the repository's pages point at files that are committed."""
    tracked = set(subprocess.check_output(["git", "ls-files"], cwd=ROOT, text=True).split("\n"))
    folders = {str(parent) for path in tracked for parent in Path(path).parents}
    missing = []
    for page in [path for path in tracked if path.endswith(".md")]:
        for link in re.findall(r"\]\((?!https?:|#|mailto:)([^)#\s]+)", (ROOT / page).read_text()):
            target = str((ROOT / page).parent.joinpath(link).resolve().relative_to(ROOT))
            if target not in tracked and target not in folders:
                missing.append(f"{page}: {link}")
    assert not missing
