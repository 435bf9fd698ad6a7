"""How long the search for a mixed plan takes, and the front between speed and accuracy that it finds.

    python -m benchmarks.int8_front resnet50 --out benchmarks/results/NAME

The search is measured for a quarter of the error that all sites lose together, so that it has to look into groups:
seconds on the wall, seconds of processors (which bound the wall's on a machine that does nothing else, whatever ran
beside it here), and the process's peak memory. `--untimed` leaves out the front, which needs the race.
"""
from __future__ import annotations

import argparse
import json
import resource
import tempfile
import time
from datetime import date
from pathlib import Path

from benchmarks.int8 import inputs
from benchmarks.zoo import ZOO
from ingot.compiler.build import tuned_here
from ingot.compiler.front import front
from ingot.compiler.options import BuildOptions
from ingot.compiler.precision import calibrated
from ingot.compiler.sensitivity import Judge, search
from ingot.frontend import load
from ingot.passes import simplified
from ingot.quantize import quantisable
from ingot.report.front import front_plot, front_table
from ingot.runtime.host import host_target


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", choices=list(ZOO))
    parser.add_argument("--samples", type=int, default=16)
    parser.add_argument("--compared", type=int, default=4, help="batches each plan is judged on")
    parser.add_argument("--share", type=float, default=0.25, help="of the whole error: the budget of the search")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--budget", type=float, help="seconds for each race")
    parser.add_argument("--untimed", action="store_true")
    parser.add_argument("--folder", default=str(Path(tempfile.gettempdir()) / "ingot-zoo"), help="where the models lie")
    parser.add_argument("--out", type=Path)
    given = parser.parse_args()
    entry, path = ZOO[given.model], Path(given.folder) / f"{given.model}.onnx"
    target = host_target(given.threads)
    graph = load(str(path), dict.fromkeys(entry.inputs, (1, *entry.shape)))
    data = list(inputs(given.model, path, 1, given.samples))
    begin, spent = time.perf_counter(), time.process_time()
    ranges = calibrated(graph, target, data, method="percentile")
    base = simplified(graph, target)
    sites = quantisable(base)
    judge = Judge(base, target, ranges, data[:given.compared])
    whole = judge.error(sites)
    found = search(judge, sites, given.share * whole)
    seconds, processor = time.perf_counter() - begin, time.process_time() - spent
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    told = {"model": given.model, "sites": len(sites), "samples": given.samples, "compared": given.compared,
            "machine": target.device, "threads": given.threads, "date": str(date.today()), "whole": whole,
            "budget": given.share * whole, "error": found.error, "floats": list(found.floats),
            "plans": found.measured, "seconds": seconds, "processor seconds": processor, "peak MB": peak}
    print(told, flush=True)
    how = (f"{target.device}, {given.threads} threads, {told['date']}. Calibrated on {given.samples} inputs, each "
           f"plan judged on {given.compared}; the whole search, calibration included.")
    lost = (f"All {len(sites)} sites on integers lose {whole:.4f} % of 1 - cosine; the budget was {given.share:.0%} "
            f"of it. {found.measured} plans were run, {len(found.floats)} sites stay in f32, the plan loses "
            f"{found.error:.4f} %.")
    took = (f"{seconds:.0f} s on the wall, beside whatever else ran; {processor:.0f} s of processors, two of which it "
            f"may use; peak memory {peak:.0f} MB.")
    lines = [f"# The search for a mixed plan: {given.model}", "", how, "", lost, "", took]
    if not given.untimed:
        points = front(base, target, judge, sites, tuned_here(target, BuildOptions(budget=given.budget)),
                       [s * whole for s in (1.0, 0.5, given.share)])
        table = front_table(points, len(sites), "% of 1 - cosine")
        lines += ["", f"## {table.title}", "", table.markdown(), "", table.note]
        told["front"] = table.to_json()
        print(table, flush=True)
        if given.out:
            given.out.with_suffix(".svg").write_text(front_plot(points, len(sites), given.model))
    if given.out:
        given.out.with_suffix(".json").write_text(json.dumps(told, indent=1) + "\n")
        given.out.with_suffix(".md").write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
