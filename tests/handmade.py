"""A small program with kernels written by hand, for tests of what comes after the generator."""
from collections.abc import Mapping

import numpy as np

from ingot.engine import Engine, Variant
from ingot.engine.variant import aligned
from ingot.graph import F32, Graph, Symbol, TensorType, parse, symbol
from ingot.kernels import Kernel, Operand, Site, Step
from ingot.lower import Launch, Program, View
from ingot.ops import infer
from ingot.plan import plan_memory
from ingot.runtime.host import host_target
from ingot.target import Target
from ingot.tune import Choice, generator_version

N = symbol("N")
SYMBOLS = {"N": Symbol("N", 1, 8, 32)}
T = TensorType(F32, (N, 4))

# out[i] = f(a[i], b[i or i mod 4]) for i in [0, 4N), the elements dealt to the threads one by one
LOOP = """
define void @{name}(ptr %buffers, ptr %symbols, i64 %thread, i64 %threads) {{
entry:
  %a.p = load ptr, ptr %buffers
  %b.pp = getelementptr ptr, ptr %buffers, i64 1
  %b.p = load ptr, ptr %b.pp
  %o.pp = getelementptr ptr, ptr %buffers, i64 {out}
  %o.p = load ptr, ptr %o.pp
  %n0 = load i64, ptr %symbols
  %n = mul i64 %n0, 4
  br label %head
head:
  %i = phi i64 [%thread, %entry], [%i1, %body]
  %more = icmp slt i64 %i, %n
  br i1 %more, label %body, label %done
body:
  %j = {index}
  %ap = getelementptr float, ptr %a.p, i64 %i
  %bp = getelementptr float, ptr %b.p, i64 %j
  %a = load float, ptr %ap
  %b = load float, ptr %bp
  {expression}
  %op = getelementptr float, ptr %o.p, i64 %i
  store float %r, ptr %op
  %i1 = add i64 %i, %threads
  br label %head
done:
  ret void
}}
"""


def loop(name: str, expression: str, out: int = 2, index: str = "add i64 %i, 0") -> Kernel:
    return Kernel(name, LOOP.format(name=name, expression=expression, out=out, index=index), (name,))


ADD = loop("add", "%r = fadd float %a, %b")
ADD_ROW = loop("add_row", "%r = fadd float %a, %b", index="and i64 %i, 3")
NEG = loop("neg", "%r = fneg float %a", out=1, index="add i64 0, 0")


def site(op: str, *operands: Operand) -> Site:
    return Site((Step(op, tuple(range(len(operands))), (), (T,)),), operands, (Operand(T),), tuple(SYMBOLS.values()))


ADD_SITE = site("Add", Operand(T), Operand(T))
ROW_SITE = site("Add", Operand(T), Operand(TensorType(F32, (4,)), None, True))
NEG_SITE = site("Neg", Operand(T))
SIN_SITE = site("Sin", Operand(T))
KERNELS = {ADD_SITE.key: ADD, ROW_SITE.key: ADD_ROW, NEG_SITE.key: NEG}
ROW = np.array([1, 2, 3, 4], np.float32)

GRAPH_TEXT = """
symbol N: 1..8..32
input x: f32[N,4]
input z: f32[N,4]
const w: f32[4] = [1.0, 2.0, 3.0, 4.0]
a = Add(x, w)
s = {middle}(a)
b = Neg(s)
y = Add(b, z)
return y, b
"""


def program(middle: Site = NEG_SITE) -> Program:
    """y = -m(x + w) + z and b = -m(x + w); m runs on the reference when it is not Neg."""
    launches = (Launch(ROW_SITE, ("x", "w"), ("a",)), Launch(middle, ("a",), ("s",), native=middle is NEG_SITE),
                Launch(NEG_SITE, ("s",), ("b",)), Launch(ADD_SITE, ("v", "z"), ("y",)))
    types = {**dict.fromkeys(("x", "z", "a", "s", "b", "v", "y"), T), "w": TensorType(F32, (4,))}
    return Program(("x", "z"), ("y", "b"), launches, {"v": View("b")}, {"w": aligned(ROW)}, types, SYMBOLS)


def graph(middle: str = "Neg") -> Graph:
    return parse(GRAPH_TEXT.format(middle=middle), infer)


def variant(made: Program, target: Target | None = None, packed: Mapping[tuple[int, int], np.ndarray] | None = None,
            ) -> Variant:
    target = target or host_target()
    native = {x.site.key for x in made.launches if x.native}
    choices = {k: Choice(k, "test.handmade", {"points": 1}) for k in sorted(native)}
    plan = plan_memory(made, [(0, 0)] * len(made.launches), target.threads)
    return Variant(target, generator_version(target), made, choices, dict(packed or {}), plan)


def engine(middle: Site = NEG_SITE, target: Target | None = None) -> Engine:
    return Engine("handmade", graph(middle.op), (variant(program(middle), target),))


def expected(x: np.ndarray, z: np.ndarray, middle: str = "Neg") -> dict[str, np.ndarray]:
    b = -(-(x + ROW) if middle == "Neg" else np.sin(x + ROW))
    return {"y": b + z, "b": b}
