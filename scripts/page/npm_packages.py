"""npm packages at the version and with the integrity that `package-lock.json` names, as folders.

`python scripts/page/npm_packages.py` puts the page's chart library where the server serves it from.
"""

import base64
import hashlib
import json
import shutil
import subprocess
import tarfile
import tempfile
from pathlib import Path

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
CACHE = ROOT / ".cache/npm"
VENDOR = ROOT / "runtime/smartspec/server/page/static/vendor"
VENDORED = {
    "uPlot.iife.min.js": "dist/uPlot.iife.min.js",
    "uPlot.min.css": "dist/uPlot.min.css",
    "uPlot.LICENSE": "LICENSE",
}
"""Name under `VENDOR`: path in the package `uplot`."""


class NpmError(Exception):
    """npm is missing, the registry cannot be reached, or what came is not what the lock file names."""


def unpacked(name: str) -> Path:
    """The folder of package *name*, fetched by npm if it is not there yet, its bytes checked against the lock file."""
    locked = json.loads((HERE / "package-lock.json").read_text())["packages"][f"node_modules/{name}"]
    folder = CACHE / f"{name}-{locked['version']}"
    archive = CACHE / f"{folder.name}.tgz"
    if not archive.exists():
        _fetch(f"{name}@{locked['version']}", archive)
    _check(archive, locked["integrity"])
    if not folder.exists():
        with tempfile.TemporaryDirectory(dir=CACHE) as new:
            # Files alone, one by one: Debian 12's Python has no `filter` for extractall, and later ones ask for it.
            with tarfile.open(archive) as tar:
                for member in tar:
                    if (content := tar.extractfile(member)) is not None:
                        file = Path(new) / member.name
                        file.parent.mkdir(parents=True, exist_ok=True)
                        file.write_bytes(content.read())
            (Path(new) / "package").rename(folder)
    return folder


def _fetch(spec: str, archive: Path) -> None:
    if (npm := shutil.which("npm")) is None:
        raise NpmError("npm is not installed (Debian: apt-get install npm)")
    CACHE.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=CACHE) as new:
        command = [npm, "pack", spec, "--silent", "--pack-destination", new]
        try:
            done = subprocess.run(command, capture_output=True, text=True, timeout=120)
        except subprocess.TimeoutExpired:
            raise NpmError(f"npm pack {spec}: no answer in two minutes") from None
        found = list(Path(new).glob("*.tgz"))
        if done.returncode or len(found) != 1:
            raise NpmError(f"npm pack {spec}: {' '.join(done.stderr.split())[-300:] or 'brought nothing'}")
        found[0].rename(archive)


def _check(archive: Path, integrity: str) -> None:
    digest = "sha512-" + base64.b64encode(hashlib.sha512(archive.read_bytes()).digest()).decode()
    if digest != integrity:
        archive.unlink()
        raise NpmError(f"{archive.name} has {digest}, the lock file names {integrity}")


def main() -> None:
    """Copy the files that are served."""
    package = unpacked("uplot")
    VENDOR.mkdir(parents=True, exist_ok=True)
    for name, path in VENDORED.items():
        shutil.copyfile(package / path, VENDOR / name)
        print(f"{(VENDOR / name).relative_to(ROOT)}  from  {package.name}/{path}")


if __name__ == "__main__":
    main()
