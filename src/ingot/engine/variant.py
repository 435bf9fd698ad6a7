"""Program and choices -> Variant: constants packed, memory planned."""
from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import numpy as np

from ingot.engine.engine import Variant
from ingot.engine.parallel import spread
from ingot.kernels import Kernel
from ingot.kernels.reference import to_physical
from ingot.lower import Launch, Program
from ingot.plan import InPlace, plan_memory
from ingot.target import Target
from ingot.tune import Choice, default_choice, generator_version, tactic_named


def make_variant(program: Program, target: Target, choices: Mapping[str, Choice] | None = None,
                 kernels: Mapping[str, Kernel] | None = None, report: Mapping[str, object] | None = None) -> Variant:
    """Pack the constants as the chosen tactics want them, and plan the arena.

    Sites without a choice get the default one. `kernels` (by site key) are those already emitted for the choices.
    Raises UnsupportedError or CandidateError where a site's kernel cannot be built.
    """
    chosen, built = dict(choices or {}), dict(kernels or {})
    for launch in program.launches:
        key = launch.site.key
        if not launch.native:
            continue
        if key not in chosen:
            chosen[key], built[key] = default_choice(launch.site, target)
        elif key not in built:
            choice = chosen[key]
            built[key] = tactic_named(choice.tactic, target).emit(launch.site, choice.params, target)
    packed = _packed(program, chosen, target)
    plain = {v for i, x in enumerate(program.launches) for k, v in enumerate(x.reads) if (i, k) not in packed}
    plain |= {program.root(v)[0] for v in (*plain, *program.outputs)} | set(program.outputs)
    plainly = {k: a for k, a in program.constants.items() if k in plain}
    kept = dict(zip(plainly, spread(lambda k: aligned(to_physical(plainly[k], program.types[k])), plainly),
                    strict=True))
    demands = [(built[x.site.key].workspace, built[x.site.key].scratch) if x.native else (0, 0)
               for x in program.launches]
    keys = {x.site.key for x in program.launches if x.native}
    plan = plan_memory(program, demands, target.threads, in_place_by(chosen), alignment(target))
    return Variant(target, generator_version(target), replace(program, constants=kept),
                   {k: chosen[k] for k in sorted(keys)}, packed, plan, dict(report or {}))


def alignment(target: Target) -> int:
    """Bytes to which values in the arena are aligned: a GPU's copy engine and wide loads want more."""
    return 256 if target.kind == "cuda" else 64


def is_exact(variant: Variant) -> bool:
    """Whether every chosen kernel sums the very products its op is defined by."""
    return all(tactic_named(c.tactic, variant.target).exact for c in variant.choices.values())


def in_place_by(choices: Mapping[str, Choice]) -> InPlace:
    """Which reads a launch may write its result over: those its race found right, none for an untuned choice."""
    def rule(launch: Launch) -> tuple[int, ...]:
        return choices[launch.site.key].in_place if launch.native else ()
    return rule


def _packed(program: Program, choices: Mapping[str, Choice], target: Target) -> dict[tuple[int, int], np.ndarray]:
    """Every constant operand that a tactic wants in another form; the same constant at the same site once."""
    jobs: dict[tuple[str, tuple[str, ...]], tuple[Launch, dict[int, np.ndarray]]] = {}
    for launch in program.launches:
        constants = {i: program.constants[v] for i, v in enumerate(launch.reads)
                     if v in program.constants and launch.site.inputs[i].constant}
        if launch.native and constants:
            jobs[launch.site.key, launch.reads] = launch, constants

    def pack(job: tuple[Launch, dict[int, np.ndarray]]) -> dict[int, np.ndarray]:
        site, choice = job[0].site, choices[job[0].site.key]
        made = tactic_named(choice.tactic, target).pack(site, choice.params, target, job[1])
        return {operand: aligned(array) for operand, array in made.items()}

    packed = dict(zip(jobs, spread(pack, jobs.values()), strict=True))
    return {(index, operand): array for index, x in enumerate(program.launches) if x.native
            for operand, array in packed.get((x.site.key, x.reads), {}).items()}


def aligned(array: np.ndarray) -> np.ndarray:
    """The array, dense and starting at a multiple of 64 bytes; itself where it is so already."""
    array = np.ascontiguousarray(array)
    if array.dtype == object or array.__array_interface__["data"][0] % 64 == 0:
        return array
    raw = np.empty(array.nbytes + 64, np.uint8)
    start = -raw.__array_interface__["data"][0] % 64
    made = raw[start:start + array.nbytes].view(array.dtype).reshape(array.shape)
    made[...] = array
    return made
