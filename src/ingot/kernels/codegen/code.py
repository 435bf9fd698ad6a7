"""An emitter of LLVM IR text: integers known at build or run time, loops, vectors, masks, the kernel ABI.

Integers are `int | Value`: arithmetic on Python ints happens now, on values at run time, so one generator
serves static and symbolic sizes. A vector of one lane is a scalar, so the scalar form of a kernel is the same
code. Variables are stack slots that LLVM turns into registers. What must dominate every use (operand pointers,
symbolic sizes, constants made of them) is emitted into the function's prelude.
"""
from __future__ import annotations

import struct
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

from ingot.errors import CandidateError
from ingot.graph import BF16, BOOL, Dim, DType, Expr, Symbol
from ingot.graph.dim import Floor
from ingot.kernels.codegen.isa import Isa

_LLVM = {"f64": "double", "f32": "float", "f16": "half", "bf16": "bfloat", "bool": "i8",
         "i64": "i64", "i32": "i32", "i16": "i16", "i8": "i8", "u64": "i64", "u32": "i32", "u16": "i16", "u8": "i8",
         **dict.fromkeys(("f8e4m3", "f8e5m2", "f8e4m3fnuz", "f8e5m2fnuz", "f8e8m0", "f4e2m1", "i4", "u4", "i2", "u2"),
                         "i8")}
_BITS = {"double": 64, "float": 32, "half": 16, "bfloat": 16, "i64": 64, "i32": 32, "i16": 16, "i8": 8, "i1": 1}
_SHORT = {"double": "f64", "float": "f32", "half": "f16", "bfloat": "bf16"}
_FLOATS = frozenset(_SHORT)


@dataclass(frozen=True, slots=True)
class Value:
    """A run-time value: its LLVM type and its name (or literal)."""

    type: str
    text: str

    @property
    def lanes(self) -> int:
        return int(self.type[1:].split(" ", 1)[0]) if self.type.startswith("<") else 1

    @property
    def element(self) -> str:
        """The LLVM type of one lane."""
        return self.type.rsplit(" ", 1)[1][:-1] if self.type.startswith("<") else self.type

    @property
    def is_float(self) -> bool:
        return self.element in _FLOATS

    def __str__(self) -> str:
        return f"{self.type} {self.text}"


Int = int | Value


def llvm_type(dtype: DType) -> str:
    """The LLVM type of one element in memory (bool: one byte). Raises CandidateError for an unsupported one."""
    if dtype.name not in _LLVM:
        raise CandidateError(f"no generated code for elements of type {dtype}")
    return _LLVM[dtype.name]


def vector(element: str, lanes: int) -> str:
    """The LLVM type of `lanes` elements; one lane is a scalar."""
    return element if lanes == 1 else f"<{lanes} x {element}>"


def float_literal(element: str, number: float) -> str:
    """An exact LLVM literal (float literals are the bits of the double that equals them)."""
    if element == "half":
        return "0xH" + struct.pack(">e", number).hex().upper()
    if element == "bfloat":
        return "0xR" + struct.pack(">f", number)[:2].hex().upper()
    if element == "float":
        number = struct.unpack("<f", struct.pack("<f", max(min(number, 3.4028234663852886e38), -3.4028234663852886e38)
                                                  if abs(number) != float("inf") else number))[0]
    return "0x" + struct.pack(">d", number).hex().upper()


class Variable:
    """A mutable value; LLVM keeps it in a register."""

    __slots__ = ("_code", "_slot", "type")

    def __init__(self, code: Code, type_: str) -> None:
        self._code, self.type = code, type_
        self._slot = code.reserve(type_)

    def get(self) -> Value:
        return self._code.emit(self.type, f"load {self.type}, ptr {self._slot.text}")

    def set(self, value: Value) -> None:
        self._code.line(f"store {value}, ptr {self._slot.text}")


class Code:
    """One module under construction. Functions are opened with `function`; everything else emits into the open one."""

    def __init__(self, isa: Isa, symbols: Sequence[Symbol] = ()) -> None:
        self.isa = isa
        self._symbols = [s.name for s in symbols]
        self._functions: list[str] = []
        self._declared: dict[str, str] = {}
        self._count = 0
        self._prelude: list[str] = []
        self._body: list[str] = []
        self._hoisted: dict[object, Value] = {}
        self._block = "entry"

    # --- the module ---------------------------------------------------------------------------------------------

    @contextmanager
    def function(self, name: str) -> Iterator[None]:
        """Open the kernel function `name(buffers, symbols, thread, threads)`; everything in the block goes into it."""
        self._prelude, self._body, self._hoisted, self._block = [], [], {}, "body"
        yield
        head = f"define void @{name}(ptr noalias %buffers, ptr noalias %symbols, i64 %thread, i64 %threads) nounwind {{"
        lines = [head, "entry:", *self._prelude, "  br label %body", "body:", *self._body, "  ret void", "}"]
        self._functions.append("\n".join(lines))

    def module(self) -> str:
        """The finished module's text."""
        return "\n".join([*self._declared.values(), *self._functions]) + "\n"

    # --- lines and names ----------------------------------------------------------------------------------------

    def _name(self) -> str:
        self._count += 1
        return f"%v{self._count}"

    def line(self, text: str) -> None:
        self._body.append("  " + text)

    def emit(self, type_: str, text: str) -> Value:
        """Append an instruction and give its result."""
        name = self._name()
        self._body.append(f"  {name} = {text}")
        return Value(type_, name)

    def hoist(self, key: object, type_: str, text: str) -> Value:
        """Emit an instruction into the function's prelude, once per key; its operands must be there too."""
        if key not in self._hoisted:
            name = self._name()
            self._prelude.append(f"  {name} = {text}")
            self._hoisted[key] = Value(type_, name)
        return self._hoisted[key]

    def reserve(self, type_: str, count: int = 1) -> Value:
        """Stack room for `count` elements, 64-byte aligned."""
        name = self._name()
        self._prelude.append(f"  {name} = alloca {type_}, i64 {count}, align 64")
        return Value("ptr", name)

    def variable(self, initial: Value) -> Variable:
        found = Variable(self, initial.type)
        found.set(initial)
        return found

    def declare(self, name: str, result: str, *arguments: str) -> str:
        self._declared.setdefault(name, f"declare {result} @{name}({', '.join(arguments)})")
        return name

    def table(self, values: Sequence[float], element: str) -> Value:
        """The address of constant numbers kept beside the code."""
        self._count += 1
        name = f"table{self._count}"
        texts = [float_literal(element, float(v)) if element in _FLOATS else str(int(v)) for v in values]
        items = ", ".join(f"{element} {t}" for t in texts)
        self._declared[name] = (f"@{name} = private unnamed_addr constant [{len(texts)} x {element}] [{items}], "
                                f"align 64")
        return Value("ptr", f"@{name}")

    def intrinsic(self, name: str, *args: Value, result: str = "", extra: Sequence[str] = ()) -> Value:
        """Call `llvm.<name>` overloaded on the first argument's type."""
        type_ = result or args[0].type
        full = f"llvm.{name}.{_suffix(args[0].type)}"
        self.declare(full, type_, *(a.type for a in args), *(e.split(" ")[0] for e in extra))
        return self.emit(type_, f"call {type_} @{full}({', '.join([*map(str, args), *extra])})")

    # --- the kernel's arguments ---------------------------------------------------------------------------------

    @property
    def thread(self) -> Value:
        return Value("i64", "%thread")

    @property
    def threads(self) -> Value:
        return Value("i64", "%threads")

    def buffer(self, index: int) -> Value:
        """The pointer in slot `index` of the buffer table."""
        place = self.hoist(("slot", index), "ptr", f"getelementptr ptr, ptr %buffers, i64 {index}")
        return self.hoist(("buffer", index), "ptr", f"load ptr, ptr {place.text}")

    def dim(self, dim: Dim) -> Int:
        """A dimension: an int, or its run-time value computed once in the prelude."""
        if isinstance(dim, int):
            return dim
        found = self._hoisted.get(("dim", dim))
        if found is None:
            body, self._body = self._body, self._prelude
            value = self._expression(dim)
            self._body = body
            found = value if isinstance(value, Value) else Value("i64", str(value))
            self._hoisted[("dim", dim)] = found
        return found

    def _expression(self, expr: Expr | int) -> Int:
        if isinstance(expr, int):
            return expr
        total: Int = 0
        for monomial, factor in expr.terms:
            part: Int = factor
            for atom in monomial:
                if isinstance(atom, Floor):
                    part = self.mul(part, self.div(self._expression(atom.numerator), self._expression(atom.denominator),
                                                   signed=True))
                else:
                    index = self._symbols.index(atom)
                    place = self.hoist(("symbol-slot", index), "ptr", f"getelementptr i64, ptr %symbols, i64 {index}")
                    part = self.mul(part, self.hoist(("symbol", index), "i64", f"load i64, ptr {place.text}"))
            total = self.add(total, part)
        return total

    # --- integers -----------------------------------------------------------------------------------------------

    def value(self, number: Int, type_: str = "i64") -> Value:
        """An integer as a value: itself, or a literal."""
        return number if isinstance(number, Value) else Value(type_, str(number))

    def _int2(self, op: str, a: Int, b: Int) -> Value:
        type_ = a.type if isinstance(a, Value) else b.type if isinstance(b, Value) else "i64"
        return self.emit(type_, f"{op} {type_} {_text(a)}, {_text(b)}")

    def add(self, a: Int, b: Int) -> Int:
        if isinstance(a, int) and isinstance(b, int):
            return a + b
        return b if _is(a, 0) else a if _is(b, 0) else self._int2("add nsw", a, b)

    def sub(self, a: Int, b: Int) -> Int:
        if isinstance(a, int) and isinstance(b, int):
            return a - b
        return a if _is(b, 0) else self._int2("sub nsw", a, b)

    def mul(self, a: Int, b: Int) -> Int:
        if isinstance(a, int) and isinstance(b, int):
            return a * b
        if _is(a, 0) or _is(b, 0):
            return 0
        return b if _is(a, 1) else a if _is(b, 1) else self._int2("mul nsw", a, b)

    def div(self, a: Int, b: Int, *, signed: bool = False) -> Int:
        """Floor division of non-negative numbers; with `signed`, of any numerator by a positive denominator."""
        if isinstance(a, int) and isinstance(b, int):
            return a // b
        if _is(b, 1):
            return a
        if not signed:
            return self._int2("udiv", a, b)
        quotient, rest = self._int2("sdiv", a, b), self._int2("srem", a, b)
        return self.sub(quotient, self.emit("i64", f"zext i1 {self.compare('<', rest, 0).text} to i64"))

    def rem(self, a: Int, b: Int) -> Int:
        if isinstance(a, int) and isinstance(b, int):
            return a % b
        return 0 if _is(b, 1) else self._int2("urem", a, b)

    def min(self, a: Int, b: Int) -> Int:
        if isinstance(a, int) and isinstance(b, int):
            return min(a, b)
        return self.select(self.compare("<", a, b), self.value(a), self.value(b))

    def max(self, a: Int, b: Int) -> Int:
        if isinstance(a, int) and isinstance(b, int):
            return max(a, b)
        return self.select(self.compare(">", a, b), self.value(a), self.value(b))

    def ceildiv(self, a: Int, b: int) -> Int:
        return self.div(self.add(a, b - 1), b)

    def compare(self, op: str, a: Int, b: Int) -> Value:
        """Signed comparison of integers: one of < <= > >= == !=."""
        names = {"<": "slt", "<=": "sle", ">": "sgt", ">=": "sge", "==": "eq", "!=": "ne"}
        type_ = a.type if isinstance(a, Value) else b.type if isinstance(b, Value) else "i64"
        lanes = Value(type_, "").lanes
        return self.emit(vector("i1", lanes), f"icmp {names[op]} {type_} {_text(a)}, {_text(b)}")

    # --- control ------------------------------------------------------------------------------------------------

    def _label(self, stem: str) -> str:
        self._count += 1
        return f"{stem}{self._count}"

    def _start(self, label: str) -> None:
        self._body.append(f"{label}:")
        self._block = label

    @contextmanager
    def loop(self, start: Int, stop: Int, step: Int = 1) -> Iterator[Value]:
        """for i in range(start, stop, step), step > 0."""
        head, tail = self._label("loop"), self._label("done")
        never = isinstance(start, int) and isinstance(stop, int) and start >= stop
        if isinstance(start, int) and isinstance(stop, int) and not never:
            before = self._block
            self.line(f"br label %{head}")
        else:
            test = Value("i1", "false") if never else self.compare("<", start, stop)
            before = self._block
            self.line(f"br i1 {test.text}, label %{head}, label %{tail}")
        self._start(head)
        index = Value("i64", self._name())
        place = len(self._body)
        self._body.append("")
        yield index
        following = self.emit("i64", f"add nuw nsw i64 {index.text}, {_text(step)}")
        more = self.compare("<", following, stop)
        self._body[place] = (f"  {index.text} = phi i64 [ {_text(start)}, %{before} ], "
                             f"[ {following.text}, %{self._block} ]")
        self.line(f"br i1 {more.text}, label %{head}, label %{tail}")
        self._start(tail)

    @contextmanager
    def when(self, condition: Value) -> Iterator[None]:
        """if condition: ..."""
        then, tail = self._label("then"), self._label("done")
        self.line(f"br i1 {condition.text}, label %{then}, label %{tail}")
        self._start(then)
        yield
        self.line(f"br label %{tail}")
        self._start(tail)

    @contextmanager
    def share(self, total: Int) -> Iterator[Value]:
        """Loop over this thread's even, contiguous share of `total` tasks."""
        low, high = self.share_bounds(total)
        with self.loop(low, high) as i:
            yield i

    def share_bounds(self, total: Int) -> tuple[Int, Int]:
        """The half-open range of this thread's even share of `total` tasks."""
        low = self.div(self.mul(self.thread, total), self.threads)
        high = self.div(self.mul(self.add(self.thread, 1), total), self.threads)
        return low, high

    def unflatten(self, index: Int, dims: Sequence[Int]) -> list[Int]:
        """Row-major coordinates of a flat index; the first dimension takes what is left."""
        found: list[Int] = []
        for dim in reversed(dims[1:]):
            found.append(self.rem(index, dim))
            index = self.div(index, dim)
        return [index, *reversed(found)]

    # --- memory -------------------------------------------------------------------------------------------------

    def offset(self, pointer: Value, index: Int, element: str = "float") -> Value:
        """The address `index` elements past `pointer`."""
        if _is(index, 0):
            return pointer
        return self.emit("ptr", f"getelementptr {element}, ptr {pointer.text}, i64 {_text(index)}")

    def load(self, pointer: Value, element: str = "float", lanes: int = 1, mask: Value | None = None,
             align: int = 0, other: Value | None = None) -> Value:
        """`lanes` consecutive elements; masked-off lanes are `other` (zero if None) and are not touched in memory."""
        type_, align = vector(element, lanes), align or _BITS[element] // 8
        if mask is None:
            return self.emit(type_, f"load {type_}, ptr {pointer.text}, align {align}")
        name = self.declare(f"llvm.masked.load.{_suffix(type_)}.p0", type_, "ptr", "i32", mask.type, type_)
        fill = other or Value(type_, "zeroinitializer")
        return self.emit(type_, f"call {type_} @{name}({pointer}, i32 {align}, {mask}, {fill})")

    def store(self, value: Value, pointer: Value, mask: Value | None = None, align: int = 0) -> None:
        """Store all lanes, or those under the mask."""
        align = align or _BITS[value.element] // 8
        if mask is None:
            self.line(f"store {value}, ptr {pointer.text}, align {align}")
            return
        name = self.declare(f"llvm.masked.store.{_suffix(value.type)}.p0", "void", value.type, "ptr", "i32", mask.type)
        self.line(f"call void @{name}({value}, {pointer}, i32 {align}, {mask})")

    def gather(self, base: Value, index: Value, element: str = "float", mask: Value | None = None) -> Value:
        """Elements at `base[index[lane]]`; the index is a vector of i64 or i32."""
        lanes = index.lanes
        pointers = self.emit(vector("ptr", lanes), f"getelementptr {element}, ptr {base.text}, {index}")
        type_ = vector(element, lanes)
        if lanes == 1:
            return self.load(pointers, element)
        name = self.declare(f"llvm.masked.gather.{_suffix(type_)}.v{lanes}p0", type_, pointers.type, "i32",
                            vector("i1", lanes), type_)
        mask = mask or Value(vector("i1", lanes), "splat (i1 true)")
        return self.emit(type_, f"call {type_} @{name}({pointers}, i32 {_BITS[element] // 8}, {mask}, "
                                f"{type_} zeroinitializer)")

    def prefetch(self, pointer: Value, locality: int = 3, *, write: bool = False) -> None:
        """Ask for the cache line at `pointer` (locality 3: into every level), to write it or to read it."""
        name = self.declare("llvm.prefetch.p0", "void", "ptr", "i32", "i32", "i32")
        self.line(f"call void @{name}({pointer}, i32 {int(write)}, i32 {locality}, i32 1)")

    def mask(self, count: Int, lanes: int) -> Value | None:
        """Lanes below `count`: None when that is all of them."""
        type_ = vector("i1", lanes)
        if isinstance(count, int):
            if count >= lanes:
                return None
            if lanes == 1:
                return Value(type_, "false")
            return Value(type_, "<" + ", ".join(f"i1 {'true' if i < count else 'false'}" for i in range(lanes)) + ">")
        if lanes == 1:
            return self.compare(">", count, 0)
        narrow = self.emit("i32", f"trunc i64 {self.min(count, lanes).text} to i32")  # type: ignore[union-attr]
        iota = Value(vector("i32", lanes), "<" + ", ".join(f"i32 {i}" for i in range(lanes)) + ">")
        return self.compare("<", iota, self.splat(narrow, lanes))

    # --- vectors ------------------------------------------------------------------------------------------------

    def constant(self, number: float, element: str = "float", lanes: int = 1) -> Value:
        """A literal, the same in every lane."""
        text = float_literal(element, float(number)) if element in _FLOATS else str(int(number))
        if element == "i1":
            text = "true" if number else "false"
        return Value(vector(element, lanes), text if lanes == 1 else f"splat ({element} {text})")

    def zero(self, element: str = "float", lanes: int = 1) -> Value:
        return self.constant(0, element, lanes)

    def splat(self, scalar: Value, lanes: int) -> Value:
        if lanes == 1:
            return scalar
        type_ = vector(scalar.type, lanes)
        first = self.emit(type_, f"insertelement {type_} poison, {scalar}, i64 0")
        return self.emit(type_, f"shufflevector {first}, {type_} poison, <{lanes} x i32> zeroinitializer")

    def shuffle(self, a: Value, b: Value | None, order: Sequence[int]) -> Value:
        """Lanes picked from a (0..) and b (lanes..)."""
        second = str(b) if b is not None else f"{a.type} poison"
        picks = ", ".join(f"i32 {i}" for i in order)
        return self.emit(vector(a.element, len(order)), f"shufflevector {a}, {second}, <{len(order)} x i32> <{picks}>")

    def extract(self, v: Value, lane: Int) -> Value:
        return v if v.lanes == 1 else self.emit(v.element, f"extractelement {v}, i64 {_text(lane)}")

    def insert(self, v: Value, scalar: Value, lane: Int) -> Value:
        return scalar if v.lanes == 1 else self.emit(v.type, f"insertelement {v}, {scalar}, i64 {_text(lane)}")

    def binary(self, op: str, a: Value, b: Value) -> Value:
        """Any two-operand LLVM instruction on equal types: fadd, fmul, add, and, shl, ..."""
        return self.emit(a.type, f"{op} {a}, {b.text}")

    def fadd(self, a: Value, b: Value) -> Value:
        return self.binary("fadd", a, b)

    def fsub(self, a: Value, b: Value) -> Value:
        return self.binary("fsub", a, b)

    def fmul(self, a: Value, b: Value) -> Value:
        return self.binary("fmul", a, b)

    def fdiv(self, a: Value, b: Value) -> Value:
        return self.binary("fdiv", a, b)

    def fneg(self, a: Value) -> Value:
        return self.emit(a.type, f"fneg {a}")

    def fma(self, a: Value, b: Value, c: Value) -> Value:
        """a * b + c, rounded once."""
        return self.intrinsic("fma", a, b, c)

    def fcompare(self, op: str, a: Value, b: Value) -> Value:
        """LLVM's fcmp: ogt, olt, oeq, uno, une, ..."""
        return self.emit(vector("i1", a.lanes), f"fcmp {op} {a}, {b.text}")

    def fmax(self, a: Value, b: Value) -> Value:
        """The larger; b if either is NaN (x86's own rule, one instruction): put the value that may be NaN second."""
        return self.select(self.fcompare("ogt", a, b), a, b)

    def fmin(self, a: Value, b: Value) -> Value:
        """The smaller; b if either is NaN (x86's own rule, one instruction)."""
        return self.select(self.fcompare("olt", a, b), a, b)

    def select(self, condition: Value, a: Value, b: Value) -> Value:
        return self.emit(a.type, f"select {condition}, {a}, {b}")

    def convert(self, op: str, value: Value, element: str) -> Value:
        """An LLVM conversion (fpext, fptrunc, sitofp, fptosi, zext, sext, trunc, bitcast) to another element type."""
        type_ = vector(element, value.lanes)
        return self.emit(type_, f"{op} {value} to {type_}")

    def reduce(self, kind: str, v: Value) -> Value:
        """All lanes into one, as a tree: "fadd", "fmul", "fmax", "fmin" (as the methods above) or an LLVM op."""
        lanes = v.lanes
        while lanes > 1:
            half = lanes // 2
            low, high = self.shuffle(v, None, range(half)), self.shuffle(v, None, range(half, lanes))
            if half == 1:
                low, high = self.extract(v, 0), self.extract(v, 1)
            v = getattr(self, kind)(low, high) if kind in ("fmax", "fmin") else self.binary(kind, low, high)
            lanes = half
        return v


def element_of(dtype: DType) -> str:
    """The LLVM type of one element in registers. bool: i8, 0 or 1, as in memory.

    bf16 is i16, its bits: LLVM turns its own bfloat into calls of a library that need not be there.
    """
    return "i8" if dtype == BOOL else "i16" if dtype == BF16 else llvm_type(dtype)


def _text(value: Int) -> str:
    return value.text if isinstance(value, Value) else str(value)


def _is(value: Int, number: int) -> bool:
    return isinstance(value, int) and value == number


def _suffix(type_: str) -> str:
    value = Value(type_, "")
    short = _SHORT.get(value.element, value.element)
    return f"v{value.lanes}{short}" if value.lanes > 1 else short
