"""Cut a graph into sites: each main op takes along the pointwise ops that alone read its result.

A region is offered to the target's tactics longest first; the first form some tactic will serve is taken, so a
tactic that declines an epilogue costs fusion, never correctness. Ops that only rename memory become views.
"""
from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace

from ingot.graph import BF16, F16, F32, Dim, Graph, Node, TensorType, dense_strides
from ingot.graph.dim import Expr, symbols_of
from ingot.kernels import Operand, Site, Step, able
from ingot.lower.program import Launch, Program, View
from ingot.ops import OPS
from ingot.target import Target

_RENAMES = frozenset({"Reshape", "Squeeze", "Unsqueeze", "Flatten", "Identity"})
_REGION = 24        # the most steps a region may have


def lower(graph: Graph, target: Target, *, chains: bool = True) -> Program:
    """The program of a graph for a target. What no tactic serves becomes a launch with `native=False`.

    Without `chains` every convolution is a site of its own.
    """
    return _Lowering(graph, target, chains and target.kind != "cuda").program()


class _Lowering:
    """The state of one lowering; lives inside `lower`."""

    def __init__(self, graph: Graph, target: Target, chains: bool) -> None:
        self.graph, self.target, self.chains = graph, target, chains
        self.types: dict[str, TensorType] = dict(graph.types)
        self.launches: list[Launch] = []
        self.views: dict[str, View] = {}
        self.strides: dict[str, tuple[Dim, ...]] = {}       # of values that are strided views
        self.sources: dict[str, tuple[Step, str]] = {}      # strided view -> how to make it dense
        self.dense: dict[str, str] = {}                     # strided view -> its dense copy
        self.ready: set[str] = {*graph.inputs, *graph.constants}
        self.done: set[str] = set()                         # outputs of nodes already lowered
        self.order = {n.output: i for i, n in enumerate(graph.nodes)}
        self.writer: dict[str, int] = {}                    # value -> the launch that writes it

    def program(self) -> Program:
        for node in self.graph.nodes:
            if node.output not in self.done:
                self._lower(node)
        self._settle_outputs()
        g = self.graph
        read = {v for x in self.launches for v in x.reads} | set(g.outputs)
        read |= {w.base for w in self.views.values()}
        constants = {k: v for k, v in g.constants.items() if k in read}
        used = {*g.inputs, *g.outputs, *constants, *self.views, *read, *(v for x in self.launches for v in x.writes)}
        types = {k: t for k, t in self.types.items() if k in used}
        program = Program(g.inputs, g.outputs, tuple(self.launches), self.views, constants, types, g.symbols)
        return _with_alignment(program) if self.target.kind == "cuda" else program

    # --- one node -----------------------------------------------------------------------------------------------

    def _lower(self, node: Node) -> None:
        if not (self._as_rename(node) or self._as_slices(node) or self._as_concat(node) or self._as_chain(node)):
            self._as_region(node)

    def _finish(self, nodes: Iterable[Node]) -> None:
        for node in nodes:
            outputs = [o for o in node.outputs if o]
            self.done.update(outputs)
            self.ready.update(outputs)

    def _as_rename(self, node: Node) -> bool:
        """Ops that leave every byte where it is."""
        x, y = node.inputs[0] if node.inputs else "", node.output
        if node.op == "Reorder":
            if not _same_bytes(self.types[x], self.types[y]):
                return False
        elif node.op not in _RENAMES or self.types[x].layout or self.types[y].layout:
            return False
        self.views[y] = View(self._dense(x))
        self._finish([node])
        return True

    def _as_slices(self, node: Node) -> bool:
        """Split and unit-step Slice: contiguous pieces are views; others are strided views, made dense on demand."""
        pieces = self._pieces(node)
        if pieces is None:
            return False
        if any(_inside_block(self.types[node.inputs[0]], axis, start) for _, axis, start in pieces):
            return False
        x = self._dense(node.inputs[0])
        base = self.types[x]
        steps = dense_strides(base.physical)
        for value, axis, start in pieces:
            shape = self.types[value].shape
            self.views[value] = View(x, _in_units(base, axis, start) * steps[axis] * base.dtype.nbytes)
            if any(d != 1 for d in shape[:axis]):
                end = start + shape[axis]
                attrs = (("axes", (axis,)), ("ends", (end,)), ("starts", (start,)))
                self.strides[value] = steps
                self.sources[value] = Step("Slice", (0,), attrs, (self.types[value],)), x
        self._finish([node])
        return True

    def _pieces(self, node: Node) -> list[tuple[str, int, Dim]] | None:
        """(output, axis, start) of each piece of a Split or one-axis Slice, if it is one."""
        if node.op not in ("Split", "Slice") or _channels_last(self.types[node.inputs[0]]):
            return None
        shape = self.types[node.inputs[0]].shape
        if node.op == "Split":
            axis = int(node.attrs.get("axis", 0)) % len(shape)  # type: ignore[call-overload]
            starts: list[tuple[str, int, Dim]] = []
            at: Dim = 0
            for value in node.outputs:
                if value:
                    starts.append((value, axis, at))
                    at = at + self.types[value].shape[axis]
            return starts if all(node.outputs) else None
        begins, steps = node.attrs.get("starts"), node.attrs.get("steps") or ()
        axes = node.attrs.get("axes")
        if not isinstance(begins, tuple) or len(begins) != 1 or any(s != 1 for s in steps):  # type: ignore[attr-defined]
            return None
        axis = int(axes[0]) % len(shape) if isinstance(axes, tuple) else 0
        start, size = begins[0], shape[axis]
        if isinstance(start, int) and isinstance(size, int):
            start = max(0, min(size, start + size if start < 0 else start))
        elif start != 0 and (not isinstance(start, int) or start < 0
                             or size - start != self.types[node.output].shape[axis]):
            return None
        return [(node.output, axis, start)]

    def _as_concat(self, node: Node) -> bool:
        """Concat: parts are written where they belong, by their producers when those can, else copied there."""
        if node.op != "Concat" or _channels_last(self.types[node.output]):
            return False
        out, type_ = node.output, self.types[node.output]
        axis = int(node.attrs["axis"]) % type_.rank  # type: ignore[call-overload]
        contiguous = all(d == 1 for d in type_.shape[:axis])
        steps = dense_strides(type_.physical)
        at: Dim = 0
        parts: list[tuple[str, Dim]] = []
        for value in node.inputs:
            if _inside_block(type_, axis, at):
                return False
            parts.append((value, _in_units(type_, axis, at) * steps[axis] * type_.dtype.nbytes))
            at = at + self.types[value].shape[axis]
        rows = None if contiguous else steps
        if rows and not type_.layout and not any(self._redirect(v, rows, node.inputs.count(v)) for v in node.inputs):
            return False
        start: Dim = 0
        for value, offset in parts:
            size = self.types[value].shape[axis]
            # one after another: what writes this part may read the one before
            if (plan := self._redirect(value, rows, node.inputs.count(value))) is None:
                self._copied(value, out, offset, rows, node.origin)
            else:
                root, rewritten = plan
                for index, launch in rewritten.items():
                    self.launches[index] = launch
                if rows:
                    attrs = (("axes", (axis,)), ("ends", (start + size,)), ("starts", (start,)))
                    self.strides[root] = steps
                    self.sources[root] = Step("Slice", (0,), attrs, (self.types[root],)), out
                self.views[root] = View(out, offset)
            start = start + size
        self._finish([node])
        return True

    def _copied(self, value: str, out: str, offset: Dim, steps: tuple[Dim, ...] | None,
                origin: tuple[str, ...]) -> None:
        """Copy a value to its place in a larger buffer, from where it lies if a tactic can."""
        part, type_ = f"{out}:{len(self.views)}", self.types[value]
        self.types[part] = type_
        self.views[part] = View(out, offset)
        step = Step("Identity", (0,), (), (type_,))
        if value in self.strides:
            site = Site((step,), (Operand(type_, self.strides[value]),), (Operand(type_, steps),))
            if not able(self._with_symbols(site), self.target)[0]:
                value = self._dense(value)
        self._launch((step,), (value,), (part,), origin, out_strides=steps)

    def _redirect(self, value: str, steps: tuple[Dim, ...] | None, times: int) -> tuple[str, dict[int, Launch]] | None:
        """What lies where `value` lies and can be written straight into a larger buffer, with the launches changed.

        Where the buffer has rows of other things between (`steps`), whoever reads the value already must be able to
        read it from there.
        """
        root = value
        while root in self.views and self.views[root].offset == 0 and root not in self.strides and (
                self.types[self.views[root].base].nbytes == self.types[root].nbytes):
            root = self.views[root].base
        if root in self.views or root not in self.writer or times > 1 or root in self.graph.outputs:
            return None
        if steps is None:
            return root, {}
        if root != value or any(w.base == root for w in self.views.values()):
            return None
        changed: dict[int, Launch] = {}
        for index, launch in enumerate(self.launches):
            if value not in (*launch.reads, *launch.writes):
                continue
            if not launch.native:
                return None
            outputs = tuple(replace(o, strides=steps) if w == value else o
                            for o, w in zip(launch.site.outputs, filter(None, launch.writes), strict=True))
            inputs = tuple(replace(o, strides=steps) if r == value else o
                           for o, r in zip(launch.site.inputs, launch.reads, strict=True))
            site = self._with_symbols(replace(launch.site, inputs=inputs, outputs=outputs))
            if not able(site, self.target)[0]:
                return None
            changed[index] = replace(launch, site=site)
        return root, changed

    # --- regions ------------------------------------------------------------------------------------------------

    def _as_chain(self, node: Node) -> bool:
        """A convolution and the one or two that alone read its result, where a tactic computes them in one kernel."""
        if node.op != "Conv" or not self.chains:
            return False
        nodes = [node]
        ends: list[int] = []
        while len(ends) < 2 and (reader := self._only_reader(nodes[-1])) is not None:
            if reader.op == "Conv":
                ends.append(len(nodes))
            nodes.append(reader)
        for end in reversed(ends):
            grown = self._grow(nodes[end])
            for count in range(len(grown), 0, -1):
                part = [*nodes[:end], *grown[:count]]
                if not self._closed(part):
                    continue
                site, reads = self._site(part, strided=True)
                site = replace(site, main=end)
                if able(site, self.target)[0]:
                    self._emit(site, reads, part)
                    return True
        return False

    def _only_reader(self, node: Node) -> Node | None:
        """The node that alone reads a result, and nothing else but constants; a convolution or a pointwise op."""
        value = node.output
        readers = self.graph.readers.get(value, ())
        if len(readers) != 1 or value in self.graph.outputs:
            return None
        reader = readers[0]
        fits = reader.op == "Conv" or (reader.op in OPS and OPS[reader.op].pointwise)
        others = reader.inputs[1:] if reader.op == "Conv" else [i for i in reader.inputs if i != value]
        alone = all(not i or i in self.graph.constants for i in others)
        return reader if fits and alone and len(reader.outputs) == 1 and reader.inputs[0] == value else None

    def _as_region(self, node: Node) -> None:
        nodes = self._grow(node)
        for count in range(len(nodes), 0, -1):
            part = nodes[:count]
            if not self._closed(part) or (count > 1 and self._widens(part[-1])):
                continue
            for strided in (True, False):
                if not strided and not any(i in self.strides for n in part for i in n.inputs):
                    continue
                site, reads = self._site(part, strided=strided)
                if able(site, self.target)[0]:
                    if not strided:
                        site, reads = self._site(part, strided=False, materialise=True)
                    self._emit(site, reads, part)
                    return
        site, reads = self._site([node], strided=False, materialise=True)
        willing, reasons = able(site, self.target)
        if not willing:                 # an operand given twice as two: some tactics take them by their places
            apart, twice = self._site([node], strided=False, materialise=True, repeated=True)
            if len(twice) > len(reads) and able(apart, self.target)[0]:
                self._emit(apart, twice, [node])
                return
        self._emit(site, reads, [node], reasons)

    def _widens(self, node: Node) -> bool:
        """Whether a region would end by making its result wider for a GPU: the reader does that in registers."""
        return (self.target.kind == "cuda" and node.op == "Cast" and self.types[node.output].dtype == F32
                and self.types[node.inputs[0]].dtype in (F16, BF16) and node.output not in self.graph.outputs)

    def _emit(self, site: Site, reads: tuple[str, ...], nodes: Sequence[Node],
              reasons: Sequence[str] | None = None) -> None:
        origin = tuple(dict.fromkeys(o for n in nodes for o in n.origin))
        writes = tuple(filter(None, nodes[-1].outputs))
        launch = Launch(site, reads, writes, origin, reasons is None, tuple(reasons or ()))
        self.writer.update((w, len(self.launches)) for w in writes)
        self.launches.append(launch)
        self._finish(nodes)

    def _grow(self, node: Node) -> list[Node]:
        """The node and, in order, the pointwise nodes that could be computed while its result is in registers."""
        if len(node.outputs) != 1:
            return [node]
        shape = self.types[node.output].shape
        region, inside = [node], {node.output}
        frontier = [node.output]
        while frontier and len(region) < _REGION:
            value = frontier.pop(0)
            for reader in sorted(self.graph.readers.get(value, ()), key=lambda n: self.order[n.output]):
                if reader.output in inside or reader.output in self.done:
                    continue
                extra = self._joinable(reader, shape, inside, 3)
                if extra is None or len(region) + len(extra) > _REGION:
                    continue
                region += extra
                inside.update(n.output for n in extra)
                frontier += [n.output for n in extra]
        return sorted(region, key=lambda n: self.order[n.output])

    def _joinable(self, node: Node, shape: tuple[Dim, ...], inside: set[str], depth: int) -> list[Node] | None:
        """The node, preceded by pointwise producers pulled in with it; None if it cannot join the region."""
        op = OPS.get(node.op)
        if op is None or not op.pointwise or len(node.outputs) != 1 or self.types[node.output].shape != shape:
            return None
        pulled: list[Node] = []
        for value in filter(None, node.inputs):
            if value in inside or value in self.ready or any(value == n.output for n in pulled):
                continue
            maker = self.graph.producers.get(value)
            if maker is None or depth == 0 or self.graph.uses[value] != 1:
                return None
            found = self._joinable(maker, shape, inside | {n.output for n in pulled}, depth - 1)
            if found is None:
                return None
            pulled += [n for n in found if n not in pulled]
        return [*pulled, node]

    def _closed(self, nodes: Sequence[Node]) -> bool:
        """Every result but the last is read inside only, and everything read is inside or ready, in order."""
        made: set[str] = set()
        for node in nodes:
            if any(i and i not in made and i not in self.ready for i in node.inputs):
                return False
            made.update(node.outputs)
        outputs = set(self.graph.outputs)
        members = {n.output for n in nodes}
        return all(value not in outputs and all(r.output in members for r in self.graph.readers.get(value, ()))
                   for node in nodes[:-1] for value in node.outputs)

    def _site(self, nodes: Sequence[Node], *, strided: bool, materialise: bool = False,
              repeated: bool = False) -> tuple[Site, tuple[str, ...]]:
        reads: list[str] = []
        made: dict[str, int] = {}
        steps: list[Step] = []
        for node in nodes:
            slots: list[int | None] = []
            for value in node.inputs:
                if not value:
                    slots.append(None)
                elif value in made:
                    slots.append(~made[value])
                else:
                    if value in self.strides and not strided and materialise:
                        value = self._dense(value)
                    if value not in reads or repeated:
                        slots.append(len(reads))
                        reads.append(value)
                    else:
                        slots.append(reads.index(value))
            made[node.output] = len(steps)
            attrs = tuple(sorted(node.attrs.items()))
            steps.append(Step(node.op, tuple(slots), attrs, tuple(self.types[o] for o in node.outputs if o),
                              tuple(k for k, o in enumerate(node.outputs) if not o)))
        outputs = tuple(Operand(self.types[o]) for o in nodes[-1].outputs if o)
        inputs = tuple(Operand(self.types[v], self.strides.get(v) if strided else None, v in self.graph.constants)
                       for v in reads)
        return self._with_symbols(Site(tuple(steps), inputs, outputs)), tuple(reads)

    def _with_symbols(self, site: Site) -> Site:
        used: set[str] = set()
        for operand in (*site.inputs, *site.outputs):
            used |= operand.type.symbols
            used |= set().union(*(symbols_of(d) for d in operand.strides or ()))
        for step in site.steps:
            for type_ in step.types:
                used |= type_.symbols
            used |= _symbols_in([v for _, v in step.attrs])
        return replace(site, symbols=tuple(s for s in self.graph.symbols.values() if s.name in used))

    def _dense(self, value: str) -> str:
        """The value itself, or a dense copy of a strided view (made now, once)."""
        if value not in self.strides:
            return value
        if value not in self.dense:
            step, base = self.sources[value]
            made = f"{value}:dense"
            self.types[made] = self.types[value]
            self._launch((step,), (base,), (made,), ())
            self.dense[value] = made
        return self.dense[value]

    def _launch(self, steps: tuple[Step, ...], reads: tuple[str, ...], writes: tuple[str, ...],
                origin: tuple[str, ...], out_strides: tuple[Dim, ...] | None = None) -> None:
        inputs = tuple(Operand(self.types[v], self.strides.get(v), v in self.graph.constants) for v in reads)
        outputs = tuple(Operand(self.types[v], out_strides) for v in writes)
        site = self._with_symbols(Site(steps, inputs, outputs))
        willing, reasons = able(site, self.target)
        self.writer.update((w, len(self.launches)) for w in writes)
        self.launches.append(Launch(site, reads, writes, origin, bool(willing), () if willing else tuple(reasons)))

    # --- outputs ------------------------------------------------------------------------------------------------

    def _settle_outputs(self) -> None:
        """Every graph output must own its buffer: swap roles with its root when it covers it all, else copy."""
        taken = set(self.graph.outputs)
        for out in self.graph.outputs:
            if out not in self.views and out not in self.graph.inputs and out not in self.graph.constants:
                continue
            root, offset = out, 0
            while root in self.views:
                root, offset = self.views[root].base, offset + self.views[root].offset  # type: ignore[assignment]
            free = root in self.writer and root not in taken and offset == 0 and out not in self.strides
            if free and self.types[root].nbytes == self.types[out].nbytes:
                del self.views[out]
                self.views[root] = View(out)
                taken.add(root)
            elif out in self.views:
                self._copy_out(out)

    def _copy_out(self, out: str) -> None:
        hidden = f"{out}:view"
        self.types[hidden] = self.types[out]
        self.views[hidden] = self.views.pop(out)
        for name, view in list(self.views.items()):
            if view.base == out:
                self.views[name] = View(hidden, view.offset)
        if out in self.strides:
            self.strides[hidden] = self.strides.pop(out)
            step, base = self.sources[out]
            self._launch((step,), (base,), (out,), ())
        else:
            self._launch((Step("Identity", (0,), (), (self.types[out],)),), (hidden,), (out,), ())
        self.launches[:-1] = [self._renamed(x, out, hidden) for x in self.launches[:-1]]

    @staticmethod
    def _renamed(launch: Launch, old: str, new: str) -> Launch:
        reads = tuple(new if v == old else v for v in launch.reads)
        return launch if reads == launch.reads else replace(launch, reads=reads)


def _with_alignment(program: Program) -> Program:
    """The program with every operand marked that may start at no multiple of 16 bytes: a GPU reads those otherwise."""
    def marked(operand: Operand, value: str) -> Operand:
        _, offset = program.root(value)
        factors = (offset,) if isinstance(offset, int) else tuple(f for _, f in offset.terms)
        return operand if all(f % 16 == 0 for f in factors) else replace(operand, aligned=False)

    launches = []
    for x in program.launches:
        inputs = tuple(marked(o, v) for o, v in zip(x.site.inputs, x.reads, strict=True))
        outputs = tuple(marked(o, v) for o, v in zip(x.site.outputs, x.writes, strict=True))
        launches.append(replace(x, site=replace(x.site, inputs=inputs, outputs=outputs)))
    return replace(program, launches=tuple(launches))


def _channels_last(type_: TensorType) -> bool:
    return bool(type_.layout) and not type_.block


def _inside_block(type_: TensorType, axis: int, at: Dim) -> bool:
    """Whether a place along the channels lies inside a block: what begins there is no view."""
    return bool(type_.block) and axis == 1 and at % type_.block != 0


def _in_units(type_: TensorType, axis: int, at: Dim) -> Dim:
    """A place along an axis in units of the physical axis: channels count in blocks, and parts begin with one."""
    return at // type_.block if type_.block and axis == 1 else at


def _same_bytes(a: TensorType, b: TensorType) -> bool:
    """Whether two layouts of one tensor lie alike in memory."""
    if a.layout == b.layout:
        return True
    blocked = a if a.layout else b
    channels, spatial = blocked.shape[1], blocked.shape[2:]
    if {a.layout, b.layout} == {"", "nhwc"}:
        return channels == 1 or all(d == 1 for d in spatial)
    if not blocked.block:
        return False
    return isinstance(channels, int) and channels % blocked.block == 0 and all(d == 1 for d in spatial) and not (
        a.layout and b.layout)


def _symbols_in(value: object) -> set[str]:
    if isinstance(value, Expr):
        return set(value.symbols)
    if isinstance(value, (tuple, list)):
        return set().union(*map(_symbols_in, value)) if value else set()
    return set()


def site_of(graph: Graph, node: Node, constants: Mapping[str, object] | None = None) -> Site:
    """The site of one node alone, dense operands: what tests hand to tactics."""
    known = graph.constants if constants is None else constants
    reads = list(dict.fromkeys(i for i in node.inputs if i))
    step = Step(node.op, tuple(reads.index(i) if i else None for i in node.inputs), tuple(sorted(node.attrs.items())),
                tuple(graph.types[o] for o in node.outputs if o))
    return Site((step,), tuple(Operand(graph.types[v], None, v in known) for v in reads),
                tuple(Operand(graph.types[o]) for o in node.outputs if o), tuple(graph.symbols.values()))


__all__ = ["lower", "site_of"]
