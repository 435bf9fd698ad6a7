"""Writing the Triton source of one launch: names for pointers and sizes, lines, and what turns it into a Draft."""
from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

from ingot.graph import BF16, BOOL, F8E4M3, F16, F32, I32, Dim, DType, evaluate, product
from ingot.kernels.cuda.kernel import COUNTERS, DATA, WORKSPACE, Argument, Pointer, Scalar, TensorMap
from ingot.kernels.tactic import Operand, Site
from ingot.target import Target

HALVES = (F16, BF16)
SHORTS = (*HALVES, F8E4M3)      # floats that are f32 in registers
SUMS_INTEGERS = frozenset({"MatMulInteger", "ConvInteger"})
TYPES: Mapping[str, str] = {
    "f16": "fp16", "bf16": "bf16", "f32": "fp32", "f64": "fp64", "i8": "i8", "i16": "i16", "i32": "i32", "i64": "i64",
    "u8": "u8", "u16": "u16", "u32": "u32", "u64": "u64", "bool": "u8", "f8e4m3": "fp8e4nv"}
NAMES: Mapping[str, str] = {
    "f16": "tl.float16", "bf16": "tl.bfloat16", "f32": "tl.float32", "f64": "tl.float64", "i8": "tl.int8",
    "i16": "tl.int16", "i32": "tl.int32", "i64": "tl.int64", "u8": "tl.uint8", "u16": "tl.uint16", "u32": "tl.uint32",
    "u64": "tl.uint64", "bool": "tl.int1", "f8e4m3": "tl.float8e4nv"}
MULTIPROCESSORS: Mapping[str, int] = {"sm_80": 108, "sm_86": 84, "sm_89": 128, "sm_90": 132, "sm_100": 148}
SHARED: Mapping[str, int] = {"sm_80": 163, "sm_86": 99, "sm_89": 99, "sm_90": 227, "sm_100": 227}      # KiB per block


@dataclass(frozen=True)
class Value:
    """What an expression names, and the element type it has in registers (f32 for the half types)."""

    text: str
    dtype: DType

    def __str__(self) -> str:
        return self.text


@dataclass(frozen=True)
class Draft:
    """One launch before it is compiled: the text of a function `kernel`, the types of its parameters, and the rest of
    a `CudaLaunch`. `extern` parameters of pointer type are known to be 16-byte aligned when in `aligned`."""

    source: str
    signature: tuple[tuple[str, str], ...]
    aligned: frozenset[str]
    arguments: tuple[Argument, ...]
    grid: tuple[Dim, Dim, Dim]
    warps: int = 4
    stages: int = 3
    gluon: bool = False
    dependent: bool = False
    fused: bool = True      # a product and a sum may become one operation, rounded once
    cluster: int = 1        # blocks that work on one tile together; the grid counts clusters


def registers_of(dtype: DType) -> DType:
    """The element type a value of this stored type has in registers."""
    return F32 if dtype in SHORTS else dtype


def sums_of(site: Site) -> DType:
    """The element type in which a product or convolution is summed."""
    return I32 if site.op in SUMS_INTEGERS else F32


def number(value: float) -> str:
    """A float as text that Triton reads."""
    if math.isinf(value) or math.isnan(value):
        return f"float('{value}')"
    return repr(float(value))


def power_of_two(n: int) -> int:
    """The least power of two not below n."""
    return 1 << max(0, n - 1).bit_length()


def ceil_div(a: Dim, b: int) -> Dim:
    """a / b, rounded up."""
    return (a + (b - 1)) // b


def most(dim: Dim, site: Site) -> int:
    """The greatest value of a dimension on the profile."""
    return evaluate(dim, {s.name: s.max for s in site.symbols})


def usual(dim: Dim, site: Site) -> int:
    """The value of a dimension at the sizes a site is tuned at."""
    return evaluate(dim, {s.name: s.opt for s in site.symbols})


def logical_strides(operand: Operand) -> tuple[Dim, ...]:
    """Element strides over the logical axes: those of a channels-last tensor as its logical shape names them."""
    steps = operand.steps
    if not operand.type.layout:
        return steps
    return (steps[0], steps[-1], *steps[1:-1])


def physical_order(operand: Operand) -> tuple[int, ...]:
    """The logical axes from the slowest to the fastest in memory."""
    rank = operand.type.rank
    return (0, *range(2, rank), 1) if operand.type.layout else tuple(range(rank))


@dataclass
class Source:
    """The text of one kernel function while it is written."""

    site: Site
    target: Target
    gluon: bool = False
    _parameters: dict[str, tuple[str, Argument]] = field(default_factory=dict)
    _aligned: set[str] = field(default_factory=set)
    _lines: list[str] = field(default_factory=list)
    _depth: int = 1
    _count: int = 0

    @property
    def capability(self) -> int:
        return capability(self.target)

    # --- parameters ---------------------------------------------------------------------------------------------

    def operand(self, index: int) -> Operand:
        """The site's operand: its inputs, then its outputs."""
        return (*self.site.inputs, *self.site.outputs)[index]

    def pointer(self, index: int) -> str:
        """The name of the pointer to an operand."""
        name, operand = f"p{index}", self.operand(index)
        self._parameters.setdefault(name, (f"*{TYPES[operand.type.dtype.name]}", Pointer(index)))
        if operand.aligned:
            self._aligned.add(name)
        return name

    def workspace(self, dtype: DType = F32, offset: Dim = 0, name: str = "work") -> str:
        """The name of a pointer into the kernel's own memory."""
        self._parameters[name] = (f"*{TYPES[dtype.name]}", Pointer(WORKSPACE, offset))
        self._aligned.add(name)
        return name

    def counters(self) -> str:
        """The name of the pointer to the kernel's counters (i32, zero at first)."""
        self._parameters["counters"] = ("*i32", Pointer(COUNTERS))
        self._aligned.add("counters")
        return "counters"

    def data(self, name: str, kind: str, offset: int) -> str:
        """The name of a pointer (a Triton type) into the kernel's constant bytes."""
        self._parameters[name] = (kind, Pointer(DATA, offset))
        return name

    def tensor_map(self, name: str, kind: str, map_: TensorMap) -> str:
        """A TMA descriptor parameter of the given Triton type."""
        self._parameters[name] = (kind, map_)
        return name

    def dim(self, dim: Dim) -> str:
        """A size as text: a number, or the name of a scalar parameter the host computes."""
        if isinstance(dim, int):
            return str(dim)
        for name, (_, argument) in self._parameters.items():
            if isinstance(argument, Scalar) and argument.value == dim:
                return name
        name = f"n{sum(isinstance(a, Scalar) for _, a in self._parameters.values())}"
        kind = "i64" if most(dim, self.site) >= 1 << 31 else "i32"
        self._parameters[name] = (kind, Scalar(dim, kind))
        return name

    # --- lines --------------------------------------------------------------------------------------------------

    def line(self, text: str) -> None:
        self._lines.append("    " * self._depth + text)

    def lines(self, text: str) -> None:
        """Several lines, their own indentation kept."""
        for one in text.strip("\n").splitlines():
            self.line(one)

    def fresh(self, stem: str = "v") -> str:
        self._count += 1
        return f"{stem}_{self._count}"

    def let(self, expression: str, stem: str = "v") -> str:
        """A fresh name for the value of an expression."""
        name = self.fresh(stem)
        self.line(f"{name} = {expression}")
        return name

    @contextmanager
    def block(self, header: str) -> Iterator[None]:
        """An indented block below a header line."""
        self.line(header)
        self._depth += 1
        yield
        self._depth -= 1

    # --- memory -------------------------------------------------------------------------------------------------

    def load(self, index: int, offset: str, mask: str | None = None, other: str | None = None,
             cache: str = "") -> Value:
        """The elements of an operand at an offset, in their register type."""
        dtype = self.operand(index).type.dtype
        extra = f", mask={mask}" if mask else ""
        extra += f", other={other}" if mask and other is not None else ""
        extra += f", cache_modifier='{cache}'" if cache else ""
        return Value(self.let(self.widened(f"tl.load({self.pointer(index)} + {offset}{extra})", dtype)),
                     registers_of(dtype))

    def widened(self, text: str, dtype: DType) -> str:
        """What was loaded, in its register type."""
        if dtype in SHORTS:
            return f"{text}.to(tl.float32)"
        return f"({text} != 0)" if dtype == BOOL else text

    def store(self, index: int, offset: str, value: Value, mask: str | None = None) -> None:
        """Store a value at an offset of an operand, in its stored type."""
        stored = self.narrowed(value, self.operand(index).type.dtype)
        self.line(f"tl.store({self.pointer(index)} + {offset}, {stored}{f', mask={mask}' if mask else ''})")

    def narrowed(self, value: Value, dtype: DType) -> str:
        """A value in the type that is stored."""
        if dtype == BOOL:
            return f"{value}.to(tl.uint8)" if value.dtype == BOOL else f"({value} != 0).to(tl.uint8)"
        return f"{value}.to({NAMES[dtype.name]})"

    def start_dependent(self) -> None:
        """Wait for the kernel before this one, where launches may overlap."""
        if self.capability >= 90:
            self.line("gdc_wait()")

    def let_next_start(self) -> None:
        """Let the next kernel's blocks be placed while this one still runs."""
        if self.capability >= 90:
            self.line("gdc_launch_dependents()")

    # --- the end ------------------------------------------------------------------------------------------------

    def draft(self, grid: Sequence[Dim], *, warps: int = 4, stages: int = 3, cluster: int = 1) -> Draft:
        """The launch as it stands."""
        x, y, z = (*grid, 1, 1)[:3]
        names = list(self._parameters)
        text = "@jit\ndef kernel(" + ", ".join(names) + "):\n" + "\n".join(self._lines) + "\n"
        return Draft(text, tuple((n, self._parameters[n][0]) for n in names), frozenset(self._aligned),
                     tuple(self._parameters[n][1] for n in names), (x, y, z), warps, stages, self.gluon,
                     any("gdc_wait" in line for line in self._lines), self.site.op not in SUMS_INTEGERS,
                     cluster)


def capability(target: Target) -> int:
    """The compute capability of a target, times ten: 90 for sm_90."""
    return int(target.isa.removeprefix("sm_").rstrip("a"))


def joined(terms: Sequence[str]) -> str:
    """The sum of offsets; "0" for none."""
    kept = [t for t in terms if t != "0"]
    return " + ".join(kept) if kept else "0"


def times(index: str, stride: str) -> str:
    """index * stride, simplified."""
    if "0" in (index, stride):
        return "0"
    if " + " in index or " - " in index:
        index = f"({index})"
    return index if stride == "1" else f"{index} * {stride}"


def is_wide(site: Site) -> bool:
    """Whether some operand has more elements than a 32-bit offset reaches."""
    return any(most(product(o.type.physical), site) >= 1 << 31 for o in (*site.inputs, *site.outputs))


__all__ = ["HALVES", "MULTIPROCESSORS", "NAMES", "SHARED", "SHORTS", "SUMS_INTEGERS", "TYPES", "Draft", "Source",
           "Value", "capability", "ceil_div", "is_wide", "joined", "logical_strides", "most", "number",
           "physical_order", "power_of_two", "registers_of", "sums_of", "times", "usual"]
