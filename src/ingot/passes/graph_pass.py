"""A pass is a function Graph -> Graph plus the passes it must follow. A pipeline checks that, at import."""
from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from ingot.errors import InternalError
from ingot.graph import Graph, Node, show
from ingot.passes.rewrite import Rule
from ingot.target import Target

Run = Callable[[Graph, Target], Graph]
Watch = Callable[[str, Graph, Graph], None]     # (name of the pass, graph before, graph after)
WhyNot = Callable[[Graph, Node], str | None]


@dataclass(frozen=True)
class Pass:
    """One step of the pipeline. It gives back the very same graph when it changes nothing.

    `why_not` tells why a node is left alone, None where the pass would act on it; passes made of `rules` leave
    the answer to each rule.
    """

    run: Run
    after: tuple[Pass, ...] = ()
    rules: tuple[Rule, ...] = ()
    why_not: WhyNot | None = None
    effect: str = ""

    @property
    def name(self) -> str:
        return self.run.__name__

    def __call__(self, graph: Graph, target: Target | None = None) -> Graph:
        return self.run(graph, target or Target("reference"))


def graph_pass(*, after: tuple[Pass, ...] = (), rules: tuple[Rule, ...] = (),
               why_not: WhyNot | None = None) -> Callable[[Run], Pass]:
    """Make a pass of a function (graph, target) -> graph. Its docstring states its effect."""
    return lambda run: Pass(run, after, rules, why_not, (run.__doc__ or "").strip())


def pipeline(*passes: Pass) -> tuple[Pass, ...]:
    """The passes in order; a pass may come more than once. Raises InternalError if one precedes what it must follow."""
    for i, step in enumerate(passes):
        if late := [p for p in step.after if p.name not in {q.name for q in passes[:i]}]:
            raise InternalError(f"pass {step.name} must come after {late[0].name}",
                                mend="reorder PIPELINE in ingot/passes")
    return passes


def unwatched(name: str, before: Graph, after: Graph) -> None:
    """A watcher that looks away."""


def both(*watches: Watch) -> Watch:
    """A watcher that calls each of the given ones in turn."""
    def watch(name: str, before: Graph, after: Graph) -> None:
        for each in watches:
            each(name, before, after)
    return watch


def apply(passes: tuple[Pass, ...], graph: Graph, target: Target, watch: Watch = unwatched) -> Graph:
    """Run the passes in order; `watch` sees the graph before and after each."""
    for step in passes:
        before, graph = graph, step(graph, target)
        watch(step.name, before, graph)
    return graph


def dump_to(folder: Path) -> Watch:
    """A watcher that writes each pass's result, numbered; an unchanged graph leaves no file."""
    count = iter(range(10_000))

    def watch(name: str, before: Graph, after: Graph) -> None:
        n = next(count)
        if n == 0:
            folder.mkdir(parents=True, exist_ok=True)
            (folder / "00-loaded.txt").write_text(show(before) + "\n")
        if after is not before:
            (folder / f"{n + 1:02}-{name}.txt").write_text(show(after) + "\n")
    return watch
