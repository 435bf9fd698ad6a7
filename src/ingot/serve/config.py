"""How one model is served: the small YAML file beside it."""
from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

import yaml

from ingot.errors import InputError


@dataclass(frozen=True)
class ModelConfig:
    """How one model is served. Each field may stand in `config.yaml` in the model's folder."""

    instances: int = field(default=1, metadata={"help": "worker processes"})
    threads: int = field(default=0, metadata={"help": "threads of each; 0: an equal share of what the machine grants"})
    device: str = field(default="", metadata={"help": "cpu or cuda; empty: the GPU where the engine has code for it"})
    batching: str = field(default="cost", metadata={"help": "cost, plain or none"})
    max_batch: int = field(default=0, metadata={"help": "rows of a batch at most; 0: what the engine takes"})
    max_delay: float = field(default=0.0, metadata={"help": "plain: milliseconds the first of a batch waits at most"})
    preferred: tuple[int, ...] = field(default=(), metadata={"help": "plain: rows that are not waited beyond"})
    p99: float = field(default=0.0, metadata={"help": "milliseconds an answer may take; 0: as the server says"})
    queue: int = field(default=1024, metadata={"help": "requests that may wait; more are refused with 429"})
    timeout: float = field(default=0.0, metadata={
        "help": "seconds a batch may run before its worker counts as hung; 0: 10 seconds and 20 times its cost"})
    pad: Mapping[str, float] = field(default_factory=dict, metadata={
        "help": "input -> value that fills shorter requests up: only for a model whose results do not change by it"})
    buckets: tuple[int, ...] = field(default=(), metadata={"help": "lengths that requests are padded to"})
    shapes: Mapping[str, str] = field(default_factory=dict, metadata={
        "help": "for an ONNX file: input -> shape to build for, as ingot build --shapes"})
    memory: int = field(default=0, metadata={"help": "MiB of address space a worker may take; 0: no limit"})
    versions: tuple[str, ...] = field(default=(), metadata={"help": "versions to serve; empty: the latest"})
    load: bool = field(default=True, metadata={"help": "load at start; otherwise when the control API asks"})


_WORDS = {"batching": ("cost", "plain", "none"), "device": ("cpu", "cuda")}


def _number(value: object, kind: type, name: str, path: Path, signed: bool = False) -> Any:
    if kind is bool:
        if isinstance(value, bool):
            return value
        raise InputError(f"{name} is {value!r}", where=str(path), mend="write true or false")
    if isinstance(value, bool) or not isinstance(value, (int, float)) or (value < 0 and not signed) \
            or (kind is int and not float(value).is_integer()):
        raise InputError(f"{name} is {value!r}", where=str(path), mend=f"write a {kind.__name__}, 0 or more")
    return kind(value)


def read_config(path: Path) -> ModelConfig:
    """The YAML file of a model; the defaults where there is none. Raises InputError."""
    try:
        told = yaml.safe_load(path.read_text()) if path.exists() else {}
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise InputError(f"{path} cannot be read", why=(str(error),), mend="write it as YAML") from None
    return config_from(told or {}, path)


def config_from(told: object, path: Path) -> ModelConfig:
    """A model's configuration from what its file holds. Raises InputError."""
    known = {f.name: f for f in fields(ModelConfig)}
    if not isinstance(told, dict):
        raise InputError("it holds no names and values", where=str(path), mend=f"known names: {', '.join(known)}")
    values: dict[str, Any] = {}
    for name, value in told.items():
        if name not in known:
            raise InputError(f"unknown name {name!r}", where=str(path), mend=f"known: {', '.join(known)}")
        if name in ("preferred", "buckets", "versions"):
            items = value if isinstance(value, list) else [value]
            values[name] = tuple(str(v) if name == "versions" else _number(v, int, name, path) for v in items)
        elif name in ("pad", "shapes"):
            if not isinstance(value, dict):
                raise InputError(f"{name} is {value!r}", where=str(path), mend="write a mapping from input to value")
            values[name] = {str(k): str(v) if name == "shapes" else _number(v, float, name, path, signed=True)
                            for k, v in value.items()}
        elif name in _WORDS:
            if value not in _WORDS[name]:
                raise InputError(f"{name} is {value!r}", where=str(path), mend=f"write {' or '.join(_WORDS[name])}")
            values[name] = value
        else:
            kind = {"load": bool, "max_delay": float, "p99": float, "timeout": float}.get(name, int)
            values[name] = _number(value, kind, name, path)
    made = ModelConfig(**values)
    if made.instances < 1:
        raise InputError("instances is 0", where=str(path), mend="write at least 1")
    return made
