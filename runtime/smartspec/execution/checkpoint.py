"""Reading one model from a folder or a hub: config, safetensors weights, tokenizer; failures in a user's words."""

import logging
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase
from transformers.utils import logging as transformers_logging

from smartspec.config import ConfigError

log = logging.getLogger(__name__)

_HUB_ID = re.compile(r"\w[\w.-]*(/\w[\w.-]*)?")

_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


@dataclass(frozen=True)
class Source:
    """Where a model comes from; *role* ("target" or "draft") names it in errors."""

    role: str
    name: str
    revision: str | None = None
    trust_remote_code: bool = False

    @property
    def options(self) -> dict[str, Any]:
        """Keywords that every read from this source takes."""
        return {"revision": self.revision, "trust_remote_code": self.trust_remote_code}

    @property
    def is_folder(self) -> bool:
        """Whether it is on this machine, and not a hub's to give."""
        return Path(self.name).is_dir()

    def check_name(self) -> None:
        """Raise ConfigError for a name that is no folder and could be none of a hub's either."""
        if not self.is_folder and not _HUB_ID.fullmatch(self.name):
            raise ConfigError(
                f"{self.role} {self.name}: there is no such folder, and it is no hub id such as org/name either"
            )


def choose_device(name: str) -> torch.device:
    """The device named, or for "auto" the first CUDA device if there is one. Raises ConfigError."""
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        device = torch.device(name)
    except RuntimeError:
        raise ConfigError(f"device must be auto, cpu, cuda or cuda:N, got {name!r}") from None
    if device.type not in ("cpu", "cuda"):
        raise ConfigError(f"device must be auto, cpu, cuda or cuda:N, got {name!r}")
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise ConfigError(f"device {name} is not there: {torch.cuda.device_count()} CUDA devices are visible")
    return device


def choose_dtype(name: str, config: Any, device: torch.device) -> torch.dtype:
    """The dtype named, or for "auto" the checkpoint's own. Raises ConfigError for another name.

    A float16 checkpoint computes in float32 on a CPU, where float16 is slower and less exact.
    """
    if name != "auto":
        if name not in _DTYPES:
            raise ConfigError(f"dtype must be auto, {', '.join(_DTYPES)}, got {name!r}")
        return _DTYPES[name]
    own = getattr(config, "dtype", None)
    dtype = own if isinstance(own, torch.dtype) else _DTYPES.get(str(own), torch.float32)
    return torch.float32 if dtype == torch.float16 and device.type == "cpu" else dtype


def read_config(source: Source) -> Any:
    """The model's configuration: what is read first."""
    source.check_name()
    with _explained(source, "config"):
        return AutoConfig.from_pretrained(source.name, **source.options)


def read_tokenizer(source: Source) -> PreTrainedTokenizerBase:
    """The model's tokenizer."""
    with _explained(source, "tokenizer"):
        tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(source.name, **source.options)
        return tokenizer


def read_model(source: Source, config: Any, *, dtype: torch.dtype, device: torch.device) -> PreTrainedModel:
    """The model with its weights, from safetensors only: other formats can run code when read.

    Raises ConfigError when a weight is missing: a model with random parts would answer nonsense.
    """
    transformers_logging.disable_progress_bar()  # a log is no terminal
    with _explained(source, "weights"):
        model, report = AutoModelForCausalLM.from_pretrained(
            source.name,
            config=config,
            dtype=dtype,
            use_safetensors=True,
            attn_implementation="eager",
            output_loading_info=True,
            **source.options,
        )
    lacking = sorted(report["missing_keys"]) + sorted(str(key) for key in report.get("mismatched_keys", ()))
    if lacking:
        raise ConfigError(f"{source.role} {source.name}: weights are missing or misshapen: {', '.join(lacking[:4])}")
    loaded: PreTrainedModel = model.to(device).eval().requires_grad_(False)
    return loaded


class _explained:  # noqa: N801 - reads as a clause: with _explained(source, "weights")
    """Turns what transformers raises about a source into a ConfigError of one paragraph."""

    def __init__(self, source: Source, part: str) -> None:
        self._source, self._part = source, part

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: object, error: BaseException | None, traceback: object) -> None:
        # Every family has its own way to say no: AssertionError, NotImplementedError and TypeError are among them.
        if isinstance(error, Exception) and not isinstance(error, ConfigError):
            reason = " ".join(str(error).split())
            if "trust_remote_code" in reason:
                reason = "it brings its own code; --trust-remote-code allows that to run"
            where = "" if self._source.is_folder else "there is no such folder, and taken as a hub id, "
            raise ConfigError(
                f"{self._source.role} {self._source.name}: {where}its {self._part} cannot be loaded: {reason[:500]}"
            ) from error
