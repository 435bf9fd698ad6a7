"""A module's own run on arrays, with nothing of it changed: its mode, its statistics and the random state are kept."""
from __future__ import annotations

import copy
import sys
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import torch
from torch.overrides import TorchFunctionMode
from torch.utils import _pytree as pytree

from ingot.errors import InputError
from ingot.frontend.source import Alarm
from ingot.frontend.torch.inputs import Arguments

Feeds = Mapping[str, np.ndarray]
Branches = tuple[tuple[str, object], ...]

# What a module's own code may raise when it is given inputs it was not made for.
RUN_FAILS = (RuntimeError, ValueError, TypeError, LookupError, AssertionError, NotImplementedError)

_TORCH = str(Path(torch.__file__).parent)
_HERE = str(Path(__file__).parent)
_NARROW = {torch.bfloat16: ml_dtypes.bfloat16, torch.float8_e4m3fn: ml_dtypes.float8_e4m3fn,
           torch.float8_e5m2: ml_dtypes.float8_e5m2}
_WIDE = {np.dtype(v): k for k, v in _NARROW.items()}

# How a value of a tensor becomes Python's, and may then decide what runs.
_TO_PYTHON = frozenset({"__bool__", "__int__", "__float__", "__index__", "__complex__", "item", "tolist"})
_RANDOM = frozenset({"dropout", "dropout1d", "dropout2d", "dropout3d", "alpha_dropout", "feature_alpha_dropout",
                     "feature_dropout", "rrelu", "gumbel_softmax", "rand", "randn", "randint", "randperm", "rand_like",
                     "randn_like", "randint_like", "bernoulli", "multinomial", "normal", "poisson", "bernoulli_",
                     "uniform_", "normal_", "exponential_", "random_", "scaled_dot_product_attention"})

# Layers that do something else in training: what is random, and what takes its statistics from the batch.
RANDOM_LAYERS = (torch.nn.modules.dropout._DropoutNd, torch.nn.RReLU)
BATCH_LAYERS = (torch.nn.modules.batchnorm._NormBase,)


def array_from(tensor: torch.Tensor) -> np.ndarray:
    """The tensor's numbers, as an array of the same element type."""
    tensor = tensor.detach().cpu().contiguous()
    if tensor.dtype in _NARROW:
        kind = np.dtype(_NARROW[tensor.dtype])
        held = torch.int16 if kind.itemsize == 2 else torch.uint8
        return np.asarray(tensor.view(held).numpy()).view(kind)
    return np.asarray(tensor.resolve_conj().resolve_neg().numpy())


def tensor_from(array: np.ndarray) -> torch.Tensor:
    """The array's numbers, as a tensor of the same element type."""
    array = np.ascontiguousarray(array)
    if array.dtype in _WIDE:
        return torch.from_numpy(array.view(np.int16 if array.itemsize == 2 else np.uint8)).view(_WIDE[array.dtype])
    return torch.from_numpy(array.copy() if not array.flags.writeable else array)


class Flat(torch.nn.Module):  # type: ignore[misc]
    """A module that takes and gives tensors only: the rest of its arguments is bound, its results are flattened."""

    def __init__(self, module: Any, arguments: Arguments) -> None:
        super().__init__()
        self.module = module
        self._arguments = [arguments]       # in a list, so that no tracer looks into it

    def forward(self, *tensors: Any) -> Any:
        args, kwargs = self._arguments[0].call(tensors)
        return tuple(results_from(self.module(*args, **kwargs)).values())


def results_from(outputs: Any) -> dict[str, Any]:
    """Every tensor among a module's results, by name: its key or field, else output, output_1 and so on."""
    found: dict[str, Any] = {}
    for path, leaf in pytree.tree_flatten_with_path(outputs)[0]:
        if not isinstance(leaf, torch.Tensor):
            continue
        words = [str(getattr(k, "key", getattr(k, "name", ""))) for k in path]
        places = [str(k.idx) for k in path if hasattr(k, "idx")]
        name = "_".join([w for w in words if w] + (places if any(words) else []))
        name = "".join(c if c.isalnum() or c == "_" else "_" for c in name) or (f"output_{len(found)}" if found
                                                                               else "output")
        while name in found:
            name += "_"
        found[name] = leaf
    return found


@contextmanager
def evaluating(module: Any) -> Iterator[None]:
    """The module in evaluation mode, each of its layers as before afterwards."""
    training = [m for m in module.modules() if m.training] if isinstance(module, torch.nn.Module) else []
    for m in training:
        m.training = False
    try:
        with torch.random.fork_rng(devices=[]), torch.no_grad():
            torch.manual_seed(0)
            yield
    finally:
        for m in training:
            m.training = True


def runner(module: Any, arguments: Arguments) -> Callable[[Feeds], dict[str, np.ndarray]]:
    """A run of the module in evaluation mode, from arrays by name to arrays by name."""
    def run(feeds: Feeds) -> dict[str, np.ndarray]:
        args, kwargs = arguments.call([tensor_from(feeds[n]).clone() for n in arguments.tensors])
        try:
            with evaluating(module):
                found = results_from(module(*args, **kwargs))
        except RUN_FAILS as error:
            raise InputError(f"the module itself fails: {type(error).__name__}: {first_line(error)}",
                             where=", ".join(f"{k} {v.dtype}{list(v.shape)}" for k, v in feeds.items()),
                             mend="give inputs it takes, or a narrower range of sizes") from None
        return {name: array_from(t) for name, t in found.items()}
    return run


def first_line(error: BaseException) -> str:
    return next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)


def caller() -> str:
    """The innermost line of the user's own code that is running now."""
    for frame in reversed(traceback.extract_stack(sys._getframe(1))):
        if not frame.filename.startswith((_TORCH, _HERE, "<")):
            return f"{frame.filename}:{frame.lineno}" + (f": {frame.line}" if frame.line else "")
    return ""


class _Decisions(TorchFunctionMode):  # type: ignore[misc]
    """Notes where a tensor's value becomes a Python value, and which."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[tuple[str, object]] = []

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        if getattr(func, "__name__", "") in _TO_PYTHON and isinstance(result, (bool, int, float, complex, list)):
            self.found.append((caller(), str(result) if isinstance(result, list) else result))
        return result


class _Draws(TorchFunctionMode):  # type: ignore[misc]
    """Notes the calls that draw random numbers."""

    def __init__(self) -> None:
        super().__init__()
        self.found: dict[str, str] = {}

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        before = torch.random.get_rng_state()
        result = func(*args, **(kwargs or {}))
        if not torch.equal(before, torch.random.get_rng_state()):
            self.found.setdefault(caller(), getattr(func, "__name__", str(func)))
        return result


def branches(module: Any, arguments: Arguments) -> Callable[[Feeds], Branches]:
    """What the module's code takes out of its tensors as Python values, in order, for given inputs."""
    def run(feeds: Feeds) -> Branches:
        args, kwargs = arguments.call([tensor_from(feeds[n]).clone() for n in arguments.tensors])
        watch = _Decisions()
        try:
            with evaluating(module), watch:
                module(*args, **kwargs)
        except RUN_FAILS as error:
            return (*watch.found, (f"it fails: {type(error).__name__}", first_line(error)))
        return tuple(watch.found)
    return run


def mode_alarms(module: Any, arguments: Arguments) -> tuple[Alarm, ...]:
    """Is the module in training mode, and is it random even out of it?"""
    return (*_training(module, arguments), *_randomness(module, arguments))


def _training(module: Any, arguments: Arguments) -> tuple[Alarm, ...]:
    if not isinstance(module, torch.nn.Module):
        return ()
    layers = {n or type(m).__name__: m for n, m in module.named_modules() if m.training}
    random = [f"{n} ({type(m).__name__})" for n, m in layers.items()
              if isinstance(m, RANDOM_LAYERS) and getattr(m, "p", True) and not isinstance(m, torch.nn.Identity)]
    batch = [f"{n} ({type(m).__name__})" for n, m in layers.items()
             if isinstance(m, BATCH_LAYERS) and m.track_running_stats]
    if not random and not batch:
        return ()
    why = [f"{_some(random)} draw random numbers" if random else "",
           f"{_some(batch)} take their statistics from the batch and change them at every run" if batch else ""]
    apart = _apart(module, arguments)
    return (Alarm("training mode", "the module was left in training mode; the engine is that of module.eval()",
                  where=_some(random + batch), why="; ".join(filter(None, why)) + apart,
                  mend="call module.eval() first, so that the module itself gives what the engine gives"),)


def _some(names: Sequence[str]) -> str:
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")


def _apart(module: torch.nn.Module, arguments: Arguments) -> str:
    """How far the module's answer in training mode lies from that in evaluation mode, on the example."""
    feeds = {n: array_from(t) for n, t in arguments.tensors.items()}
    calm = runner(module, arguments)(feeds)
    kept = copy.deepcopy(module.state_dict())
    try:
        args, kwargs = arguments.call([t.clone() for t in arguments.tensors.values()])
        with torch.random.fork_rng(devices=[]), torch.no_grad():
            torch.manual_seed(0)
            found = results_from(module(*args, **kwargs))
    except RUN_FAILS as error:
        return f"; on the example it fails in training mode ({first_line(error)})"
    finally:
        module.load_state_dict(kept)
    largest = max((float(np.abs(array_from(t).astype(np.float64) - calm[n]).max() / max(1e-30, np.abs(calm[n]).max()))
                   for n, t in found.items() if n in calm and t.is_floating_point() and t.numel()
                   and t.shape == calm[n].shape), default=0.0)
    return f"; on the example its answers in the two modes lie {largest:.2g} apart, relative to the largest"


def _randomness(module: Any, arguments: Arguments) -> tuple[Alarm, ...]:
    watch = _Draws()
    args, kwargs = arguments.call([t.clone() for t in arguments.tensors.values()])
    try:
        with evaluating(module), watch:
            module(*args, **kwargs)
    except RUN_FAILS as error:
        raise InputError(f"the module fails on the example inputs: {type(error).__name__}: {first_line(error)}",
                         mend="give inputs it takes") from None
    return tuple(Alarm("random", f"{name} draws random numbers in evaluation mode too", where=where,
                       why="an engine gives the same answer every time", grave=True,
                       mend="pass training=self.training to it, or give the random numbers as an input")
                 for where, name in watch.found.items())
