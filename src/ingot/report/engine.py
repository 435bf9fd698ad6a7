"""What is inside an engine, as tables: launches, the race, memory, passes, latency, whys."""
from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence

from ingot.bench import Arrangement, Latency, Limits, Spent
from ingot.engine import Engine, Variant
from ingot.graph import Graph, Node
from ingot.lower import Launch
from ingot.passes import optimize, why
from ingot.report.table import Table, cut, nbytes_text
from ingot.target import Target
from ingot.tune import Trial


def ops_of(launch: Launch) -> str:
    """The ops a launch computes, for example Conv+Add+Relu."""
    return cut("+".join(s.op for s in launch.site.steps), 48)


def summary_lines(engine: Engine, variant: Variant) -> list[str]:
    """A few lines that say what the engine is."""
    native = sum(x.native for x in variant.program.launches)
    slow = len(variant.program.launches) - native
    weights = sum(a.nbytes for a in variant.packed.values()) + sum(
        a.nbytes for a in variant.program.constants.values())
    lines = [f"engine {engine.name}",
             f"device {variant.target.fingerprint}",
             *(f"input  {v}: {variant.program.types[v]}" for v in variant.program.inputs),
             *(f"output {v}: {variant.program.types[v]}" for v in variant.program.outputs),
             *(f"symbol {s}" for s in variant.program.symbols.values()),
             f"{len(engine.graph.nodes)} nodes -> {native} kernels"
             + (f" and {slow} on the slow reference path" if slow else ", none on the reference path"),
             (f"weights {nbytes_text(weights)}, arena {nbytes_text(variant.plan.arena)} "
             f"({variant.plan.arena / max(1, variant.plan.lower_bound):.3f} x the largest live set)")]
    return lines


def slow_table(variant: Variant) -> Table:
    """The launches no tactic serves, and why."""
    rows = [(x.where, "; ".join(x.reasons) or "no tactic for this kind of site")
            for x in variant.program.launches if not x.native]
    return Table("On the slow reference path", ("node", "why"), tuple(rows))


def _trial(trial: Trial) -> str:
    point = ",".join(f"{k}={v}" for k, v in trial.params.items())
    return f"{trial.tactic}[{point}]"


def race_table(variant: Variant, *, everything: bool = False) -> Table:
    """Per site: how often it runs, who won, and by how much; with `everything`, each candidate on a row of its own."""
    counts = Counter(x.site.key for x in variant.program.launches if x.native)
    rows: list[tuple[str | int | float | None, ...]] = []
    for launch in variant.program.launches:
        key = launch.site.key
        if key not in counts:
            continue
        count, choice = counts.pop(key), variant.choices[key]
        timed = sorted((t for t in choice.trials if t.seconds is not None), key=lambda t: t.seconds or 0.0)
        others = [t for t in timed if _trial(t) != choice.point]
        second = others[0].seconds if others else None
        seconds = choice.seconds
        rows.append((ops_of(launch), str(launch.site.output), count, choice.point,
                     None if seconds is None else seconds * 1e6, None if second is None else second * 1e6,
                     len(choice.trials)))
        if everything:
            rows += [("", "", None, f"  {_trial(t)}" + (f": {cut(t.note, 60)}" if t.note else ""),
                      None if t.seconds is None else t.seconds * 1e6, None, None) for t in choice.trials]
    return Table("The race", ("site", "output", "runs", "kernel", "us", "next us", "tried"), tuple(rows))


def memory_table(variant: Variant) -> Table:
    """Every value of the arena: where it lies and how long it lives."""
    plan, program = variant.plan, variant.program
    first: dict[str, int] = {}
    last: dict[str, int] = {}
    for step, launch in enumerate(program.launches):
        for value in filter(None, (*launch.reads, *launch.writes)):
            root = program.root(value)[0]
            first.setdefault(root, step)
            last[root] = step
    rows = tuple((plan.offsets[v], plan.sizes[v], cut(v, 40), str(program.types[v]), first[v], last[v],
                  plan.reused.get(v, "")) for v in sorted(plan.offsets, key=lambda v: (first[v], plan.offsets[v])))
    over = f", {plan.arena / plan.lower_bound:.3f} x that" if plan.lower_bound else ""
    note = f"arena {nbytes_text(plan.arena)}; the largest live set is {nbytes_text(plan.lower_bound)}{over}"
    return Table("Memory", ("offset", "bytes", "value", "type", "from", "to", "in place of"), rows, note)


def passes_table(graph: Graph, target: Target) -> Table:
    """What each pass made of the graph."""
    rows: list[tuple[str | int, ...]] = []

    def watch(name: str, before: Graph, after: Graph) -> None:
        gone = Counter(n.op for n in before.nodes) - Counter(n.op for n in after.nodes)
        come = Counter(n.op for n in after.nodes) - Counter(n.op for n in before.nodes)
        change = [f"-{k} {op}" for op, k in gone.most_common(4)] + [f"+{k} {op}" for op, k in come.most_common(4)]
        rows.append((name, len(before.nodes), len(after.nodes), ", ".join(change)))

    optimize(graph, target, watch)
    return Table("Passes", ("pass", "nodes before", "after", "what changed"), tuple(rows))


def why_table(graph: Graph, rule: str) -> Table:
    """Per node, why a rule or pass does not act on it; "it would" where it does. Raises InputError."""
    found: Iterable[tuple[Node, str | None]] = why(graph, rule)
    rows = tuple((cut(n.where, 80), reason or "it would act") for n, reason in found)
    return Table(f"Why {rule} does or does not act", ("node", "answer"), rows,
                 "" if rows else "no node has the ops it looks for")


def profile_table(variant: Variant, profile: Sequence[tuple[int, float]]) -> Table:
    """Where the time of one run goes, the slowest launch first. `profile` is what a session's profile() gave."""
    total = sum(s for _, s in profile) or 1.0
    rows = tuple((i, ops_of(variant.program.launches[i]), str(variant.program.launches[i].site.output),
                  variant.choices[variant.program.launches[i].site.key].point, seconds * 1e6, 100 * seconds / total)
                 for i, seconds in sorted(profile, key=lambda p: -p[1]))
    return Table("Time per kernel", ("launch", "ops", "output", "kernel", "us", "%"), rows,
                 f"{total * 1e6:,.0f} us in {len(rows)} kernels")


def roofline_table(variant: Variant, found: Sequence[Spent], limits: Limits) -> Table:
    """Per launch: time, arithmetic, bytes, the share of what the machine's limits allow, and what bounds it."""
    total = sum(x.seconds for x in found) or 1.0
    rows = []
    for one in sorted(found, key=lambda x: -x.seconds):
        launch = variant.program.launches[one.launch]
        least, _ = one.least(limits)
        rows.append((one.launch, ops_of(launch), str(launch.site.output), variant.choices[launch.site.key].point,
                     one.seconds * 1e6, 100 * one.seconds / total, one.flops / 1e6, one.nbytes / 1e6,
                     one.flops / one.seconds / 1e9 if one.seconds else None,
                     one.nbytes / one.seconds / 1e9 if one.seconds else None,
                     100 * least / one.seconds if one.seconds else None, one.bound(limits)))
    needed = sum(x.least(limits)[0] for x in found)
    return Table("Roofline", ("launch", "ops", "output", "kernel", "us", "%", "MFLOP", "MB", "GFLOP/s", "GB/s",
                              "% of limit", "bound by"), tuple(rows),
                 f"{total * 1e6:,.0f} us in {len(rows)} kernels; the limits allow {needed * 1e6:,.0f} us "
                 f"({needed / total:.0%}) for these operations as they are defined; {limits}. Beyond 100 %: fewer "
                 "operations than the definition (Winograd, Strassen), or data that stayed in a nearer cache")


def throughput_table(found: Sequence[Arrangement], batch: int) -> Table:
    """Items per second of each arrangement of the threads, the best one named."""
    best = max(found, key=lambda a: a.runs_per_second)
    rows = tuple((batch, a.instances, a.threads, a.runs_per_second * batch, a.seconds * 1e3) for a in found)
    return Table("Throughput", ("batch", "runs at a time", "threads each", "items/s", "ms a run"), rows,
                 f"most items per second: {best.instances} runs at a time on {best.threads} threads each; in Python "
                 f"ingot.SessionGroup(engine, {best.instances}, {best.threads})")


def latency_table(found: Sequence[Latency], title: str = "Latency") -> Table:
    """Milliseconds per batch and per item."""
    rows = tuple((x.name, x.batch, x.median * 1e3, x.p90 * 1e3, x.p99 * 1e3, x.least * 1e3, x.per_item * 1e3, x.runs)
                 for x in found)
    return Table(title, ("runtime", "batch", "median ms", "p90 ms", "p99 ms", "least ms", "per item ms", "runs"), rows)
