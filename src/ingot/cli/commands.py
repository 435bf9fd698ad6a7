"""The command line: build, run, bench, check, inspect, version.

Exit codes: 0 done; 1 something in the model, the inputs or the engine is not as it must be; 2 the command line itself
is wrong; 3 verification failed; 4 a bug of Ingot's own; 130 stopped by Ctrl-C.
"""
from __future__ import annotations

import json
import logging
import platform
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, fields
from functools import partial
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from types import TracebackType
from typing import Annotated

import numpy as np
import typer
from rich.console import Console
from rich.table import Table as RichTable
from rich.text import Text

from ingot.bench import (
    Latency,
    Peer,
    alternate,
    limits_of,
    measure,
    measure_arrangements,
    onnxruntime_peer,
    openvino_peer,
    peak_memory,
    spent,
    summary,
    torch_peer,
)
from ingot.cli.arguments import (
    array_from,
    batch_sizes,
    called_from,
    feeds_from,
    file_name,
    model_from,
    sizes_at,
    takes_examples,
    told_sizes,
)
from ingot.cli.traffic import bench_traffic, profile_shapes
from ingot.compiler.build import build_with_report
from ingot.compiler.build import load as load_engine
from ingot.compiler.check import check_engine
from ingot.compiler.explain import explain
from ingot.compiler.gpu import merged, short_feeds
from ingot.compiler.intake import Extras
from ingot.compiler.options import BuildOptions
from ingot.compiler.sensitivity import write_plan as plan_to_file
from ingot.engine import Engine, Variant, joint, opened, read_engine, write_engine
from ingot.env import read
from ingot.errors import IngotError, InputError, InternalError, VerifyError
from ingot.frontend import parse_shapes, picture
from ingot.frontend.preprocess import RECIPES
from ingot.graph import show
from ingot.quantize import read_calibration, write_calibration
from ingot.report import (
    ProgressBar,
    Table,
    latency_table,
    memory_table,
    nbytes_text,
    noise_table,
    passes_table,
    precision_lines,
    precision_table,
    profile_table,
    race_table,
    roofline_table,
    slow_table,
    summary_lines,
    throughput_table,
    why_table,
)
from ingot.runtime.cuda.open import open_session
from ingot.runtime.cuda.session import CudaSession
from ingot.runtime.cuda.target import found_driver, has_cuda
from ingot.runtime.host import host_target
from ingot.runtime.session import Session
from ingot.verify import Verdict, random_feeds, refuse

HELP = {f.name: str(f.metadata.get("help", "")) for f in fields(BuildOptions)}
ENGINE_SUFFIX = ".ingot"

app = typer.Typer(name="ingot", no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False,
                  help="From a trained model to a verified engine as fast as the very device allows.",
                  context_settings={"help_option_names": ["-h", "--help"]}, rich_markup_mode=None)

Json = Annotated[bool, typer.Option("--json", help="print one JSON document instead of text")]
Shapes = Annotated[list[str] | None, typer.Option(
    "--shapes", metavar="INPUT:SHAPE", help="sizes or ranges of an input, for example input:1..8..32x3x224x224 "
    "(min..opt..max); once per input")]
Strict = Annotated[bool, typer.Option("--strict", help="refuse an engine that was not built for this very device")]
Trust = Annotated[bool, typer.Option("--trust", help="run carried device code whoever signed it, or nobody")]
Device = Annotated[str, typer.Option("--device", help="cpu or cuda; default: the GPU where the engine is for one")]
Threads = Annotated[int, typer.Option("--threads", min=0, help=HELP["threads"])]
EnginePath = Annotated[Path, typer.Argument(metavar="ENGINE", help="an engine file")]
ModelPath = Annotated[Path, typer.Argument(metavar="MODEL", help="an ONNX file")]
AnyModel = Annotated[str, typer.Argument(
    metavar="MODEL", help="an ONNX file, a .pt2 of torch.export, a TorchScript .pt, a SavedModel or .keras, or "
    "FILE.py:NAME, which gives the model when called")]
Weights = Annotated[Path | None, typer.Option(
    "--weights", help="a checkpoint (state dict, or Lightning's) to load into the PyTorch module")]
Opset = Annotated[int | None, typer.Option("--opset", help="ONNX version to export a framework's model to")]
Preprocess = Annotated[str, typer.Option(
    "--preprocess", metavar="KIND:HxW", help="images come as uint8 [N,height,width,3]; resizing, normalising and "
    f"layout go inside the graph. Kinds: {', '.join(RECIPES)}; without a size the images have the model's")]


def tell(document: Mapping[str, object] | None, *parts: object) -> None:
    """One JSON document, or the parts one after another: tables in full width on a terminal, plain text elsewhere."""
    if document is not None:
        print(json.dumps(document, indent=2, default=str))
        return
    for part in parts:
        if isinstance(part, Table) and sys.stdout.isatty():
            Console().print(rich_table(part))
        else:
            print(part)


def rich_table(table: Table) -> RichTable:
    """The table as it is drawn on a terminal."""
    made = RichTable(title=table.title, caption=table.note or None, title_justify="left", caption_justify="left")
    for i, column in enumerate(table.columns):
        made.add_column(column, justify="right" if table.is_numeric(i) else "left", overflow="fold")
    for row in table.texts():
        made.add_row(*map(Text, row))       # as text: what stands in brackets is no markup
    return made


@app.command()
def build(
    model: AnyModel,
    output: Annotated[Path | None, typer.Option("--output", "-o", help="the engine file; default: MODEL.ingot")] = None,
    shapes: Shapes = None,
    inputs: Annotated[list[Path] | None, typer.Option(
        "--inputs", help="an .npz file with one array per input to verify on, and to export with; once per set"
    )] = None,
    against: Annotated[str, typer.Option(
        "--against", help="who knows the right answers: reference or onnxruntime; default: the model's own framework, "
        "the reference for ONNX")] = "",
    weights: Weights = None,
    opset: Opset = None,
    preprocess: Preprocess = "",
    budget: Annotated[float | None, typer.Option("--budget", min=0, metavar="SECONDS", help=HELP["budget"])] = None,
    tune: Annotated[bool, typer.Option("--tune/--no-tune", help=HELP["tune"])] = True,
    exact: Annotated[bool, typer.Option("--exact", help=HELP["exact"])] = False,
    strict: Annotated[bool, typer.Option("--strict", help=HELP["strict"])] = False,
    check: Annotated[bool, typer.Option("--verify/--no-verify", help=HELP["verify"])] = True,
    allow_unverified: Annotated[bool, typer.Option("--allow-unverified", help=HELP["allow_unverified"])] = False,
    check_passes: Annotated[bool, typer.Option("--check-passes", help=HELP["check_passes"])] = False,
    isa: Annotated[str, typer.Option("--isa", help=HELP["isa"])] = "",
    target: Annotated[str, typer.Option("--target", metavar="x86|cuda[:ARCH]", help=HELP["target"])] = "",
    precision: Annotated[str, typer.Option("--precision", help=HELP["precision"])] = "f16",
    calibrate: Annotated[Path | None, typer.Option(
        "--calibrate", metavar="DATA", help="representative inputs for int8: an .npz or .npy file, a folder of them or "
        "of images (with --preprocess), or a file of text (with --tokenizer)")] = None,
    scales: Annotated[Path | None, typer.Option(
        "--scales", help="ranges found by calibration: read where no data is given, else written")] = None,
    method: Annotated[str, typer.Option("--method", help=HELP["method"])] = "mse",
    tokenizer: Annotated[Path | None, typer.Option("--tokenizer", help=HELP["tokenizer"])] = None,
    group: Annotated[int, typer.Option("--group", help=HELP["group"])] = 32,
    rounding: Annotated[str, typer.Option("--rounding", help=HELP["rounding"])] = "mse",
    samples: Annotated[int, typer.Option("--samples", min=1, help=HELP["samples"])] = 512,
    accuracy_budget: Annotated[float | None, typer.Option("--accuracy-budget", min=0, metavar="PERCENT",
                                                          help=HELP["accuracy_budget"])] = None,
    plan: Annotated[Path | None, typer.Option("--plan", help=HELP["plan"])] = None,
    write_plan: Annotated[Path | None, typer.Option(
        "--write-plan", help="write which site became int8 into this file")] = None,
    outside: Annotated[bool, typer.Option("--outside", help=HELP["outside"])] = False,
    candidates: Annotated[bool, typer.Option("--candidates", help=HELP["candidates"])] = False,
    points: Annotated[int, typer.Option("--points", min=1, help=HELP["points"])] = 16,
    profile_from: Annotated[Path | None, typer.Option(
        "--profile-from", metavar="TRAFFIC", help="shapes of inputs that --shapes does not name: from traffic recorded "
        "by ingot serve")] = None,
    into: Annotated[Path | None, typer.Option(
        "--into", metavar="ENGINE", help="keep this engine's variants for other devices, too")] = None,
    seed: Annotated[int, typer.Option("--seed", help=HELP["seed"])] = 0,
    dump: Annotated[Path | None, typer.Option("--dump", help=HELP["dump"])] = None,
    threads: Threads = 0,
    as_json: Json = False,
) -> None:
    """Turn a model into an engine: optimise, race the kernels, plan memory, verify, write one file.

    Ctrl-C stops the race and keeps the best engine so far.

    Example: ingot build model.onnx -o model.ingot --shapes input:1..8..32x3x224x224
    """
    options = BuildOptions(threads=threads, tune=tune, budget=budget, exact=exact, strict=strict, verify=check,
                           allow_unverified=allow_unverified, check_passes=check_passes, isa=isa, seed=seed, dump=dump,
                           target=target, precision=precision, outside=outside, candidates=candidates, points=points,
                           method=method, tokenizer=tokenizer, group=group, rounding=rounding, samples=samples,
                           accuracy_budget=accuracy_budget, plan=plan)
    output = output or into or Path(model.rpartition(".py:")[0] or model).with_suffix(ENGINE_SUFFIX)
    given = [feeds_from(path) for path in inputs or []]
    ranges = read_calibration(scales) if scales and not calibrate else calibrate
    begin = time.perf_counter()
    with ProgressBar(quiet=as_json) as progress:
        found = model_from(model)
        example = given.pop(0) if given and takes_examples(found) else None
        told = [*(shapes or []), *(profile_shapes(profile_from, model, shapes or []) if profile_from else [])]
        made = build_with_report(found, parse_shapes(told), options, inputs=given, original=against or None,
                                 progress=progress, example_inputs=example, weights=weights, opset=opset,
                                 preprocess=preprocess, calibration=ranges)
    if made.plan and made.plan.calibration and scales and calibrate:
        write_calibration(made.plan.calibration, scales)
    if made.plan and write_plan:
        plan_to_file({s.site.name: "int8" if s.kept else "f32" for s in made.plan.sites}, write_plan)
    engine, tuned = merged(read_engine(into), made.engine) if into else made.engine, made.tuning
    write_engine(engine, output)
    seconds = time.perf_counter() - begin
    variant = joint(engine.flow, [opened(p.variants[0]) for p in engine.parts]) if engine.flow else \
        opened(engine.variants[0])
    document = {"engine": str(output), "seconds": seconds, "stages": dict(made.seconds),
                "bytes": output.stat().st_size, "verdict": dict(engine.verdict), "plan": _plan(variant),
                "race": {"raced": tuned.raced, "cached": tuned.cached, "untuned": tuned.untuned,
                         "interrupted": tuned.interrupted}}
    raced = (f"{tuned.raced} sites raced, {tuned.cached} known from the cache, {tuned.untuned} untuned"
             + ("; stopped by Ctrl-C, the best so far was kept: build again to go on" if tuned.interrupted else ""))
    slow = slow_table(variant)
    verdict = Verdict.from_json(engine.verdict) if engine.verdict else None
    lower = [precision_table(engine), *precision_lines(engine)] if made.plan else []
    document |= {"precision": engine.report["precision"]} if made.plan else {}
    tell(document if as_json else None, "\n".join(summary_lines(engine, variant)), *([slow] if slow.rows else []),
           *lower, raced, verdict or ("not verified: --no-verify was given" if not check else
                              "not verified: there is no such GPU here; `ingot tune` on one verifies it"),
           f"{output}: {nbytes_text(output.stat().st_size)}, built in {seconds:.1f} s")


def _plan(variant: Variant) -> dict[str, object]:
    return {"arena": variant.plan.arena, "lower_bound": variant.plan.lower_bound, "threads": variant.target.threads,
            "kernels": sum(x.native for x in variant.program.launches),
            "reference_path": [x.where for x in variant.program.launches if not x.native]}


@app.command()
def run(
    engine: EnginePath,
    inputs: Annotated[list[str] | None, typer.Option(
        "--input", "-i", metavar="NAME=FILE.npy|random", help="one input; those not named are random")] = None,
    size: Annotated[list[str] | None, typer.Option(
        "--size", metavar="SYMBOL=N", help="size of a dynamic axis for random inputs; default: the tuned one")] = None,
    output: Annotated[Path | None, typer.Option(
        "--output", "-o", help="folder that receives one .npy per output")] = None,
    seed: Annotated[int, typer.Option("--seed", help=HELP["seed"])] = 0,
    threads: Threads = 0,
    device: Device = "",
    strict: Strict = False,
    trust: Trust = False,
    as_json: Json = False,
) -> None:
    """Run an engine once, on given or random inputs.

    Example: ingot run model.ingot --input input=image.npy --output results
    """
    loaded = load_engine(engine, threads=threads or None, strict=strict)
    sizes = told_sizes(loaded.graph, size or [])
    feeds = random_feeds(loaded.graph, sizes, seed)
    for text in inputs or []:
        name, _, source = text.partition("=")
        if name not in feeds or not source:
            raise InputError(f"{text!r} names no input", where="--input",
                             mend=f"write NAME=FILE.npy or NAME=random; inputs: {', '.join(feeds)}")
        if source != "random":
            feeds[name] = array_from(Path(source))
    session = open_session(loaded, threads or None, device=device, strict=strict, trust=trust)
    begin = time.perf_counter()
    results = session.run(short_feeds(session.variant, feeds))
    seconds = time.perf_counter() - begin
    if output:
        output.mkdir(parents=True, exist_ok=True)
        for name, array in results.items():
            np.save(output / f"{file_name(name)}.npy", array)
    rows = tuple((n, f"{a.dtype}{list(a.shape)}", *_spread(a)) for n, a in results.items())
    table = Table("Outputs", ("output", "type", "least", "mean", "most", "not finite"), rows)
    tell({"outputs": table.to_json(), "seconds": seconds} if as_json else None, table,
           f"{seconds * 1e3:.2f} ms (a first run; `ingot bench` measures)")


def _spread(array: np.ndarray) -> tuple[float | None, float | None, float | None, int]:
    if array.dtype.kind not in "fiub" or not array.size:
        return None, None, None, 0
    numbers = array.astype(np.float64)
    finite = numbers[np.isfinite(numbers)]
    if not finite.size:
        return None, None, None, numbers.size
    return float(finite.min()), float(finite.mean()), float(finite.max()), int(numbers.size - finite.size)


@app.command()
def bench(
    path: Annotated[Path, typer.Argument(
        metavar="ENGINE|MODEL", help="an engine file, or an ONNX file to build first")],
    batch: Annotated[str, typer.Option(
        "--batch", help="batch sizes to measure; those outside the engine's range are left out")] = "1,8,32",
    against: Annotated[str, typer.Option(
        "--against", help="peers to measure beside it: torch, onnxruntime, openvino")] = "",
    model: Annotated[Path | None, typer.Option("--model", help="the ONNX file the engine was built from")] = None,
    module: Annotated[str, typer.Option(
        "--torch", metavar="FILE.py:NAME", help="for the peer torch: what gives the PyTorch module when called")] = "",
    seconds: Annotated[float, typer.Option("--seconds", min=0.1, help="how long to measure each batch size")] = 3.0,
    shapes: Shapes = None,
    device: Device = "",
    trust: Trust = False,
    profile: Annotated[bool, typer.Option("--profile", help="show where the time of one run goes")] = False,
    roofline: Annotated[bool, typer.Option(
        "--roofline", help="the same with operations, bytes, and what bounds each kernel on this machine")] = False,
    throughput: Annotated[bool, typer.Option(
        "--throughput/--latency", help="also measure runs side by side, for the most items per second")] = False,
    traffic: Annotated[Path | None, typer.Option(
        "--traffic", metavar="FILE", help="instead: behind a server, under traffic that was recorded")] = None,
    poisson: Annotated[float, typer.Option(
        "--poisson", min=0, metavar="RATE", help="instead: behind a server, requests per second, at random")] = 0.0,
    closed: Annotated[int, typer.Option(
        "--closed", min=0, metavar="N", help="instead: behind a server, N clients one request after another")] = 0,
    p99: Annotated[str, typer.Option("--p99", metavar="TIME", help="the latency goal of that server")] = "",
    search: Annotated[bool, typer.Option(
        "--search", help="look for the highest Poisson rate whose p99 is within the goal")] = False,
    threads: Threads = 0,
    as_json: Json = False,
) -> None:
    """Measure an engine: median, p90, p99, least; per batch and per item; load time, arena, peak memory.

    Example: ingot bench model.ingot --model model.onnx --batch 1,8 --against onnxruntime,openvino
    """
    if traffic or poisson or closed or search:
        served = bench_traffic(path, load_engine(path, threads=threads or None), record=traffic, rate=poisson,
                               clients=closed, p99=p99, seconds=seconds, search=search, threads=threads)
        tell({"served": served.to_json(), "note": served.note} if as_json else None, served)
        return
    built = 0.0
    begin = time.perf_counter()
    if path.suffix == ".onnx":
        model = path
        with ProgressBar(quiet=as_json) as progress:
            engine = build_with_report(str(path), parse_shapes(shapes or []), BuildOptions(threads=threads),
                                       progress=progress).engine
        built = time.perf_counter() - begin
    else:
        engine = load_engine(path, threads=threads or None)
    start = time.perf_counter()
    session = open_session(engine if path.suffix == ".onnx" else load_engine(path, threads=threads or None),
                           threads or None, device=device, trust=trust)
    loaded = time.perf_counter() - start
    peers = [p for p in against.split(",") if p]
    if unknown := [p for p in peers if p not in ("torch", "onnxruntime", "openvino")]:
        raise InputError(f"no peer is called {unknown[0]}", where="--against",
                         mend="known: torch, onnxruntime, openvino")
    found: list[Latency] = []
    side_by_side: list[Table] = []
    left_out: list[str] = []
    apart: dict[str, float] = {}
    for size in batch_sizes(batch):
        sizes, reason = sizes_at(engine.graph, size)
        if reason:
            left_out.append(f"batch {size}: {reason}")
            continue
        feeds = random_feeds(engine.graph, sizes, 0)
        calls, outputs = _calls(session, feeds, peers, model, module)
        taken = alternate(calls, seconds) if peers else {"ingot": measure(calls["ingot"], seconds)}
        found += [summary(name, size, taken[name]) for name in calls]
        if throughput:
            side_by_side.append(throughput_table(
                measure_arrangements(engine, feeds, session.threads, seconds), size))
        apart |= {f"{name} at batch {size}": _apart(outputs["ingot"], outputs[name]) for name in peers}
    table = latency_table(found)
    lines = [*(f"not measured: {t}" for t in left_out),
             *(f"ingot and {k} differ by {v:.1e} of the largest value" for k, v in apart.items()),
             *([f"build {built:.2f} s"] if built else []),
             f"load {loaded * 1e3:.1f} ms, arena {nbytes_text(session.plan.arena)}, {session.threads} threads",
             f"peak memory of this process {nbytes_text(peak_memory())}"]
    parts = [table, *side_by_side, "\n".join(lines)]
    tuned = {s.name: s.opt for s in engine.graph.symbols.values()}
    feeds = random_feeds(engine.graph, tuned, 0)
    if profile:
        parts.append(profile_table(session.variant, session.profile(feeds)))
    limits = roofline_table(session.variant, spent(session.variant.program, [session.profile(feeds) for _ in range(9)],
                                                   tuned), limits_of(session)) if roofline else None
    parts += [limits] if limits else []
    tell({"latency": table.to_json(), "not_measured": left_out, "apart": apart, "build_seconds": built or None,
            "load_seconds": loaded, "arena": session.plan.arena, "threads": session.threads,
            "peak_memory": peak_memory(), **({"roofline": limits.to_json()} if limits else {}),
          "throughput": [row for t in side_by_side for row in t.to_json()]} if as_json else None,
         *parts)


def _calls(session: Session | CudaSession, feeds: Mapping[str, np.ndarray], peers: Sequence[str], model: Path | None,
           module: str) -> tuple[dict[str, Callable[[], object]], dict[str, Mapping[str, np.ndarray]]]:
    """What to time, and one set of outputs of each, by runtime."""
    if set(peers) - {"torch"} and model is None:
        raise InputError("these peers need the ONNX file", where="--against", mend="name it with --model")
    if "torch" in peers and not module:
        raise InputError("PyTorch needs the model as a module, which an ONNX file does not hold", where="--against",
                         mend="name what gives it: --torch FILE.py:NAME")
    feeds = short_feeds(session.variant, feeds)
    out = {name: array.copy() for name, array in session.run(dict(feeds)).items()}
    outputs: dict[str, Mapping[str, np.ndarray]] = {"ingot": {k: v.copy() for k, v in out.items()}}
    calls: dict[str, Callable[[], object]] = {"ingot": partial(session.run, feeds, out=out)}
    makers: dict[str, Callable[[], Peer]] = {
        "torch": lambda: torch_peer(called_from(module), list(feeds), list(out), session.threads),
        "onnxruntime": lambda: onnxruntime_peer(str(model), session.threads),
        "openvino": lambda: openvino_peer(str(model), session.threads, {k: v.shape for k, v in feeds.items()})}
    for name in peers:
        peer = makers[name]()
        outputs[name] = peer.run(feeds)
        calls[name] = partial(peer.call, feeds)
    return calls, outputs


def _apart(ours: Mapping[str, np.ndarray], theirs: Mapping[str, np.ndarray]) -> float:
    """The largest difference over all outputs, relative to the largest value of each."""
    return max((float(np.abs(ours[k] - theirs[k]).max() / max(float(np.abs(theirs[k]).max()), 1e-30))
                for k in ours if k in theirs and ours[k].dtype.kind == "f" and ours[k].size), default=0.0)


@app.command()
def check(
    original: AnyModel,
    engine: EnginePath,
    against: Annotated[str, typer.Option(
        "--against", help="who runs an ONNX original: reference or onnxruntime")] = "",
    bisect: Annotated[bool, typer.Option(
        "--bisect", help="name the first node whose value the engine computes differently, with the shipped kernels "
        "and in bounded memory")] = False,
    why: Annotated[bool, typer.Option(
        "--explain", help="where accuracy went: the noise of every integer site beside the float model, what is cut "
        "off, and which node made the first NaN")] = False,
    weights: Weights = None,
    preprocess: Preprocess = "",
    inputs: Annotated[list[Path] | None, typer.Option(
        "--inputs", help="an .npz file to compare on; once per set")] = None,
    seed: Annotated[int, typer.Option("--seed", help=HELP["seed"])] = 0,
    threads: Threads = 0,
    device: Device = "",
    trust: Trust = False,
    as_json: Json = False,
) -> None:
    """Compare an engine with its original model, on given, random and special inputs. Exit code 3 where they differ.

    Example: ingot check model.onnx model.ingot --against onnxruntime --bisect
    """
    loaded = load_engine(engine, threads=threads or None)
    session = open_session(loaded, threads or None, device=device, trust=trust)
    if why:
        if isinstance(session, CudaSession):
            raise InputError("--explain follows an engine for a CPU", mend="build it for x86 as well, and explain that")
        found = explain(original if original.endswith(".onnx") else None, loaded, session.variant,
                        inputs=[feeds_from(p) for p in inputs or []], seed=seed)
        document = found.to_json()
        jumped = [f"the error jumps at '{s.site}' ({', '.join(s.origin)})" for s in found.sites if s.jumps]
        tell(document if as_json else None, f"on {found.inputs}",
             *([noise_table([asdict(s) for s in found.sites])] if found.sites else ["no site works on integers"]),
             *jumped, f"first not finite: {found.not_finite}" if found.not_finite else "every value is finite")
        return
    verdict = check_engine(model_from(original), loaded, session=session, against=against,
                           inputs=[feeds_from(p) for p in inputs or []], seed=seed, bisect=bisect, name=str(engine),
                           extras=Extras(weights=weights, preprocess=preprocess))
    tell(verdict.to_json() if as_json else None, verdict)
    if not verdict.passed:
        raise typer.Exit(3) if as_json else refuse(verdict)


def _shown(engine: Engine) -> Variant:
    """The variant that would run here; of an engine that has none for this machine, the first."""
    if engine.flow is not None:
        return joint(engine.flow, [_shown(p) for p in engine.parts])
    host = host_target()
    on_gpu = has_cuda(engine) and found_driver() is not None
    found = None if on_gpu else engine.variant_for(host)
    return found or opened(next((v for v in engine.variants if v.target is not None and v.target.kind == "cuda"),
                                engine.variants[0]))


@app.command()
def inspect(
    path: Annotated[Path, typer.Argument(metavar="ENGINE|MODEL", help="an engine file or an ONNX file")],
    passes: Annotated[bool, typer.Option("--passes", help="what each pass makes of the graph")] = False,
    race: Annotated[bool, typer.Option("--race", help="who won each site, and by how much")] = False,
    candidates: Annotated[bool, typer.Option("--candidates", help="with --race: every candidate")] = False,
    memory: Annotated[bool, typer.Option("--memory", help="where every value lies, and how long")] = False,
    graph: Annotated[bool, typer.Option("--graph", help="the graph in its text form")] = False,
    why: Annotated[str, typer.Option("--why", metavar="RULE", help="why a rule or pass left nodes alone")] = "",
    shapes: Shapes = None,
    as_json: Json = False,
) -> None:
    """Look into an engine or a model: what it is, what the passes do, who won the race, where memory goes, and why.

    Example: ingot inspect model.ingot --race --memory
    """
    document: dict[str, object] = {}
    parts: list[object] = []
    if path.suffix == ".onnx":
        if race or memory:
            raise InputError(f"{path} is a model: nothing has been raced or planned yet",
                             mend=f"ingot build {path}, and inspect the engine")
        loaded = picture(str(path), parse_shapes(shapes or []))
        parts.append(f"model {path.name}: {len(loaded.nodes)} nodes, {len(loaded.constants)} constants\n" + "\n".join(
            [f"input  {v}: {loaded.types[v]}" for v in loaded.inputs]
            + [f"output {v}: {loaded.types[v]}" for v in loaded.outputs]
            + [f"symbol {s}" for s in loaded.symbols.values()]))
    else:
        engine = load_engine(path)
        loaded, variant = engine.graph, _shown(engine)
        verdict = Verdict.from_json(engine.verdict)
        document |= {"name": engine.name, "verdict": dict(engine.verdict), "report": dict(engine.report),
                     "plan": _plan(variant), "device": variant.target.fingerprint}
        parts += ["\n".join(summary_lines(engine, variant)), verdict]
        slow = slow_table(variant)
        asked = [*([race_table(variant, everything=candidates)] if race else []),
                 *([memory_table(variant)] if memory else []), *([slow] if slow.rows else [])]
        parts += asked
        document |= {t.title.lower().replace(" ", "_"): t.to_json() for t in asked}
    document |= {"inputs": {v: str(loaded.types[v]) for v in loaded.inputs},
                 "outputs": {v: str(loaded.types[v]) for v in loaded.outputs},
                 "symbols": [str(s) for s in loaded.symbols.values()], "nodes": len(loaded.nodes)}
    if passes:
        table = passes_table(loaded, host_target())
        parts.append(table)
        document["passes"] = table.to_json()
    if why:
        table = why_table(loaded, why)
        parts.append(table)
        document["why"] = table.to_json()
    if graph:
        parts.append(show(loaded))
        document["graph"] = show(loaded)
    tell(document if as_json else None, *parts)


@app.command(name="version")
def show_version(as_json: Json = False) -> None:
    """Show Ingot's version, the device, and the versions of what it stands on.

    Example: ingot version --json
    """
    target = host_target()
    found = {name: version(name) for name in ("numpy", "onnx", "llvmlite")}
    try:
        own = version("ingot")
    except PackageNotFoundError:
        own = "not installed"
    document = {"ingot": own, "python": platform.python_version(), "device": target.fingerprint,
                "threads": target.threads, **found}
    tell(document if as_json else None, "\n".join(f"{k:9} {v}" for k, v in document.items()))


def _code(error: IngotError) -> int:
    return 3 if isinstance(error, VerifyError) else 4 if isinstance(error, InternalError) else 1


def _told(error: IngotError, as_json: bool) -> None:
    """Say what, where, why and the mend: on stderr, or as JSON on stdout where that was asked for."""
    if as_json:
        print(json.dumps({"error": {"kind": type(error).__name__, "what": error.what, "where": error.where,
                                    "why": list(error.why), "mend": error.mend}}, indent=2))
    else:
        print(f"{type(error).__name__}: {error}", file=sys.stderr)


def _bug(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    """The last resort: an error nobody foresaw is a bug of Ingot's, and its traceback is what a report needs."""
    sys.__excepthook__(kind, error, trace)
    print("This is a bug in Ingot: please report it with the lines above and the model.", file=sys.stderr)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command line and give its exit code."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    sys.excepthook = _bug
    try:
        logging.basicConfig(level=read().log.upper(), format="%(levelname)s %(message)s", stream=sys.stderr)
        app(args=words, prog_name="ingot")
    except IngotError as error:
        _told(error, "--json" in words)
        return _code(error)
    except SystemExit as stop:          # how typer ends, also after --help and after an error of usage
        return stop.code if isinstance(stop.code, int) else 0
    return 0


if __name__ == "__main__":
    sys.exit(main())
