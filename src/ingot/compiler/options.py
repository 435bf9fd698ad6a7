"""What a build may be told; the command line's flags and the docs are made of these fields."""
from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path


@dataclass(frozen=True)
class BuildOptions:
    """How to build an engine. Every field has a default that suits most models."""

    threads: int = field(default=0, metadata={
        "help": "worker threads a run uses, the caller included; 0: what cgroup and affinity allow"})
    tune: bool = field(default=True, metadata={
        "help": "race the kernels on this machine; otherwise take each tactic's best guess, at once"})
    budget: float | None = field(default=None, metadata={
        "help": "stop tuning after this many seconds and keep the best found so far"})
    exact: bool = field(default=False, metadata={
        "help": "take only kernels that sum the products themselves: no Winograd convolution, no Strassen product"})
    method: str = field(default="mse", metadata={
        "help": "how ranges follow from what was seen: minmax, percentile, mse or entropy (KL divergence)"})
    accuracy_budget: float | None = field(default=None, metadata={
        "help": "how much accuracy int8 may cost: percent of 1 - cosine to the float model, or points of a metric; the "
                "sites that cost most stay in floats"})
    plan: Path | None = field(default=None, metadata={
        "help": "a file that says which sites may be int8, as a build writes it with --write-plan"})
    samples: int = field(default=512, metadata={"help": "the most samples to calibrate on"})
    strict: bool = field(default=False, metadata={
        "help": "refuse a model some node of which would run on the slow reference path"})
    verify: bool = field(default=True, metadata={
        "help": "compare the engine with the original model after the build"})
    allow_unverified: bool = field(default=False, metadata={
        "help": "keep an engine whose numbers differ from the original's, marked so"})
    check_passes: bool = field(default=False, metadata={
        "help": "prove every graph pass against the reference on random and special inputs"})
    target: str = field(default="", metadata={
        "help": "what to build for: x86 (this machine's CPU), cuda (the GPU here), or cuda:sm_90 (any such GPU)"})
    precision: str = field(default="f16", metadata={
        "help": "of a GPU: f16 or bf16 between kernels, summed in f32; tf32 products of f32; f32 throughout; or int8 "
                "or fp8 (f8e4m3, products alone) where that is faster than f16, by --calibrate or --scales. "
                "Of a CPU: f32 (f16 means that, too), bf16 in products and convolutions where that is faster, int8 "
                "where that is faster, on the ranges of --calibrate or --scales, or int8-weights or int4-weights: "
                "weights of products in groups of short integers, the rest f32"})
    tokenizer: Path | None = field(default=None, metadata={
        "help": "the tokenizer.json of the model, where --calibrate names a file of text: a sample a line"})
    group: int = field(default=32, metadata={
        "help": "rows of a weight's depth that share a scale, for int4-weights and int8-weights: 32, 64 or 128"})
    rounding: str = field(default="mse", metadata={
        "help": "how weights become integers: rtn (to nearest), mse (ranges of least squared error), awq (weights "
                "alone) or gptq (products, also for int8), both on the data of --calibrate"})
    outside: bool = field(default=False, metadata={
        "help": "of a GPU: the engine's inputs and outputs are of the short type, too"})
    candidates: bool = field(default=False, metadata={
        "help": "of a GPU: carry every kernel worth racing, so that a machine without Triton can tune the engine"})
    points: int = field(default=16, metadata={
        "help": "of a GPU: how many points of each tactic's space are compiled and raced"})
    isa: str = field(default="", metadata={
        "help": "instruction set level to generate for (avx2, avx512); empty: the best this machine has"})
    seed: int = field(default=0, metadata={"help": "seed of generated inputs"})
    dump: Path | None = field(default=None, metadata={
        "help": "folder that receives every stage's text form (as INGOT_DUMP)"})
