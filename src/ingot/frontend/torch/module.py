"""A module, an exported program or a TorchScript module as a Source: two exporters, and its own run."""
from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import torch

from ingot.errors import InputError
from ingot.frontend.shapes import ShapeSpec, read_spec
from ingot.frontend.source import Export, Source
from ingot.frontend.torch.export import DYNAMO, TRACED, converted, exported, traced
from ingot.frontend.torch.inputs import Arguments, arguments_from, axes_from, parameters, specs_from
from ingot.frontend.torch.run import array_from, branches, mode_alarms, runner
from ingot.graph import Symbol

FRAMEWORK = f"PyTorch {torch.__version__}"


def source_from_module(model: Any, example_inputs: Any, dynamic: Any, shapes: Mapping[str, ShapeSpec], *,
                       opset: int | None = None, name: str = "") -> Source:
    """What `source_from_torch` gives, for a model in memory. Raises InputError."""
    if isinstance(model, torch.export.ExportedProgram):
        return _from_program(model, example_inputs, dynamic, shapes, opset, name)
    if not isinstance(model, torch.nn.Module):
        raise InputError(f"a {type(model).__module__}.{type(model).__qualname__} is no PyTorch module",
                         mend="give a torch.nn.Module or what torch.export.export gives")
    if example_inputs is None and shapes and getattr(model, "example_input_array", None) is None:
        example_inputs = drawn(parameters(model, 0), shapes)
    arguments = arguments_from(model, example_inputs)
    axes = axes_from(arguments.tensors, dynamic, shapes)
    run = runner(model, arguments)
    alarms = mode_alarms(model, arguments)
    examples = {n: array_from(t) for n, t in arguments.tensors.items()}
    outputs = tuple(run(examples))
    if not outputs:
        raise InputError("the module gives no tensor", mend="return the tensors the engine is to compute")
    ways = (traced,) if isinstance(model, torch.jit.ScriptModule) else (exported, traced)
    exports = tuple(_export(way, model, arguments, axes, outputs, o) for o in _opsets(opset) for way in ways)
    decided = None if isinstance(model, torch.jit.ScriptModule) else branches(model, arguments)
    return Source(name or type(model).__name__, FRAMEWORK, exports, run, examples,
                  specs_from(arguments.tensors, axes), alarms, decided)


def _opsets(asked: int | None) -> tuple[int | None, ...]:
    """The opset asked for, and the exporter's own choice to fall back on."""
    return (None,) if asked is None else (asked, None)


def _export(way: Any, model: Any, arguments: Arguments, axes: Mapping[str, Mapping[int, Symbol]],
            outputs: Sequence[str], opset: int | None) -> Export:
    name = (TRACED if way is traced else DYNAMO) + (f", opset {opset}" if opset else "")
    return Export(name, partial(way, model, arguments, axes, outputs, opset=opset), opset)


def _from_program(program: Any, example_inputs: Any, dynamic: Any, shapes: Mapping[str, ShapeSpec],
                  opset: int | None, name: str) -> Source:
    """An exported program has its own example inputs, and says itself which axes may vary."""
    if dynamic is not None:
        raise InputError("an exported program has its dynamic axes already", where="dynamic",
                         mend="give their ranges in shapes, or export it with other dynamic_shapes")
    if example_inputs is None:
        if program.example_inputs is None:
            raise InputError("the exported program came without example inputs", mend="give them")
        args, kwargs = program.example_inputs
        arguments = _program_arguments(program, args, kwargs)
    else:
        arguments = arguments_from(program.module(), example_inputs)
    module = program.module()
    axes = _program_axes(program, arguments, axes_from(arguments.tensors, None, shapes))
    run = runner(module, arguments)
    examples = {n: array_from(t) for n, t in arguments.tensors.items()}
    outputs = tuple(run(examples))
    exports = tuple(_export(way, what, arguments, axes, outputs, o) for o in _opsets(opset)
                    for way, what in ((converted, program), (traced, module)))
    return Source(name or "program", FRAMEWORK, exports, run, examples, specs_from(arguments.tensors, axes),
                  mode_alarms(module, arguments))


def _program_arguments(program: Any, args: Any, kwargs: Any) -> Arguments:
    """The program's own names for its inputs."""
    names = list(program.graph_signature.user_inputs)
    found = arguments_from(program.module(), args if not kwargs else kwargs if not args else (*args, kwargs))
    if len(names) != len(found.tensors):
        return found
    return Arguments(dict(zip(map(str, names), found.tensors.values(), strict=True)), found.leaves, found.places,
                     found.spec)


def _program_axes(program: Any, arguments: Arguments, given: Mapping[str, Mapping[int, Symbol]]
                  ) -> dict[str, dict[int, Symbol]]:
    """The axes the program left open, with its own ranges where the caller gave none."""
    found: dict[str, dict[int, Symbol]] = {}
    values = {n.name: n.meta.get("val") for n in program.graph.nodes if n.op == "placeholder"}
    names = dict(zip(arguments.tensors, program.graph_signature.user_inputs, strict=False))
    renamed: dict[str, Symbol] = {}
    for name, example in arguments.tensors.items():
        value = values.get(names.get(name, name))
        shape = () if value is None else value.shape
        open_axes = {a: s for a, s in enumerate(shape) if isinstance(s, torch.SymInt)}
        if extra := set(given[name]) - set(open_axes):
            raise InputError(f"the program fixes axis {min(extra)} of input '{name}'",
                             mend="export it with that axis in dynamic_shapes")
        found[name] = {}
        for axis, size in open_axes.items():
            label = str(size)
            if axis in given[name]:
                renamed.setdefault(label, given[name][axis])
            if label not in renamed:
                low, high = _range(program, size)
                opt = int(example.shape[axis])
                renamed[label] = Symbol(label if label.isidentifier() else f"{name}_{axis}", low, max(opt, low),
                                        max(opt, min(high, 64)))
            found[name][axis] = renamed[label]
    return found


def _range(program: Any, size: Any) -> tuple[int, int]:
    held = program.range_constraints.get(size.node.expr)
    if held is None:
        return 1, 64
    return max(1, int(held.lower)), int(min(held.upper, 1 << 20))


def drawn(names: Sequence[str], shapes: Mapping[str, ShapeSpec]) -> dict[str, torch.Tensor]:
    """f32 noise of the shapes given, at their middle sizes, in the order of the parameters."""
    seeded = torch.Generator().manual_seed(0)
    order = sorted(shapes, key=lambda n: names.index(n) if n in names else len(names))
    sizes = {n: [s if isinstance(s, int) else s.opt for s in read_spec(shapes[n])] for n in order}
    return {n: torch.randn(sizes[n], generator=seeded) for n in order}
