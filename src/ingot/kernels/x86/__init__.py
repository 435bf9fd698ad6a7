"""Tactics for CPUs: the list is in tactics.py. NEON shares them: an instruction set is data (codegen/isa.py)."""
