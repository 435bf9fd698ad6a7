"""A product of any ONNX form, brought to one: for each batch, rows x depth times depth x columns."""
from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise

from ingot.graph import Dim, dense_strides, product
from ingot.kernels.codegen import Code, Int, Value, element_of
from ingot.kernels.codegen.steps import declines_steps, run_steps
from ingot.kernels.steps import operands_of
from ingot.kernels.tactic import Operand, Site

Strides = tuple[Dim, ...]


@dataclass(frozen=True)
class Form:
    """The loops of a product and each operand's strides over them, in elements; 0 where it is broadcast.

    The output's leading dimensions (all but its columns) are `batch` + `row_dims`; `rows` is the product of the
    latter, over which the right operand does not change and both the left operand and the output advance evenly.
    """

    batch: tuple[Dim, ...]
    row_dims: tuple[Dim, ...]
    columns: Dim
    depth: Dim
    left: int                       # the site's operand on the left
    right: int
    left_batch: Strides
    right_batch: Strides
    out_batch: Strides
    left_row: Dim
    left_depth: Dim
    right_depth: Dim
    right_column: Dim
    out_row: Dim
    right_own: tuple[Dim, ...]      # the right operand's own batch dimensions, as it lies
    right_packed: Strides           # over `batch`, in right-hand matrices: where they lie densely one after the other
    bias: int | None                # Gemm's third operand
    alpha: float
    beta: float
    right_swapped: bool             # the right operand lies as [columns, depth]
    no_row: bool                    # the left operand is a vector: the output has no dimension of rows
    no_column: bool                 # the right operand is a vector: the output has no dimension of columns

    @property
    def rows(self) -> Dim:
        return product(self.row_dims)

    @property
    def lead(self) -> tuple[Dim, ...]:
        return self.batch + self.row_dims


def form_of(site: Site, ops: tuple[str, ...] = ("MatMul", "Gemm")) -> Form | str:
    """The form of a MatMul or Gemm site (or of another product in `ops`, given as MatMul is), or why it has none."""
    if site.op not in ops:
        return f"it computes {' and '.join(ops)}, not {site.op}"
    if site.main != 0 or any(i is not None and i < 0 for i in site.step.inputs):
        return "it takes no prologue"
    if any(o.type.layout for o in (*site.inputs, *site.outputs)):
        return "it takes plain layouts"
    a, b, bias = (*site.step.inputs, None)[:3]
    bias = bias if site.op == "Gemm" else None
    if a is None or b is None:
        return "an operand is absent"
    left, right, attrs = site.inputs[a], site.inputs[b], site.attrs
    shape, out_steps = site.step.types[0].shape, site.outputs[0].steps
    if site.output.shape != shape:
        return "the epilogue widens the result"
    left_shape, left_steps = _matrix(left, front=True)
    right_shape, right_steps = _matrix(right, front=False)
    if attrs.get("transA"):
        left_shape, left_steps = left_shape[::-1], left_steps[::-1]
    if swap_right := bool(attrs.get("transB")):
        right_shape, right_steps = right_shape[::-1], right_steps[::-1]
    if any(d == 0 for d in (*shape, *left_shape, *right_shape)):
        return "it is a product of nothing"
    vector_left, vector_right = left.type.rank == 1, right.type.rank == 1
    cut = len(shape) - (not vector_left) - (not vector_right)
    batch, out_batch = shape[:cut], out_steps[:cut]
    rows: Dim = 1 if vector_left else shape[cut]
    columns: Dim = 1 if vector_right else shape[-1]
    out_row: Dim = 0 if vector_left else out_steps[cut]
    if not vector_right and out_steps[-1] != 1 and columns != 1:
        return "the output's columns are not adjacent in memory"
    left_batch = aligned(left_shape[:-2], left_steps[:-2], batch)
    right_batch = aligned(right_shape[:-2], right_steps[:-2], batch)
    if left_batch is None or right_batch is None:
        return "the batch dimensions are broadcast in a way only known at run time"
    right_packed = aligned(right_shape[:-2], dense_strides(right_shape[:-2]), batch) or ()
    left_row = left_steps[-2]
    # adjacent batch dimensions join the rows where every operand allows it
    row_dims: tuple[Dim, ...] = (rows,)
    while batch and (right_batch[-1] == 0 or batch[-1] == 1):
        size = product(row_dims)
        if size == 1:
            left_row, out_row = left_batch[-1], out_batch[-1]
        elif batch[-1] != 1 and (left_batch[-1] != left_row * size or out_batch[-1] != out_row * size):
            break
        row_dims = (batch[-1], *row_dims)
        batch, left_batch = batch[:-1], left_batch[:-1]
        right_batch, right_packed, out_batch = right_batch[:-1], right_packed[:-1], out_batch[:-1]
    alpha, beta = (float(attrs.get(k, 1.0)) for k in ("alpha", "beta"))  # type: ignore[arg-type]
    return Form(batch, row_dims, columns, left_shape[-1], a, b, left_batch, right_batch, out_batch, left_row,
                left_steps[-1], right_steps[-2], right_steps[-1], out_row, right_shape[:-2], right_packed, bias, alpha,
                beta, swap_right, vector_left, vector_right)


def _matrix(operand: Operand, *, front: bool) -> tuple[tuple[Dim, ...], Strides]:
    """Shape and strides of at least two dimensions; a vector is a row in front, a column behind."""
    shape, steps = operand.type.shape, operand.steps
    if len(shape) > 1:
        return shape, steps
    return ((1, *shape), (0, *steps)) if front else ((*shape, 1), (*steps, 0))


def aligned(shape: Sequence[Dim], steps: Sequence[Dim], onto: Sequence[Dim]) -> Strides | None:
    """Strides of an operand over the dimensions it is broadcast onto, 0 where it repeats; None if undecided."""
    missing = len(onto) - len(shape)
    if missing < 0:
        return aligned(shape[-missing:], steps[-missing:], onto) if all(d == 1 for d in shape[:-missing]) else None
    found: list[Dim] = [0] * missing
    for size, step, target in zip(shape, steps, onto[missing:], strict=True):
        if size != target and size != 1:
            return None
        found.append(0 if size == 1 else step)
    return tuple(found)


def collapsed(steps: Sequence[Dim], dims: Sequence[Dim]) -> Dim | None:
    """The one stride that steps through all of `dims` in row-major order, or None if there is none."""
    kept = [(s, d) for s, d in zip(steps, dims, strict=True) if d != 1]
    if not kept:
        return 0
    if any(outer != inner * size for (outer, _), (inner, size) in pairwise(kept)):
        return None
    return kept[-1][0]


class Place:
    """Where an epilogue operand's elements are, for a given batch, row and column."""

    def __init__(self, code: Code, operand: Operand, form: Form, shape: tuple[Dim, ...]) -> None:
        onto = (*form.lead, form.columns)
        steps = spread(operand, form, shape)
        if steps is None:
            raise ValueError("the operand was to be declined")
        self._code, self._form = code, form
        self._batch, self._rows, self.column = steps[:len(form.batch)], steps[len(form.batch):-1], steps[-1]
        self._row = collapsed(self._rows, onto[len(form.batch):-1])

    def offset(self, batch: Sequence[Int], row: Int) -> Int:
        """Elements from the operand's start to the first column of a row."""
        code = self._code
        total = advance(code, batch, self._batch)
        if self._row is not None:
            return code.add(total, code.mul(row, code.dim(self._row)))
        dims = [code.dim(d) for d in self._form.row_dims]
        return code.add(total, advance(code, code.unflatten(row, dims), self._rows))


def spread(operand: Operand, form: Form, shape: tuple[Dim, ...]) -> Strides | None:
    """An epilogue operand's strides over batch, row dimensions and columns of the form; None if undecided."""
    steps = aligned(operand.type.shape, operand.steps, shape)
    if steps is None:
        return None
    columns = () if form.no_column else steps[-1:]
    leading = steps[:len(steps) - len(columns)]
    return (*leading, *((0,) if form.no_row else ()), *(columns or (0,)))


def advance(code: Code, index: Sequence[Int], steps: Sequence[Dim]) -> Int:
    """The sum of index * stride, 0 for no dimensions."""
    total: Int = 0
    for i, step in zip(index, steps, strict=True):
        total = code.add(total, code.mul(i, code.dim(step)))
    return total


def declines_epilogue(site: Site, form: Form, *, packs: bool) -> str | None:
    """Why what follows the product cannot be applied while it is in registers, or None. `packs`: whether a constant
    right operand is given in packed form."""
    packed = form.right if packs and site.inputs[form.right].constant else None
    shape = site.step.types[0].shape
    if why := declines_steps(site, site.epilogue):
        return why
    for step in site.epilogue:
        if len(step.types) != 1 or step.types[0].shape != shape:
            return f"{step.op} in the epilogue changes the shape"
    for i in _read(site, form):
        if i == packed:
            return "the right operand is packed, the epilogue wants it plain"
        steps = spread(site.inputs[i], form, shape)
        if steps is None:
            return f"operand {i} is broadcast in a way only known at run time"
        if steps[-1] not in (0, 1):
            return f"operand {i} has its columns apart"
    return None


def _read(site: Site, form: Form) -> tuple[int, ...]:
    """The operands read after the product."""
    return tuple(dict.fromkeys([*(() if form.bias is None else (form.bias,)), *operands_of(site.epilogue)]))


class Ending:
    """What happens to sums: Gemm's factors and bias, the epilogue, the store."""

    def __init__(self, code: Code, site: Site, form: Form) -> None:
        self.code, self.site, self.form = code, site, form
        shape = site.step.types[0].shape
        self.places = {i: Place(code, site.inputs[i], form, shape) for i in _read(site, form)}
        self.kind = element_of(site.output.dtype)

    def row(self, batch: Sequence[Int], row: Int) -> Callable[[Value, Int, Value | None], None]:
        """Ready for one row: `finish(sums, column, mask)` applies everything to them and stores the result."""
        code, form = self.code, self.form
        starts = {i: place.offset(batch, row) for i, place in self.places.items()}
        start = code.add(advance(code, batch, form.out_batch), code.mul(row, code.dim(form.out_row)))

        def finish(value: Value, column: Int, mask: Value | None) -> None:
            def load(i: int) -> Value:
                kind = element_of(self.site.inputs[i].type.dtype)
                if self.places[i].column == 0:
                    return code.splat(code.load(code.offset(code.buffer(i), starts[i], kind), kind), value.lanes)
                pointer = code.offset(code.buffer(i), code.add(starts[i], column), kind)
                return code.load(pointer, kind, value.lanes, mask)

            if form.alpha != 1:
                value = self._times(value, form.alpha)
            if form.bias is not None and form.beta != 0:
                bias = load(form.bias)
                bias = bias if form.beta == 1 else self._times(bias, form.beta)
                value = code.binary("fadd" if value.is_float else "add", value, bias)
            value = run_steps(code, self.site, 1, {0: value}, load)
            out = code.buffer(len(self.site.inputs))
            code.store(value, code.offset(out, code.add(start, column), self.kind), mask)

        return finish

    def _times(self, value: Value, factor: float) -> Value:
        code = self.code
        return code.binary("fmul" if value.is_float else "mul", value, code.constant(factor, value.element,
                                                                                     value.lanes))
