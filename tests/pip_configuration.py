"""Where this machine's pip finds packages, as one configuration file for a build in a container.

    python3 pip_configuration.py FILE

writes FILE and prints the files and folders of this machine that it names, a line each: the container needs them too.
"""

import os
import sys
from configparser import ConfigParser, Error
from pathlib import Path
from urllib.parse import urlsplit

OPTIONS = ("index-url", "extra-index-url", "find-links", "cert", "client-cert", "trusted-host", "proxy", "timeout")
"""What says where packages are; anything else (targets, constraints, a cache) is the host's own affair."""


def merged(files: list[Path], environment: dict[str, str]) -> dict[str, str]:
    """The options of *files*, later ones first, and above them those of *environment*, as pip itself reads them."""
    found: dict[str, str] = {}
    for file in files:
        parser = ConfigParser(interpolation=None)
        try:
            parser.read(file)
        except (Error, UnicodeDecodeError):
            continue  # pip would refuse to run: nobody uses it here
        for section in ("global", "install"):
            if parser.has_section(section):
                found |= dict(parser.items(section))
    for option in (*OPTIONS, "default-timeout"):
        if value := environment.get("PIP_" + option.upper().replace("-", "_")):
            found[option.removeprefix("default-")] = value
    return {option: found[option] for option in OPTIONS if option in found}


def named_paths(options: dict[str, str]) -> list[Path]:
    """The files and folders among the values. Of a local index its parent: pages link to files beside them."""
    paths = set()
    for word in " ".join(options.values()).split():
        path = Path(urlsplit(word).path if word.startswith("file:") else word)
        if path.is_absolute() and path.exists() and not path.is_relative_to("/etc/ssl/certs"):
            paths.add(path.parent if path.name == "simple" else path)
    return sorted(paths)


def main() -> None:
    """Write the file named on the command line."""
    home = Path.home()
    files = [Path("/etc/pip.conf"), home / ".pip/pip.conf", home / ".config/pip/pip.conf"]
    if own := os.environ.get("PIP_CONFIG_FILE"):
        files.append(Path(own))
    options = merged(files, dict(os.environ))
    # Lines of a value that has several go on with an indent.
    lines = [f"{option} = {' '.join(value.split())}" for option, value in options.items()]
    Path(sys.argv[1]).write_text("\n".join(["[global]", *lines, ""]))
    for path in named_paths(options):
        print(path)


if __name__ == "__main__":
    main()
