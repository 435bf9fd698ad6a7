"""Local rewrites: a rule names a pattern, may decline a match with a reason, and says what replaces it.

A pattern is written from its root (the last node) back to its inputs:

    P("Add", P("MatMul", "x", Const("w")), Const("b"))      # Add in either order: it is commutative

An inner node of a match must have no reader outside the match, unless it is written `P(..., shared=True)`.
"""
from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property, lru_cache
from types import MappingProxyType

import numpy as np

from ingot.errors import InternalError
from ingot.graph import F32, Dim, Graph, Node, TensorType, type_of
from ingot.ops import OPS, infer

_MADE = re.compile(r"(\.[a-z0-9]+\.\d+)+$")       # what `add` appends to the name of the value it stands for
COMMUTATIVE = frozenset({"Add", "Mul", "And", "Or", "Xor", "Equal", "Max", "Min", "Sum"})


@dataclass(frozen=True)
class Const:
    """A pattern for a constant; with `value`, all its elements must be that number (to 1e-3 relative)."""

    name: str = ""
    value: float | None = None


@dataclass(frozen=True)
class Either:
    """A pattern that fits where any of its choices does, tried in order."""

    choices: tuple[Pattern, ...]


@dataclass(frozen=True)
class Nodes:
    """A pattern for a node: see `P`."""

    ops: tuple[str, ...]
    inputs: tuple[Pattern, ...]
    bind: str
    shared: bool
    output: int


Pattern = str | Const | Either | Nodes


def P(ops: str, *inputs: Pattern, bind: str = "", shared: bool = False, output: int = 0) -> Nodes:
    """A node whose op is one of `ops` ("Add|Sub") over sub-patterns.

    A string input binds any value to that name (the same name twice: the same value); "x?" may be absent; a
    last input "*" takes any further inputs. The node is bound to `bind`, or to the pattern's first op.
    `output` is the position of the output the reader takes.
    """
    names = tuple(ops.split("|"))
    return Nodes(names, inputs, bind or names[0], shared, output)


def either(*choices: Pattern) -> Either:
    """Any of the choices, in this order."""
    return Either(choices)


class State:
    """A graph being rewritten: the same questions a Graph answers, kept up to date. Lives inside one function."""

    def __init__(self, graph: Graph) -> None:
        self.inputs, self.outputs, self.symbols = graph.inputs, graph.outputs, graph.symbols
        self.nodes: list[Node] = list(graph.nodes)
        self.constants: dict[str, np.ndarray] = dict(graph.constants)
        self.types: dict[str, TensorType] = dict(graph.types)
        self.producers: dict[str, Node] = dict(graph.producers)
        self.uses: Counter[str] = Counter(graph.uses)
        self.alias: dict[str, str] = {}
        self._counts: defaultdict[str, int] = defaultdict(int)

    def fresh(self, stem: str) -> str:
        """A value name not yet taken, made of `stem`."""
        while True:
            self._counts[stem] += 1
            name = f"{stem}.{self._counts[stem]}"
            if name not in self.types:
                return name

    def alive(self, node: Node) -> bool:
        return self.producers.get(_first(node)) is node

    def resolved(self, node: Node) -> Node:
        """The node with renamed inputs followed to their present names."""
        if not any(i in self.alias for i in node.inputs):
            return node
        renamed = replace(node, inputs=tuple(self.follow(i) for i in node.inputs))
        self.enter(renamed)
        return renamed

    def follow(self, value: str) -> str:
        while value in self.alias:
            value = self.alias[value]
        return value

    def enter(self, node: Node) -> None:
        self.producers.update((o, node) for o in node.outputs if o)

    def release(self, value: str) -> None:
        """One reader less; a node none of whose outputs is read goes, and so on upwards."""
        todo = [value]
        while todo:
            value = todo.pop()
            self.uses[value] -= 1
            node = self.producers.get(value)
            if node is not None and not any(self.uses[o] > 0 for o in node.outputs if o):
                for output in filter(None, node.outputs):
                    self.producers.pop(output)
                todo += filter(None, node.inputs)

    def finish(self, nodes: Sequence[Node], graph: Graph) -> Graph:
        """The rewritten graph, without what no longer is read."""
        made = {v for n in nodes for v in n.outputs} | {*self.inputs} | {*graph.constants}
        read = {i for n in nodes for i in n.inputs} | {*self.outputs}
        constants = {k: v for k, v in self.constants.items() if k in read}
        types = {k: v for k, v in self.types.items() if k in made or k in constants}
        return Graph(graph.inputs, self.outputs, tuple(nodes), MappingProxyType(constants), MappingProxyType(types),
                     graph.symbols)


def _first(node: Node) -> str:
    return next(o for o in node.outputs if o)


@dataclass(frozen=True)
class Bound:
    """What a pattern has bound so far; extended by copying, so that alternatives do not disturb each other."""

    values: Mapping[str, str] = field(default_factory=dict)
    named: Mapping[str, Node] = field(default_factory=dict)
    matched: tuple[Node, ...] = ()
    private: tuple[Node, ...] = ()      # must have no reader outside the match


@dataclass
class Reason:
    """The reason found deepest into the pattern: the most telling one."""

    depth: int = -2
    text: str = "it does not match"

    def note(self, depth: int, text: str) -> None:
        if depth > self.depth:
            self.depth, self.text = depth, text


class Match:
    """A pattern fitted at one node. Rules read it, and build their replacement with `add` and `constant`."""

    def __init__(self, state: State, root: Node, bound: Bound) -> None:
        self.state, self.root, self.bound = state, root, bound
        self.made: list[Node] = []
        self._origin = tuple(dict.fromkeys(o for n in bound.matched for o in n.origin))

    def __getitem__(self, name: str) -> str:
        """The value bound to a name; "" where it is absent."""
        return self.bound.values.get(name, "")

    def node(self, name: str) -> Node:
        return self.bound.named[name]

    def has(self, name: str) -> bool:
        """Whether a node of this name took part in the match."""
        return name in self.bound.named

    def attr(self, node: str | Node, name: str) -> object:
        """An attribute of a bound node, its declared default where it is not given."""
        found = self.bound.named[node] if isinstance(node, str) else node
        return attribute(found, name)

    def type(self, name: str) -> TensorType:
        """The type of the value bound to `name`, or of the value so named."""
        return self.state.types[self.bound.values.get(name, name)]

    def shape(self, name: str) -> tuple[Dim, ...]:
        return self.type(name).shape

    @property
    def out(self) -> TensorType:
        """The type of the root's first output."""
        return self.state.types[_first(self.root)]

    def const(self, name: str) -> np.ndarray | None:
        """The constant bound to `name`, or named so; None if it is not a constant."""
        return self.state.constants.get(self.bound.values.get(name, name))

    def array(self, name: str) -> np.ndarray:
        """The constant bound to `name` by a `Const` pattern."""
        return self.state.constants[self.bound.values.get(name, name)]

    def scalar(self, name: str) -> float | None:
        """The number a constant holds in each of its elements; None if it is no constant or they differ."""
        return uniform(self.const(name))

    def add(self, op: str, *inputs: str, **attrs: object) -> str:
        """A new one-output node of the replacement; gives its output's name."""
        return self.add_many(op, inputs, attrs, (f"{_MADE.sub('', _first(self.root))}.{op.lower()}",))[0]

    def add_many(self, op: str, inputs: tuple[str, ...], attrs: Mapping[str, object],
                 stems: tuple[str, ...]) -> tuple[str, ...]:
        """A new node of the replacement with as many outputs as there are stems; an empty stem is an absent output."""
        while inputs and not inputs[-1]:
            inputs = inputs[:-1]
        outputs = tuple(self.state.fresh(s) if s else "" for s in stems)
        node = Node(op, inputs, outputs, MappingProxyType(dict(attrs)), self._origin)
        types = infer(node, tuple(self.state.types[i] if i else None for i in inputs))
        self.state.types.update((o, t) for o, t in zip(node.outputs, types, strict=True) if o)
        self.made.append(node)
        return node.outputs

    def constant(self, array: np.ndarray, stem: str = "") -> str:
        """A new constant; gives its name."""
        name = self.state.fresh(stem or f"{_first(self.root)}.const")
        self.state.constants[name], self.state.types[name] = array, type_of(array)
        return name


def attribute(node: Node, name: str) -> object:
    """An attribute of a node, its declared default where it is not given."""
    return node.attrs[name] if name in node.attrs else OPS[node.op].attrs.get(name)


def uniform(array: np.ndarray | None) -> float | None:
    """The number every element of an array is; None if there is none, or elements differ, or it is not real."""
    if array is None or array.size == 0 or (array.dtype.kind not in "fiub" and array.dtype.name != "bfloat16"):
        return None
    first = array.flat[0]
    return float(first) if array.size == 1 or bool((array == first).all()) else None


def _never(match: Match) -> str | None:
    return None


@dataclass(frozen=True, eq=False)
class Rule:
    """One local rewrite. `make` builds the replacement and names the value that stands for the root's output.

    Several patterns are tried in order. `make` may name an existing value (the match goes away), or a new node's
    output; for a root with several outputs it gives one name for each.
    """

    name: str
    pattern: Nodes | tuple[Nodes, ...]
    make: Callable[[Match], str | tuple[str, ...]]
    decline: Callable[[Match], str | None] = _never

    @cached_property
    def patterns(self) -> tuple[Nodes, ...]:
        return self.pattern if isinstance(self.pattern, tuple) else (self.pattern,)

    @cached_property
    def roots(self) -> frozenset[str]:
        return frozenset(op for p in self.patterns for op in p.ops)


def _fits(state: State, pattern: Pattern, value: str, bound: Bound, why: Reason) -> Iterator[Bound]:
    depth = len(bound.matched)
    if isinstance(pattern, str):
        name = pattern.rstrip("?")
        if not value and not pattern.endswith("?"):
            why.note(depth, f"the input '{name}' is absent")
        elif bound.values.get(name, value) != value:
            why.note(depth, f"'{name}' would be two values: '{bound.values[name]}' and '{value}'")
        else:
            yield bound if name in bound.values else replace(bound, values={**bound.values, name: value})
    elif isinstance(pattern, Const):
        array = state.constants.get(value)
        if array is None:
            why.note(depth, f"'{value}' is not a constant")
        elif pattern.value is not None and not _is(array, pattern.value):
            why.note(depth, f"the constant '{value}' is not {pattern.value:g}")
        elif not pattern.name:
            yield bound
        else:
            yield from _fits(state, pattern.name, value, bound, why)
    elif isinstance(pattern, Either):
        for choice in pattern.choices:
            yield from _fits(state, choice, value, bound, why)
    else:
        node = state.producers.get(value)
        if node is None:
            kind = "a constant" if value in state.constants else "an input" if value else "absent"
            why.note(depth, f"'{value}' is {kind}, not made by {' or '.join(pattern.ops)}")
        elif node.op not in pattern.ops:
            why.note(depth, f"'{value}' is made by {node.op}, not by {' or '.join(pattern.ops)}")
        elif pattern.output >= len(node.outputs) or node.outputs[pattern.output] != value:
            why.note(depth, f"'{value}' is not output {pattern.output} of its {node.op}")
        else:
            yield from _fits_node(state, pattern, node, bound, why)


def _is(array: np.ndarray, value: float) -> bool:
    found = uniform(array)
    return found is not None and abs(found - value) <= 1e-3 * abs(value)


def _fits_node(state: State, pattern: Nodes, node: Node, bound: Bound, why: Reason) -> Iterator[Bound]:
    wanted, given = pattern.inputs, node.inputs
    if wanted and wanted[-1] == "*":
        wanted = wanted[:-1]
        given = given[:len(wanted)]
    if len(given) > len(wanted):
        why.note(len(bound.matched), f"{node.where} has {len(given)} inputs, not {len(wanted)}")
        return
    given += ("",) * (len(wanted) - len(given))
    orders = [given]
    if node.op in COMMUTATIVE and len(given) == 2 and given[0] != given[1]:
        orders.append(given[::-1])
    here = replace(bound, named={**bound.named, pattern.bind: node}, matched=(*bound.matched, node),
                   private=bound.private if pattern.shared or not bound.matched else (*bound.private, node))
    for order in orders:
        yield from _fits_all(state, wanted, order, here, why)


def _fits_all(state: State, patterns: tuple[Pattern, ...], values: tuple[str, ...], bound: Bound,
              why: Reason) -> Iterator[Bound]:
    if not patterns:
        yield bound
        return
    for each in _fits(state, patterns[0], values[0], bound, why):
        yield from _fits_all(state, patterns[1:], values[1:], each, why)


def _read_elsewhere(state: State, bound: Bound) -> str | None:
    """The first inner value of a match that someone outside it reads, or None."""
    if not bound.private:
        return None
    nodes = {id(n): n for n in bound.matched}.values()
    inside = Counter(i for n in nodes for i in n.inputs if i)
    for node in bound.private:
        for value in filter(None, node.outputs):
            if state.uses[value] > inside[value]:
                return value
    return None


def find(state: State, rule: Rule, node: Node) -> Match | str:
    """The match of a rule at a node, or the reason there is none."""
    why = Reason()
    for pattern in rule.patterns:
        if node.op not in pattern.ops:
            why.note(-1, f"it is {node.op}, not {' or '.join(pattern.ops)}")
            continue
        for bound in _fits_node(state, pattern, node, Bound(), why):
            depth = len(bound.matched)
            if value := _read_elsewhere(state, bound):
                why.note(depth, f"'{value}' has other readers")
                continue
            match = Match(state, node, bound)
            if reason := rule.decline(match):
                why.note(depth + 1, reason)
                continue
            return match
    return why.text


def why_not(graph: Graph, rule: Rule, node: Node) -> str | None:
    """None if the rule would fire at this node, else the reason it does not."""
    found = find(State(graph), rule, node)
    return found if isinstance(found, str) else None


def explain(graph: Graph, rule: Rule) -> tuple[tuple[Node, str | None], ...]:
    """For each node the rule could start from: None if it would fire there, else the reason it does not."""
    state = State(graph)
    found = [(n, find(state, rule, n)) for n in graph.nodes if n.op in rule.roots]
    return tuple((n, f if isinstance(f, str) else None) for n, f in found)


@lru_cache(256)
def _by_op(rules: tuple[Rule, ...]) -> Mapping[str, Sequence[Rule]]:
    """The rules that may start at each op, in their order."""
    found: defaultdict[str, list[Rule]] = defaultdict(list)
    for rule in rules:
        for op in rule.roots:
            found[op].append(rule)
    return found


def rewrite(graph: Graph, rules: Sequence[Rule], *, rounds: int = 24) -> Graph:
    """Apply rules, the earlier ones first, until none fires. Gives back the same graph if none did.

    Raises InternalError for a rule that changes the type of a value, and for rules that never come to rest.
    """
    by_op = _by_op(tuple(rules))
    if not any(n.op in by_op for n in graph.nodes):
        return graph
    state, nodes, fuel, fired = State(graph), graph.nodes, 64 * len(graph.nodes) + 4096, False
    for _ in range(rounds):
        kept: list[Node] = []
        pending = list(reversed(nodes))
        again = False
        while pending:
            node = pending.pop()
            if not state.alive(node):
                continue
            node = state.resolved(node)
            for rule in by_op.get(node.op, ()):
                match = find(state, rule, node)
                if isinstance(match, str):
                    continue
                made = _replaced(state, rule, match, kept)
                if made is None:
                    continue
                pending += reversed(made)
                again, fuel = True, fuel - 1
                if fuel < 0:
                    raise InternalError(f"rule {rule.name} fires without end", where=node.where)
                break
            else:
                kept.append(node)
        nodes = tuple(state.resolved(n) for n in kept if state.alive(n))
        fired |= again
        if not again:
            break
    return state.finish(nodes, graph) if fired else graph


def _replaced(state: State, rule: Rule, match: Match, kept: list[Node]) -> list[Node] | None:
    """Put a rule's replacement in the place of a match; None if the values it names cannot stand in for the root's."""
    root = match.root
    named = rule.make(match)
    stands = (named,) if isinstance(named, str) else named
    pairs = [(old, new) for old, new in zip(root.outputs, stands, strict=False) if old and new and new != old]
    for old, new in pairs:
        if state.types[old] != state.types[new]:
            raise InternalError(f"rule {rule.name} turned {state.types[old]} into {state.types[new]}", where=root.where)
    if root.op == "Identity" and not match.made and any(not can_stand_in(state, o, n) for o, n in pairs):
        return None
    fresh = {o for n in match.made for o in n.outputs}
    rename = {new: old for old, new in pairs if new in fresh}
    made = [replace(n, inputs=tuple(rename.get(i, i) for i in n.inputs),
                    outputs=tuple(rename.get(o, o) for o in n.outputs)) for n in match.made]
    for output in filter(None, root.outputs):
        state.producers.pop(output, None)
    for old, new in pairs:
        if new not in fresh:
            _stand_in(state, old, new, kept, made)
    for node in made:
        state.uses.update(filter(None, node.inputs))
        state.enter(node)
    for value in filter(None, root.inputs):
        state.release(state.follow(value))
    return made


def can_stand_in(state: State | Graph, old: str, new: str) -> bool:
    """Whether the value `old` can go and `new` take its place. A graph output keeps its name, so it cannot be
    replaced by an input, a constant or another output.
    """
    return old not in state.outputs or (new in state.producers and new not in state.outputs)


def _stand_in(state: State, old: str, new: str, kept: list[Node], made: list[Node]) -> None:
    """Let the existing value `new` take the place of `old`."""
    if old not in state.outputs:
        state.alias[old] = new
        state.uses[new] += state.uses[old]
        return
    if not can_stand_in(state, old, new):
        made.append(Node("Identity", (new,), (old,), MappingProxyType({})))
        return
    # the maker of `new` takes over the name of the graph output
    maker = state.producers.pop(new)
    state.alias[new] = old
    state.uses[old] += state.uses.pop(new, 0)
    for i, node in enumerate(kept):
        if node is maker or new in node.inputs:
            kept[i] = replace(node, inputs=tuple(old if v == new else v for v in node.inputs),
                              outputs=tuple(old if v == new else v for v in node.outputs))
            if state.alive(node) or node is maker:
                state.enter(kept[i])
    made[:] = [replace(n, inputs=tuple(old if v == new else v for v in n.inputs)) for n in made]


def unweighted(graph: Graph, node: Node) -> str | None:
    """Why a node is no f32 product by a constant matrix and no f32 convolution by constants, None if it is one."""
    if node.op not in ("MatMul", "Conv"):
        return f"it is {node.op}, not MatMul or Conv"
    x, weight = graph.types[node.inputs[0]], graph.constants.get(node.inputs[1])
    if weight is None or node.inputs[0] in graph.constants:
        return "its weight is not a constant"
    if x.dtype != F32:
        return f"its input is {x.dtype}"
    return "its weight is no matrix" if node.op == "MatMul" and (weight.ndim != 2 or x.rank < 2) else None
