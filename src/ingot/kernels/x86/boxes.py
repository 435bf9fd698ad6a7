"""SelectBoxes: one class of one image per task; every vector of boxes is held against the best one and searched for
the next best in the same pass.

Candidates, the boxes whose score is high enough, are gathered first. The order is by score, then by place; a score
becomes an integer of the same order, and a box that is out the least integer.
"""
from __future__ import annotations

from collections.abc import Sequence

from ingot.graph import Dim
from ingot.kernels.codegen import Code, Int, Value, isa_of
from ingot.kernels.steps import declines_order
from ingot.kernels.tactic import Kernel, Params, Site, Tactic
from ingot.kernels.x86.along import ordered_key
from ingot.kernels.x86.rows import each_vector
from ingot.ops import OPS
from ingot.ops.shapes import integer
from ingot.target import Target

_OUT = -(1 << 31)           # the key of a box that is chosen already, or overlaps one that is
_LISTS = 7                  # per candidate: key, place, four corners, area
_LARGEST = (1 << 31) - 1


class SelectBoxes(Tactic):
    """Greedy, exactly as it is defined: the arithmetic of the reference, in its order."""

    name = "x86.select_boxes"

    def declines(self, site: Site, target: Target) -> str | None:
        if site.op != "SelectBoxes":
            return f"{site.op} is no SelectBoxes"
        if len(site.steps) > 1 or site.step.absent:
            return "takes no other steps, and makes the rows"
        if any(o.strides is not None or o.type.layout for o in (*site.inputs, *site.outputs)):
            return "needs dense, plain operands"
        return declines_order(site)

    def emit(self, site: Site, params: Params, target: Target) -> Kernel:
        code = Code(isa_of(target), site.symbols)
        names = (f"select_boxes_{site.key}", f"select_boxes_joined_{site.key}")
        work = _Boxes(code, site)
        with code.function(names[0]):
            work.select()
        with code.function(names[1]), code.when(code.compare("==", code.thread, 0)):
            work.join()
        return Kernel(names[0], code.module(), names, workspace=work.shared * 4, scratch=work.own * 4)


class _Boxes:
    """A selection being emitted."""

    def __init__(self, code: Code, site: Site) -> None:
        self.code, self.lanes = code, code.isa.lanes
        self.attrs = {**OPS[site.op].attrs, **site.attrs}
        self.counted = len(site.outputs) > 1
        self.room = 2 + len(site.outputs)           # the slot of what the tasks share; each thread's own comes after
        batch, classes, count = site.inputs[1].type.shape
        self.batch, self.classes, self.count = batch, classes, count
        most = integer(self.attrs, "most")
        self.each: Dim = min(most, count) if isinstance(count, int) else most
        self.tasks = batch * classes
        self.shared: Dim = self.tasks * self.each + self.tasks + 16         # the places chosen, then how many each
        self.padded: Dim = count + 2 * self.lanes
        self.own: Dim = self.padded * _LISTS + 16

    # --- one class of one image -------------------------------------------------------------------------------------

    def select(self) -> None:
        code = self.code
        count, own = code.dim(self.count), code.dim(self.own)
        base = code.offset(code.buffer(self.room + 1), code.mul(code.thread, own))
        self.lists = [code.offset(base, code.mul(k, code.dim(self.padded))) for k in range(_LISTS)]
        with code.share(code.dim(self.tasks)) as task:
            boxes = code.offset(code.buffer(0), code.mul(code.div(task, code.dim(self.classes)), code.mul(count, 4)))
            found = self._candidates(code.offset(code.buffer(1), code.mul(task, count)), boxes, count)
            chosen = code.offset(code.buffer(self.room), code.mul(task, code.dim(self.each)), "i32")
            self._chosen(found, chosen, task)

    def _candidates(self, scores: Value, boxes: Value, count: Int) -> Value:
        """How many boxes have a high enough score; they are listed in their order."""
        code, lanes, least = self.code, self.lanes, self.attrs["least"]
        found = code.variable(code.value(0))

        def entered(at: Value) -> None:
            score = code.load(code.offset(scores, at))
            enough = code.fcompare("oeq", score, score) if least is None else \
                code.fcompare("ogt", score, code.constant(float(str(least))))
            if least is None:               # NaN comes last, but comes
                self._listed(found.get(), at, score, enough, boxes)
                found.set(code.value(code.add(found.get(), 1)))
                return
            with code.when(enough):
                self._listed(found.get(), at, score, enough, boxes)
                found.set(code.value(code.add(found.get(), 1)))
        if least is None:
            with code.loop(0, count) as at:
                entered(at)
        else:                               # most vectors of scores hold none that is high enough
            with code.loop(0, count, lanes) as start:
                mask = code.mask(code.sub(count, start), lanes)
                low = code.constant(float(str(least)), lanes=lanes)
                here = code.load(code.offset(scores, start), lanes=lanes, mask=mask, other=low)
                some = code.fcompare("ogt", here, low)
                bits = code.emit(f"i{lanes}", f"bitcast {some} to i{lanes}")
                end = code.min(code.add(start, lanes), count)
                with code.when(code.emit("i1", f"icmp ne {bits}, 0")), code.loop(start, end) as at:
                    entered(at)
        last = code.offset(self.lists[0], found.get(), "i32")
        code.store(code.constant(_OUT, "i32", lanes), last)
        return found.get()

    def _listed(self, place: Value, at: Value, score: Value, real: Value, boxes: Value) -> None:
        code = self.code
        box = [code.load(code.offset(boxes, code.add(code.mul(at, 4), k))) for k in range(4)]
        if self.attrs["centred"]:           # x, y, width, height
            half = code.constant(0.5)
            x, y = box[:2]
            wide, high = code.fmul(box[2], half), code.fmul(box[3], half)
            corners = [code.fsub(y, high), code.fsub(x, wide), code.fadd(y, high), code.fadd(x, wide)]
        else:
            corners = [code.fmin(box[0], box[2]), code.fmin(box[1], box[3]),
                       code.fmax(box[0], box[2]), code.fmax(box[1], box[3])]
        area = code.fmul(code.fsub(corners[2], corners[0]), code.fsub(corners[3], corners[1]))
        key = code.select(real, ordered_key(code, score), code.constant(_OUT + 1, "i32"))
        values = [key, code.convert("trunc", at, "i32"), *corners, area]
        for kept, value in zip(self.lists, values, strict=True):
            code.store(value, code.offset(kept, place, value.type))

    def _chosen(self, found: Value, chosen: Value, task: Value) -> None:
        code, lanes = self.code, self.lanes
        best = code.variable(code.constant(_OUT, "i32", lanes))         # per lane, the greatest key and its place
        where = code.variable(code.constant(_LARGEST, "i32", lanes))
        iota = Value(f"<{lanes} x i32>", "<" + ", ".join(f"i32 {i}" for i in range(lanes)) + ">")

        def searched(at: Value, keys: Value) -> None:
            places = code.binary("add", iota, code.splat(code.convert("trunc", at, "i32"), lanes))
            better = code.compare(">", keys, best.get())                # the first of equals, for places rise
            where.set(code.select(better, places, where.get()))
            best.set(code.select(better, keys, best.get()))
        with code.loop(0, found, lanes) as at:
            searched(at, code.load(code.offset(self.lists[0], at, "i32"), "i32", lanes))
        taken = code.variable(code.value(0))
        going = code.variable(Value("i1", "true"))
        with code.loop(0, code.min(code.dim(self.each), found)), code.when(going.get()):
            key = self._greatest(best.get())
            none = code.constant(_LARGEST, "i32", lanes)
            here = code.compare("==", best.get(), code.splat(key, lanes))
            place = self._least(code.select(here, where.get(), none))
            more = code.compare(">", key, code.constant(_OUT, "i32"))
            going.set(more)
            with code.when(more):
                at = code.convert("sext", place, "i64")
                code.store(code.load(code.offset(self.lists[1], at, "i32"), "i32"),
                           code.offset(chosen, taken.get(), "i32"))
                taken.set(code.value(code.add(taken.get(), 1)))
                code.store(code.constant(_OUT, "i32"), code.offset(self.lists[0], at, "i32"))
                box = [code.splat(code.load(code.offset(part, at)), lanes) for part in self.lists[2:]]
                best.set(code.constant(_OUT, "i32", lanes))
                where.set(none)
                with code.loop(0, found, lanes) as start:
                    searched(start, self._left(start, box))
        counts = code.offset(code.buffer(self.room), code.dim(self.tasks * self.each), "i32")
        code.store(code.convert("trunc", taken.get(), "i32"), code.offset(counts, task, "i32"))

    def _left(self, at: Value, box: list[Value]) -> Value:
        """The keys of a vector of candidates, those out that overlap the box too far."""
        code, lanes = self.code, self.lanes
        zero = code.zero(lanes=lanes)
        keys = code.load(code.offset(self.lists[0], at, "i32"), "i32", lanes)
        top, left, low, right, area = (code.load(code.offset(part, at), lanes=lanes) for part in self.lists[2:])
        high = code.fsub(code.fmin(box[2], low), code.fmax(box[0], top))
        wide = code.fsub(code.fmin(box[3], right), code.fmax(box[1], left))
        meets = code.binary("and", code.fcompare("ogt", high, zero), code.fcompare("ogt", wide, zero))
        common = code.select(meets, code.fmul(high, wide), zero)
        union = code.fsub(code.fadd(box[4], area), common)
        real = code.fcompare("ogt", common, zero)
        for size in (box[4], area, union):
            real = code.binary("and", real, code.fcompare("ogt", size, zero))
        share = code.fdiv(common, union)
        far = code.fcompare("ogt", share, code.constant(float(str(self.attrs["overlap"])), lanes=lanes))
        kept = code.select(code.binary("and", real, far), code.constant(_OUT, "i32", lanes), keys)
        code.store(kept, code.offset(self.lists[0], at, "i32"))
        return kept

    def _greatest(self, v: Value) -> Value:
        return self.code.intrinsic("vector.reduce.smax", v, result="i32")

    def _least(self, v: Value) -> Value:
        return self.code.intrinsic("vector.reduce.smin", v, result="i32")

    # --- all of them ------------------------------------------------------------------------------------------------

    def join(self) -> None:
        """The rows of every task one after the other, zeros after them, and how many there are."""
        code = self.code
        each, tasks, classes = code.dim(self.each), code.dim(self.tasks), code.dim(self.classes)
        counts = code.offset(code.buffer(self.room), code.dim(self.tasks * self.each), "i32")
        rows = code.variable(code.value(0))
        with code.loop(0, tasks) as task:
            chosen = code.offset(code.buffer(self.room), code.mul(task, each), "i32")
            count = code.convert("sext", code.load(code.offset(counts, task, "i32"), "i32"), "i64")
            batch, kind = code.value(code.div(task, classes)), code.value(code.rem(task, classes))
            with code.loop(0, count) as k:
                out = code.offset(code.buffer(2), code.mul(code.add(rows.get(), k), 3), "i64")
                box = code.convert("sext", code.load(code.offset(chosen, k, "i32"), "i32"), "i64")
                for place, value in enumerate((batch, kind, box)):
                    code.store(value, code.offset(out, place, "i64"))
            rows.set(code.value(code.add(rows.get(), count)))
        if self.counted:
            code.store(rows.get(), code.buffer(3))
        lanes = max(1, self.lanes // 2)

        def cleared(places: Sequence[Int], mask: Value | None) -> None:
            for place in places:
                code.store(code.zero("i64", lanes), code.offset(code.buffer(2), place, "i64"), mask)
        each_vector(code, code.mul(code.mul(tasks, each), 3), lanes, cleared, start=code.mul(rows.get(), 3))
