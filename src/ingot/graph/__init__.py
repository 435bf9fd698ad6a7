"""The graph: immutable, typed, in topological order."""
from ingot.graph.dim import Expr, Symbol, evaluate, parse_dim, product, symbol, symbols_of
from ingot.graph.flow import Call, Flow, Part, Picture, Piece, data_symbol
from ingot.graph.graph import Graph, GraphBuilder, Infer, Node
from ingot.graph.text import parse, parse_type, show
from ingot.graph.types import (
    BF16,
    BOOL,
    DTYPES,
    F16,
    F32,
    F64,
    I8,
    I32,
    I64,
    LAYOUTS,
    STR,
    U8,
    DType,
    TensorType,
    dense_strides,
    dtype_from_numpy,
    type_of,
)

Dim = int | Expr

__all__ = [
    "BF16", "BOOL", "DTYPES", "F16", "F32", "F64", "I8", "I32", "I64", "LAYOUTS", "STR", "U8", "Call", "DType", "Dim",
    "Expr", "Flow", "Graph", "GraphBuilder", "Infer", "Node", "Part", "Picture", "Piece", "Symbol", "TensorType",
    "data_symbol", "dense_strides", "dtype_from_numpy", "evaluate", "parse", "parse_dim", "parse_type", "product",
    "show", "symbol", "symbols_of", "type_of",
]
