"""Which GPU a word of the command line means, and which variant of an engine fits a GPU."""
from __future__ import annotations

import re
from collections.abc import Sequence

from ingot.engine import Engine, Sealed, Variant
from ingot.errors import EngineError, InputError
from ingot.runtime.cuda.driver import DeviceError, Driver, cuda_driver
from ingot.target import Target

_SPEC = re.compile(r"cuda(?::(sm_\d+a?))?")
ARCHITECTURES = ("sm_80", "sm_86", "sm_89", "sm_90", "sm_100")


def found_driver(index: int = 0) -> Driver | None:
    """The driver of a GPU of this machine, None where there is none."""
    try:
        return cuda_driver(index)
    except DeviceError:
        return None


def cuda_target(spec: str, driver: Driver | None, *, tf32: bool = False) -> Target:
    """The target for "cuda" (the GPU here) or "cuda:sm_90" (the one here if it is such a one, else any).

    Raises InputError where the word is none of these, or names no architecture and there is no GPU.
    """
    found = _SPEC.fullmatch(spec)
    if not found:
        raise InputError(f"no target is called {spec!r}", mend="write x86, cuda, or cuda:sm_90")
    wanted = (found[1] or "").removesuffix("a")
    mode = frozenset({"tf32"}) if tf32 else frozenset[str]()
    here = driver.facts if driver else None
    if here is not None and wanted in ("", here.architecture):
        return Target("cuda", here.architecture, here.features | mode, device=here.name)
    if not wanted:
        raise InputError("there is no GPU here to build for", mend=(
            "name the architecture to cross-compile for, for example --target cuda:sm_90"))
    if wanted not in ARCHITECTURES:
        raise InputError(f"no architecture is called {wanted!r}", mend=f"choose one of: {', '.join(ARCHITECTURES)}")
    return Target("cuda", wanted, mode)


def has_cuda(engine: Engine) -> bool:
    """Whether an engine has a variant for some GPU."""
    return any(t.kind == "cuda" for t in engine.targets)


def variant_on(engine: Engine, driver: Driver | None, *, strict: bool = False) -> Variant:
    """The variant for a GPU: of this very one, else one built for its architecture.

    `strict` refuses one tuned for another GPU. Raises EngineError that says found, wanted, and the command.
    """
    variants = [v for v in engine.variants if v.target is not None and v.target.kind == "cuda"]
    held = ", ".join(str(v.target) for v in variants) or "no GPU"
    if driver is None:
        raise EngineError(f"the engine '{engine.name}' wants a GPU, and there is none here",
                          why=(f"wanted: {held}", "found: no CUDA driver"),
                          mend="run it on such a machine, or build it for this one: ingot build MODEL")
    facts = driver.facts
    fit = [v for v in variants if v.target is not None and v.target.isa == facts.architecture]
    exact = [v for v in fit if v.target is not None and v.target.device == facts.name]
    loose = [v for v in fit if v.target is not None and v.target.device == ""]
    order: Sequence[Variant | Sealed[Variant]] = [*exact, *loose, *fit]
    if not order or (strict and not exact):
        raise EngineError(f"the engine '{engine.name}' was not built for this GPU",
                          why=(f"wanted: {held}", f"found: cuda:{facts.architecture} ({facts.name})"),
                          mend="build it here: ingot build MODEL --target cuda; or, where it carries candidates: "
                               "ingot tune ENGINE")
    chosen = order[0]
    return chosen.opened if isinstance(chosen, Sealed) else chosen


__all__ = ["ARCHITECTURES", "cuda_target", "found_driver", "has_cuda", "variant_on"]
