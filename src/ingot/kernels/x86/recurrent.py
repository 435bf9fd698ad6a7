"""The steps of LSTM, GRU and RNN: one sequence of one direction per task, its state in the thread's own scratch.

The gates of a step are a row times the recurrent weight, some vectors of columns at a time over the whole depth; the
weight stays in the core's cache from step to step. The products of all inputs were made before, as one.
"""
from __future__ import annotations

from collections.abc import Callable

from ingot.graph import F32
from ingot.kernels.codegen import Code, Int, Value, isa_of, math
from ingot.kernels.tactic import Kernel, Params, Site, Tactic
from ingot.ops import OPS
from ingot.ops.recurrent import GATES, activations, reverses
from ingot.target import Target

_VECTORS = 4        # vectors of columns summed at once


class Recurrent(Tactic):
    """Step after step, a sequence per task."""

    name = "x86.recurrent"

    def declines(self, site: Site, target: Target) -> str | None:
        if site.op != "Recurrence":
            return f"{site.op} is no recurrence"
        if len(site.steps) > 1 or any(o.strides is not None or o.type.layout for o in (*site.inputs, *site.outputs)):
            return "needs dense, plain operands and takes no other steps"
        if any(o.type.dtype != F32 for i, o in enumerate(site.inputs) if i != _lengths(site)):
            return "it takes f32"
        if (at := _lengths(site)) is not None and site.inputs[at].type.dtype.name not in ("i32", "i64"):
            return f"lengths of type {site.inputs[at].type.dtype}"
        return None if isinstance(site.inputs[1].type.shape[1], int) else "an unknown number of hidden features"

    def emit(self, site: Site, params: Params, target: Target) -> Kernel:
        code = Code(isa_of(target), site.symbols)
        name = f"recurrent_{site.key}"
        work = _Recurrent(code, site)
        with code.function(name):
            work.emit()
        return Kernel(name, code.module(), (name,), scratch=work.room * 4)


def _lengths(site: Site) -> int | None:
    return (*site.step.inputs, None, None, None, None)[3]


class _Recurrent:
    """A recurrence being emitted."""

    def __init__(self, code: Code, site: Site) -> None:
        self.code, self.site = code, site
        self.attrs = {**OPS["Recurrence"].attrs, **site.attrs}
        self.kind, self.walks = str(self.attrs["kind"]), reverses(self.attrs)
        self.hidden = int(str(site.inputs[1].type.shape[1]))
        self.width = self.hidden * GATES[self.kind]
        self.lanes = code.isa.lanes
        self.slots = (*site.step.inputs, *[None] * 7)[:7]
        self.clip = float(str(self.attrs["clip"] or 0.0))
        padded = -(-self.hidden // 16) * 16
        self.room = padded * 3 + -(-self.width // 16) * 16
        self.padded = padded

    def emit(self) -> None:
        code, count = self.code, len(self.site.inputs) + len(self.site.outputs)
        self.steps, self.batch = (code.dim(d) for d in self.site.inputs[0].type.shape[:2])
        own = code.offset(code.buffer(count + 1), code.mul(code.thread, self.room))
        self.h, self.c, self.more, self.gates = (code.offset(own, k * self.padded) for k in range(4))
        with code.share(code.mul(self.batch, len(self.walks))) as task:
            if len(self.walks) == 1:
                self._sequence(0, task)
                return
            which, b = code.rem(task, 2), code.div(task, 2)
            for k in range(2):
                with code.when(code.compare("==", which, k)):
                    self._sequence(k, b)

    # --- memory -----------------------------------------------------------------------------------------------------

    def _each(self, count: int, body: Callable[[Int, Value | None], None]) -> None:
        """Vectors over `count` elements."""
        whole = count // self.lanes * self.lanes
        if whole:
            with self.code.loop(0, whole, self.lanes) as at:
                body(at, None)
        if whole < count:
            body(whole, self.code.mask(count - whole, self.lanes))

    def _load(self, base: Value, at: Int, mask: Value | None) -> Value:
        return self.code.load(self.code.offset(base, at), lanes=self.lanes, mask=mask)

    def _store(self, value: Value, base: Value, at: Int, mask: Value | None) -> None:
        self.code.store(value, self.code.offset(base, at), mask)

    def _state(self, k: int, b: Int) -> Int:
        """Where the state of a sequence lies among those of all."""
        return self.code.mul(self.code.add(self.code.mul(self.batch, k), b), self.hidden)

    def _begin(self, slot: int | None, into: Value, place: Int) -> None:
        code = self.code
        source = None if slot is None else code.offset(code.buffer(slot), place)

        def body(at: Int, mask: Value | None) -> None:
            value = code.zero(lanes=self.lanes) if source is None else self._load(source, at, mask)
            self._store(value, into, at, mask)
        self._each(self.hidden, body)

    def _copy(self, source: Value | None, into: Value) -> None:
        self._each(self.hidden, lambda at, mask: self._store(
            self.code.zero(lanes=self.lanes) if source is None else self._load(source, at, mask), into, at, mask))

    # --- one sequence -----------------------------------------------------------------------------------------------

    def _sequence(self, k: int, b: Int) -> None:
        code, first = self.code, len(self.site.inputs)
        place = self._state(k, b)
        self._begin(self.slots[4], self.h, place)
        self._begin(self.slots[5], self.c, place)
        length: Int = self.steps
        if (slot := self.slots[3]) is not None:
            kind = "i32" if self.site.inputs[slot].type.dtype.name == "i32" else "i64"
            found = code.load(code.offset(code.buffer(slot), b, kind), kind)
            length = code.min(code.max(code.convert("sext", found, "i64") if kind == "i32" else found, 0), self.steps)

        def out(t: Int) -> Value:
            row = code.add(code.mul(code.add(code.mul(t, len(self.walks)), k), self.batch), b)
            return code.offset(code.buffer(first), code.mul(row, self.hidden))
        with code.loop(0, length) as s:
            t = code.sub(code.sub(length, 1), s) if self.walks[k] else s
            row = code.add(code.mul(code.add(code.mul(t, self.batch), b), len(self.walks)), k)
            self._step(k, code.offset(code.buffer(self.slots[0] or 0), code.mul(row, self.width)))
            self._copy(self.h, out(t))
        if slot is not None:
            with code.loop(length, self.steps) as t:
                self._copy(None, out(t))
        for n, state in enumerate((self.h, self.c)):
            if n + 1 < len(self.site.outputs):
                self._copy(state, code.offset(code.buffer(first + 1 + n), place))

    def _step(self, k: int, x: Value) -> None:
        code = self.code
        weight = code.offset(code.buffer(self.slots[1] or 0), k * self.hidden * self.width)
        if self.kind == "GRU":
            self._gated(k, x, weight)
            return
        self._product(self.h, weight, 0, self.width, x)
        if self.kind == "RNN":
            self._each(self.hidden, lambda at, mask: self._store(
                self._act(k, 0, self._load(self.gates, at, mask)), self.h, at, mask))
        else:
            self._cells(k)

    def _product(self, left: Value, weight: Value, low: int, high: int, start: Value | None) -> None:
        """gates[low:high] = start[low:high] + left * weight[:, low:high]."""
        code, lanes, block = self.code, self.lanes, _VECTORS * self.lanes

        def columns(at: Int, masks: list[Value | None]) -> None:
            sums = [code.variable(code.zero(lanes=lanes) if start is None else
                                  self._load(start, code.add(at, v * lanes), m)) for v, m in enumerate(masks)]
            with code.loop(0, self.hidden) as i:
                value = code.splat(code.load(code.offset(left, i)), lanes)
                row = code.offset(weight, code.add(code.mul(i, self.width), at))
                for v, (total, m) in enumerate(zip(sums, masks, strict=True)):
                    total.set(code.fma(value, self._load(row, v * lanes, m), total.get()))
            for v, (total, m) in enumerate(zip(sums, masks, strict=True)):
                self._store(total.get(), self.gates, code.add(at, v * lanes), m)
        whole = low + (high - low) // block * block
        if whole > low:
            with code.loop(low, whole, block) as at:
                columns(at, [None] * _VECTORS)
        if whole < high:
            columns(whole, [code.mask(high - whole - v * lanes, lanes)
                            for v in range(-(-(high - whole) // lanes))])

    # --- gates ------------------------------------------------------------------------------------------------------

    def _cells(self, k: int) -> None:
        """The gates of an LSTM, in the order of input, output, forget and cell."""
        code, n = self.code, self.hidden
        peep = None if self.slots[6] is None else code.offset(code.buffer(self.slots[6]), k * 3 * n)

        def body(at: Int, mask: Value | None) -> None:
            def gate(order: int) -> Value:
                return self._load(self.gates, code.add(at, order * n), mask)

            def beside(order: int, value: Value, cell: Value) -> Value:
                return value if peep is None else code.fma(self._load(peep, code.add(at, order * n), mask), cell, value)
            cell = self._load(self.c, at, mask)
            i = self._act(k, 0, beside(0, gate(0), cell))
            if self.attrs["input_forget"]:
                f = code.fsub(math.like(code, i, 1.0), i)
            else:
                f = self._act(k, 0, beside(2, gate(2), cell))
            cell = code.fma(f, cell, code.fmul(i, self._act(k, 1, gate(3))))
            o = self._act(k, 0, beside(1, gate(1), cell))
            self._store(cell, self.c, at, mask)
            self._store(code.fmul(o, self._act(k, 2, cell)), self.h, at, mask)
        self._each(n, body)

    def _gated(self, k: int, x: Value, weight: Value) -> None:
        """A GRU: update and reset gates, then what the state becomes."""
        code, n = self.code, self.hidden
        self._product(self.h, weight, 0, 2 * n, x)
        linear = bool(self.attrs["linear_before_reset"])
        bias = None if self.slots[2] is None else code.offset(code.buffer(self.slots[2]), k * n)

        def reset(at: Int, mask: Value | None) -> Value:
            return self._act(k, 0, self._load(self.gates, code.add(at, n), mask))
        if linear:
            self._product(self.h, weight, 2 * n, 3 * n, None)
        else:
            self._each(n, lambda at, mask: self._store(
                code.fmul(reset(at, mask), self._load(self.h, at, mask)), self.more, at, mask))
            self._product(self.more, weight, 2 * n, 3 * n, x)

        def body(at: Int, mask: Value | None) -> None:
            value = self._load(self.gates, code.add(at, 2 * n), mask)
            if linear:
                if bias is not None:
                    value = code.fadd(value, self._load(bias, at, mask))
                value = code.fma(reset(at, mask), value, self._load(x, code.add(at, 2 * n), mask))
            new, old = self._act(k, 1, value), self._load(self.h, at, mask)
            z = self._act(k, 0, self._load(self.gates, at, mask))
            kept = code.fmul(code.fsub(math.like(code, z, 1.0), z), new)
            self._store(code.fma(z, old, kept), self.h, at, mask)
        self._each(n, body)

    def _act(self, k: int, order: int, x: Value) -> Value:
        """An activation of direction k."""
        code = self.code
        name, alpha, beta = activations(self.attrs)[k][order]
        a, b, zero, one = (math.like(code, x, v) for v in (alpha, beta, 0.0, 1.0))
        if self.clip:
            x = code.fmin(math.like(code, x, self.clip), code.fmax(math.like(code, x, -self.clip), x))
        if name in ("Tanh", "Sigmoid", "Softplus"):
            return {"Tanh": math.tanh, "Sigmoid": math.sigmoid, "Softplus": math.softplus}[name](code, x)
        if name == "Relu":
            return code.fmax(zero, x)
        if name == "Affine":
            return code.fma(a, x, b)
        if name == "ScaledTanh":
            return code.fmul(a, math.tanh(code, code.fmul(b, x)))
        if name == "HardSigmoid":
            return code.fmin(one, code.fmax(zero, code.fma(a, x, b)))
        if name == "Softsign":
            return code.fdiv(x, code.fadd(one, math.absolute(code, x)))
        if name == "ThresholdedRelu":
            return code.select(code.fcompare("oge", x, a), x, zero)
        below = code.fcompare("olt", x, zero)
        return code.select(below, code.fmul(a, math.expm1(code, x) if name == "Elu" else x), x)
