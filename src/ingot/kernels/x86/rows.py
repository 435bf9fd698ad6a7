"""Kernels that work row by row: softmax and normalisations, with pointwise steps before and after.

A row is the stretch of elements that belongs together, contiguous in memory. Its steps before the main op are
computed once; what has to be read again lies in the row of the result meanwhile (in L1).
"""
from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

from ingot.graph import F32, F64, Dim
from ingot.kernels.codegen import Code, Int, Value, element_of
from ingot.kernels.codegen.steps import declines_steps, run_steps
from ingot.kernels.tactic import Site
from ingot.kernels.x86.nest import Side, View, advance, collapsed, load_lanes
from ingot.kernels.x86.pointwise import broadcast_view

UNROLL = 4
_BLOCK = 8192       # elements summed into one set of accumulators before these go into the total

Term = Callable[[Int, Value | None], Value]
Combine = Callable[[Value, Value], Value]


def each_vector(code: Code, length: Int, lanes: int, body: Callable[[Sequence[Int], Value | None], None],
                unroll: int = UNROLL, start: Int = 0) -> None:
    """Cut start..length into vectors: body(places, mask) with `unroll` places at a time, then one, the last masked."""
    if isinstance(length, int) and isinstance(start, int):
        unroll = max(1, min(unroll, (length - start) // lanes))
    wide = lanes * unroll
    whole = code.add(start, code.mul(code.div(code.sub(length, start), wide), wide))
    if not (isinstance(whole, int) and whole == start):
        with code.loop(start, whole, wide) as i:
            body([code.add(i, u * lanes) for u in range(unroll)], None)
    if isinstance(length, int) and isinstance(whole, int):
        for at in range(whole, length, lanes):
            body([at], code.mask(length - at, lanes))
        return
    with code.loop(whole, length, lanes) as i:
        body([i], None if lanes == 1 else code.mask(code.sub(length, i), lanes))


def accumulate(code: Code, length: Int, initial: Value, term: Term, combine: Combine, unroll: int = UNROLL) -> Value:
    """Combine term(place, mask) over a row into one vector; term makes masked-off lanes neutral. For max, min, ..."""
    held = [code.variable(initial) for _ in range(unroll)]

    def body(places: Sequence[Int], mask: Value | None) -> None:
        for place, acc in zip(places, held, strict=False):
            acc.set(combine(acc.get(), term(place, mask)))
    each_vector(code, length, initial.lanes, body, unroll)
    values = [v.get() for v in held]
    while len(values) > 1:
        values = [combine(a, b) for a, b in zip(values[::2], values[1::2], strict=True)]
    return values[0]


def total(code: Code, length: Int, element: str, lanes: int, term: Term, unroll: int = UNROLL) -> Value:
    """The sum of term(place, mask) over a row, in one vector. Long rows are summed in blocks, for accuracy."""
    zero = code.zero(element, lanes)
    if isinstance(length, int) and length <= 2 * _BLOCK:
        return accumulate(code, length, zero, term, code.fadd, unroll)
    grand = code.variable(zero)
    with code.loop(0, length, _BLOCK) as start:
        part = accumulate(code, code.min(_BLOCK, code.sub(length, start)), zero,
                          lambda at, mask: term(code.add(start, at), mask), code.fadd, unroll)
        grand.set(code.fadd(grand.get(), part))
    return grand.get()


@dataclass
class Row:
    """One row at work: its operands moved to its start."""

    code: Code
    rows: Rows
    sides: Mapping[int, Side]
    out: Side
    length: Int
    lanes: int
    _splats: dict[int, Value] = field(default_factory=dict)

    def load(self, at: Int, mask: Value | None) -> Callable[[int], Value]:
        """What gives the lanes of each of the site's operands at a place in the row."""
        def lanes_of(i: int) -> Value:
            side = self.sides[i]
            stride = side.view.strides[-1]
            if stride == 0:
                return self._splats[i]
            moved = Side(self.code.offset(side.pointer, at, side.element), side.element, side.view)
            return load_lanes(self.code, moved, stride, self.lanes, mask)
        return lanes_of

    def hold_splats(self) -> None:
        """Load what is the same along the row."""
        for i, side in self.sides.items():
            if side.view.strides[-1] == 0:
                self._splats[i] = load_lanes(self.code, side, 0, self.lanes, None)

    def input(self, at: Int, mask: Value | None) -> Value:
        """The main op's first operand: an operand of the site, or what the steps before it make."""
        site, load = self.rows.site, self.load(at, mask)
        source = site.step.inputs[0]
        if source is not None and source >= 0:
            return load(source)
        results: dict[int, Value] = {}
        run_steps(self.code, site, 0, results, load, stop=site.main)
        return results[~source]     # type: ignore[operator]

    def place(self, at: Int) -> Value:
        """The address of the result at a place in the row."""
        return self.code.offset(self.out.pointer, at, self.out.element)

    def store(self, at: Int, mask: Value | None, value: Value) -> None:
        """Store as it is: for what is kept in the row of the result meanwhile."""
        self.code.store(value, self.place(at), mask)

    def kept(self, at: Int, mask: Value | None) -> Value:
        """What was stored at a place."""
        return self.code.load(self.place(at), self.out.element, self.lanes, mask)

    def finish(self, at: Int, mask: Value | None, value: Value) -> None:
        """Run the steps after the main op on its result, and store."""
        site = self.rows.site
        done = run_steps(self.code, site, site.main + 1, {site.main: value}, self.load(at, mask))
        self.store(at, mask, done)

    def masked(self, mask: Value | None, value: Value, other: float) -> Value:
        """The value, with `other` in the masked-off lanes."""
        if mask is None:
            return value
        return self.code.select(mask, value, self.code.constant(other, value.element, value.lanes))


@dataclass(frozen=True)
class Rows:
    """The rows of a site whose main op works along the dimensions from `axis` on."""

    site: Site
    outer: tuple[Dim, ...]
    length: Dim
    views: tuple[View, ...]         # per operand, then the result: over the outer dimensions, then the row

    @property
    def element(self) -> str:
        return element_of(self.site.output.dtype)

    @property
    def prologue(self) -> bool:
        """Whether the main op's first operand is computed, not read."""
        source = self.site.step.inputs[0]
        return source is None or source < 0

    def lanes(self, code: Code) -> int:
        return code.isa.lanes * 4 // (8 if self.element == "double" else 4)

    @contextmanager
    def share(self, code: Code) -> Iterator[Row]:
        """Loop over this thread's rows."""
        dims = [code.dim(d) for d in self.outer]
        total_rows: Int = 1
        for d in dims:
            total_rows = code.mul(total_rows, d)
        with code.share(total_rows) as index:
            places = code.unflatten(index, dims) if dims else []
            sides = []
            for i, view in enumerate(self.views):
                last = i == len(self.site.inputs)
                type_ = self.site.output if last else self.site.inputs[i].type
                side = Side(code.buffer(i), element_of(type_.dtype), view)
                sides.append(advance(code, side, list(zip(places, view.strides, strict=False))))
            row = Row(code, self, dict(enumerate(sides[:-1])), sides[-1], code.dim(self.length), self.lanes(code))
            row.hold_splats()
            yield row


def rows_of(site: Site, axis: int) -> Rows | str:
    """The rows of a site, or why it has none."""
    out = site.output
    if len(site.outputs) != 1:
        return "more than one result is asked for"
    if 0 in out.shape:
        return "there are no elements"
    if out.layout or any(o.type.layout for o in site.inputs):
        return "rows need the plain layout"
    main = site.step.types[0]
    if out.dtype not in (F32, F64) or main.dtype != out.dtype or main.shape != out.shape:
        return f"rows of {out.dtype}"
    around = (*site.steps[:site.main], *site.epilogue)
    if why := declines_steps(site, around):
        return why
    if any(s.types[0].shape != out.shape for s in around):
        return "a step has another shape than the result"
    views = []
    for operand in site.inputs:
        view = broadcast_view(operand, out)
        if isinstance(view, str):
            return view
        views.append(view)
    views.append(View(site.outputs[0].steps))
    lead, outer_views = collapsed(out.shape[:axis], [View(v.strides[:axis]) for v in views])
    tail, row_views = collapsed(out.shape[axis:], [View(v.strides[axis:]) for v in views])
    if len(tail) > 1:
        return "a row does not lie in one piece"
    length = tail[0] if tail else 1
    joined = [View((*a.strides, *(b.strides or (1 if b is row_views[-1] else 0,))))
              for a, b in zip(outer_views, row_views, strict=True)]
    if any(v.strides[-1] not in (0, 1) for v in joined) or joined[-1].strides[-1] != 1:
        return "a row does not lie in one piece"
    return Rows(site, tuple(lead), length, tuple(joined))
