"""LinearAttention: one key head of one sample per task, its state in the thread's own scratch, step after step."""
from __future__ import annotations

from collections.abc import Callable
from math import sqrt

from ingot.graph import F32
from ingot.kernels.codegen import Code, Int, Value, isa_of, math
from ingot.kernels.tactic import Kernel, Params, Site, Tactic
from ingot.ops import OPS
from ingot.target import Target


class LinearAttention(Tactic):
    """The state decays, is corrected, takes in a key and a value, and is read by the queries that share it."""

    name = "x86.linear_attention"

    def declines(self, site: Site, target: Target) -> str | None:
        if site.op != "LinearAttention":
            return f"{site.op} is no linear attention"
        if len(site.steps) > 1 or any(o.strides is not None or o.type.layout for o in (*site.inputs, *site.outputs)):
            return "needs dense, plain operands and takes no other steps"
        if any(o.type.dtype != F32 for o in (*site.inputs, *site.outputs)):
            return "it takes f32"
        if site.step.absent:
            return "an output before the last is absent"
        if not all(isinstance(o.type.shape[-1], int) for o in site.inputs):
            return "a width is known only at run time"
        return None

    def emit(self, site: Site, params: Params, target: Target) -> Kernel:
        code = Code(isa_of(target), site.symbols)
        name = f"linear_attention_{site.key}"
        work = _Linear(code, site)
        with code.function(name):
            work.emit()
        return Kernel(name, code.module(), (name,), scratch=work.room * 4)


class _Linear:
    """A linear attention being emitted."""

    def __init__(self, code: Code, site: Site) -> None:
        self.code, self.site = code, site
        attrs = {**OPS[site.op].attrs, **site.attrs}
        self.rule = str(attrs["update_rule"] or "gated_delta")
        self.queries, self.heads = int(str(attrs["q_num_heads"])), int(str(attrs["kv_num_heads"]))
        self.batch, self.steps = (code.dim(d) for d in site.inputs[0].type.shape[:2])
        self.depth = self._wide(0) // self.queries
        self.width = self._wide(2) // self.heads
        given = attrs["scale"]
        self.scale = float(str(given)) if given else 1 / sqrt(self.depth)
        self.slots = (*site.step.inputs, *[None] * 6)[:6]
        self.lanes = code.isa.lanes
        self.padded = -(-self.width // 16) * 16
        self.room = (self.depth + 1) * self.padded

    def _wide(self, index: int) -> int:
        return int(str(self.site.inputs[index].type.shape[-1]))

    def emit(self) -> None:
        code, count = self.code, len(self.site.inputs) + len(self.site.outputs)
        self.state = code.offset(code.buffer(count + 1), code.mul(code.thread, self.room))
        self.value = code.offset(self.state, self.depth * self.padded)
        with code.share(code.mul(self.batch, self.heads)) as task:
            b, h = code.unflatten(task, [self.batch, self.heads])
            whole = code.mul(task, self.depth * self.width)
            past = None if self.slots[3] is None else code.offset(code.buffer(self.slots[3]), whole)
            self._rows(lambda d, at, mask: code.zero(lanes=self.lanes) if past is None else
                       self._load(past, code.add(code.mul(d, self.width), at), mask))
            with code.loop(0, self.steps) as t:
                self._step(code.add(code.mul(b, self.steps), t), h)
            if len(self.site.outputs) > 1:
                out = code.offset(code.buffer(len(self.site.inputs) + 1), whole)
                with code.loop(0, self.depth) as d:
                    self._each(lambda at, mask: code.store(
                        self._load(self.state, code.add(code.mul(d, self.padded), at), mask),
                        code.offset(out, code.add(code.mul(d, self.width), at)), mask))

    def _each(self, body: Callable[[Int, Value | None], None]) -> None:
        whole = self.width // self.lanes * self.lanes
        if whole:
            with self.code.loop(0, whole, self.lanes) as at:
                body(at, None)
        if whole < self.width:
            body(whole, self.code.mask(self.width - whole, self.lanes))

    def _load(self, base: Value, at: Int, mask: Value | None) -> Value:
        return self.code.load(self.code.offset(base, at), lanes=self.lanes, mask=mask)

    def _rows(self, make: Callable[[Int, Int, Value | None], Value]) -> None:
        """Every row of the state anew."""
        code = self.code
        with code.loop(0, self.depth) as d:
            self._each(lambda at, mask: code.store(
                make(d, at, mask), code.offset(self.state, code.add(code.mul(d, self.padded), at)), mask))

    def _vector(self, index: int, row: Int, h: Int, wide: int) -> Value:
        """Where a head's part of a row of an operand begins."""
        code, slot = self.code, self.slots[index]
        assert slot is not None     # the caller knows that it is there
        return code.offset(code.buffer(slot), code.add(code.mul(row, self._wide(slot)), code.mul(h, wide)))

    def _summed(self, factors: Value, at: Int, mask: Value | None) -> Value:
        """The rows of the state, each times its factor, summed."""
        code = self.code
        total = code.variable(code.zero(lanes=self.lanes))
        with code.loop(0, self.depth) as d:
            factor = code.splat(code.load(code.offset(factors, d)), self.lanes)
            row = self._load(self.state, code.add(code.mul(d, self.padded), at), mask)
            total.set(code.fma(factor, row, total.get()))
        return total.get()

    def _step(self, row: Int, h: Int) -> None:
        code, lanes = self.code, self.lanes
        key = self._vector(1, row, h, self.depth)
        if self.rule in ("gated", "gated_delta"):
            slot = self.slots[4]
            assert slot is not None     # the rule asks for it
            each = self._wide(slot) != self.heads       # a decay per feature, or one per head
            decay = self._vector(4, row, h, self.depth if each else 1)

            def faded(d: Int, at: Int, mask: Value | None) -> Value:
                factor = math.exp(code, code.load(code.offset(decay, d if each else 0)))
                return code.fmul(self._load(self.state, code.add(code.mul(d, self.padded), at), mask),
                                 code.splat(factor, lanes))
            self._rows(faded)
        value = self._vector(2, row, h, self.width)
        corrects = self.rule in ("delta", "gated_delta")
        beta: Value | None = None
        if corrects:
            slot = self.slots[5]
            assert slot is not None     # the rule asks for it
            beta = code.load(self._vector(5, row, h if self._wide(slot) == self.heads else 0, 1))

        def taken(at: Int, mask: Value | None) -> None:
            new = self._load(value, at, mask)
            if beta is not None:
                new = code.fmul(code.splat(beta, lanes), code.fsub(new, self._summed(key, at, mask)))
            code.store(new, code.offset(self.value, at), mask)
        self._each(taken)
        self._rows(lambda d, at, mask: code.fma(
            code.splat(code.load(code.offset(key, d)), lanes), self._load(self.value, at, mask),
            self._load(self.state, code.add(code.mul(d, self.padded), at), mask)))
        group = self.queries // self.heads
        with code.loop(0, group) as g:
            q = code.add(code.mul(h, group), g)
            query = self._vector(0, row, q, self.depth)
            place = code.add(code.mul(row, self.queries * self.width), code.mul(q, self.width))
            out = code.offset(code.buffer(len(self.site.inputs)), place)
            self._each(lambda at, mask: code.store(
                code.fmul(self._summed(query, at, mask), code.constant(self.scale, lanes=lanes)),
                code.offset(out, at), mask))
