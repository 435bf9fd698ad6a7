"""The structure of the code is tested: layers, sizes, imports, handlers, exports, the README's links and commands."""
import ast
import importlib
import re
import subprocess
import sys
import tokenize
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).parents[1]
ROOT = REPOSITORY / "src" / "ingot"
FILES = sorted(ROOT.rglob("*.py"))
ORDER = ["errors", "env", "target", "graph", "ops", "frontend", "passes", "quantize", "kernels", "lower",
         "tune", "plan", "engine", "runtime", "verify", "bench", "report", "compiler", "backend", "serve", "cli",
         "__main__"]
LINES = 650
# Where an import may stand inside a function: an optional, heavy library is loaded only when asked for.
DISPATCH = {"frontend/__init__.py", "kernels/cuda/base.py", "frontend/torch/__init__.py"}


def layer_of(path: Path) -> str:
    return path.relative_to(ROOT).parts[0].removesuffix(".py")


def imported(path: Path) -> list[str]:
    """The layers of Ingot a file imports."""
    found = []
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.level:
            found.append(f"a relative import in line {node.lineno}")
        elif isinstance(node, ast.ImportFrom) and (node.module or "") == "ingot":
            found += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and (node.module or "").startswith("ingot."):
            found.append(node.module.split(".")[1])
        elif isinstance(node, ast.Import):
            found += [alias.name.split(".")[1] for alias in node.names if alias.name.startswith("ingot.")]
    return found


def test_every_folder_has_its_place_in_the_order():
    assert {layer_of(p) for p in FILES} - {"__init__"} <= set(ORDER)


def test_no_layer_imports_a_later_one():
    wrong = [f"{p.relative_to(ROOT)} imports {name}" for p in FILES if layer_of(p) != "__init__"
             for name in imported(p) if name not in ORDER or ORDER.index(name) > ORDER.index(layer_of(p))]
    assert wrong == []


def test_imports_stand_at_the_top():
    inner = [f"{p.relative_to(ROOT)}:{n.lineno}" for p in FILES if str(p.relative_to(ROOT)) not in DISPATCH
             for f in ast.walk(ast.parse(p.read_text())) if isinstance(f, (ast.FunctionDef, ast.Lambda))
             for n in ast.walk(f) if isinstance(n, (ast.Import, ast.ImportFrom))]
    assert inner == []


def test_no_file_is_too_long():
    assert [f"{p.relative_to(ROOT)}: {n} lines" for p in FILES if (n := len(p.read_text().splitlines())) > LINES] == []


def test_no_global_statement_no_broad_handler_no_pickle():
    wrong = []
    for p in FILES:
        for n in ast.walk(ast.parse(p.read_text())):
            broad = isinstance(n, ast.ExceptHandler) and (
                n.type is None or {"Exception", "BaseException"} & {x.id for x in ast.walk(n.type)
                                                                     if isinstance(x, ast.Name)})
            pickled = isinstance(n, (ast.Import, ast.ImportFrom)) and any(
                "pickle" in (name or "") for name in [getattr(n, "module", ""), *(a.name for a in n.names)])
            if isinstance(n, ast.Global) or broad or pickled:
                wrong.append(f"{p.relative_to(ROOT)}:{n.lineno}")
    assert wrong == []


def test_only_env_reads_the_environment():
    readers = [str(p.relative_to(ROOT)) for p in FILES if re.search(r"\bos\.(environ|getenv)\b", p.read_text())]
    assert readers == ["env.py"]


def test_nothing_is_left_to_do_later():
    """No note that says a thing is unfinished; comments only, so that a string may speak of them."""
    notes = []
    for p in FILES:
        with tokenize.open(p) as file:
            notes += [f"{p.relative_to(ROOT)}:{t.start[0]}" for t in tokenize.generate_tokens(file.readline)
                      if t.type == tokenize.COMMENT and re.search(r"\b(TODO|FIXME|XXX|HACK)\b", t.string)]
    assert notes == []


def test_exports_are_sorted_and_exist():
    for p in FILES:
        if p.name != "__init__.py":
            continue
        for node in ast.parse(p.read_text()).body:
            if isinstance(node, ast.Assign) and getattr(node.targets[0], "id", "") == "__all__":
                name = ".".join(("ingot", *p.parent.relative_to(ROOT).parts))
                names = ast.literal_eval(node.value)
                assert all(hasattr(importlib.import_module(name), n) for n in names), name
                assert len(set(names)) == len(names), name


def _import_seconds() -> float:
    code = "import time; s = time.process_time(); import ingot; print(time.process_time() - s)"
    return float(subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout)


def test_importing_ingot_is_quick():
    """Seconds of this process' own work, for the machine may be busy (benchmarks.limits measures the clock's)."""
    assert any(_import_seconds() < 0.3 for _ in range(8))


def test_importing_ingot_brings_no_extra():
    code = "import ingot, sys; print(*sorted({m.split('.')[0] for m in sys.modules}))"
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    assert not {"torch", "onnxruntime", "openvino", "sklearn", "transformers", "rich", "typer"} & set(loaded)


DOCUMENTS = [p for p in (REPOSITORY / "README.md", REPOSITORY / "CONTRIBUTING.md", REPOSITORY / "CHANGELOG.md",
                         *sorted((REPOSITORY / "docs").glob("*.md"))) if p.exists()]


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda p: p.name)
def test_links_lead_somewhere(document):
    targets = re.findall(r"\]\(([^)#\s]+)[^)]*\)", document.read_text())
    local = [t for t in targets if not t.startswith(("http://", "https://", "mailto:"))]
    assert [t for t in local if not (document.parent / t).exists()] == []


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda p: p.name)
def test_files_that_documents_name_exist(document):
    named = re.findall(r"(?<![\w/])((?:src|tests|docs|examples|benchmarks|scripts)/[\w./-]*\w)", document.read_text())
    written = ("benchmarks/results/NAME",)          # what a command is told to write
    assert [n for n in named if not n.startswith(written) and not (REPOSITORY / n).exists()] == []


def test_make_targets_that_documents_name_exist():
    known = set(re.findall(r"^([a-z]+):", (REPOSITORY / "Makefile").read_text(), re.M))
    named = {t for d in DOCUMENTS for t in re.findall(r"\bmake ([a-z]+)\b(?=[`\n ])", d.read_text())
             if f"`make {t}" in d.read_text() or f"\nmake {t}" in d.read_text() or f"    make {t}" in d.read_text()}
    assert {"demo", "test"} <= named <= known
