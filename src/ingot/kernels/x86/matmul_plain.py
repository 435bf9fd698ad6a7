"""MatMul and Gemm of any form, right before fast: what serves the products that tiles decline."""
from __future__ import annotations

from collections.abc import Sequence

from ingot.graph import BF16, F16, F32, product
from ingot.kernels.codegen import Code, Int, Value, isa_of, llvm_type
from ingot.kernels.codegen.tile import lanes_of
from ingot.kernels.tactic import Kernel, Params, Site, Tactic
from ingot.kernels.x86.matmul_form import Ending, Form, advance, declines_epilogue, form_of
from ingot.target import Target

_TAKEN = frozenset(("f64", "f32", "f16", "bf16", "i64", "i32", "u64", "u32"))
_CHAINS = 4     # independent sums of a dot product


class PlainMatMul(Tactic):
    """Every output row by itself: a register of columns at a time over the whole depth; where there is one column,
    a dot product along the depth."""

    name = "x86.matmul_plain"

    def declines(self, site: Site, target: Target) -> str | None:
        form = form_of(site)
        if isinstance(form, str):
            return form
        types = {site.inputs[form.left].type.dtype, site.inputs[form.right].type.dtype, site.step.types[0].dtype}
        if len(types) != 1 or next(iter(types)).name not in _TAKEN:
            return f"it takes one type of {', '.join(sorted(_TAKEN))}"
        # it does not pack: the epilogue may read the right operand, too
        return declines_epilogue(site, form, packs=False)

    def emit(self, site: Site, params: Params, target: Target) -> Kernel:
        form = form_of(site)
        if isinstance(form, str):
            raise ValueError(form)
        return _Emission(site, form, target).kernel()


class _Emission:
    """The emission of one kernel; lives inside `emit`."""

    def __init__(self, site: Site, form: Form, target: Target) -> None:
        self.site, self.form = site, form
        self.code = Code(isa_of(target), site.symbols)
        dtype = site.step.types[0].dtype
        self.stored = llvm_type(dtype)
        self.half = dtype in (F16, BF16)                    # summed in f32
        self.element = llvm_type(F32) if self.half else self.stored
        self.along = form.columns == 1                      # one column: vectors run along the depth
        steps = (form.left_depth, form.right_depth) if self.along else (form.right_column, 1)
        self.lanes = lanes_of(self.code.isa, self.element) if steps == (1, 1) else 1

    def kernel(self) -> Kernel:
        code, form = self.code, self.form
        with code.function("matmul_plain"):
            batch, rows = [code.dim(d) for d in form.batch], code.dim(form.rows)
            ending = Ending(code, self.site, form)
            with code.share(code.mul(code.dim(product(form.batch)), rows)) as task:
                *index, row = code.unflatten(task, [*batch, rows])
                finish = ending.row(index, row)
                left = self._at(form.left, code.add(advance(code, index, form.left_batch),
                                                    code.mul(row, code.dim(form.left_row))))
                right = self._at(form.right, advance(code, index, form.right_batch))
                if self.along:
                    finish(self._round(self._dot(left, right)), 0, None)
                else:
                    columns = code.dim(form.columns)
                    with code.loop(0, columns, self.lanes) as j:
                        mask = code.mask(code.sub(columns, j), self.lanes) if self._ragged(columns) else None
                        finish(self._round(self._sum(left, right, j, mask)), j, mask)
        return Kernel(PlainMatMul.name, code.module(), ("matmul_plain",),
                      meta={"flops": 2 * product(form.lead) * form.columns * form.depth})

    def _ragged(self, columns: Int) -> bool:
        return self.lanes > 1 and not (isinstance(columns, int) and columns % self.lanes == 0)

    def _at(self, operand: int, offset: Int) -> Value:
        return self.code.offset(self.code.buffer(operand), offset, self.stored)

    def _load(self, pointer: Value, offset: Int, lanes: int = 1, mask: Value | None = None) -> Value:
        value = self.code.load(self.code.offset(pointer, offset, self.stored), self.stored, lanes, mask)
        return self.code.convert("fpext", value, self.element) if self.half else value

    def _round(self, value: Value) -> Value:
        return self.code.convert("fptrunc", value, self.stored) if self.half else value

    def _add(self, a: Value, b: Value, total: Value) -> Value:
        code = self.code
        return code.fma(a, b, total) if total.is_float else code.binary("add", code.binary("mul", a, b), total)

    def _sum(self, left: Value, right: Value, column: Int, mask: Value | None) -> Value:
        """One register of columns, over the whole depth."""
        code, form = self.code, self.form
        total = code.variable(code.zero(self.element, self.lanes))
        start = code.mul(column, code.dim(form.right_column))
        with code.loop(0, code.dim(form.depth)) as k:
            a = code.splat(self._load(left, code.mul(k, code.dim(form.left_depth))), self.lanes)
            b = self._load(right, code.add(start, code.mul(k, code.dim(form.right_depth))), self.lanes, mask)
            total.set(self._add(a, b, total.get()))
        return total.get()

    def _dot(self, left: Value, right: Value) -> Value:
        """The sum of products along the depth: several chains of vectors, then what is left one by one."""
        code, form = self.code, self.form
        depth, stride = code.dim(form.depth), self.lanes * _CHAINS
        sums = [code.variable(code.zero(self.element, self.lanes)) for _ in range(_CHAINS)]
        whole = code.mul(code.div(depth, stride), stride)
        steps = code.dim(form.left_depth), code.dim(form.right_depth)
        with code.loop(0, whole, stride) as k:
            for c, chain in enumerate(sums):
                at = code.add(k, c * self.lanes)
                a, b = (self._load(p, code.mul(at, s), self.lanes) for p, s in zip((left, right), steps, strict=True))
                chain.set(self._add(a, b, chain.get()))
        rest = code.variable(self._total([s.get() for s in sums]))
        with code.loop(whole, depth) as k:
            a, b = (self._load(p, code.mul(k, s)) for p, s in zip((left, right), steps, strict=True))
            rest.set(self._add(a, b, rest.get()))
        return rest.get()

    def _total(self, values: Sequence[Value]) -> Value:
        op = "fadd" if values[0].is_float else "add"
        while len(values) > 1:
            values = [self.code.binary(op, a, b) for a, b in zip(values[::2], values[1::2], strict=True)]
        return self.code.reduce(op, values[0])

