"""LRN: every element over a power of the sum of squares of its neighbours along the channels."""
from __future__ import annotations

from ingot.graph import F32, product
from ingot.kernels.codegen import Code, Value, isa_of, math
from ingot.kernels.tactic import Kernel, Params, Site, Tactic
from ingot.ops import OPS
from ingot.target import Target


class LocalResponse(Tactic):
    """A vector of positions of one channel at a time."""

    name = "x86.local_response"

    def declines(self, site: Site, target: Target) -> str | None:
        if site.op != "LRN":
            return f"{site.op} is no LRN"
        if len(site.steps) > 1 or site.output.dtype != F32:
            return "takes f32, and no other steps"
        if any(o.strides is not None or o.type.layout for o in (*site.inputs, *site.outputs)):
            return "needs dense, plain operands"
        return None

    def emit(self, site: Site, params: Params, target: Target) -> Kernel:
        code = Code(isa_of(target), site.symbols)
        name = f"local_response_{site.key}"
        attrs = {**OPS["LRN"].attrs, **site.attrs}
        size = int(str(attrs["size"]))
        alpha, beta, bias = (float(str(attrs[k])) for k in ("alpha", "beta", "bias"))
        lanes = code.isa.lanes
        with code.function(name):
            n, c, plane = (code.dim(d) for d in (site.output.shape[0], site.output.shape[1],
                                                 product(site.output.shape[2:])))
            pieces = code.ceildiv(plane, lanes)
            with code.share(code.mul(code.mul(n, c), pieces)) as task:
                i, channel, piece = code.unflatten(task, [n, c, pieces])
                start = code.mul(piece, lanes)
                mask = code.mask(code.sub(plane, start), lanes)

                def place(buffer: int, k: object) -> Value:
                    row = code.add(code.mul(i, c), k)       # type: ignore[arg-type]
                    return code.offset(code.buffer(buffer), code.add(code.mul(row, plane), start))
                total = code.variable(code.zero("float", lanes))
                first = code.max(0, code.sub(channel, (size - 1) // 2))
                with code.loop(first, code.min(c, code.add(channel, size // 2 + 1))) as k:
                    x = code.load(place(0, k), "float", lanes, mask)
                    total.set(code.fma(x, x, total.get()))
                base = code.fma(total.get(), code.constant(alpha / size, "float", lanes),
                                code.constant(bias, "float", lanes))
                factor = math.power(code, base, code.constant(beta, "float", lanes))
                value = code.fdiv(code.load(place(0, channel), "float", lanes, mask), factor)
                code.store(value, place(1, channel), mask)
        return Kernel(name, code.module(), (name,))
