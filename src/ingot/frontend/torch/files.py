"""PyTorch's files, and what of each is trusted.

    .pt2 (torch.export)     operators by name and tensors. It is looked through before PyTorch reads it: operators
                            outside PyTorch's own, expressions that are not arithmetic, pickled objects other than
                            tensors, and compiled libraries are refused.
    .pt (TorchScript)       a program in TorchScript, read by PyTorch's own C++ reader: no Python code runs. The program
                            itself is run when it is traced and verified; it can do what TorchScript's operators can.
    .ckpt, .pth, .pt        weights: read with torch.load(weights_only=True), into a module that the caller brings.
                            A pickled module is refused: reading it would run whatever code it names.
"""
from __future__ import annotations

import io
import json
import re
import zipfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch

from ingot.errors import InputError, ModelError

MODULE_MEND = ("build from Python: make the module, module.load_state_dict(torch.load(path, weights_only=True)), "
               "ingot.build(module, example_inputs); or on the command line: --torch FILE.py:NAME --weights FILE")
READ_FAILS = (RuntimeError, ValueError, TypeError, LookupError, AttributeError, AssertionError, EOFError, OSError)
LARGEST_ENTRY = 1 << 30         # bytes of one JSON or pickled entry of an archive

_TARGET = re.compile(r"(torch\.ops\.(aten|prim|prims|higher_order)\.[\w.]+"
                     r"|_operator\.(getitem|add|mul|sub|truediv|ge|le|gt|lt|eq|ne|floordiv|mod|and_|or_|not_|pow|neg|abs"
                     r"|lshift|rshift)|math\.(ceil|floor|trunc)|round"
                     r"|torch\.(sym_(int|float|ite|max|min|not|sqrt|sum)|_sym_sqrt|_C\._set_grad_enabled))\Z")
_EXPRESSION = re.compile(r"[\w\s+\-*/(),.<>=&|~%]*\Z")
_FUNCTIONS = frozenset({
    "Symbol", "Integer", "Float", "Rational", "FloorDiv", "ModularIndexing", "Where", "PythonMod", "Mod", "CleanDiv",
    "CeilToInt", "FloorToInt", "CeilDiv", "LShift", "RShift", "PowByNatural", "FloatPow", "FloatTrueDiv",
    "IntTrueDiv", "IsNonOverlappingAndDenseIndicator", "TruncToFloat", "TruncToInt", "RoundToInt", "RoundDecimal",
    "ToFloat", "Identity", "Max", "Min", "Eq", "Ne", "Lt", "Le", "Gt", "Ge", "And", "Or", "Not", "Add", "Mul", "Pow",
    "True", "False", "oo", "int_oo", "positive", "integer", "nonnegative"})


def program_from_file(path: Path) -> Any:
    """An ExportedProgram or a ScriptModule. Raises InputError or ModelError."""
    if not path.is_file():
        raise InputError(f"there is no file {path}", mend="give the path of a .pt2 archive or a TorchScript file")
    kind = kind_of(path)
    if kind == "program":
        return _program(path)
    if kind == "script":
        return _script(path)
    if kind == "weights":
        raise ModelError(f"{path} is a pickled checkpoint: weights without the module that runs them, or a module "
                         "that only running its code would bring back", where=str(path), mend=MODULE_MEND)
    raise ModelError(f"{path} is no PyTorch file Ingot can read", where=str(path), why=(kind,),
                     mend="torch.export.save(torch.export.export(module, args), 'model.pt2')")


def kind_of(path: Path) -> str:
    """"program", "script" or "weights", else the reason it is none of them."""
    if not zipfile.is_zipfile(path):
        with path.open("rb") as file:
            start = file.read(2)
        return "weights" if start[:1] == b"\x80" else "it is neither a zip archive nor a pickle"
    try:
        with zipfile.ZipFile(path) as archive:
            names = archive.namelist()
    except (zipfile.BadZipFile, OSError, ValueError) as error:
        return f"its archive is damaged: {error}"
    inner = {n.partition("/")[2] for n in names}
    if any(n.startswith("models/") for n in inner) and "archive_format" in inner:
        return "program"
    if "constants.pkl" in inner and any(n.startswith("code/") for n in inner):
        return "script"
    return "weights" if "data.pkl" in inner else "the archive holds no model"


def _script(path: Path) -> Any:
    try:
        return torch.jit.load(str(path), map_location="cpu").eval()
    except READ_FAILS as error:
        raise ModelError(f"{path} is no whole TorchScript file", why=(str(error).splitlines()[0],),
                         mend="save it again with torch.jit.save") from None


def _program(path: Path) -> Any:
    faults = program_faults(path)
    if faults:
        raise ModelError(f"{path} holds more than a program and its tensors", where=str(path), why=tuple(faults[:5]),
                         mend="torch.export.save a program of PyTorch's own operators, or load it yourself, if you "
                              "trust it, and give Ingot the program")
    try:
        return torch.export.load(str(path))
    except READ_FAILS as error:
        raise ModelError(f"{path} is no whole archive of torch.export", why=(str(error).splitlines()[0],),
                         mend="save it again with torch.export.save, by this version of PyTorch or an older one"
                         ) from None


def program_faults(path: Path) -> list[str]:
    """Everything in a .pt2 archive that reading it would run, or that is no plain data."""
    found: list[str] = []
    with zipfile.ZipFile(path) as archive:
        for info in archive.infolist():
            name = info.filename.partition("/")[2]
            whole = name.endswith((".json", ".pt")) or name.startswith("data/constants/")
            if whole and not name.startswith("data/constants/tensor_") and info.file_size > LARGEST_ENTRY:
                found.append(f"{name} is larger than {LARGEST_ENTRY} bytes")
            elif "aotinductor" in name or name.endswith((".so", ".cubin")):
                found.append(f"{name} is compiled code")
            elif name.startswith(("data/constants/custom_obj", "data/constants/opaque_obj")):
                found.append(f"{name} is a pickled object")
            elif name.endswith(".json"):
                found += _json_faults(archive.read(info), name, archive)
            elif name.endswith(".pt") and not _tensors_only(archive.read(info)):
                found.append(f"{name} holds pickled objects other than tensors")
    return found


def _json_faults(data: bytes, name: str, archive: zipfile.ZipFile) -> list[str]:
    try:
        document = json.loads(data)
    except (ValueError, RecursionError) as error:
        return [f"{name} is no JSON: {error}"]
    if name.endswith("_config.json"):
        folder = name.rpartition("/")[0]
        entries = document.get("config", {}) if isinstance(document, dict) else {}
        stem = next(iter(archive.namelist())).partition("/")[0]
        pickled = [str(e.get("path_name")) for e in entries.values() if isinstance(e, dict) and e.get("use_pickle")]
        return [f"{p} holds pickled objects other than tensors" for p in pickled
                if f"{stem}/{folder}/{p}" not in archive.namelist()
                or not _tensors_only(archive.read(f"{stem}/{folder}/{p}"))]
    found = []
    for key, value in _pairs(document):
        if key in ("target", "as_operator") and isinstance(value, str) and not _TARGET.match(value):
            found.append(f"{name}: the operator {value!r} is not one of PyTorch's own")
        elif key == "expr_str" and isinstance(value, str) and not _arithmetic(value):
            found.append(f"{name}: {value!r} is no arithmetic of sizes")
    return list(dict.fromkeys(found))


def _pairs(document: Any) -> Iterator[tuple[str, Any]]:
    """Every key with its value, at any depth."""
    pending = [document]
    while pending:
        part = pending.pop()
        if isinstance(part, Mapping):
            yield from part.items()
            pending += part.values()
        elif isinstance(part, list):
            pending += part


def _arithmetic(text: str) -> bool:
    """Sizes, numbers and functions of them: PyTorch evaluates this text."""
    text = re.sub(r"Symbol\('(\w+)'(, \w+=(True|False))*\)", r"\1", text)
    words = re.findall(r"[A-Za-z_]\w*", text)
    return bool(_EXPRESSION.match(text)) and "__" not in text and not re.search(r"[A-Za-z_)]\s*\.", text) and all(
        w in _FUNCTIONS or re.fullmatch(r"(s|u|i|zuf|zf)_?\d+", w) for w in words)


def _tensors_only(data: bytes) -> bool:
    """Whether PyTorch's restricted reader, which runs no code, can read it."""
    if not data:
        return True
    try:
        torch.load(io.BytesIO(data), weights_only=True)
    except READ_FAILS:
        return False
    except _unpickling():
        return False
    return True


def _unpickling() -> type[BaseException]:
    """The error of PyTorch's restricted reader, without importing the library it comes from."""
    found = torch.serialization.pickle.UnpicklingError
    return found if isinstance(found, type) else RuntimeError


def with_weights(module: Any, path: Path) -> Any:
    """The module with the weights of a checkpoint, its own or Lightning's. Raises InputError or ModelError."""
    if not isinstance(module, torch.nn.Module):
        raise InputError("a checkpoint goes into a module", mend=MODULE_MEND)
    if not path.is_file():
        raise InputError(f"there is no file {path}", mend="give the path of a checkpoint")
    try:
        held = torch.load(path, weights_only=True, map_location="cpu")
    except (*READ_FAILS, _unpickling()) as error:
        raise ModelError(f"{path} holds more than weights, and reading that would run the code it names",
                         where=str(path), why=(str(error).splitlines()[0],),
                         mend="save torch.save(module.state_dict(), path), where the code is trusted") from None
    weights = held.get("state_dict", held) if isinstance(held, Mapping) else held
    if not isinstance(weights, Mapping) or not all(isinstance(v, torch.Tensor) for v in weights.values()):
        raise ModelError(f"{path} holds no mapping of tensors by name", where=str(path),
                         mend="save torch.save(module.state_dict(), path)")
    own = module.state_dict()
    missing, extra = sorted(own.keys() - weights.keys()), sorted(weights.keys() - own.keys())
    shapes = [f"{k} is {list(weights[k].shape)}, the module's {list(own[k].shape)}" for k in own.keys() & weights.keys()
              if weights[k].shape != own[k].shape]
    if missing or extra or shapes:
        why = (f"missing: {', '.join(missing[:3])}" if missing else "",
               f"not the module's: {', '.join(extra[:3])}" if extra else "", *sorted(shapes)[:3])
        raise ModelError(f"the weights in {path} are not this module's", where=str(path),
                         why=tuple(w for w in why if w), mend="make the module with the settings it was trained with")
    module.load_state_dict(weights)
    return module
