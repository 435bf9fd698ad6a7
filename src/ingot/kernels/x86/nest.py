"""Loop nests over strided operands: what pointwise kernels, copies and fills are made of.

A nest is a list of dimensions and, per operand, its strides over them. Neighbouring dimensions that every operand
walks alike become one; the last one is cut into vectors.
"""
from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from ingot.graph import Dim
from ingot.kernels.codegen import Code, Int, Value, vector

CHUNK = 2048        # elements per task: small enough to share out, large enough to amortise a task's divisions
ROW = 1024          # static rows up to this long are walked whole

Compute = Callable[[Callable[[int], Value]], Value]


@dataclass(frozen=True)
class View:
    """How an operand lies over a nest's dimensions: strides and the first element's place, in elements."""

    strides: tuple[Dim, ...]
    offset: Dim = 0


@dataclass(frozen=True)
class Side:
    """An operand at work in a nest."""

    pointer: Value
    element: str
    view: View


def collapsed(dims: Sequence[Dim], views: Sequence[View]) -> tuple[list[Dim], list[View]]:
    """The same nest in as few dimensions as possible: without those of size 1, neighbours merged where all agree."""
    sizes: list[Dim] = []
    strides: list[list[Dim]] = [[] for _ in views]
    for axis, size in enumerate(dims):
        if size == 1:
            continue
        here = [v.strides[axis] for v in views]
        if sizes and all(s[-1] == h * size for s, h in zip(strides, here, strict=True)):
            sizes[-1] = sizes[-1] * size
            for s, h in zip(strides, here, strict=True):
                s[-1] = h
        else:
            sizes.append(size)
            for s, h in zip(strides, here, strict=True):
                s.append(h)
    return sizes, [View(tuple(s), v.offset) for s, v in zip(strides, views, strict=True)]


def advance(code: Code, side: Side, steps: Sequence[tuple[Int, Dim]]) -> Side:
    """The operand moved along: the sum of index * stride over the steps."""
    at: Int = 0
    for index, stride in steps:
        at = code.add(at, code.mul(index, code.dim(stride)))
    return Side(code.offset(side.pointer, at, side.element), side.element, side.view)


def power_of_two(n: int) -> int:
    """The least power of two not below n."""
    return 1 << max(0, n - 1).bit_length()


_BYTES = {"double": 8, "i64": 8, "float": 4, "i32": 4, "half": 2, "bfloat": 2, "i16": 2, "i8": 1}


def nbytes_of(element: str) -> int:
    """Bytes of an LLVM element type."""
    return _BYTES[element]


def load_lanes(code: Code, side: Side, stride: Dim, lanes: int, mask: Value | None) -> Value:
    """`lanes` elements from the operand's place on, `stride` apart."""
    if stride == 0:
        return code.splat(code.load(side.pointer, side.element), lanes)
    if stride == 1 or lanes == 1:
        return code.load(side.pointer, side.element, lanes, mask)
    iota = Value(vector("i64", lanes), "<" + ", ".join(f"i64 {i}" for i in range(lanes)) + ">")
    if isinstance(stride, int):
        places = Value(iota.type, "<" + ", ".join(f"i64 {i * stride}" for i in range(lanes)) + ">")
    else:
        places = code.binary("mul", iota, code.splat(code.value(code.dim(stride)), lanes))
    return code.gather(side.pointer, places, side.element, mask)


class Nest:
    """One nest at work: emits the loops when called."""

    def __init__(self, code: Code, dims: Sequence[Dim], out: Side, ins: Mapping[int, Side], unroll: int = 4) -> None:
        self.code, self.unroll = code, unroll
        keys = list(ins)
        sizes, views = collapsed(dims, [out.view, *(ins[k].view for k in keys)])
        if not sizes:
            sizes, views = [1], [View((0,), v.offset) for v in views]
        self.dims = sizes
        self.out = Side(code.offset(out.pointer, code.dim(views[0].offset), out.element), out.element, views[0])
        self.ins = {k: Side(code.offset(ins[k].pointer, code.dim(v.offset), ins[k].element), ins[k].element, v)
                    for k, v in zip(keys, views[1:], strict=True)}
        self.lanes = self._lanes()

    @property
    def width(self) -> int:
        """Lanes of the vectors that are computed on: a register's, or fewer where the last dimension is short."""
        last = self.dims[-1]
        return power_of_two(last) if self._is_short() and isinstance(last, int) else self.lanes

    def _is_short(self) -> bool:
        return self.lanes > 1 and isinstance(self.dims[-1], int) and self.dims[-1] <= self.lanes

    def _lanes(self) -> int:
        sides = [self.out, *self.ins.values()]
        if self.dims == [1] or self.out.view.strides[-1] != 1:
            return 1
        odd = [s for s in self.ins.values() if s.view.strides[-1] not in (0, 1)]
        if any(_BYTES[s.element] < 4 for s in odd):
            return 1
        return self.code.isa.lanes * 4 // min(4, max(_BYTES[s.element] for s in sides))

    def __call__(self, compute: Compute) -> None:
        """Emit the nest: out = compute(load), with load(k) giving the lanes of operand k."""
        code, last = self.code, self.dims[-1]
        if 0 in self.dims:
            return
        if isinstance(last, int) and last <= ROW:
            whole = self.dims if len(self.dims) > 1 else [1, last]
            middle, chunk = whole[-2], max(1, CHUNK // max(last, 1))
            short = self._is_short()
            with self._task(whole[:-2], middle, chunk, -2) as (sides, out, count):
                if short:
                    self._column(sides, out, count, last, compute)
                else:
                    fixed = self._splats(sides, (-2, -1))
                    with code.loop(0, count) as j:
                        self._row(self._moved(sides, j, -2), self._move(out, j, -2), last, compute, fixed)
        else:
            with self._task(self.dims[:-1], last, CHUNK, -1) as (sides, out, count):
                self._row(sides, out, count, compute, {})

    # --- loops ------------------------------------------------------------------------------------------------------

    def _task(self, outer: Sequence[Dim], inner: Dim, chunk: int, axis: int) -> _Task:
        return _Task(self, outer, inner, chunk, axis)

    def stride(self, side: Side, axis: int) -> Dim:
        """The operand's stride along a dimension counted from the last; 0 past the first."""
        strides = side.view.strides
        return strides[axis] if -axis <= len(strides) else 0

    def _move(self, side: Side, index: Int, axis: int) -> Side:
        return advance(self.code, side, [(index, self.stride(side, axis))])

    def _moved(self, sides: Mapping[int, Side], index: Int, axis: int) -> dict[int, Side]:
        return {k: self._move(s, index, axis) for k, s in sides.items()}

    def _splats(self, sides: Mapping[int, Side], axes: Sequence[int]) -> dict[int, Value]:
        """The operands that stand still along the axes, loaded."""
        return {k: load_lanes(self.code, s, 0, self.lanes, None) for k, s in sides.items()
                if all(self.stride(s, a) == 0 for a in axes)}

    def _lanes_of(self, sides: Mapping[int, Side], fixed: Mapping[int, Value], offset: Int, lanes: int,
                  mask: Value | None) -> Callable[[int], Value]:
        def load(k: int) -> Value:
            if k in fixed:
                return fixed[k]
            return load_lanes(self.code, self._move(sides[k], offset, -1), self.stride(sides[k], -1), lanes, mask)
        return load

    def _row(self, sides: Mapping[int, Side], out: Side, count: Int, compute: Compute,
             fixed: Mapping[int, Value]) -> None:
        """The last dimension, `count` elements of it: whole vectors several at a time, then the rest under masks."""
        code, lanes = self.code, self.lanes
        held = {**self._splats({k: s for k, s in sides.items() if k not in fixed}, (-1,)), **fixed}
        unroll = self.unroll if not isinstance(count, int) else max(1, min(self.unroll, count // lanes))
        wide = lanes * unroll
        whole = code.mul(code.div(count, wide), wide)
        if not (isinstance(whole, int) and whole == 0):
            with code.loop(0, whole, wide) as i:
                made = [compute(self._lanes_of(sides, held, code.add(i, u * lanes), lanes, None))
                        for u in range(unroll)]
                for u, value in enumerate(made):
                    code.store(value, self._move(out, code.add(i, u * lanes), -1).pointer)
        if isinstance(count, int) and isinstance(whole, int):
            if count == whole:
                return
            if count - whole <= lanes:
                self._vector(sides, out, held, whole, code.mask(count - whole, lanes), compute)
                return
        with code.loop(whole, count, lanes) as i:
            mask = None if lanes == 1 else code.mask(code.sub(count, i), lanes)
            self._vector(sides, out, held, i, mask, compute)

    def _vector(self, sides: Mapping[int, Side], out: Side, held: Mapping[int, Value], at: Int, mask: Value | None,
                compute: Compute) -> None:
        value = compute(self._lanes_of(sides, held, at, self.lanes, mask))
        self.code.store(value, self._move(out, at, -1).pointer, mask)

    def _column(self, sides: Mapping[int, Side], out: Side, count: Int, last: int, compute: Compute) -> None:
        """A last dimension that fits one vector: loop over the one before it."""
        code, lanes = self.code, power_of_two(last)
        mask = code.mask(last, lanes)
        fixed = {k: load_lanes(code, s, self.stride(s, -1), lanes, mask) for k, s in sides.items()
                 if self.stride(s, -2) == 0}

        def at(j: Int) -> Value:
            moved = self._moved({k: s for k, s in sides.items() if k not in fixed}, j, -2)
            return compute(self._lanes_of(moved, fixed, 0, lanes, mask))
        unroll = self.unroll if not isinstance(count, int) else max(1, min(self.unroll, count))
        whole = code.mul(code.div(count, unroll), unroll)
        if not (isinstance(whole, int) and whole == 0):
            with code.loop(0, whole, unroll) as j:
                made = [at(code.add(j, u)) for u in range(unroll)]
                for u, value in enumerate(made):
                    code.store(value, self._move(out, code.add(j, u), -2).pointer, mask)
        if isinstance(whole, int) and whole == count:
            return
        with code.loop(whole, count) as j:
            code.store(at(j), self._move(out, j, -2).pointer, mask)


class _Task:
    """The outer loop of a nest: this thread's share of tasks, each a chunk of one dimension."""

    def __init__(self, nest: Nest, outer: Sequence[Dim], inner: Dim, chunk: int, axis: int) -> None:
        self.nest, self.axis = nest, axis
        code = nest.code
        self.outer: list[Int] = [code.dim(d) for d in outer]
        self.inner = code.dim(inner)
        self.chunk = chunk
        single = isinstance(inner, int) and inner <= chunk + chunk // 2
        self.chunks: Int = 1 if single else code.ceildiv(self.inner, chunk)
        self.single = single

    def __enter__(self) -> tuple[dict[int, Side], Side, Int]:
        nest, code = self.nest, self.nest.code
        total: Int = self.chunks
        for d in self.outer:
            total = code.mul(total, d)
        self._share = code.share(total)
        task = self._share.__enter__()
        *places, piece = code.unflatten(task, [*self.outer, self.chunks])
        if not self.outer:
            piece = task
        start: Int = 0 if self.single else code.mul(piece, self.chunk)
        count: Int = self.inner if self.single else code.min(self.chunk, code.sub(self.inner, start))

        def moved(side: Side) -> Side:
            steps = [(p, side.view.strides[a]) for a, p in enumerate(places)]
            return advance(code, side, [*steps, (start, nest.stride(side, self.axis))])
        return {k: moved(s) for k, s in nest.ins.items()}, moved(nest.out), count

    def __exit__(self, *error: object) -> None:
        self._share.__exit__(None, None, None)
