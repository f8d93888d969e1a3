"""Rules a machine can check: who sees whom, what is loaded, what is documented."""

from __future__ import annotations

import ast
import doctest
import importlib
import importlib.util
import inspect
import json
import pkgutil
import platform
import re
import statistics
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import FunctionType, ModuleType
from typing import NamedTuple

import pytest

import saddlepoint
from saddlepoint import _core

ROOT = Path(__file__).resolve().parents[1]
CSRC, PACKAGE = ROOT / "csrc", ROOT / "python" / "saddlepoint"

# csrc: core ← ops ← {optim, norm, nn} ← bindings; nn may use norm.
FOLDERS: dict[str, set[str]] = {
    "core": {"core"},
    "ops": {"core", "ops"},
    "optim": {"core", "ops", "optim"},
    "norm": {"core", "ops", "norm"},
    "nn": {"core", "ops", "norm", "nn"},
    "bindings": {"core", "ops", "optim", "norm", "nn", "bindings"},
}
# The suffix is the backend: _isa sources are the CPU's, compiled once for each instruction set. A
# backend sees what is shared and its own.
BACKENDS = {"shared": {"shared"}, "cpu": {"shared", "cpu"}, "gpu": {"shared", "gpu"}}
BACKENDS["isa"] = {"shared", "cpu", "isa"}
SYSTEM = {"omp.h": "cpu", "immintrin.h": "isa", "cuda_runtime.h": "gpu", "dlfcn.h": "gpu"}


def backend_of(name: str) -> str:
    """The backend of a source, by its name."""
    stem, suffix = name.rsplit("/", 1)[-1].rsplit(".", 1)
    if stem == "gpu" or suffix in ("cu", "cuh"):
        return "gpu"
    marked = stem.rsplit("_", 1)[-1]
    return marked if marked in BACKENDS else "shared"


def violations(sources: dict[str, str]) -> list[str]:
    """What of the sources of csrc, by path, sees what it must not."""
    found = []
    for path, text in sources.items():
        folder, backend = path.split("/")[0], backend_of(path)
        if path.endswith((".cu", ".cuh")) and not re.search(r"_gpu\.cuh?$", path):
            found.append(f"{path}: _gpu is missing")
        for opening, name in re.findall(r'^\s*#\s*include\s*(["<])([^">]+)', text, re.MULTILINE):
            if opening == '"' and name not in sources:
                found.append(f"{path}: {name} is not from csrc/")
            elif opening == '"':
                allowed = name.split("/")[0] in FOLDERS[folder]
                if not allowed or backend_of(name) not in BACKENDS[backend]:
                    found.append(f"{path} sees {name}")
            elif SYSTEM.get(name, "shared") not in BACKENDS[backend]:
                found.append(f"{path} sees {name}")
            elif re.match(r"cu[a-z_]*\.h|cuda|thrust/|cub/", name) and path != "core/gpu.hpp":
                found.append(f"{path} sees {name}, which is behind core/gpu.hpp")
            elif re.match(r"pybind11/|Python\.h|numpy/", name) and folder != "bindings":
                found.append(f"{path} sees {name}")
    return found


SOURCES = {
    str(p.relative_to(CSRC)): p.read_text()
    for p in sorted(CSRC.rglob("*"))
    if p.suffix in (".hpp", ".cpp", ".cu", ".cuh")
}


def test_sources_see_what_is_further_in_and_their_own_backend() -> None:
    assert len(SOURCES) > 100
    assert violations(SOURCES) == []


@pytest.mark.parametrize(
    ("path", "line"),
    [
        ("nn/linear.cpp", '#include "core/gpu.hpp"'),
        ("nn/linear.cpp", '#include "ops/map_gpu.cuh"'),
        ("nn/linear.cpp", "#include <cuda_runtime.h>"),
        ("nn/loss_isa.cpp", '#include "ops/map_gpu.cuh"'),
        ("nn/loss_gpu.cu", '#include "ops/map_isa.hpp"'),
        ("nn/loss_gpu.cu", "#include <cub/cub.cuh>"),
        ("nn/layer.hpp", '#include "core/isa_cpu.hpp"'),
        ("nn/layer.hpp", "#include <omp.h>"),
        ("nn/layer.hpp", '#include "optim/rules.hpp"'),
        ("nn/layer.hpp", "#include <pybind11/pybind11.h>"),
        ("core/stream.hpp", '#include "ops/map.hpp"'),
        ("core/stream_cpu.cpp", '#include "ops/map_isa.hpp"'),
        ("ops/map.hpp", '#include "nowhere.hpp"'),
        ("bindings/bind_nn.cpp", '#include "core/threads_cpu.hpp"'),
        ("optim/new.cu", ""),
    ],
)
def test_a_planted_violation_is_found(path: str, line: str) -> None:
    planted = {**SOURCES, path: SOURCES.get(path, "") + f"\n{line}\n"}
    assert len(violations(planted)) == 1


class Import(NamedTuple):
    """An import statement: the absolute module, its names, and where it stands."""

    module: str
    names: tuple[str, ...]
    top_level: bool
    typing_only: bool


def imports_of(path: Path, more: str = "") -> Iterator[Import]:
    parts = ["saddlepoint", *path.relative_to(PACKAGE).with_suffix("").parts]
    package = parts[:-1]

    def walk(node: ast.AST, top: bool, typing: bool) -> Iterator[Import]:
        for child in ast.iter_child_nodes(node):
            if isinstance(child, ast.Import):
                for alias in child.names:
                    yield Import(alias.name, (), top, typing)
            elif isinstance(child, ast.ImportFrom):
                base = package[: len(package) - child.level + 1] if child.level else []
                module = ".".join([*base, *([child.module] if child.module else [])])
                yield Import(module, tuple(a.name for a in child.names), top, typing)
            elif isinstance(child, ast.If) and ast.unparse(child.test) == "TYPE_CHECKING":
                yield from walk(child, top, True)
            else:
                inner = isinstance(child, (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda))
                yield from walk(child, top and not inner, typing)

    yield from walk(ast.parse(path.read_text() + more), True, False)


def part_of(module: str) -> str:
    """The first name below the package: ``saddlepoint.nn.init`` is of nn."""
    return module.split(".")[1]


def parts_imported(path: Path, more: str = "") -> Iterator[tuple[str, Import]]:
    """What a file takes from the package, by part; ``from . import nn`` is one too."""
    for statement in imports_of(path, more):
        if statement.module == "saddlepoint":
            for name in statement.names:
                yield name, statement
        elif statement.module.startswith("saddlepoint."):
            yield part_of(statement.module), statement


FILES = sorted(PACKAGE.rglob("*.py"))
files = pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(PACKAGE)))


def home(path: Path) -> str:
    """The part of the package that a file belongs to."""
    return path.relative_to(PACKAGE).with_suffix("").parts[0]


# What each part may take from the package; those not listed are free, but for the roof.
ANALYSIS = {"errors", "kinds", "vector", "objective", "progress", "results"}
ALLOWED: dict[str, set[str]] = {
    "errors": set(),
    "store": {"errors"},
    "results": {"store"},
    "_native": {"_core", "_cuda", "errors"},
    "kinds": {"_native", "errors"},
    "vector": {"kinds", "errors"},
    "objective": {"kinds", "errors"},
    "optim": {"_native", "errors", "kinds", "vector", "optim"},
    "norm": {"_native", "errors", "kinds", "vector", "norm"},
    "nn": {"_native", "errors", "kinds", "vector", "objective", "norm", "nn"},
    "curvature": ANALYSIS | {"curvature"},
    "critical": ANALYSIS | {"curvature", "critical"},
    "landscape": ANALYSIS,
}
ROOF = {"cli": {"cli", "__main__"}, "report": {"report", "cli"}, "studies": {"studies"}}


def imports_outwards(path: Path, more: str = "") -> list[str]:
    mine, found = home(path), []
    for part, statement in parts_imported(path, more):
        roof = part in ROOF and not (mine == "__init__" and statement.typing_only)
        if part not in ALLOWED.get(mine, {part}) or (roof and mine not in ROOF[part]):
            found.append(f"{mine} sees {part}")
    return found


@files
def test_python_imports_point_inwards(path: Path) -> None:
    assert imports_outwards(path) == []


@pytest.mark.parametrize(
    ("path", "line"),
    [
        ("objective.py", "from .nn import Layer"),
        ("objective.py", "from . import _native"),
        ("objective.py", "from .nn.objective import NetworkObjective"),
        ("kinds.py", "from .vector import dot"),
        ("curvature/hessian.py", "from ..nn.objective import NetworkObjective"),
        ("critical/escape.py", "import saddlepoint.train"),
        ("nn/evaluator.py", "def f():\n    from ..report import page"),
        ("train.py", "from . import cli"),
    ],
)
def test_a_planted_import_is_found(path: str, line: str) -> None:
    assert len(imports_outwards(PACKAGE / path, f"\n{line}\n")) == 1


@files
def test_only_numpy_is_imported_at_the_top_and_torch_by_its_folder_alone(path: Path) -> None:
    light = set(sys.stdlib_module_names) | {"numpy", "saddlepoint"}
    for statement in imports_of(path):
        root = statement.module.split(".")[0]
        assert root != "torch" or home(path) == "torch"
        if home(path) not in ("cli", "report", "torch"):
            assert root in light or not statement.top_level or statement.typing_only, statement


# What tells the kinds of arrays apart.
MARKS = {
    "new_empty", "new_tensor", "detach", "clone", "is_cpu", "contiguous", "double", "layout",
    "__array_namespace__", "__dlpack__", "__dlpack_device__",
}  # fmt: skip


def questions_of_kind(source: str) -> list[str]:
    """Where a file asks what kind an array is."""
    found = []
    for node in ast.walk(ast.parse(source)):
        if not (isinstance(node, ast.Call) and len(node.args) >= 2):
            continue
        asks, about = ast.unparse(node.func), list(ast.walk(node.args[1]))
        names = {n.value for n in about if isinstance(n, ast.Constant)}
        classes = {n.id for n in about if isinstance(n, ast.Name)}
        classes |= {n.attr for n in about if isinstance(n, ast.Attribute)}
        if (asks in ("hasattr", "getattr") and names & MARKS) or (
            asks in ("isinstance", "issubclass") and "Vector" in classes
        ):
            found.append(ast.unparse(node))
    return found


@files
def test_only_kinds_asks_what_an_array_is(path: Path) -> None:
    asks = questions_of_kind(path.read_text())
    if home(path) == "kinds":
        assert len(asks) >= 5  # the test sees them
    elif home(path) != "torch":
        assert asks == []


@pytest.mark.parametrize(
    "line",
    [
        'if hasattr(x, "new_empty"): pass',
        'y = [a for a in b if hasattr(a, "__dlpack__")]',
        'fast = getattr(x, "is_cpu", False)',
        "if isinstance(x, Vector): pass",
        "if isinstance(x, (np.ndarray, vector.Vector)): pass",
        "def f(x): return not isinstance(x, Vector | Fit)",
    ],
)
def test_a_planted_question_is_found(line: str) -> None:
    source = (PACKAGE / "vector.py").read_text()
    assert len(questions_of_kind(f"{source}\n{line}\n")) == 1


HEAVY = [
    "torch", "scipy", "matplotlib", "plotly", "rich", "typer", "jinja2", "safetensors", "pandas",
]  # fmt: skip
FRESH = f"""
import json, sys, time
import numpy
began = time.perf_counter()
import saddlepoint
seconds = time.perf_counter() - began
bare = sorted(m for m in sys.modules if m.startswith("saddlepoint"))
for name in saddlepoint.__all__:
    getattr(saddlepoint, name)
heavy = [name for name in {HEAVY} if name in sys.modules]
print(json.dumps([seconds, bare, heavy]))
"""


def test_importing_is_light() -> None:
    runs = []
    for _ in range(5):
        out = subprocess.run([sys.executable, "-c", FRESH], capture_output=True, check=True)
        runs.append(json.loads(out.stdout))
    assert statistics.median(seconds for seconds, _, _ in runs) < 0.15  # beyond NumPy's own
    for _, bare, heavy in runs:
        assert bare == ["saddlepoint"]  # the rest comes on first use
        assert heavy == []  # even when every name has been used


def test_the_torch_face_does_not_wake_the_compiler() -> None:
    """PyTorch's compiler takes a second to import."""
    code = "import sys, torch, saddlepoint.torch; print('torch._dynamo' in sys.modules)"
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, check=True, text=True)
    assert out.stdout.split() == ["False"]


def test_public_names_are_what_they_are_called_whatever_was_imported_before() -> None:
    code = (
        "import pkgutil, importlib, saddlepoint as sp\n"
        "for m in pkgutil.iter_modules(sp.__path__):\n"
        "    if m.name == '__main__' or m.name.startswith('lib'): continue\n"
        "    importlib.import_module('saddlepoint.' + m.name)\n"
        "print([n for n in sp._WHERE if type(getattr(sp, n)).__name__ == 'module'])\n"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, check=True, text=True)
    assert out.stdout.strip() == "[]"


def test_type_checkers_see_every_public_name() -> None:
    """A strict one takes ``import x as x`` or a literal ``__all__``; the lazy table it cannot."""
    tree = ast.parse((PACKAGE / "__init__.py").read_text())
    exported = {
        alias.name
        for node in ast.walk(tree)
        if isinstance(node, ast.ImportFrom)
        for alias in node.names
        if alias.asname == alias.name
    }
    for node in tree.body:
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "__all__":
            exported |= {str(c.value) for c in ast.walk(node) if isinstance(c, ast.Constant)}
    assert set(saddlepoint.__all__) <= exported


def names_in(body: list[ast.stmt]) -> set[str]:
    names: set[str] = set()
    for node in body:
        if isinstance(node, (ast.FunctionDef, ast.ClassDef)):
            names.add(node.name)
        elif isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
            names.add(node.target.id)
        elif isinstance(node, ast.Assign):
            names |= {t.id for t in node.targets if isinstance(t, ast.Name)}
    return {name for name in names if not name.startswith("_")}


def public(thing: object) -> set[str]:
    return {name for name in dir(thing) if not name.startswith("_")}


def test_the_stub_names_what_the_extension_has() -> None:
    tree = ast.parse((PACKAGE / "_core.pyi").read_text())
    assert names_in(tree.body) == public(_core)
    classes = {node.name: node for node in tree.body if isinstance(node, ast.ClassDef)}
    for name in public(_core) & classes.keys():
        node = classes[name]
        inherited = [classes[base.id].body for base in node.bases if isinstance(base, ast.Name)]
        stub = names_in([*node.body, *(s for body in inherited for s in body)])
        assert stub == public(getattr(_core, name)), name


def arguments(function: ast.FunctionDef) -> list[str]:
    """Names and defaults as they are written, without the types."""
    for node in ast.walk(function.args):
        if isinstance(node, ast.arg):
            node.annotation = None
    return ast.unparse(function.args).split(", ")


def bound(function: object) -> list[str]:
    """What pybind11 writes of a function in the first line of its documentation."""
    line = str(function.__doc__).strip().splitlines()[0]
    (tree,) = ast.parse(f"def {line}: ...").body
    assert isinstance(tree, ast.FunctionDef)
    return arguments(tree)


def mismatches(stub: ast.Module) -> list[str]:
    """The functions and methods of a stub whose arguments are not those of the extension."""
    found = []

    def compare(owner: object, body: list[ast.stmt], prefix: str = "") -> None:
        for node in body:
            if isinstance(node, ast.ClassDef) and not node.name.startswith("_"):
                bases = (b for b in stub.body if isinstance(b, ast.ClassDef))
                names = {ast.unparse(base) for base in node.bases}
                inherited = [s for b in bases if b.name in names for s in b.body]
                compare(getattr(owner, node.name), [*inherited, *node.body], f"{node.name}.")
            elif isinstance(node, ast.FunctionDef) and not node.decorator_list:
                here, there = arguments(node), bound(getattr(owner, node.name))
                if here != there:
                    found.append(f"{prefix}{node.name}: {here} is {there}")

    compare(_core, stub.body)
    return found


def test_the_stub_has_the_arguments_of_the_extension() -> None:
    text = (PACKAGE / "_core.pyi").read_text()
    assert mismatches(ast.parse(text)) == []
    assert re.search(r"\bAny\b", text) is None
    for right, wrong in (
        ("y: _Array) -> float", "z: _Array) -> float"),
        ("unscale: float = 1.0", "unscale: float = 2.0"),
        ("dy: _Array,", "dz: _Array,"),
        ("    *,\n    out: _Array", "    out: _Array"),
        ("def product(self, v: _Array", "def product(self, direction: Any"),
    ):
        assert right in text, right
        assert len(mismatches(ast.parse(text.replace(right, wrong)))) > 0, wrong


def test_what_is_made_from_the_optimizers_is_up_to_date() -> None:
    spec = importlib.util.spec_from_file_location("tables", ROOT / "docs" / "tables.py")
    assert spec is not None
    assert spec.loader is not None
    tables = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(tables)
    for path, text in tables.made().items():
        assert path.read_text() == text, f"{path}: run python docs/tables.py"


def exported(objects: list[Path]) -> set[str]:
    """The names that compiled objects define for others."""
    told = subprocess.run(
        ["nm", "-C", "--defined-only", "--extern-only", *map(str, objects)],
        capture_output=True, check=True, text=True,
    )  # fmt: skip
    return {line.split(" ", 2)[2] for line in told.stdout.splitlines() if line.count(" ") >= 2}


def loop_objects(level: str) -> list[Path]:
    """What the latest build compiled of the hot loops for one instruction set."""
    found = ROOT.glob(f"build/*/csrc/CMakeFiles/loops_{level}.dir")
    folders = [folder for folder in found if "sanitize" not in str(folder)]
    latest = max(folders, key=lambda folder: folder.stat().st_mtime, default=None)
    return [] if latest is None else sorted(latest.rglob("*.o"))


@pytest.mark.skipif(sys.platform != "linux", reason="nm reads objects of Linux")
@pytest.mark.parametrize("level", ["v3", "v4"])
def test_loops_export_nothing_outside_of_their_namespace(level: str) -> None:
    """The linker keeps one of equal names: a function for a newer processor must have no twin."""
    if not loop_objects("base"):
        pytest.skip("nothing was built in this folder")
    if loop_objects(level) or platform.machine() == "x86_64":
        names = exported(loop_objects(level))
        assert names
        assert [name for name in names if f"::{level}::" not in name] == []
    elsewhere = exported(loop_objects("base"))
    assert any("::base::" not in name for name in elsewhere)  # so one would be seen


def test_extensions_are_small() -> None:
    assert isinstance(_core.__file__, str)
    extensions = list(Path(_core.__file__).parent.glob("_c*.so"))
    assert extensions
    # The CUDA one has batch norm's loops for each stored type, activation and form, for two
    # architectures and as PTX: 11.4 MB, of which 7 are those.
    limits = {"_core": 7e6, "_cuda": 12e6}
    for extension in extensions:
        assert extension.stat().st_size < limits[extension.name.partition(".")[0]], extension


MODULES = [
    m.name
    for m in pkgutil.walk_packages(saddlepoint.__path__, "saddlepoint.")
    if not m.name.endswith(("._core", "._cuda", ".__main__"))
    and not m.name.startswith("saddlepoint.lib")  # the shared libraries beside the extensions
]
modules = pytest.mark.parametrize("name", ["saddlepoint", *MODULES])


@modules
def test_modules_say_what_is_public_and_document_it(name: str) -> None:
    module = importlib.import_module(name)
    assert (module.__doc__ or "").strip()
    assert len(set(module.__all__)) == len(module.__all__) > 0
    for public_name in module.__all__:
        thing = getattr(module, public_name)
        if isinstance(thing, (type, FunctionType, ModuleType)):
            doc = vars(thing).get("__doc__") if isinstance(thing, type) else thing.__doc__
            assert doc, f"{name}.{public_name}"
            # A dataclass without a docstring is given its signature.
            assert not doc.startswith(f"{public_name}("), f"{name}.{public_name}"
            if not isinstance(thing, ModuleType):
                assert inspect.cleandoc(doc).splitlines()[0].endswith((".", ":", "?")), doc


@modules
def test_examples_run(name: str) -> None:
    module = importlib.import_module(name)
    result = doctest.testmod(module)
    assert result.failed == 0
    written = sum(len(t.examples) for t in doctest.DocTestFinder().find(module, name))
    assert result.attempted == written


@pytest.mark.skipif(not (ROOT / ".git").exists(), reason="an sdist has no list of its files")
def test_no_file_names_a_machine() -> None:
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, check=True)
    paths = [ROOT / name for name in listed.stdout.decode().split("\0") if name]
    assert len(paths) > 50
    for path in filter(Path.is_file, paths):
        data = path.read_bytes()
        if b"\0" not in data:
            found = re.search(rb"(?<![\w.])/(work|root|home)/[^\n]{0,40}", data)
            assert found is None, f"{path.relative_to(ROOT)}: {found}"
