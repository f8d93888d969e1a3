"""Builds `saddlepoint._cuda` for the device that is emulated on the host.

``python build.py [BUILD]`` leaves it in ``BUILD/saddlepoint`` beside the runtime that it runs on.
What is not C++ is rewritten: launches, and memory that threads share.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

HERE = Path(__file__).parent
ROOT = HERE.parent.parent
BUILD = ROOT / "build" / "emulation"
RULES = 4  # a unit of the compiler

SHARED = re.compile(r"(extern\s+)?__shared__\s+([^;]*?)(\w+)\s*((?:\[[^\]]*\]\s*)*);")


def shared(match: re.Match[str]) -> str:
    dynamic, kind, name, extents = match.groups()
    if dynamic:
        return f"{kind}* const {name} = static_cast<{kind}*>(emulation::dynamic_memory());"
    return f"static {kind}{name}{extents}; emulation::fresh(&{name}, sizeof {name});"


def kernel_before(text: str, end: int) -> int:
    """Where the name of a kernel begins that ends there, its template arguments included."""
    depth, at = 0, end
    while at > 0:
        c = text[at - 1]
        depth += (c == ">") - (c == "<")
        if depth == 0 and c != "<" and not (c.isalnum() or c in "_:"):
            break
        at -= 1
    return at


def after_shape(text: str, begin: int) -> int:
    """Where the `>>>` of a launch stands whose `<<<` ends at `begin`."""
    depth = 0
    for at in range(begin, len(text)):
        if depth == 0 and text.startswith(">>>", at):
            return at
        depth += (text[at] in "([{") - (text[at] in ")]}")
    raise SyntaxError(f"a launch without an end: {text[begin - 60 : begin + 60]}")


def rewritten(text: str) -> str:
    """C++ of CUDA C++."""
    text = SHARED.sub(shared, text).replace("__noinline__", "__attribute__((noinline))")
    at = 0
    while (at := text.find("<<<", at)) >= 0:
        begin, end = kernel_before(text, at), after_shape(text, at + 3)
        kernel, shape = text[begin:at], text[at + 3 : end]
        pointer = re.search(rf"\(\*{re.escape(kernel)}\)", text)
        function = f"reinterpret_cast<const void*>({kernel})" if pointer else "nullptr"
        launch = (
            f'emulation::launcher("{kernel}", {function}, emulation::Shape({shape}), '
            f"[=](const auto&... arguments) {{ {kernel}(arguments...); }})"
        )
        text = text[:begin] + launch + text[end + 3 :]
        at = begin + len(launch)
    return text


def write(file: Path, text: str) -> None:
    """Leaves a file alone that is the same, so that nothing is compiled anew."""
    if not file.exists() or file.read_text() != text:
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)


def rewrite(file: Path, to: Path) -> Path:
    # Lines are counted as in the source, which messages name.
    write(to, f'#line 1 "{file}"\n' + rewritten(file.read_text()))
    return to


def copy_sources(to: Path) -> None:
    source, wanted = ROOT / "csrc", set()
    for file in sorted(source.rglob("*")):
        if file.suffix in (".cpp", ".hpp", ".cu", ".cuh"):
            wanted.add(rewrite(file, to / file.relative_to(source)))
    template = source / "optim" / "update_rules_gpu.cu.in"
    words = re.findall(r" X\((\w+)\)", (source / "optim" / "rules.hpp").read_text())
    for first in range(0, len(words), RULES):
        rules = "\n".join(f"SP_UPDATE({word})" for word in words[first : first + RULES])
        file = to / "optim" / f"update_rules_{first}_gpu.cu"
        wanted.add(file)
        write(file, template.read_text().replace("@rules@", rules))
    for file in to.rglob("*"):
        if file.is_file() and file not in wanted:
            file.unlink()


def main() -> None:
    build = Path(sys.argv[1]).resolve() if len(sys.argv) > 1 else BUILD
    copy_sources(build / "csrc")
    rewrite(HERE / "faults.cu", build / "faults.cu")
    pybind = subprocess.check_output(
        [sys.executable, "-m", "pybind11", "--cmakedir"], text=True
    ).strip()
    cache = ["-DCMAKE_CXX_COMPILER_LAUNCHER=ccache"] if shutil.which("ccache") else []
    subprocess.check_call([
        "cmake", "-S", HERE, "-B", build, "-G", "Ninja", f"-DSOURCES={build / 'csrc'}",
        f"-DPython_EXECUTABLE={sys.executable}", f"-Dpybind11_DIR={pybind}", "-DVERSION=0",
        "--log-level=WARNING", *cache,
    ])  # fmt: skip
    jobs = os.environ.get("CMAKE_BUILD_PARALLEL_LEVEL", str(os.cpu_count()))
    subprocess.check_call(["cmake", "--build", build, "-j", jobs])


if __name__ == "__main__":
    main()
