"""Decision trees and pairwise coupling.

A tree's node is sixteen bytes: feature, threshold, and where to go on either side. A walk is a chain of loads, each
waiting for the one before; eight trees are walked side by side, without a branch, so that the processor has eight
chains to work at. (Gathers across trees or rows take longer than these loads on the machines measured.)
"""
from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from ingot.graph import F32
from ingot.kernels.codegen import Code, Int, Value, Variable, isa_of
from ingot.kernels.steps import declines_order
from ingot.kernels.tactic import Kernel, Params, Site, Tactic
from ingot.kernels.x86.rows import each_vector
from ingot.ops.learned import COUPLING_ERROR, COUPLING_TURNS
from ingot.target import Target

_ABREAST = 8                # trees that are walked side by side
_CLASSES = 128              # of a coupling: their square lies on the stack
_MISSING = 1 << 31          # in a node's feature: NaN goes where smaller numbers go


def _plain(site: Site, op: str) -> str | None:
    if site.op != op:
        return f"{site.op} is no {op}"
    if len(site.steps) > 1 or any(o.strides is not None or o.type.layout for o in (*site.inputs, *site.outputs)):
        return "needs dense, plain operands and takes no other steps"
    return declines_order(site)


class Trees(Tactic):
    """Row by row, eight trees at a time."""

    name = "x86.trees"

    def declines(self, site: Site, target: Target) -> str | None:
        if why := _plain(site, "Trees"):
            return why
        if not all(o.constant for o in site.inputs[1:]):
            return "the trees are not constant"
        nodes = int(str(site.inputs[1].type.shape[0]))
        return "too many nodes for places of 32 bits" if nodes >= 1 << 28 else None

    def pack(self, site: Site, params: Params, target: Target,
             constants: Mapping[int, np.ndarray]) -> Mapping[int, np.ndarray]:
        feature, value, following, leaf, roots, depths = (constants[k] for k in range(1, 7))
        nodes, (leaves, outputs) = len(feature), leaf.shape
        table = np.zeros((nodes + 1, 4), np.int32)      # the last one is a tree of nothing, which fills up a group
        table[:-1, 0] = feature
        if len(site.inputs) > 7:
            table[:-1, 0] |= np.where(constants[7], np.int32(-_MISSING), np.int32(0))
        own = np.arange(nodes, dtype=np.int32)
        ends = (following == own[:, None]).all(axis=1)
        places = np.where(ends, value, 0).astype(np.int32)
        kept = leaf[places, 0].view(np.int32) if outputs == 1 else places * outputs
        table[:-1, 1] = np.where(ends, kept, value.astype(np.float32).view(np.int32))
        table[:-1, 2:] = following * 4
        table[-1] = (0, 0 if outputs == 1 else leaves * outputs, nodes * 4, nodes * 4)
        groups = -(-len(roots) // _ABREAST)
        begins = np.full(groups * _ABREAST, nodes * 4, np.int32)
        begins[:len(roots)] = roots * 4
        levels = np.zeros(groups * _ABREAST, np.int32)
        levels[:len(roots)] = depths
        return {1: table.reshape(-1), 4: np.concatenate((leaf.reshape(-1), np.zeros(outputs, np.float32))),
                5: begins, 6: levels.reshape(groups, _ABREAST).max(axis=1, initial=0).astype(np.int32)}

    def emit(self, site: Site, params: Params, target: Target) -> Kernel:
        code = Code(isa_of(target), site.symbols)
        name = f"trees_{site.key}"
        width, outputs = site.inputs[0].type.shape[1], int(str(site.output.shape[1]))
        groups = -(-int(str(site.inputs[5].type.shape[0])) // _ABREAST)
        missing = len(site.inputs) > 7
        with code.function(name), code.share(code.dim(site.output.shape[0])) as row:
            x = code.offset(code.buffer(0), code.mul(row, code.dim(width)))
            out = code.offset(code.buffer(len(site.inputs)), code.mul(row, outputs))
            total = code.variable(code.constant(0.0))
            if outputs > 1:
                _cleared(code, out, outputs)
            with code.loop(0, groups) as group:
                ends = self._walked(code, x, group, missing)
                held = [code.offset(code.buffer(1), code.add(at, 1), "i32") for at in ends]
                if outputs == 1:
                    sums = [code.load(h) for h in held]
                    while len(sums) > 1:
                        sums = [code.fadd(a, b) for a, b in zip(sums[::2], sums[1::2], strict=True)]
                    total.set(code.fadd(total.get(), sums[0]))
                else:
                    _added(code, out, [code.convert("zext", code.load(h, "i32"), "i64") for h in held], outputs)
            if outputs == 1:
                code.store(total.get(), out)
        return Kernel(name, code.module(), (name,))

    def _walked(self, code: Code, x: Value, group: Value, missing: bool) -> list[Value]:
        """Where the trees of a group end, in the node table, for the row at x."""
        first = code.mul(group, _ABREAST)
        ats = [code.variable(code.convert("zext", code.load(
            code.offset(code.buffer(5), code.add(first, k), "i32"), "i32"), "i64")) for k in range(_ABREAST)]
        levels = code.convert("zext", code.load(code.offset(code.buffer(6), group, "i32"), "i32"), "i64")
        with code.loop(0, levels):
            for at in ats:
                node = code.offset(code.buffer(1), at.get(), "i32")
                feature = code.load(node, "i32")
                place = code.binary("and", feature, code.constant(_MISSING - 1, "i32")) if missing else feature
                seen = code.load(code.offset(x, code.convert("zext", place, "i64")))
                goes = code.fcompare("ole", seen, code.load(code.offset(node, 1, "i32")))
                if missing:
                    tracked = code.compare("<", feature, code.constant(0, "i32"))
                    goes = code.binary("or", goes, code.binary("and", tracked, code.fcompare("uno", seen, seen)))
                side = code.add(code.convert("zext", goes, "i64"), 2)
                at.set(code.convert("zext", code.load(code.offset(node, side, "i32"), "i32"), "i64"))
        return [at.get() for at in ats]


def _cleared(code: Code, out: Value, outputs: int) -> None:
    def body(places: Sequence[Int], mask: Value | None) -> None:
        for place in places:
            code.store(code.zero(lanes=code.isa.lanes), code.offset(out, place), mask)
    each_vector(code, outputs, code.isa.lanes, body)


def _added(code: Code, out: Value, rows: list[Value], outputs: int) -> None:
    """out[:outputs] += the sum of these rows of the leaves."""
    lanes = code.isa.lanes

    def body(places: Sequence[Int], mask: Value | None) -> None:
        for place in places:
            at = code.offset(out, place)
            value = code.load(at, lanes=lanes, mask=mask)
            for row in rows:
                value = code.fadd(value, code.load(code.offset(code.buffer(4), code.add(row, place)), lanes=lanes,
                                                   mask=mask))
            code.store(value, at, mask)
    each_vector(code, outputs, lanes, body)


class PairwiseCoupling(Tactic):
    """Row by row, as the definition goes."""

    name = "x86.pairwise_coupling"

    def declines(self, site: Site, target: Target) -> str | None:
        if why := _plain(site, "PairwiseCoupling"):
            return why
        if site.output.dtype != F32:
            return f"it computes f32, not {site.output.dtype}"
        return "more classes than the stack has room for" if int(str(site.output.shape[1])) > _CLASSES else None

    def emit(self, site: Site, params: Params, target: Target) -> Kernel:
        code = Code(isa_of(target), site.symbols)
        name = f"pairwise_coupling_{site.key}"
        k = int(str(site.output.shape[1]))
        with code.function(name):
            q, qp = code.reserve("float", k * k), code.reserve("float", k)
            with code.share(code.dim(site.output.shape[0])) as row:
                _Row(code, k, code.offset(code.buffer(0), code.mul(row, k * k)), q, qp,
                     code.offset(code.buffer(1), code.mul(row, k))).emit()
        return Kernel(name, code.module(), (name,))


class _Row:
    """One row of a coupling being emitted: r and q are [k, k], qp and p are [k]."""

    def __init__(self, code: Code, k: int, r: Value, q: Value, qp: Value, p: Value) -> None:
        self.code, self.k, self.r, self.q, self.qp, self.p = code, k, r, q, qp, p

    def emit(self) -> None:
        code, k = self.code, self.k
        with code.loop(0, k) as t:
            own = code.variable(code.constant(0.0))
            code.store(code.constant(1 / k), code.offset(self.p, t))
            with code.loop(0, k) as j:
                right = code.load(self._at(self.r, j, t))
                code.store(code.fneg(code.fmul(right, code.load(self._at(self.r, t, j)))), self._at(self.q, t, j))
                other = code.compare("!=", j, t)
                own.set(code.select(other, code.fadd(own.get(), code.fmul(right, right)), own.get()))
            code.store(own.get(), self._at(self.q, t, t))
        going = code.variable(Value("i1", "true"))
        with code.loop(0, max(COUPLING_TURNS, k)), code.when(going.get()):
            self._turn(going)

    def _at(self, table: Value, row: Value, column: Value) -> Value:
        return self.code.offset(table, self.code.add(self.code.mul(row, self.k), column))

    def _turn(self, going: Variable) -> None:
        code, k = self.code, self.k
        pqp = code.variable(code.constant(0.0))
        with code.loop(0, k) as t:
            total = code.variable(code.constant(0.0))
            with code.loop(0, k) as j:
                product = code.fmul(code.load(self._at(self.q, t, j)), code.load(code.offset(self.p, j)))
                total.set(code.fadd(total.get(), product))
            code.store(total.get(), code.offset(self.qp, t))
            pqp.set(code.fadd(pqp.get(), code.fmul(code.load(code.offset(self.p, t)), total.get())))
        error = code.variable(code.constant(0.0))
        with code.loop(0, k) as t:
            off = code.intrinsic("fabs", code.fsub(code.load(code.offset(self.qp, t)), pqp.get()))
            error.set(code.fmax(off, error.get()))
        more = code.fcompare("oge", error.get(), code.constant(COUPLING_ERROR / k))
        going.set(more)
        with code.when(more), code.loop(0, k) as t:
            self._moved(t, pqp)

    def _moved(self, t: Value, pqp: Variable) -> None:
        """One probability moved to its best value, the others scaled so that all of them make one."""
        code, k, one = self.code, self.k, self.code.constant(1.0)
        own, at = code.load(self._at(self.q, t, t)), code.load(code.offset(self.qp, t))
        before = pqp.get()
        step = code.fdiv(code.fsub(before, at), own)
        whole = code.fadd(one, step)
        place = code.offset(self.p, t)
        code.store(code.fadd(code.load(place), step), place)
        bent = code.fmul(step, code.fadd(code.fmul(step, own), code.fmul(code.constant(2.0), at)))
        pqp.set(code.fdiv(code.fadd(before, bent), code.fmul(whole, whole)))
        with code.loop(0, k) as j:
            p, qp = code.offset(self.p, j), code.offset(self.qp, j)
            code.store(code.fdiv(code.load(p), whole), p)
            moved = code.fadd(code.load(qp), code.fmul(step, code.load(self._at(self.q, t, j))))
            code.store(code.fdiv(moved, whole), qp)
