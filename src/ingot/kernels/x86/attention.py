"""Attention as one kernel: softmax(scale * Q K' + mask) V, a block of query rows at a time.

For each batch and key head a thread copies K (transposed, in panels) and V next to each other into its scratch area,
then takes the queries in blocks of rows: scores of the block against a block of keys from register tiles, softmax
in place while they are in cache, times V from register tiles. Where all keys fit one block that is all; else
maximum, sum and result are carried from block to block ("online" softmax). The full score matrix never exists.
Operands are read through their strides: slices of a merged QKV product need no copy, and no transpose.
"""
from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from math import ceil, inf, log, sqrt

from ingot.graph import BOOL, F32, Dim, DType, evaluate
from ingot.kernels.codegen import Code, Int, Value, isa_of, math
from ingot.kernels.codegen.expression import to_mask
from ingot.kernels.codegen.tile import Tile, fits, transposed
from ingot.kernels.tactic import Kernel, Operand, Params, Site, Tactic
from ingot.kernels.x86.matmul_form import advance, aligned
from ingot.target import Target

Strides = tuple[Dim, Dim, Dim, Dim]


@dataclass(frozen=True)
class Heads:
    """One operand as [batch, head, position, feature]: sizes and strides, in elements."""

    shape: tuple[Dim, Dim, Dim, Dim]
    steps: Strides


@dataclass(frozen=True)
class AttentionForm:
    """The loops of an attention site."""

    query: Heads
    key: Heads
    value: Heads
    out: Heads
    mask: int | None
    mask_steps: tuple[Dim, ...]     # over batch, head, query, key
    width: int                      # features of query and key
    value_width: int
    group: int                      # query heads per key head
    scale: float
    softcap: float
    causal: bool


def _heads(operand: Operand, count: object) -> Heads | str:
    shape, steps = operand.type.shape, operand.steps
    if len(shape) == 4:
        return Heads(shape, steps)      # type: ignore[arg-type]
    if not isinstance(count, int) or not isinstance(shape[2], int):
        return "the number or the width of heads is not known"
    width = shape[2] // count
    return Heads((shape[0], count, shape[1], width), (steps[0], width * steps[2], steps[1], steps[2]))


def form_of(site: Site, dtypes: Sequence[DType] = (F32,)) -> AttentionForm | str:
    """The form of an Attention site over one of these element types, or why it is not served."""
    if site.op != "Attention":
        return f"it computes Attention, not {site.op}"
    if len(site.steps) != 1 or len(site.outputs) != 1:
        return "it takes no prologue or epilogue, and gives one output"
    attrs, refs = site.attrs, (*site.step.inputs, *[None] * 7)
    if any(i is not None for i in refs[4:]):
        return "it takes no key-value cache and no lengths"
    if attrs.get("left_window_size", -1) != -1 or attrs.get("right_window_size", -1) != -1:
        return "it takes no sliding window"
    if attrs.get("softmax_precision") not in (None, 1):
        return "it computes in f32 alone"
    found = []
    for i, name in zip(refs[:3], ("q_num_heads", "kv_num_heads", "kv_num_heads"), strict=True):
        if i is None or i < 0:
            return "an operand is absent"
        found.append(_heads(site.inputs[i], attrs.get(name)))
    found.append(_heads(site.outputs[0], attrs.get("q_num_heads")))
    if reasons := [h for h in found if isinstance(h, str)]:
        return reasons[0]
    query, key, value, out = (h for h in found if isinstance(h, Heads))
    kinds = {o.type.dtype for i, o in enumerate((*site.inputs, *site.outputs)) if i != refs[3]}
    if len(kinds) != 1 or not kinds <= set(dtypes):
        return f"it takes {', '.join(map(str, dtypes))}"
    if any(h.steps[3] != 1 for h in (query, key, value, out)):
        return "features are not adjacent in memory"
    sizes = (query.shape[1], key.shape[1], query.shape[3], value.shape[3])
    if not all(isinstance(n, int) for n in sizes):
        return "the number or the width of heads is not known"
    heads, shared, width, value_width = (n for n in sizes if isinstance(n, int))
    mask_steps: tuple[Dim, ...] = ()
    if (m := refs[3]) is not None:
        mask = site.inputs[m]
        if mask.type.dtype not in (*dtypes, BOOL):
            return f"the mask is {mask.type.dtype}, neither a number like the operands nor bool"
        if not mask.type.rank or mask.type.shape[-1] != key.shape[2]:
            return "the mask is shorter than the keys"
        steps = aligned(mask.type.shape, mask.steps, (*query.shape[:3], key.shape[2]))
        if steps is None or (steps[3] != 1 and key.shape[2] != 1):
            return "the mask is broadcast in a way only known at run time"
        mask_steps = steps
    scale = attrs.get("scale")
    return AttentionForm(query, key, value, out, refs[3], mask_steps, width, value_width, heads // shared,
                         1 / sqrt(width) if scale is None else float(scale),  # type: ignore[arg-type]
                         float(attrs.get("softcap") or 0.0), bool(attrs.get("is_causal")))  # type: ignore[arg-type]


class BlockedAttention(Tactic):
    """Blocks of `block` query rows against `keys` keys at a time; `rows` x `vectors` tiles for the scores,
    `rows` x `value_vectors` for the result; `parts` tasks per batch and head."""

    name = "x86.attention_blocks"

    def declines(self, site: Site, target: Target) -> str | None:
        form = form_of(site)
        return form if isinstance(form, str) else None

    def space(self, site: Site, target: Target) -> Iterator[Params]:
        form = form_of(site)
        if isinstance(form, str):
            return
        isa, opt = isa_of(target), {s.name: s.opt for s in site.symbols}
        batch, heads, keys = (evaluate(form.key.shape[i], opt) for i in range(3))
        queries = evaluate(form.query.shape[2], opt)
        parts = 1 if (batch * heads) % target.threads == 0 or batch * heads >= 8 * target.threads else target.threads

        def cost(shape: tuple[int, int], columns: int, *, exact: bool) -> float:
            rows, vectors = shape
            whole, rest = divmod(ceil(columns / isa.lanes), vectors)
            each = max(rows * vectors, 8, rows + vectors) * (1 + 0.05 / vectors + 0.1 / rows) + 1      # 1: its ends
            last = max(rows * (rest if exact else vectors), 8, rows + rest) + 1 if rest else 0
            return ceil(queries / rows) * (whole * each + last)

        shapes = [(r, v) for v in range(1, 7) for r in range(1, 21) if fits(isa, r, v) and (r <= queries or r == 1)]
        scores = sorted(shapes, key=lambda s: cost(s, keys, exact=isinstance(form.key.shape[2], int)))
        values = sorted(shapes, key=lambda s: cost(s, form.value_width, exact=False))
        for a, b, most in ((0, 0, 48), (1, 0, 48), (0, 1, 48), (0, 0, 96), (2, 0, 48)):
            rows, vectors = scores[min(a, len(scores) - 1)]
            value_rows, value_vectors = values[min(b, len(values) - 1)]
            whole = vectors * isa.lanes
            held = min(ceil(keys / whole), max(1, 512 // whole)) * whole
            block = ceil(ceil(queries / ceil(queries / most)) / rows) * rows        # even blocks of at most `most` rows
            yield {"rows": rows, "vectors": vectors, "value_rows": value_rows, "value_vectors": value_vectors,
                   "block": block, "keys": held, "parts": parts}

    def emit(self, site: Site, params: Params, target: Target) -> Kernel:
        form = form_of(site)
        if isinstance(form, str):
            raise ValueError(form)
        return _Emission(site, form, params, target).kernel()


class _Emission:
    """The emission of one kernel; lives inside `emit`."""

    def __init__(self, site: Site, form: AttentionForm, params: Params, target: Target) -> None:
        self.site, self.form, self.params = site, form, params
        self.code = Code(isa_of(target), site.symbols)
        self.lanes = lanes = self.code.isa.lanes
        self.panel = params["vectors"] * lanes
        self.keys = -(-params["keys"] // self.panel) * self.panel       # keys per block
        total = form.key.shape[2]
        self.online = not (isinstance(total, int) and total <= self.keys)
        value_vectors = min(params["value_vectors"], -(-form.value_width // lanes))
        self.stripe = value_vectors * lanes                             # columns of the result per tile
        self.value_vectors = value_vectors
        self.columns = -(-form.value_width // self.stripe) * self.stripe
        self.heights = params["rows"], params["value_rows"]
        self.block = params["block"]
        room = self.block + max(*self.heights, 4)                           # a last tile may reach past the block
        self.team = 4 if self.code.isa.registers >= 32 else 2           # rows of scores in softmax at a time
        boolean = form.mask is not None and site.inputs[form.mask].type.dtype == BOOL
        self.mask_element = "i8" if boolean else "float"
        self.areas: list[Dim] = [-(-total // self.panel) * self.panel * form.width, total * self.columns,
                                 room * form.width, room * self.keys, room * self.columns, room, room]

    def kernel(self) -> Kernel:
        code, form = self.code, self.form
        scratch: Dim = 0
        starts: list[Dim] = []
        for size in self.areas:
            starts.append(scratch)
            scratch = scratch + -(-size // 16) * 16
        with code.function("attention"):
            base = code.offset(code.buffer(len(self.site.inputs) + 2), code.mul(code.thread, code.dim(scratch)))
            (self.k_area, self.v_area, self.q_area, self.p_area, self.o_area, self.best, self.sums) = (
                code.offset(base, code.dim(s)) for s in starts)
            parts = self.params.get("parts", 1)
            batches, heads = code.dim(form.key.shape[0]), code.dim(form.key.shape[1])
            queries = code.dim(form.query.shape[2])
            with code.share(code.mul(code.mul(batches, heads), parts)) as task:
                batch, head, part = code.unflatten(task, [batches, heads, parts])
                self._pack_keys(batch, head)
                self._pack_values(batch, head)
                low = code.div(code.mul(part, queries), parts)
                high = code.div(code.mul(code.add(part, 1), queries), parts)
                with code.loop(0, form.group) as member, code.loop(low, high, self.block) as first:
                    asked = code.add(code.mul(head, form.group), member)
                    self._block(batch, asked, first, code.min(self.block, code.sub(high, first)))
        batch_heads = form.query.shape[0] * form.query.shape[1]
        flops = 2 * batch_heads * form.query.shape[2] * form.key.shape[2] * (form.width + form.value_width)
        return Kernel(BlockedAttention.name, code.module(), ("attention",), scratch=scratch * 4, meta={"flops": flops})

    # --- operands into the scratch area ---------------------------------------------------------------------------

    def _source(self, which: int, heads: Heads, batch: Int, head: Int) -> Value:
        """Where the rows of a batch and head start."""
        operand = self.site.step.inputs[which]
        return self.code.offset(self.code.buffer(operand or 0), advance(self.code, (batch, head), heads.steps[:2]))

    def _pack_keys(self, batch: Int, head: Int) -> None:
        """K into [panel][feature][panel width]: a register's worth of keys at a time, transposed in registers."""
        code, form, lanes = self.code, self.form, self.lanes
        source, row = self._source(1, form.key, batch, head), code.dim(form.key.steps[2])
        total = code.dim(form.key.shape[2])
        padded = code.mul(code.ceildiv(total, self.panel), self.panel)
        last = code.sub(total, 1)
        with code.loop(0, padded, lanes) as j:
            panel, inside = code.div(j, self.panel), code.rem(j, self.panel)
            into = code.offset(self.k_area, code.add(code.mul(panel, self.panel * form.width), inside))
            rows = [code.offset(source, code.mul(code.min(code.add(j, r), last), row)) for r in range(lanes)]
            whole = form.width // lanes * lanes
            with code.loop(0, whole, lanes) as d:
                self._turn([code.load(code.offset(r, d), lanes=lanes) for r in rows], into, d, lanes)
            if rest := form.width - whole:
                mask = code.mask(rest, lanes)
                self._turn([code.load(code.offset(r, whole), lanes=lanes, mask=mask) for r in rows], into, whole, rest)

    def _turn(self, rows: Sequence[Value], into: Value, feature: Int, count: int) -> None:
        code = self.code
        for d, value in enumerate(transposed(code, rows)[:count]):
            code.store(value, code.offset(into, code.mul(code.add(feature, d), self.panel)), align=4 * self.lanes)

    def _pack_values(self, batch: Int, head: Int) -> None:
        """V densely, columns padded with zeros."""
        code, form = self.code, self.form
        source, row = self._source(2, form.value, batch, head), code.dim(form.value.steps[2])
        with code.loop(0, code.dim(form.key.shape[2])) as j:
            here, there = code.offset(source, code.mul(j, row)), code.offset(self.v_area, code.mul(j, self.columns))
            for d in range(0, self.columns, self.lanes):
                mask = code.mask(max(0, form.value_width - d), self.lanes)
                code.store(code.load(code.offset(here, d), lanes=self.lanes, mask=mask), code.offset(there, d),
                           align=4 * self.lanes)

    def _pack_queries(self, batch: Int, head: Int, first: Int, count: Int) -> None:
        """A block of Q, times scale (and 1 / log 2, for powers of two); rows past the block repeat the last one."""
        code, form, lanes = self.code, self.form, self.lanes
        source, row = self._source(0, form.query, batch, head), code.dim(form.query.steps[2])
        height = self.heights[0]
        padded = code.mul(code.ceildiv(count, height), height)
        last = code.sub(count, 1)
        scale = form.scale if form.softcap > 0 else form.scale / log(2)
        with code.loop(0, padded) as r:
            at = code.add(first, code.min(r, last))
            here, there = code.offset(source, code.mul(at, row)), code.offset(self.q_area, code.mul(r, form.width))
            for d in range(0, form.width, lanes):
                mask = code.mask(form.width - d, lanes)
                value = code.load(code.offset(here, d), lanes=lanes, mask=mask)
                code.store(code.fmul(value, code.constant(scale, lanes=lanes)), code.offset(there, d), mask)

    def _foretell(self, at: tuple[Int, Int, Int], panel: Int, r0: Int) -> None:
        """While scores are computed, ask for what comes next: the same rows of the next head's operands and of this
        head's result. Slices of a merged product lie far apart; their lines would each wait for L3. A few lines per
        tile, another operand for each panel: more at once would hold up the tile's own loads."""
        code, form = self.code, self.form
        batch, head, first = at
        after = code.add(head, 1)
        shared = code.div(after, form.group)
        wanted = ((1, form.key, shared), (2, form.value, shared), (0, form.query, after), (3, form.out, head))
        total = form.key.shape[2]
        turns = min(4, -(-total // self.panel)) if isinstance(total, int) else 1
        for turn in range(turns):
            with code.when(code.compare("==", panel, turn * self.panel)), code.loop(0, self.heights[0]) as r:
                position = code.add(code.add(first, r0), r)
                for which, heads, h in wanted[turn::turns]:
                    buffer = len(self.site.inputs) if which == 3 else self.site.step.inputs[which] or 0
                    offset = code.add(advance(code, (batch, h), heads.steps[:2]),
                                      code.mul(position, code.dim(heads.steps[2])))
                    width = heads.shape[3]
                    for d in range(0, width if isinstance(width, int) else 0, 16):
                        code.prefetch(code.offset(code.buffer(buffer), code.add(offset, d)), 2)

    # --- one block of query rows ------------------------------------------------------------------------------------

    def _block(self, batch: Int, head: Int, first: Int, count: Int) -> None:
        code, form = self.code, self.form
        self._pack_queries(batch, head, first, count)
        total = code.dim(form.key.shape[2])
        if form.causal:                         # no key after the block's last query
            total = code.min(total, code.add(first, count))
        if not self.online:
            self._against(batch, head, first, count, 0, total)
        else:
            with code.loop(0, code.add(count, 4)) as r:
                code.store(code.constant(-inf), code.offset(self.best, r))
                code.store(code.zero(), code.offset(self.sums, r))
            padded = code.mul(code.add(count, max(*self.heights, 4)), self.columns)
            with code.loop(0, padded, self.lanes) as e:
                code.store(code.zero(lanes=self.lanes), code.offset(self.o_area, e), align=4 * self.lanes)
            with code.loop(0, total, self.keys) as start:
                self._against(batch, head, first, count, start, code.min(self.keys, code.sub(total, start)))
        self._finish(batch, head, first, count)

    def _against(self, batch: Int, head: Int, first: Int, count: Int, start: Int, keys: Int) -> None:
        """The block against keys start .. start + keys."""
        self._scores((batch, head, first), count, start, keys)
        self._softmax(batch, head, first, count, start, keys)
        self._weigh(count, start, keys)

    def _scores(self, at: tuple[Int, Int, Int], count: Int, start: Int, keys: Int) -> None:
        """Scores in units of log 2, for a block of queries and a block of keys."""
        code, vectors = self.code, self.params["vectors"]
        rest = -(-(keys % self.panel) // self.lanes) if isinstance(keys, int) else 0
        whole = keys // self.panel * self.panel if isinstance(keys, int) and rest else keys
        with code.loop(0, whole, self.panel) as j:
            self._score_rows(at, count, start, j, vectors)
        if rest:                                            # the last panel, as wide as it must be
            self._score_rows(at, count, start, whole, rest)

    def _score_rows(self, at: tuple[Int, Int, Int], count: Int, start: Int, j: Int, vectors: int) -> None:
        code, form, height = self.code, self.form, self.heights[0]
        with code.loop(0, count, height) as r0:
            if not self.online:
                self._foretell(at, j, r0)
            tile = Tile(code, height, vectors)
            tile.clear()
            left = code.offset(self.q_area, code.mul(r0, form.width))
            right = code.offset(self.k_area, code.mul(code.add(start, j), form.width))

            def step(d: Int) -> None:
                a, b = code.offset(left, d), code.offset(right, code.mul(d, self.panel))
                tile.step(lambda r: code.load(code.offset(a, r * form.width)),
                          lambda v: code.load(code.offset(b, v * self.lanes), lanes=self.lanes, align=4 * self.lanes))

            tile.depth(form.width, step)
            into = code.offset(self.p_area, code.add(code.mul(r0, self.keys), j))
            tile.store(lambda r, v: code.offset(into, r * self.keys + v * self.lanes), align=4 * self.lanes)

    def _softmax(self, batch: Int, head: Int, first: Int, count: Int, start: Int, keys: Int) -> None:
        """Scores -> 2^(score - maximum), several rows at a time; carries maximum and sum along where keys come in
        blocks. Rows past the block are computed, too: they lie in the scratch area and are not stored."""
        code, lanes, form = self.code, self.lanes, self.form
        low = code.constant(-inf, lanes=lanes)
        adjusts = form.mask is not None or form.causal or form.softcap > 0
        whole = code.mul(code.div(keys, lanes), lanes)
        with code.loop(0, count, self.team) as r0:
            rows = [_Row(self, batch, head, first, count, start, code.add(r0, i)) for i in range(self.team)]
            with code.loop(0, whole, lanes) as j:
                for row in rows:
                    at = code.offset(row.scores, j)
                    score = code.load(at, lanes=lanes, align=4 * lanes)
                    if adjusts:
                        score = self._adjusted(score, row, j, None)
                        code.store(score, at, align=4 * lanes)
                    row.best.set(code.fmax(row.best.get(), score))
            if not (isinstance(whole, int) and whole == keys):
                with code.when(code.compare("<", whole, keys)):
                    mask = code.mask(code.sub(keys, whole), lanes)
                    for row in rows:
                        at = code.offset(row.scores, whole)
                        score = self._adjusted(code.load(at, lanes=lanes, align=4 * lanes), row, whole, mask)
                        score = code.select(mask, score, low) if mask is not None else score
                        code.store(score, at, align=4 * lanes)
                        row.best.set(code.fmax(row.best.get(), score))
            self._exponents(rows, keys)

    def _adjusted(self, score: Value, row: _Row, j: Int, valid: Value | None) -> Value:
        """A score capped, masked by an operand, and by causality."""
        code, form, lanes = self.code, self.form, self.lanes
        low, zero = code.constant(-inf, lanes=lanes), code.zero(lanes=lanes)
        if form.softcap > 0:
            inner = code.fmul(score, code.constant(1 / form.softcap, lanes=lanes))
            score = code.fmul(math.tanh(code, inner), code.constant(form.softcap / log(2), lanes=lanes))
        if row.bias is not None:
            given = code.load(code.offset(row.bias, j, self.mask_element), self.mask_element, lanes, valid)
            if self.mask_element == "i8":
                score = code.fadd(score, code.select(to_mask(code, given), zero, low))
            else:
                score = code.fma(given, code.constant(1 / log(2), lanes=lanes), score)
        if row.limit is not None:
            seen = code.mask(code.value(code.sub(row.limit, j)), lanes)
            score = score if seen is None else code.select(seen, score, low)
        return score

    def _exponents(self, rows: Sequence[_Row], keys: Int) -> None:
        code, lanes = self.code, self.lanes
        kept = []
        for row in rows:
            found, old = code.reduce("fmax", row.best.get()), None
            if self.online:
                old = code.load(code.offset(self.best, row.index))
                found = code.fmax(old, found)
                code.store(found, code.offset(self.best, row.index))
            # a row that may attend nothing: 2^(-inf - 0) is 0 everywhere
            found = code.select(code.fcompare("oeq", found, code.constant(-inf)), code.zero(), found)
            kept.append((row, found, old, code.splat(found, lanes), code.variable(code.zero(lanes=lanes))))
        with code.loop(0, keys, lanes) as j:
            for row, _, _, shift, total in kept:
                at = code.offset(row.scores, j)
                value = power_of_two(code, code.fsub(code.load(at, lanes=lanes, align=4 * lanes), shift))
                code.store(value, at, align=4 * lanes)
                total.set(code.fadd(total.get(), value))
        for row, found, old, _, total in kept:
            added = code.reduce("fadd", total.get())
            if old is not None:
                fade = power_of_two(code, code.fsub(old, found))
                added = code.fma(code.load(code.offset(self.sums, row.index)), fade, added)
                spread = code.splat(fade, lanes)
                with code.loop(0, self.columns, lanes) as d:
                    at = code.offset(self.o_area, code.add(code.mul(row.index, self.columns), d))
                    code.store(code.fmul(code.load(at, lanes=lanes, align=4 * lanes), spread), at, align=4 * lanes)
            code.store(added, code.offset(self.sums, row.index))

    def _weigh(self, count: Int, start: Int, keys: Int) -> None:
        """Result += weights * V."""
        code, height = self.code, self.heights[1]
        with code.loop(0, self.columns, self.stripe) as c, code.loop(0, count, height) as r0:
            tile = Tile(code, height, self.value_vectors)
            into = code.offset(self.o_area, code.add(code.mul(r0, self.columns), c))

            def spot(r: int, v: int) -> Value:
                return code.offset(into, r * self.columns + v * self.lanes)

            if self.online:
                tile.load(spot, align=4 * self.lanes)
            else:
                tile.clear()
            left = code.offset(self.p_area, code.mul(r0, self.keys))
            right = code.offset(self.v_area, code.add(code.mul(start, self.columns), c))

            def step(j: Int) -> None:
                a, b = code.offset(left, j), code.offset(right, code.mul(j, self.columns))
                tile.step(lambda r: code.load(code.offset(a, r * self.keys)),
                          lambda v: code.load(code.offset(b, v * self.lanes), lanes=self.lanes, align=4 * self.lanes))

            tile.depth(keys, step)
            tile.store(spot, align=4 * self.lanes)

    def _finish(self, batch: Int, head: Int, first: Int, count: Int) -> None:
        """Divide by the sums and store."""
        code, form, lanes = self.code, self.form, self.lanes
        out, row = code.buffer(len(self.site.inputs)), code.dim(form.out.steps[2])
        base = code.offset(out, advance(code, (batch, head), form.out.steps[:2]))
        with code.loop(0, count) as r:
            total = code.load(code.offset(self.sums, r))
            total = code.select(code.fcompare("oeq", total, code.zero()), code.constant(1), total)
            factor = code.splat(code.fdiv(code.constant(1), total), lanes)
            into = code.offset(base, code.mul(code.add(first, r), row))
            held = code.offset(self.o_area, code.mul(r, self.columns))
            for d in range(0, form.value_width, lanes):
                value = code.load(code.offset(held, d), lanes=lanes, align=4 * lanes)
                code.store(code.fmul(value, factor), code.offset(into, d), code.mask(form.value_width - d, lanes))


class _Row:
    """One row of scores in softmax."""

    def __init__(self, e: _Emission, batch: Int, head: Int, first: Int, count: Int, start: Int, index: Int) -> None:
        code, form = e.code, e.form
        position = code.add(first, code.min(index, code.sub(count, 1)))
        self.index = index
        self.scores = code.offset(e.p_area, code.mul(index, e.keys))
        self.best = code.variable(code.constant(-inf, lanes=e.lanes))
        self.bias = None
        if form.mask is not None:
            place = advance(code, (batch, head, position, start), form.mask_steps)
            self.bias = code.offset(code.buffer(form.mask), place, e.mask_element)
        self.limit = code.sub(code.add(position, 1), start) if form.causal else None


# 2^r on [-1/2, 1/2], fitted to the least relative error: 2.4e-7 in f32
_POWERS = (0.001327647129073739, 0.009675540961325169, 0.05550713092088699, 0.24022120237350464, 0.6931469440460205,
           1.0000001192092896)


def power_of_two(code: Code, x: Value) -> Value:
    """2^x for x <= 0 in f32, 0 below 2^-126: what softmax needs, for half of what a full range costs."""
    magic = math.like(code, x, 1.5 * 2.0**23)
    shifted = code.fadd(code.fmax(math.like(code, x, -127.0), x), magic)
    r = code.fsub(x, code.fsub(shifted, magic))
    power = math.bits(code, math.polynomial(code, r, _POWERS))
    raised = code.binary("add", power, code.binary("shl", math.bits(code, shifted),
                                                   code.constant(23, "i32", x.lanes)))
    tiny = code.fcompare("olt", x, math.like(code, x, -126.0))
    return code.select(tiny, math.like(code, x, 0.0), math.floats(code, raised))
