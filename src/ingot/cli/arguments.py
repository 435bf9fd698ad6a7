"""What the words of a command line mean: files of arrays, sizes of symbols, batch sizes."""
from __future__ import annotations

import importlib.util
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ingot.errors import InputError
from ingot.graph import Graph


def array_from(path: Path) -> np.ndarray:
    """The array in an .npy file. Raises InputError."""
    try:
        array: np.ndarray = np.load(path, allow_pickle=False)
    except (OSError, ValueError) as error:
        raise InputError(f"cannot read the array {path}", why=(str(error),), mend="write it with numpy.save") from None
    if not isinstance(array, np.ndarray):
        raise InputError(f"{path} holds several arrays", mend="give one .npy file per input")
    return array


def feeds_from(path: Path) -> dict[str, np.ndarray]:
    """The arrays of an .npz file by name. Raises InputError."""
    try:
        with np.load(path, allow_pickle=False) as file:
            return {name: file[name] for name in file.files}
    except (OSError, ValueError, AttributeError) as error:
        raise InputError(f"cannot read the inputs {path}", why=(str(error),),
                         mend="write them with numpy.savez(path, name=array, ...)") from None


def called_from(text: str) -> Any:
    """What `FILE.py:NAME` gives when it is called, for example a PyTorch module. Runs the file. Raises InputError."""
    file, _, name = text.rpartition(":")
    spec = importlib.util.spec_from_file_location("ingot_given", file) if Path(file).is_file() else None
    if spec is None or spec.loader is None:
        raise InputError(f"cannot read the Python file {file!r}", mend="write FILE.py:NAME")
    made = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(made)
    if not callable(getattr(made, name, None)):
        raise InputError(f"{file} has no function or class {name!r}", mend="write FILE.py:NAME")
    return getattr(made, name)()


def model_from(text: str) -> Any:
    """The path of a model, or what `FILE.py:NAME` gives when it is called. Raises InputError."""
    return called_from(text) if ".py:" in text else text


def takes_examples(model: Any) -> bool:
    """Whether a model is exported by its framework, which needs inputs to do it with."""
    return not isinstance(model, str) or Path(model).suffix in (".pt", ".pth", ".ts", ".torchscript")


def told_sizes(graph: Graph, texts: Sequence[str]) -> dict[str, int]:
    """The tuned size of every symbol, but for those that `texts` (SYMBOL=N) set. Raises InputError."""
    sizes = {s.name: s.opt for s in graph.symbols.values()}
    for text in texts:
        name, _, number = text.partition("=")
        if name not in sizes or not number.isdigit():
            raise InputError(f"{text!r} sets no symbol", where="--size",
                             mend=f"write SYMBOL=N; symbols: {', '.join(sizes) or 'none, every shape is fixed'}")
        symbol = graph.symbols[name]
        if not symbol.min <= int(number) <= symbol.max:
            raise InputError(f"{name}={number} is outside {symbol.min}..{symbol.max}", where="--size",
                             mend="build the engine for a wider range: --shapes")
        sizes[name] = int(number)
    return sizes


def batch_sizes(text: str) -> list[int]:
    """The numbers of a comma-separated list. Raises InputError."""
    try:
        found = [int(part) for part in text.split(",") if part]
    except ValueError:
        found = []
    if not found or min(found) < 1:
        raise InputError(f"{text!r} is no list of batch sizes", where="--batch", mend="write, for example, 1,8,32")
    return found


def sizes_at(graph: Graph, batch: int) -> tuple[dict[str, int], str]:
    """Sizes of the symbols at a batch, or the reason why the engine cannot run it."""
    sizes = {s.name: s.opt for s in graph.symbols.values()}
    leads = {str(graph.types[v].shape[0]) for v in graph.inputs if graph.types[v].shape}
    symbols = leads & set(sizes)
    if not symbols:
        fixed = ", ".join(sorted(leads))
        return sizes, "" if leads <= {str(batch)} else f"the batch is fixed at {fixed}"
    for name in symbols:
        symbol = graph.symbols[name]
        if not symbol.min <= batch <= symbol.max:
            return sizes, f"outside the engine's {symbol.min}..{symbol.max}"
        sizes[name] = batch
    return sizes, ""


def file_name(output: str) -> str:
    """An output's name as a file's: whatever could lead elsewhere is replaced."""
    return "".join(c if c.isalnum() or c in "._-" else "_" for c in output).lstrip(".") or "output"
