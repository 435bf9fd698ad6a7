"""Representative data, batch by batch: arrays in files, folders of them, or whatever Python iterates over."""
from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ingot.errors import InputError
from ingot.graph import Graph, evaluate
from ingot.quantize.sources import IMAGES, TEXTS, images_of, texts_of

Feeds = Mapping[str, np.ndarray]


def batches(data: Any, graph: Graph, tokenizer: Path | None = None) -> Iterator[Feeds]:
    """Feeds for a graph from a path (.npz, .npy, a folder of them or of images, a file of text beside a tokenizer's) or
    an iterable of mappings, tuples or arrays.

    Arrays with a first axis longer than the model's batch are cut into batches. Raises InputError for what is none of
    these, or does not fit the model's inputs.
    """
    found = (_from_path(Path(data), graph, tokenizer) if isinstance(data, (str, Path))
             else (_named(x, graph) for x in data))
    if isinstance(data, (str, Path)) and (_images(Path(data)) or Path(data).suffix in TEXTS):
        found = _together(found, graph)
    for feeds in found:
        yield from _cut(feeds, graph)


def _images(path: Path) -> bool:
    return path.is_dir() and any(p.suffix.lower() in IMAGES for p in path.iterdir())


def _together(single: Iterator[Feeds], graph: Graph) -> Iterator[Feeds]:
    """Samples that come one by one, in batches of the size the model is tuned for."""
    batch, held = _batch(graph)[0] or 1, list[Feeds]()
    for feeds in single:
        held.append(feeds)
        if len(held) == batch:
            yield {n: np.concatenate([f[n] for f in held]) for n in held[0]}
            held = []
    if held:
        yield {n: np.concatenate([f[n] for f in held]) for n in held[0]}


def _from_path(path: Path, graph: Graph, tokenizer: Path | None) -> Iterator[Feeds]:
    if _images(path):
        yield from images_of(path, graph)
    elif path.is_dir():
        files = sorted(p for p in path.iterdir() if p.suffix in (".npz", ".npy"))
        if not files:
            raise InputError(f"{path} holds no .npz and no .npy files", where="--calibrate",
                             mend="write arrays with numpy.savez, one name per input; images are found by their suffix")
        for file in files:
            yield from _from_path(file, graph, tokenizer)
    elif path.suffix in TEXTS:
        yield from texts_of(path, tokenizer, graph)
    elif path.suffix == ".npy":
        yield _named(_read(path), graph)
    elif path.suffix == ".npz":
        with _read(path) as file:
            yield _named({name: file[name] for name in file.files}, graph)
    else:
        raise InputError(f"cannot calibrate on {path}", where="--calibrate",
                         mend="give an .npz file with one array per input, an .npy file, a folder of them or of "
                              "images, or text with --tokenizer")


def _read(path: Path) -> Any:
    try:
        return np.load(path, allow_pickle=False)
    except (OSError, ValueError) as error:
        raise InputError(f"cannot read {path}", where="--calibrate", why=(str(error),)) from None


def _named(given: Any, graph: Graph) -> Feeds:
    """One set of inputs by name, whatever form it came in."""
    if isinstance(given, Mapping):
        missing = [n for n in graph.inputs if n not in given]
        if missing:
            raise InputError(f"the data lacks the input '{missing[0]}'", where="--calibrate",
                             mend=f"name the arrays: {', '.join(graph.inputs)}")
        return {n: np.asarray(given[n]) for n in graph.inputs}
    parts: Sequence[Any] = given if isinstance(given, (tuple, list)) else (given,)
    if len(parts) != len(graph.inputs):
        raise InputError(f"the data has {len(parts)} arrays, the model {len(graph.inputs)} inputs",
                         where="--calibrate", mend=f"give one for each of: {', '.join(graph.inputs)}")
    return {n: np.asarray(x) for n, x in zip(graph.inputs, parts, strict=True)}


def _cut(feeds: Feeds, graph: Graph) -> Iterator[Feeds]:
    """Pieces as long as the batch the model is tuned for; what is left over is dropped where the batch is fixed."""
    for name, array in feeds.items():
        rank = graph.types[name].rank
        if array.ndim not in (rank, rank - 1):
            raise InputError(f"'{name}' has shape {list(array.shape)}, the model wants {graph.types[name]}",
                             where="--calibrate")
    whole = {n: a if a.ndim == graph.types[n].rank else a[None] for n, a in feeds.items()}
    typed = {n: a.astype(graph.types[n].dtype.numpy, copy=False) for n, a in whole.items()}
    batch, fixed = _batch(graph)
    lengths = {len(a) for n, a in typed.items() if graph.types[n].rank}
    if len(lengths) != 1 or batch is None:
        yield typed
        return
    count, = lengths
    for start in range(0, count, batch):
        piece = {n: a[start:start + batch] for n, a in typed.items()}
        if not fixed or start + batch <= count:
            yield piece


def _batch(graph: Graph) -> tuple[int | None, bool]:
    """The size of the first axis that all inputs share, and whether it is fixed; None where they share none."""
    first = [graph.types[n].shape[0] for n in graph.inputs if graph.types[n].rank]
    if not first or any(d != first[0] for d in first):
        return None, True
    size = evaluate(first[0], {s.name: s.opt for s in graph.symbols.values()})
    return size, isinstance(first[0], int)


def as_batches(data: Iterable[Feeds] | str | Path, graph: Graph, limit: int, tokenizer: Path | None = None
               ) -> list[Feeds]:
    """The first batches that hold `limit` samples, kept in memory: what a search runs over and over."""
    found: list[Feeds] = []
    samples = 0
    for feeds in batches(data, graph, tokenizer):
        found.append(feeds)
        samples += max((len(a) for a in feeds.values() if np.ndim(a)), default=1)
        if samples >= limit:
            break
    return found


__all__ = ["as_batches", "batches"]
