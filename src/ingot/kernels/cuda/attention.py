"""Attention as one kernel: softmax(scale * Q K' + mask) V by blocks of queries, the matrix of scores never in memory.

After FlashAttention-2 (Dao, 2023): for a block of queries the keys are walked in blocks, with a running maximum and
sum; where all keys fit one block that is all. Exponentials are powers of two. Any head size, masks, causal, grouped
queries; operands are read through their strides, so slices of a merged product need no copy.
"""
from __future__ import annotations

import math
from collections.abc import Iterator

from ingot.graph import BF16, BOOL, F16, F32
from ingot.kernels.cuda.base import CudaTactic, Drafts
from ingot.kernels.cuda.matmul import multiprocessors, precision_of
from ingot.kernels.cuda.source import NAMES, SHARED, Source, ceil_div, is_wide, joined, power_of_two, times, usual
from ingot.kernels.tactic import Params, Site
from ingot.kernels.x86.attention import AttentionForm, Heads, form_of
from ingot.target import Target

FLOATS = (F16, BF16, F32)


def known(site: Site) -> AttentionForm:
    """The form of a site that was not declined."""
    form = form_of(site, FLOATS)
    if isinstance(form, str):
        raise ValueError(form)
    return form


class FlashAttention(CudaTactic):
    """`rows` queries against `keys` keys at a time."""

    name = "cuda.attention"

    def declines(self, site: Site, target: Target) -> str | None:
        form = form_of(site, FLOATS)
        if isinstance(form, str):
            return form
        return "heads of more than 512 features" if max(form.width, form.value_width) > 512 else None

    def space(self, site: Site, target: Target) -> Iterator[Params]:
        form = known(site)
        size = site.output.dtype.nbytes
        wide = power_of_two(max(form.width, form.value_width, 16))
        queries, keys = usual(form.query.shape[2], site), usual(form.key.shape[2], site)
        heads = usual(form.query.shape[0] * form.query.shape[1], site)
        room = SHARED[target.isa.rstrip("a")] * 1024
        found: list[tuple[float, dict[str, int]]] = []
        for rows, warps in ((64, 4), (128, 8), (128, 4), (32, 4), (16, 4), (64, 8), (32, 2)):
            if rows > 16 and rows >= 2 * power_of_two(queries):
                continue
            for block in (64, 128, 32, 256, 512):
                if block > 32 and block >= 2 * power_of_two(keys):
                    continue
                if rows * max(block, wide) > 128 * 256 or (size == 4 and rows * block > 64 * 128):
                    continue
                for stages in (2, 3, 1):
                    if (rows + 2 * block * stages) * wide * size > room or (stages > 2 and stages * block > keys):
                        continue
                    tiles = -(-queries // rows) * heads
                    waves = -(-tiles // multiprocessors(target))
                    steps = -(-keys // block)
                    # per step: two products, exponentials, and a latency that more stages hide
                    work = steps * (rows * block * wide / (256 if rows >= 64 else 128) / 4 + rows * block / 16
                                    + 600 / stages)
                    found.append((waves * (1200 + work), {"rows": rows, "keys": block, "warps": warps,
                                                          "stages": stages}))
        found.sort(key=lambda pair: pair[0])
        yield from (p for _, p in found)

    def write(self, site: Site, params: Params, target: Target) -> Drafts:
        form, source = known(site), Source(site, target)
        rows, block = params["rows"], params["keys"]
        features, wide = max(16, power_of_two(form.width)), max(16, power_of_two(form.value_width))
        queries, keys = form.query.shape[2], form.key.shape[2]
        q, k, v = (i for i in site.step.inputs[:3] if i is not None)
        dtype = site.output.dtype
        name = NAMES[dtype.name]
        heads = source.dim(form.query.shape[1])
        extra = f", input_precision='{precision_of(target)}'" if dtype == F32 else ""
        long = ".to(tl.int64)" if is_wide(site) else ""
        source.lines(f"""
batch = tl.program_id(1){long} // {heads}
head = tl.program_id(1){long} % {heads}
shared = head // {form.group}
m = tl.program_id(0) * {rows} + tl.arange(0, {rows})
f = tl.arange(0, {features})
w = tl.arange(0, {wide})
n = tl.arange(0, {block})
""")
        source.start_dependent()

        def start(heads_: Heads, head: str) -> str:
            return joined([times("batch", source.dim(heads_.steps[0])), times(head, source.dim(heads_.steps[1]))])

        def masked(address: str, *masks: str | None) -> str:
            held = " & ".join(f"({x})" for x in masks if x)
            return f"tl.load({address}, mask={held}, other=0.0)" if held else f"tl.load({address})"
        row_mask = None if isinstance(queries, int) and queries % rows == 0 else f"m[:, None] < {source.dim(queries)}"
        inner = f"[None, :] < {form.width}" if features != form.width else None
        outer = f"w[None, :] < {form.value_width}" if wide != form.value_width else None
        ragged = not (isinstance(keys, int) and keys % block == 0)
        line = times("m[:, None]", source.dim(form.query.steps[2]))
        at = f"{source.pointer(q)} + {start(form.query, 'head')} + {line}"
        source.line(f"query = {masked(f'{at} + f[None, :]', row_mask, f'f{inner}' if inner else None)}")
        source.line(f"k_at = {source.pointer(k)} + {start(form.key, 'shared')} + "
                    f"{times('n[None, :]', source.dim(form.key.steps[2]))} + f[:, None]")
        source.line(f"v_at = {source.pointer(v)} + {start(form.value, 'shared')} + "
                    f"{times('n[:, None]', source.dim(form.value.steps[2]))} + w[None, :]")
        source.line(f"best = tl.full(({rows},), float('-inf'), tl.float32)")
        source.line(f"total = tl.zeros(({rows},), tl.float32)")
        source.line(f"out = tl.zeros(({rows}, {wide}), tl.float32)")
        last = source.dim(keys)
        if form.causal:
            last = source.let(f"tl.minimum({last}, tl.program_id(0) * {rows} + {rows})", "last")
        with source.block(f"for start in range(0, {last}, {block}):"):
            inside_key = f"start + n[None, :] < {source.dim(keys)}" if ragged else None
            inside_value = f"start + n[:, None] < {source.dim(keys)}" if ragged else None
            k_move = f"k_at + {times('start', source.dim(form.key.steps[2]))}"
            v_move = f"v_at + {times('start', source.dim(form.value.steps[2]))}"
            source.line(f"key = {masked(k_move, inside_key, f'f[:, None] < {form.width}' if inner else None)}")
            source.line(f"value = {masked(v_move, inside_value, outer)}")
            source.line(f"score = tl.dot(query, key{extra})")
            self._scores(source, form, inside_key, row_mask)
            source.lines(f"""
found = tl.maximum(best, tl.max(score, 1))
shift = tl.where(found == float('-inf'), 0.0, found)
weight = tl.exp2(score - shift[:, None])
fade = tl.exp2(best - shift)
total = total * fade + tl.sum(weight, 1)
out = tl.dot(weight.to({name}), value, out * fade[:, None]{extra})
best = found
""")
        source.let_next_start()
        source.line("out = out / tl.where(total == 0.0, 1.0, total)[:, None]")
        steps = form.out.steps
        offset = joined([start(form.out, "head"), times("m[:, None]", source.dim(steps[2])), "w[None, :]"])
        held = " & ".join(f"({x})" for x in (row_mask, outer) if x)
        source.line(f"tl.store({source.pointer(len(site.inputs))} + {offset}, out.to({name})"
                    + (f", mask={held})" if held else ")"))
        grid = (ceil_div(queries, rows), form.query.shape[0] * form.query.shape[1], 1)
        return Drafts((source.draft(grid, warps=params["warps"], stages=params["stages"]),))

    @staticmethod
    def _scores(source: Source, form: AttentionForm, inside: str | None, row_mask: str | None) -> None:
        """Scale, softcap and masks; the scores then are exponents of two."""
        two = math.log2(math.e)
        if form.softcap:
            source.line(f"score = {form.softcap!r} * (1.0 - 2.0 / (1.0 + tl.exp2(score * "
                        f"{2 * two * form.scale / form.softcap!r})))")
            source.line(f"score = score * {two!r}")
        else:
            source.line(f"score = score * {form.scale * two!r}")
        if form.mask is not None:
            steps = form.mask_steps
            offset = joined([times("batch", source.dim(steps[0])), times("head", source.dim(steps[1])),
                             times("m[:, None]", source.dim(steps[2])), times("(start + n)[None, :]",
                                                                            source.dim(steps[3]))])
            masks = [x for x in (inside if steps[3] != 0 else None, row_mask if steps[2] != 0 else None) if x]
            held = " & ".join(f"({x})" for x in masks)
            whole = f"tl.load({source.pointer(form.mask)} + {offset}" + (f", mask={held}, other=0)" if masks else ")")
            if source.operand(form.mask).type.dtype == BOOL:
                source.line(f"keep = {whole} != 0")
                source.line("score = tl.where(keep, score, float('-inf'))")
            else:
                source.line(f"score = score + {whole}.to(tl.float32) * {two!r}")
        if form.causal:
            source.line("score = tl.where(m[:, None] >= (start + n)[None, :], score, float('-inf'))")
        if inside:
            source.line(f"score = tl.where({inside}, score, float('-inf'))")


__all__ = ["FlashAttention"]
