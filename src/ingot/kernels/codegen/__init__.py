"""Code generation shared by every CPU target: the emitter, instruction sets, expressions and math functions."""
from ingot.kernels.codegen.code import Code, Int, Value, Variable, element_of, llvm_type, vector
from ingot.kernels.codegen.isa import ISAS, Isa, isa_of, target_for

__all__ = ["ISAS", "Code", "Int", "Isa", "Value", "Variable", "element_of", "isa_of", "llvm_type",
           "target_for", "vector"]
