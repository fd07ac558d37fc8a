"""Widens and deepens a Llama checkpoint to serving size without changing what it computes.

    python benchmarks/inflate.py examples/models/stdlib-target OUT

A benchmark of speculative decoding needs a target that costs what a served model costs and a draft that predicts it
well, and no model hub is within reach of a test machine. The example pair predicts well and costs nothing, so this
gives its target the cost: the same text and the same acceptance, at the size asked for (190 M parameters by default).

How the function is preserved, going from hidden size h to H:

- The residual stream is padded with channels that stay zero: nothing ever writes to them.
- RMSNorm then averages over H channels of which h carry the signal, so its root mean square shrinks by sqrt(h / H);
  the norm's weights shrink by the same factor, and its epsilon by h / H.
- New attention heads, MLP channels and layers read random projections of the stream, so that they compute (and cost)
  something ordinary, and write through output projections that are zero.
- Query head i reads key-value head i // group, so new heads go behind the old ones and the group size cannot change;
  neither can the head size, which scales the attention scores and fixes the rotary frequencies.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import shutil
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

MARKER = "inflate.json"
"""Written last, beside the weights: what they were made from. A folder without it is not taken for a finished one."""

_VERSION = 1  # Part of the fingerprint: raise it when the same inputs no longer give the same weights.
_DTYPES = {"bfloat16": torch.bfloat16, "float16": torch.float16, "float32": torch.float32}
_SPREAD = 0.02  # Standard deviation of new weights; Llama's own initialisation.


class ShapeError(ValueError):
    """A shape that the source cannot be inflated to; the message starts with the parameter at fault."""


@dataclass(frozen=True)
class Shape:
    """The size to inflate to: residual channels, layers, query heads, key-value heads and MLP channels."""

    hidden: int = 1024
    layers: int = 16
    heads: int = 16
    kv_heads: int = 8
    mlp: int = 2816


def shape_of(config: dict[str, Any]) -> Shape:
    """The shape in a Hugging Face Llama config."""
    heads = int(config["num_attention_heads"])
    return Shape(
        hidden=int(config["hidden_size"]),
        layers=int(config["num_hidden_layers"]),
        heads=heads,
        kv_heads=int(config.get("num_key_value_heads") or heads),
        mlp=int(config["intermediate_size"]),
    )


def check(config: dict[str, Any], shape: Shape) -> None:
    """Raises `ShapeError`, naming the parameter, where `shape` cannot hold the model that `config` describes."""
    if config.get("model_type") != "llama":
        raise ShapeError(f"model_type: only llama can be inflated, not {config.get('model_type')!r}")
    for flag in ("attention_bias", "mlp_bias"):
        if config.get(flag):
            raise ShapeError(f"{flag}: projections with biases cannot be inflated")
    old = asdict(shape_of(config))
    for name, value in asdict(shape).items():
        if value < old[name]:
            raise ShapeError(f"{name}: {value} is less than the source's {old[name]}, and inflating only adds")
    if shape.heads % shape.kv_heads:
        raise ShapeError(f"kv_heads: {shape.kv_heads} does not divide heads = {shape.heads}")
    group = old["heads"] // old["kv_heads"]
    if shape.heads // shape.kv_heads != group:
        raise ShapeError(
            f"kv_heads: {shape.kv_heads} for {shape.heads} heads makes groups of {shape.heads // shape.kv_heads}, "
            f"and the source's groups of {group} must be kept: ask for {shape.heads // group}"
        )
    if shape.hidden % shape.heads:  # Nothing here needs it, but transformers refuses to load such a config.
        raise ShapeError(f"heads: {shape.heads} does not divide hidden = {shape.hidden}")


@dataclass(frozen=True)
class _Inflater:
    """Makes the new tensors. `old` and `new` shapes, channels per head, and the generator of the random weights."""

    old: Shape
    new: Shape
    head_dim: int
    dtype: torch.dtype
    generator: torch.Generator

    @property
    def norm_scale(self) -> float:
        return float((self.old.hidden / self.new.hidden) ** 0.5)

    def _random(self, rows: int, columns: int) -> torch.Tensor:
        return (torch.randn(rows, columns, generator=self.generator) * _SPREAD).to(self.dtype)

    def _zeros(self, rows: int, columns: int) -> torch.Tensor:
        return torch.zeros(rows, columns, dtype=self.dtype)

    def table(self, tensor: torch.Tensor) -> torch.Tensor:
        """An embedding or output table: [vocabulary, h] -> [vocabulary, H], the new channels zero."""
        wide = self._zeros(tensor.shape[0], self.new.hidden)
        wide[:, : self.old.hidden] = tensor.to(self.dtype)
        return wide

    def norm(self, tensor: torch.Tensor | None) -> torch.Tensor:
        """A norm's weights: [h] -> [H]. The new channels carry zeros, so theirs are free; ones, like a fresh norm's."""
        wide = torch.ones(self.new.hidden)
        if tensor is not None:
            wide[: self.old.hidden] = tensor.float()
        return (wide * self.norm_scale).to(self.dtype)

    def reads(self, tensor: torch.Tensor | None, rows: int) -> torch.Tensor:
        """A projection from the stream, [r, h] -> [rows, H]: new rows and columns random.

        The columns meet zeros and so may be anything; zeros there would make a matrix unlike any served one.
        """
        wide = self._random(rows, self.new.hidden)
        if tensor is not None:
            wide[: tensor.shape[0], : tensor.shape[1]] = tensor.to(self.dtype)
        return wide

    def writes(self, tensor: torch.Tensor | None, columns: int) -> torch.Tensor:
        """A projection into the stream, [h, c] -> [H, columns]: everything new is zero."""
        wide = self._zeros(self.new.hidden, columns)
        if tensor is not None:
            wide[: tensor.shape[0], : tensor.shape[1]] = tensor.to(self.dtype)
        return wide

    def layer(self, weights: dict[str, torch.Tensor], index: int) -> dict[str, torch.Tensor]:
        """One layer's tensors. Past the source's last layer there are none to start from, and it adds nothing."""
        prefix = f"model.layers.{index}."
        source = {name.removeprefix(prefix): tensor for name, tensor in weights.items() if name.startswith(prefix)}
        queries, values = self.new.heads * self.head_dim, self.new.kv_heads * self.head_dim
        reads = {
            "self_attn.q_proj": queries,
            "self_attn.k_proj": values,
            "self_attn.v_proj": values,
            "mlp.gate_proj": self.new.mlp,
            "mlp.up_proj": self.new.mlp,
        }
        writes = {"self_attn.o_proj": queries, "mlp.down_proj": self.new.mlp}
        made = {name: self.reads(source.get(f"{name}.weight"), size) for name, size in reads.items()}
        made |= {name: self.writes(source.get(f"{name}.weight"), size) for name, size in writes.items()}
        for name in ("input_layernorm", "post_attention_layernorm"):
            made[name] = self.norm(source.get(f"{name}.weight"))
        return {f"{prefix}{name}.weight": tensor for name, tensor in made.items()}


def inflate_weights(
    weights: dict[str, torch.Tensor], config: dict[str, Any], shape: Shape, *, dtype: torch.dtype, seed: int
) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
    """The inflated state dict and config of a Llama state dict and config; neither input is changed."""
    check(config, shape)
    old = shape_of(config)
    head_dim = int(config.get("head_dim") or old.hidden // old.heads)
    inflater = _Inflater(old, shape, head_dim, dtype, torch.Generator().manual_seed(seed))
    made = {"model.embed_tokens.weight": inflater.table(weights["model.embed_tokens.weight"])}
    for index in range(shape.layers):
        made |= inflater.layer(weights, index)
    made["model.norm.weight"] = inflater.norm(weights["model.norm.weight"])
    if "lm_head.weight" in weights and not config.get("tie_word_embeddings"):
        made["lm_head.weight"] = inflater.table(weights["lm_head.weight"])
    inflated = config | {
        "hidden_size": shape.hidden,
        "num_hidden_layers": shape.layers,
        "num_attention_heads": shape.heads,
        "num_key_value_heads": shape.kv_heads,
        "intermediate_size": shape.mlp,
        "head_dim": head_dim,
        "rms_norm_eps": float(config["rms_norm_eps"]) * old.hidden / shape.hidden,
        "dtype": str(dtype).removeprefix("torch."),
    }
    inflated.pop("torch_dtype", None)  # The older name of the same key would contradict it.
    return made, inflated


def _weight_files(source: Path) -> list[Path]:
    files = sorted(source.glob("*.safetensors"))
    if not files or not (source / "config.json").is_file():
        raise FileNotFoundError(f"{source} holds no Llama checkpoint: config.json and *.safetensors are needed")
    return files


def _fingerprint(source: Path, shape: Shape, dtype: torch.dtype, seed: int) -> dict[str, Any]:
    digest = hashlib.sha256()
    for path in sorted(path for path in source.iterdir() if path.is_file()):
        digest.update(path.name.encode() + b"\0" + hashlib.sha256(path.read_bytes()).digest())
    return {
        "version": _VERSION,
        "source": digest.hexdigest(),
        "shape": asdict(shape),
        "dtype": str(dtype).removeprefix("torch."),
        "seed": seed,
    }


def inflate(
    source: Path,
    destination: Path,
    *,
    shape: Shape = Shape(),
    dtype: torch.dtype = torch.bfloat16,
    seed: int = 0,
) -> bool:
    """Writes the inflated checkpoint of `source` to `destination`, with the tokenizer and generation defaults.

    Returns False, without writing, where `destination` is complete and made from the same inputs. A folder that
    something else made is never replaced.
    """
    files = _weight_files(source)
    fingerprint = _fingerprint(source, shape, dtype, seed)
    marker = destination / MARKER
    if marker.is_file():
        if json.loads(marker.read_text(encoding="utf-8")) == fingerprint:
            return False
    elif destination.exists() and any(destination.iterdir()):
        raise FileExistsError(f"{destination} is not empty and was not made by inflate; remove it or choose another")
    config = json.loads((source / "config.json").read_text(encoding="utf-8"))
    weights: dict[str, torch.Tensor] = {}
    for file in files:
        weights |= load_file(file)
    made, inflated = inflate_weights(weights, config, shape, dtype=dtype, seed=seed)

    # Built beside the destination and renamed, so that an interrupted run leaves nothing that looks finished.
    unfinished = destination.with_name(destination.name + ".unfinished")
    shutil.rmtree(unfinished, ignore_errors=True)
    unfinished.mkdir(parents=True)
    for path in source.iterdir():
        if path.is_file() and path.name != MARKER and ".safetensors" not in path.name:
            shutil.copyfile(path, unfinished / path.name)
    (unfinished / "config.json").write_text(json.dumps(inflated, indent=2) + "\n", encoding="utf-8")
    save_file(made, unfinished / "model.safetensors", metadata={"format": "pt"})
    (unfinished / "model.safetensors").chmod(0o644)  # safetensors writes 0600, which a server's user cannot read
    (unfinished / MARKER).write_text(json.dumps(fingerprint, indent=2) + "\n", encoding="utf-8")
    if destination.exists():
        shutil.rmtree(destination)
    unfinished.rename(destination)
    return True


def main() -> None:
    """Reads the command line and inflates."""
    default = Shape()
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", maxsplit=1)[0])
    parser.add_argument("source", type=Path, help="folder of the Llama checkpoint to inflate")
    parser.add_argument("destination", type=Path, help="folder to write")
    parser.add_argument("--hidden", type=int, default=default.hidden, help="residual channels (%(default)s)")
    parser.add_argument("--layers", type=int, default=default.layers, help="layers (%(default)s)")
    parser.add_argument("--heads", type=int, default=default.heads, help="query heads (%(default)s)")
    parser.add_argument("--kv-heads", type=int, default=default.kv_heads, help="key-value heads (%(default)s)")
    parser.add_argument("--mlp", type=int, default=default.mlp, help="MLP channels (%(default)s)")
    parser.add_argument("--dtype", choices=sorted(_DTYPES), default="bfloat16")
    parser.add_argument("--seed", type=int, default=0, help="of the random weights (%(default)s)")
    args = parser.parse_args()
    shape = Shape(hidden=args.hidden, layers=args.layers, heads=args.heads, kv_heads=args.kv_heads, mlp=args.mlp)
    try:
        made = inflate(args.source, args.destination, shape=shape, dtype=_DTYPES[args.dtype], seed=args.seed)
    except (ShapeError, FileNotFoundError, FileExistsError) as error:
        parser.error(str(error))
    print(f"{'wrote' if made else 'already complete:'} {args.destination}")


if __name__ == "__main__":
    main()
