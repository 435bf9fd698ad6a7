"""A plan that came from outside is held against its program before any memory is touched."""
from __future__ import annotations

from collections.abc import Mapping, Sequence

from ingot.graph import evaluate
from ingot.kernels import Operand
from ingot.lower import Program
from ingot.plan.memory import Demand, MemoryPlan, bytes_at, corners, external_values, largest, largest_bytes

# how reading a program or plan ends whose parts do not belong together
_BROKEN = (KeyError, IndexError, ValueError, TypeError, ZeroDivisionError, OverflowError)


def faults(program: Program, plan: MemoryPlan, demands: Sequence[Demand]) -> list[str]:
    """What makes the program or the plan unsound: nothing, for one that Ingot made.

    Looked at: that every operand lies inside its value, every value inside the arena, and that no two values that
    live at one time share bytes (a result in place of its dying operand apart).
    """
    try:
        return _faults(program, plan, demands)
    except _BROKEN as error:
        return [f"its parts do not belong together: {type(error).__name__}: {error}"]


def _faults(program: Program, plan: MemoryPlan, demands: Sequence[Demand]) -> list[str]:
    found = _program_faults(program)
    if found or len(plan.workspaces) != len(program.launches):
        return found or ["the plan is of another program"]
    outside, symbols = external_values(program), program.symbols
    spans: list[tuple[int, int, int, int, str]] = []
    lives: dict[str, tuple[int, int]] = {}
    for step, launch in enumerate(program.launches):
        packed = {v for v, o in zip(launch.reads, launch.site.inputs, strict=True) if o.constant}
        for value in filter(None, (*launch.reads, *launch.writes)):
            root = program.root(value)[0]
            if root not in outside and value not in packed:     # a packed constant lies beside the program's own
                lives[root] = (lives.get(root, (step, step))[0], step)
    for root, (first, last) in lives.items():
        if root not in plan.offsets:
            return [f"the plan has no place for '{root}'"]
        size = largest_bytes(program.types[root], symbols)
        if plan.sizes[root] < size:
            found.append(f"'{root}' needs {size} bytes, the plan gives {plan.sizes[root]}")
        spans.append((plan.offsets[root], size, first, last, root))
    for step, ((work, scratch), demand) in enumerate(zip(plan.workspaces, demands, strict=True)):
        spans.append((work, largest(demand[0], symbols), step, step, f"workspace {step}"))
        spans.append((scratch, largest(demand[1], symbols) * plan.threads, step, step, f"scratch {step}"))
    spans = sorted(s for s in spans if s[1])
    if not 0 <= plan.arena <= sum(-(-size // 256) * 256 for _, size, *_ in spans):
        found.append(f"an arena of {plan.arena} bytes is larger than all that lies in it")
    for k, (at, size, first, last, name) in enumerate(spans):
        if at < 0 or at % 64 or at + size > plan.arena:
            found.append(f"'{name}' lies outside the arena")
        for other, _, begin, end, rival in spans[k + 1:]:
            if other >= at + size:
                break
            in_place = (plan.reused.get(rival) == name and begin == last) or (
                plan.reused.get(name) == rival and first == end)
            if begin <= last and first <= end and not in_place:
                found.append(f"'{name}' and '{rival}' share bytes while both live")
    return found


def _program_faults(program: Program) -> list[str]:
    for value in program.views:
        seen = {value}
        while value in program.views:
            value = program.views[value].base
            if value in seen:
                return [f"the view '{value}' is a view of itself"]
            seen.add(value)
    known = program.types
    wanted = {*program.inputs, *program.outputs, *program.constants, *program.views}
    wanted |= {v.base for v in program.views.values()}
    wanted |= {v for x in program.launches for v in (*x.reads, *x.writes) if v}
    if missing := sorted(v for v in wanted if v not in known):
        return [f"'{missing[0]}' has no type"]
    for name, array in program.constants.items():
        type_ = known[name]
        if type_.dtype.name != "str" and (not type_.static or array.nbytes < bytes_at(type_, {})):
            return [f"the constant '{name}' is smaller than its type"]
    sizes = corners(program.symbols)
    found: list[str] = []
    done: set[tuple[str, int]] = set()
    for launch in program.launches:
        writes = tuple(filter(None, launch.writes))
        if len(launch.reads) != len(launch.site.inputs) or len(writes) != len(launch.site.outputs):
            return [f"the operands of {launch.where} are not those of its site"]
        if not {s.name for s in launch.site.symbols} <= program.symbols.keys():
            return [f"{launch.where} speaks of symbols that the program has not"]
        operands = (*launch.site.inputs, *launch.site.outputs)
        for value, operand in zip((*launch.reads, *writes), operands, strict=True):
            key = (value, id(operand))
            if key not in done:
                done.add(key)
                found += [why for c in sizes if (why := _outside(program, value, operand, c))]
    return found


def _outside(program: Program, value: str, operand: Operand, sizes: Mapping[str, int]) -> str | None:
    """Why the operand reaches beyond the value it is said to be, or None."""
    root, offset = program.root(value)
    type_ = program.types[root]
    if type_.dtype.name == "str" or (operand.constant and root in program.constants and not operand.type.static):
        return None
    shape = [evaluate(d, sizes) for d in operand.type.physical]
    steps = [evaluate(s, sizes) for s in operand.steps]
    extent = 0 if 0 in shape else 1 + sum((n - 1) * s for n, s in zip(shape, steps, strict=True))
    at = evaluate(offset, sizes)
    if min(shape, default=0) < 0 or min(steps, default=0) < 0 or at < 0:
        return f"'{value}' has a negative size"
    if extent and at + extent * operand.type.dtype.nbytes > bytes_at(type_, sizes):
        return f"'{value}' reaches beyond '{root}'"
    return None
