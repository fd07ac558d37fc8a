"""The chart as a whole: its package, its notes, its versions, and the command lines that it writes."""

import functools
import re
import shutil
from pathlib import Path
from typing import Any

import pytest
import yaml

from charts import CHART, NAMESPACE, ROOT, Manifest, helm, one, render, template
from smartspec_operator import __main__, trial
from smartspec_operator.resource import FIELD_MANAGER, LABEL_MANAGED_BY, PORT_NAME, parse
from smartspec_operator.rules import violations
from smartspec_operator.world import Timing

VALUES: dict[str, Any] = {
    "imagePullSecrets": [{"name": "registry"}, {"name": "other"}],
    "test": {"resources": {"limits": {"cpu": "2", "nvidia.com/gpu": 1}}},
}


def arguments(manifest: Manifest) -> list[str]:
    """The arguments of the only container of a Deployment or a Pod."""
    spec = manifest["spec"]
    (container,) = spec.get("template", {"spec": spec})["spec"]["containers"]
    return list(container["args"])


def test_a_package_holds_all_that_the_folder_does(tmp_path: Path) -> None:
    """The link to the CRD becomes a file: the package renders the same anywhere."""
    helm("package", str(CHART), "--destination", str(tmp_path))
    (package,) = tmp_path.glob("smartspec-*.tgz")
    everything = {"replicas": 2, "monitoring": {"dashboard": {"enabled": True}}}
    assert render(everything, chart=package) == render(everything)
    shutil.unpack_archive(package, tmp_path)
    assert not [path for path in (tmp_path / "smartspec").rglob("*") if path.is_symlink()]


def test_the_versions_agree() -> None:
    """The default images are those of the version that the chart is of."""
    chart = yaml.safe_load((CHART / "Chart.yaml").read_text())
    found = re.search(r'^version = "(.*)"', (ROOT / "pyproject.toml").read_text(), flags=re.MULTILINE)
    assert found is not None
    assert chart["appVersion"] == found[1]
    (container,) = one(render(), "Deployment")["spec"]["template"]["spec"]["containers"]
    assert container["image"] == f"smartspec/operator:{found[1]}"
    assert f"--runtime-image=smartspec/runtime:{found[1]}" in container["args"]


@pytest.mark.parametrize("namespace", ["", "models"])
def test_the_operator_understands_its_flags(namespace: str) -> None:
    """They are parsed by the operator's own parser, and the chart's defaults are the operator's."""
    parsed = __main__.parser().parse_args(arguments(one(render({"watchNamespace": namespace}), "Deployment")))
    assert (parsed.all_namespaces, parsed.namespace) == ((False, namespace) if namespace else (True, "default"))
    timing = Timing()
    assert parsed.tick_seconds == timing.tick_seconds
    assert parsed.tuning_seconds == timing.tuning_seconds
    assert parsed.scaling_seconds == timing.scaling_seconds


def test_the_test_asks_for_a_sound_smartspec() -> None:
    """Its flags are understood, and what comes of them breaks no rule."""
    (pod,) = [m for m in render(VALUES) if m["kind"] == "Pod"]
    parsed = __main__.parser().parse_args(arguments(pod))
    assert parsed.namespace == NAMESPACE
    body = trial.wish(parsed.namespace, "try-1", parsed.resources, parsed.image_pull_secret)
    owner = parse(body)
    assert violations(owner.name, owner.spec) == []
    copied = re.findall(r"^COPY \S+ (/models/\S+)$", (ROOT / "Dockerfile").read_text(), flags=re.MULTILINE)
    assert {trial.MODEL, trial.DRAFT} <= set(copied), "the runtime image has them there"
    assert owner.spec.template.image_pull_secrets == VALUES["imagePullSecrets"]
    limits = VALUES["test"]["resources"]["limits"]
    assert owner.spec.template.resources == {"requests": {"cpu": "250m", "memory": "1Gi"}, "limits": limits}


@pytest.mark.parametrize("values", [{}, {"watchNamespace": "models"}, {"crds": {"enabled": False}}])
def test_the_notes_say_what_to_type(values: dict[str, Any], tmp_path: Path) -> None:
    """Commands with this release's names, a SmartSpec that is sound, and in which order to remove everything."""
    later = tmp_path / "smartspec"
    shutil.copytree(CHART, later)
    # Without a cluster helm renders the notes and shows them to nobody: as a file of the chart they are shown.
    (later / "templates/NOTES.txt").rename(later / "NOTES.txt")
    (later / "templates/notes.yaml").write_text('notes: {{ tpl (.Files.Get "NOTES.txt") . | toJson }}')
    done = template(values, release="rel", chart=later, only="templates/notes.yaml")
    notes = yaml.safe_load(done.stdout)["notes"]
    assert "rollout status deployment/rel-operator" in notes
    assert f"helm test rel --namespace {NAMESPACE}" in notes
    steps = [notes.index(text) for text in ("delete smartspecs --all", "helm uninstall rel", "delete crd smartspecs")]
    assert steps == sorted(steps)
    manifest = re.search(r"<<EOF\n(.*?)\nEOF\n", notes, flags=re.DOTALL)
    assert manifest is not None
    owner = parse(yaml.safe_load(manifest[1]))
    assert violations(owner.name, owner.spec) == []
    assert ("crds.enabled is false" in notes) is ("crds" in values)
    where = "namespace models, nor all namespaces" if "watchNamespace" in values else "any namespace of this cluster"
    assert f"No other release may serve {where}: two operators" in notes


@pytest.mark.parametrize("watched", ["", "models"])
def test_monitors_find_the_operator_and_the_replicas(watched: str) -> None:
    """They select by labels that the pods have, and name ports that there are: of replicas the open one."""
    monitoring = {"podMonitors": {"operator": True, "replicas": True}}
    rendered = render({"monitoring": monitoring, "watchNamespace": watched})
    spec, template = one(rendered, "PodMonitor", "-operator")["spec"], one(rendered, "Deployment")["spec"]["template"]
    assert spec["selector"]["matchLabels"].items() <= template["metadata"]["labels"].items()
    (container,) = template["spec"]["containers"]
    assert spec["podMetricsEndpoints"][0]["port"] in {port["name"] for port in container["ports"]}
    replicas = one(rendered, "PodMonitor", "-replicas")["spec"]
    assert replicas["podMetricsEndpoints"][0]["port"] == PORT_NAME
    assert replicas["selector"]["matchLabels"] == {LABEL_MANAGED_BY: FIELD_MANAGER}
    assert replicas["namespaceSelector"] == ({"matchNames": [watched]} if watched else {"any": True})


def test_the_install_page_sets_values_that_there_are() -> None:
    """Each of its helm commands is taken, its table names values that exist, and its images are of this version."""
    page = (ROOT / "docs/install.md").read_text().replace("\\\n", " ").replace("REGISTRY", "registry.example")
    commands = re.findall(r"^helm (?:install|upgrade) .*$", page, flags=re.MULTILINE)
    assert len(commands) >= 4
    for command in commands:
        flags = [word for found in re.findall(r"--set (\S+)", command) for word in ("--set", found)]
        helm("template", "smartspec", str(CHART), *flags)
    defaults = yaml.safe_load((CHART / "values.yaml").read_text())
    table = page.partition("| value | what it does |\n")[2].partition("\n\n")[0]
    named = re.findall(r"`([\w.]+)(?:: [^`]*)?`", " ".join(re.findall(r"^\| (`.*?) \|", table, flags=re.MULTILINE)))
    assert len(named) >= 6
    for path in named:
        functools.reduce(lambda values, name: values[name], path.split("."), defaults)
    version = yaml.safe_load((CHART / "Chart.yaml").read_text())["appVersion"]
    assert set(re.findall(r"smartspec/(?:operator|runtime):(\S+)", page)) == {version}
