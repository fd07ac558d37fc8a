"""A helm release of the chart on a cluster whose pods really run, under the images that were built for the tests."""

import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from charts import CHART, NAMESPACE, helm

# Decisions come as fast as the operator's own default; nothing here is sped up.
VALUES = {
    "image.repository": "smartspec/operator",
    "image.tag": "test",
    "runtimeImage.repository": "smartspec/runtime",
    "runtimeImage.tag": "test",
}


class Release:
    """The release `smartspec` in its own namespace."""

    def __init__(self, kubeconfig: Path, kubectl: Callable[..., str]) -> None:
        self._kubeconfig = kubeconfig
        self._kubectl = kubectl

    def helm(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        """helm in the release's namespace."""
        return helm(*arguments, "--namespace", NAMESPACE, KUBECONFIG=str(self._kubeconfig))

    def install(self, **values: str) -> None:
        """Install, and return when the operator is ready; *values* beside `VALUES`, `.` in a key written `__`."""
        chosen = VALUES | {key.replace("__", "."): value for key, value in values.items()}
        flags = [word for key, value in chosen.items() for word in ("--set", f"{key}={value}")]
        self.helm("install", "smartspec", str(CHART), "--create-namespace", "--wait", "--timeout", "120s", *flags)
        self._kubectl("wait", "--for=condition=Established", "crd/smartspecs.smartspec.io", "--timeout=20s")

    @property
    def is_installed(self) -> bool:
        """Whether helm knows it."""
        return "smartspec" in self.helm("list", "--short").stdout.split()

    def uninstall(self) -> None:
        """Uninstall; the CRD stays, as for every user."""
        self.helm("uninstall", "smartspec", "--wait", "--timeout", "120s")


@contextmanager
def installed(kubeconfig: Path, kubectl: Callable[..., str], **values: str) -> Iterator[Release]:
    """A release while the context lasts."""
    release = Release(kubeconfig, kubectl)
    release.install(**values)
    try:
        yield release
    finally:
        if release.is_installed:
            release.uninstall()
