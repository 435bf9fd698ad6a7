"""Transposed convolutions into blocked outputs: one ordinary convolution of stride 1 for each phase of the output.

With stride s, the output pixels o of one phase (o mod s) all read the input under the same taps, at neighbouring
places. So each phase is a direct convolution with those of the taps, whose results lie s pixels apart.
"""
from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from itertools import product

import numpy as np

from ingot.errors import CandidateError
from ingot.graph import Dim
from ingot.kernels import Kernel, Params, Site, Tactic
from ingot.kernels.codegen import Code, isa_of
from ingot.kernels.convolution import Ints3
from ingot.kernels.x86.conv_direct import Emitter, Phase
from ingot.kernels.x86.conv_form import Form, form, pack_channels
from ingot.kernels.x86.conv_grid import Grid, declines, pack_weight, points, vectors_of
from ingot.target import Target

_PHASES = 27        # the most phases a kernel has code for


@dataclass(frozen=True)
class _Axis:
    """One phase along one axis."""

    offset: int                 # its first output position
    taps: tuple[int, ...]       # of the kernel, in the order of the input positions they read
    dilation: int
    begin: int                  # "padding" before: minus the first input position read
    count: Dim                  # output positions
    inside: bool                # no position read lies outside the input


class TransposedConvolution(Tactic):
    """Blocked output; blocked or plain input."""

    name = "x86.conv_transposed"

    def declines(self, site: Site, target: Target) -> str | None:
        f = form(site)
        if isinstance(f, str):
            return f
        if not f.transposed:
            return "no transposed convolution"
        if not all(isinstance(b, int) for b in f.begins):
            return "symbolic padding"
        if len(_phases(f)) > _PHASES:
            return f"{len(_phases(f))} phases"
        found = declines(site, target)
        return found if isinstance(found, str) else None

    def space(self, site: Site, target: Target) -> Iterator[Params]:
        grid = max((g for g, _, _ in _phases(_form(site))), key=lambda g: g.f.taps)
        yield from points(site, grid, target)

    def pack(self, site: Site, params: Params, target: Target,
             constants: Mapping[int, np.ndarray]) -> Mapping[int, np.ndarray]:
        f, lanes = _form(site), isa_of(target).lanes
        packed = pack_channels(site, f, constants)
        weight = constants[f.weight_index].reshape(f.groups, f.depth, f.width, *f.kernel).swapaxes(1, 2)
        parts = []
        for grid, _, (depth, height, width) in _phases(f):
            part = weight[:, :, :, depth][:, :, :, :, height][..., width]
            parts.append(pack_weight(grid, part, params["vectors"], lanes))
        packed[f.weight_index] = np.concatenate(parts)
        return packed

    def emit(self, site: Site, params: Params, target: Target) -> Kernel:
        f, isa = _form(site), isa_of(target)
        code, start, names = Code(isa, site.symbols), 0, []
        scratch: Dim = 64
        for number, (grid, offsets, _) in enumerate(_phases(f)):
            emitter = Emitter(code, site, grid, params, Phase(f.strides, offsets, start))
            emitter.emit(f"conv_transposed{number}")
            names.append(f"conv_transposed{number}")
            start += f.groups * grid.steps * vectors_of(grid.f, isa.lanes) * isa.lanes
            scratch = scratch + emitter.scratch
        if not names:
            raise CandidateError("an output without pixels")
        return Kernel(self.name, code.module(), tuple(names), 0, scratch)


def _form(site: Site) -> Form:
    found = form(site)
    if isinstance(found, str):
        raise ValueError(found)
    return found


def _axis(f: Form, axis: int) -> list[_Axis]:
    """The phases along an axis that have any output."""
    s, d, k = f.strides[axis], f.dilations[axis], f.kernel[axis]
    begin, size, out = f.begins[axis], f.size[axis], f.out_size[axis]
    if not isinstance(begin, int):
        raise ValueError("symbolic padding")
    found = []
    for offset in range(s):
        count = (out - offset + s - 1) // s
        if isinstance(count, int) and count < 1:
            continue
        # output offset + s*q reads input (offset + begin - tap*d) / s + q
        reached = ((offset + begin - tap * d, tap) for tap in range(k))
        places = sorted((at // s, tap) for at, tap in reached if at % s == 0)
        first = places[0][0] if places else 0
        dilation = places[1][0] - first if len(places) > 1 else 1
        inside = isinstance(count, int) and isinstance(size, int) and first >= 0 and (
            not places or places[-1][0] + count - 1 < size)
        found.append(_Axis(offset, tuple(tap for _, tap in places), dilation, -first, count, inside))
    return found


def _phases(f: Form) -> list[tuple[Grid, Ints3, tuple[list[int], list[int], list[int]]]]:
    """For each phase: its grid, the offsets of its pixels, and its taps along each axis."""
    found = []
    for d, h, w in product(_axis(f, 0), _axis(f, 1), _axis(f, 2)):
        sub = replace(f, out_size=(d.count, h.count, w.count), kernel=(len(d.taps), len(h.taps), len(w.taps)),
                      strides=(1, 1, 1), dilations=(d.dilation, h.dilation, w.dilation),
                      begins=(d.begin, h.begin, w.begin), ends=(0, 0, 0))
        padded = sub.taps > 0 and not (d.inside and h.inside and w.inside)
        found.append((Grid(sub, max(1, f.x.block), padded, False), (d.offset, h.offset, w.offset),
                      (list(d.taps), list(h.taps), list(w.taps))))
    return found
