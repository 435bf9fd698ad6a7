"""Graph -> Graph. Each pass is one file; the order is written once, here."""
from __future__ import annotations

from collections.abc import Mapping

from ingot.errors import InputError
from ingot.graph import Graph, Node
from ingot.passes.attention import recognise_attention
from ingot.passes.batchnorm import fold_batchnorm
from ingot.passes.caches import join_caches
from ingot.passes.constant_folding import fold_constants
from ingot.passes.dead_code import remove_dead_code
from ingot.passes.duplicates import merge_duplicates
from ingot.passes.fold_quantised import fold_quantised
from ingot.passes.gemm import split_gemm
from ingot.passes.graph_pass import Pass, Watch, apply, both, dump_to, graph_pass, pipeline, unwatched
from ingot.passes.halves import widen_halves
from ingot.passes.integer import sink_dequantized
from ingot.passes.layout import choose_layout
from ingot.passes.precision import SHORT, Overflow, Precision, kept_for, lower_precision, overflows
from ingot.passes.recognition import recognise
from ingot.passes.recurrent import split_recurrent
from ingot.passes.resolve_shapes import resolve_shapes
from ingot.passes.rewrite import Rule, explain, rewrite, why_not
from ingot.passes.row_order import order_rows, rejoin_parts, reshape_before_split
from ingot.passes.rows import move_rows
from ingot.passes.scale import fold_scale
from ingot.passes.siblings import merge_siblings
from ingot.passes.simplify import simplify
from ingot.passes.trees import write_out_trees
from ingot.passes.widened import sink_widened
from ingot.passes.written_out import write_out
from ingot.target import Target

PIPELINE = pipeline(
    remove_dead_code,
    resolve_shapes,
    fold_quantised,         # before fold_constants, which would make f32 of integer weights
    fold_constants,
    write_out,
    write_out_trees,
    merge_duplicates,
    simplify,
    fold_constants,
    simplify,
    split_gemm,
    recognise,              # before fold_scale, which would take the factor out of a written-out Gelu
    recognise_attention,
    join_caches,
    widen_halves,           # after recognition, which knows 16-bit forms too
    split_recurrent,
    join_caches,            # scores in 16 bits are f32 by now
    move_rows,
    merge_duplicates,       # two Slices of one value become one, and the next round moves it further
    move_rows,
    simplify,
    fold_batchnorm,
    fold_scale,
    fold_constants,
    merge_duplicates,
    merge_siblings,
    simplify,
    remove_dead_code,
    sink_dequantized,
    order_rows,
    reshape_before_split,
    rejoin_parts,
    choose_layout,
)

PASSES: Mapping[str, Pass] = {p.name: p for p in PIPELINE}
RULES: Mapping[str, Rule] = {r.name: r for p in PASSES.values() for r in p.rules}


def optimize(graph: Graph, target: Target, watch: Watch = unwatched, precision: Precision = Precision()) -> Graph:
    """The graph after every pass of the pipeline; `watch` sees it before and after each.

    A shorter `precision` is gone over to after everything that folds constants, and before the layout.
    """
    return finished(simplified(graph, target, watch), target, watch, precision)


def simplified(graph: Graph, target: Target, watch: Watch = unwatched) -> Graph:
    """The graph after every pass but the last, which lays values out for the device."""
    return apply(PIPELINE[:-1], graph, target, watch)


def finished(whole: Graph, target: Target, watch: Watch = unwatched, precision: Precision = Precision()) -> Graph:
    """A graph that `simplified` gave, in its precision and its layout."""
    if precision.name not in SHORT:
        return apply(PIPELINE[-1:], whole, target, watch)
    short = lower_precision(whole, precision)
    watch("lower_precision", whole, short)
    return apply((merge_duplicates, remove_dead_code, sink_widened, choose_layout), short, target, watch)


def why(graph: Graph, name: str) -> tuple[tuple[Node, str | None], ...]:
    """For each node a rule or pass of this name could act on: None if it would, else why it does not.

    Raises InputError for an unknown name.
    """
    if name in RULES:
        return explain(graph, RULES[name])
    step = PASSES.get(name)
    if step is None:
        raise InputError(f"no rule or pass is called {name!r}",
                         mend=f"rules: {', '.join(sorted(RULES))}; passes: {', '.join(PASSES)}")
    if step.why_not is not None:
        return tuple((n, step.why_not(graph, n)) for n in graph.nodes)
    return tuple(pair for rule in step.rules for pair in explain(graph, rule))


__all__ = ["PASSES", "PIPELINE", "RULES", "Overflow", "Pass", "Precision", "Rule", "Watch", "apply", "both", "dump_to",
           "explain", "finished", "graph_pass", "kept_for", "lower_precision", "optimize", "order_rows", "overflows",
           "pipeline", "rejoin_parts", "reshape_before_split", "rewrite", "simplified", "unwatched", "why", "why_not"]
