"""The folder of models: what lies in it, what is loaded, and the threads each instance gets.

    REPO/model.ingot | model.onnx                   a model of one version, "1"
    REPO/model/config.yaml                          optional: how it is served (`ingot.serve.config.ModelConfig`)
    REPO/model/model.ingot | *.onnx                 one version, "1"
    REPO/model/2/model.ingot | *.onnx               version 2; the latest is served unless config.yaml names others
"""
from __future__ import annotations

import asyncio
import logging
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from ingot.errors import InputError, ServeError
from ingot.runtime.host import available_cpus, thread_count
from ingot.serve.config import ModelConfig, read_config
from ingot.serve.model import ServedModel
from ingot.serve.options import ServeOptions

_LOG = logging.getLogger("ingot.serve")
SUFFIXES = (".ingot", ".onnx")


@dataclass(frozen=True)
class Found:
    """A model in the folder."""

    name: str
    versions: Mapping[str, Path]        # of those to serve, the engine or ONNX file; in rising order
    config: ModelConfig


def _file_in(folder: Path) -> Path | None:
    """The engine in a folder, else its ONNX file."""
    for suffix in SUFFIXES:
        if files := sorted(p for p in folder.glob(f"*{suffix}") if p.is_file()):
            return files[0]
    return None


def _model_at(folder: Path) -> Found | None:
    config = read_config(folder / "config.yaml")
    versions = {p.name: file for p in folder.iterdir() if p.is_dir() and p.name.isdigit()
                and (file := _file_in(p)) is not None}
    if not versions and (file := _file_in(folder)) is not None:
        versions = {"1": file}
    if not versions:
        return None
    order = sorted(versions, key=int)
    if missing := [v for v in config.versions if v not in versions]:
        raise InputError(f"'{folder.name}' has no version {missing[0]}", where=str(folder / "config.yaml"),
                         mend=f"versions there are: {', '.join(order)}")
    wanted = [v for v in order if v in config.versions] if config.versions else order[-1:]
    return Found(folder.name, {v: versions[v] for v in wanted}, config)


def scan(folder: Path) -> dict[str, Found]:
    """The models of a folder by name. Raises InputError where it is none, or a configuration is wrong."""
    if folder.is_file() and folder.suffix in SUFFIXES:
        return {folder.stem: Found(folder.stem, {"1": folder}, ModelConfig())}
    if not folder.is_dir():
        raise InputError(f"{folder} is no folder of models", mend="name a folder that holds engines or ONNX files")
    found: dict[str, Found] = {}
    for path in sorted(folder.iterdir()):
        if path.name.startswith("."):
            continue
        if path.is_file() and path.suffix in SUFFIXES:
            found.setdefault(path.stem, Found(path.stem, {"1": path}, ModelConfig()))
        elif path.is_dir() and (model := _model_at(path)) is not None:
            found[model.name] = model
    return found


class Repository:
    """The models of a folder, and those of them that are loaded."""

    def __init__(self, folder: Path, options: ServeOptions) -> None:
        self.folder, self._options = folder, options
        self.found = scan(folder)
        self.models: dict[str, dict[str, ServedModel]] = {}
        self.failures: dict[str, str] = {}          # model -> why it could not be loaded

    @property
    def loaded(self) -> list[ServedModel]:
        """Every version of every loaded model."""
        return [model for versions in self.models.values() for model in versions.values()]

    def get(self, name: str, version: str = "") -> ServedModel:
        """A loaded model; its latest version where none is named. Raises ServeError."""
        versions = self.models.get(name)
        if versions is None:
            known = name in self.found
            raise ServeError(f"the model '{name:.80}' is not loaded" if known else f"there is no model '{name:.80}'",
                             kind="unavailable" if known else "unknown",
                             why=(self.failures[name],) if name in self.failures else (),
                             mend="load it first" if known else f"there are: {', '.join(self.found) or 'none'}")
        if not version:
            return next(reversed(versions.values()))
        if version not in versions:
            raise ServeError(f"the model '{name}' has no version '{version:.20}'", kind="unknown",
                             mend=f"versions served: {', '.join(versions)}")
        return versions[version]

    def _shares(self) -> int:
        """Threads of each instance that says nothing of its own: what the machine grants, divided."""
        total = self._options.threads or thread_count()
        instances = [m.config.instances * len(m.versions) for m in self.found.values()
                     if m.config.load or m.name in self.models]
        return max(1, total // max(1, sum(instances)))

    def _places(self, config: ModelConfig, threads: int) -> tuple[tuple[int, ...], ...]:
        """CPUs of its own for each instance of the only model, where they can be shared out; else none are told."""
        cpus = available_cpus()
        threads = config.threads or threads
        if len(self.found) > 1 or config.instances < 2 or config.instances * threads > len(cpus):
            return ()
        return tuple(cpus[i * threads:(i + 1) * threads] for i in range(config.instances))

    async def load(self, name: str) -> None:
        """Load a model, or load it anew: the old versions answer until the new ones do. Raises ServeError."""
        fresh = scan(self.folder)
        if name not in fresh:
            raise ServeError(f"there is no model '{name:.80}'", kind="unknown",
                             mend=f"there are: {', '.join(fresh) or 'none'}")
        found = self.found[name] = fresh[name]
        threads = self._shares()
        made = {version: ServedModel(name, version, path, found.config, threads=threads, p99=self._options.p99,
                                     max_elements=self._options.max_elements,
                                     cpus=self._places(found.config, threads))
                for version, path in found.versions.items()}
        for model in made.values():
            model.start()
        try:
            await asyncio.gather(*(model.loaded() for model in made.values()))
        except ServeError as error:
            for model in made.values():
                model.stop()
            self.failures[name] = str(error)
            raise
        self.failures.pop(name, None)
        old, self.models[name] = self.models.get(name, {}), made
        for model in old.values():
            await model.drain(self._options.drain)

    async def load_all(self) -> None:
        """Load every model that is to be loaded at the start; those that cannot be are left out, and said."""
        names = [name for name, found in self.found.items() if found.config.load]
        results = await asyncio.gather(*(self.load(name) for name in names), return_exceptions=True)
        for name, result in zip(names, results, strict=True):
            if isinstance(result, ServeError):
                _LOG.error("model not loaded", extra={"model": name, "why": str(result)})
            elif isinstance(result, BaseException):
                raise result

    async def unload(self, name: str) -> None:
        """Take no more requests for a model, finish those under way, end its workers. Raises ServeError."""
        if name not in self.models:
            self.get(name)
        for model in self.models.pop(name).values():
            await model.drain(self._options.drain)

    def index(self, only_ready: bool = False) -> list[dict[str, str]]:
        """Name, version, state and reason of every model."""
        rows = []
        for name in sorted({*self.found, *self.models}):
            loaded = self.models.get(name, {})
            known = self.found[name].versions if name in self.found else {}
            for version in dict.fromkeys((*known, *loaded)):
                model = loaded.get(version)
                state = "READY" if model and model.ready else "UNAVAILABLE"
                reason = (model.reason if model else self.failures.get(name, "unloaded")) if state != "READY" else ""
                if state == "READY" or not only_ready:
                    rows.append({"name": name, "version": version, "state": state, "reason": reason})
        return rows
