"""What goes into the sdist, and that a build leaves what is compiled up to date."""

from __future__ import annotations

import shutil
import subprocess
import sys
import tarfile
from pathlib import Path

import pybind11
import pytest

pytestmark = pytest.mark.slow

if sys.version_info >= (3, 11):
    import tomllib
else:  # which pytest has there
    import tomli as tomllib

ROOT = Path(__file__).resolve().parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())

# The gate and the measurements of one machine are the repository's; the metadata are the sdist's.
LEFT_OUT = (".ci/", "benchmarks/results/")
ADDED = {"PKG-INFO"}


def output(*command: str, cwd: Path = ROOT) -> str:
    return subprocess.run(command, cwd=cwd, check=True, capture_output=True, text=True).stdout


def sdist(tree: Path, folder: Path) -> Path:
    """The sdist of a tree, as a front end has it built."""
    build = "import sys, scikit_build_core.build as b; b.build_sdist(sys.argv[1])"
    folder.mkdir()
    output(sys.executable, "-c", build, str(folder), cwd=tree)
    (path,) = folder.iterdir()
    return path


def files(path: Path) -> set[str]:
    with tarfile.open(path) as archive:
        return {m.name.partition("/")[2] for m in archive if not m.isdir()}


@pytest.mark.skipif(not (ROOT / ".git").exists(), reason="an sdist has no list of its files")
def test_the_sdist_is_the_repository_less_what_is_stated(tmp_path: Path) -> None:
    path = sdist(ROOT, tmp_path / "out")
    listing = output("git", "ls-files", "-z", "--cached", "--others", "--exclude-standard")
    listed = set(listing.split("\0")) - {""}
    assert files(path) == {f for f in listed if not f.startswith(LEFT_OUT)} | ADDED
    assert path.stat().st_size < 2_000_000


def test_an_sdist_of_a_used_sdist_is_the_same(tmp_path: Path) -> None:
    """What building and testing leave behind does not get in."""
    first = sdist(ROOT, tmp_path / "first")
    with tarfile.open(first) as archive:
        archive.extractall(tmp_path / "tree", filter="data")
    (tree,) = (tmp_path / "tree").iterdir()
    for junk in (
        "build/cp311/a.o",
        "dist/a.whl",
        ".venv/pyvenv.cfg",
        ".pytest_cache/a",
        "python/saddlepoint/_core.cpython-311-x86_64-linux-gnu.so",
        "python/saddlepoint/__pycache__/a.pyc",
        "tests/__pycache__/a.pyc",
        "saddlepoint-report/index.html",
    ):
        (tree / junk).parent.mkdir(parents=True, exist_ok=True)
        (tree / junk).write_text("")
    assert files(sdist(tree, tmp_path / "second")) == files(first)


def test_the_sdist_has_the_licenses_of_all_that_is_shipped(tmp_path: Path) -> None:
    path = sdist(ROOT, tmp_path / "out")
    licenses = {"LICENSE", *(f"LICENSES/{p.name}" for p in (ROOT / "LICENSES").iterdir())}
    with tarfile.open(path) as archive:
        metadata = archive.extractfile(f"{path.name.removesuffix('.tar.gz')}/PKG-INFO")
        assert metadata is not None
        lines = metadata.read().decode().splitlines()
    assert {line.split(": ")[1] for line in lines if line.startswith("License-File: ")} == licenses
    assert licenses <= files(path)


def test_the_tests_have_what_a_build_needs() -> None:
    """``build`` repeats the build requirements, which no extra can refer to."""
    extras = PROJECT["project"]["optional-dependencies"]
    assert extras["build"] == PROJECT["build-system"]["requires"]
    assert "saddlepoint[build,report]" in extras["test"]


def configure(build: Path, *options: str, pybind11_dir: str = "") -> str:
    """The compile commands of all units, of a folder that CMake configures."""
    defined = {
        "Python_EXECUTABLE": sys.executable,
        "pybind11_DIR": pybind11_dir or pybind11.get_cmake_dir(),
        "SKBUILD_PROJECT_VERSION": "0",
        "CMAKE_EXPORT_COMPILE_COMMANDS": "ON",
    }
    words = [f"-D{name}={value}" for name, value in defined.items()]
    output("cmake", "-S", str(ROOT), "-B", str(build), "-G", "Ninja", *words, *options)
    return (build / "compile_commands.json").read_text()


def test_another_isolated_environment_compiles_nothing_again(tmp_path: Path) -> None:
    """The same commands, on headers as old as they were: pybind11 lies elsewhere and is newer."""
    build = tmp_path / "build"
    seen = []
    for name in ("one", "two"):
        overlay = tmp_path / name
        shutil.copytree(Path(pybind11.__file__).parent, overlay, copy_function=shutil.copy)
        commands = configure(build, pybind11_dir=str(overlay / "share/cmake/pybind11"))
        assert str(overlay) not in commands
        headers = sorted((build / "include/pybind11").rglob("*.h"))
        assert headers
        seen.append((commands, [(h, h.stat().st_mtime_ns) for h in headers]))
        (build / "CMakeCache.txt").unlink()  # so does the back end
        shutil.rmtree(build / "CMakeFiles")
    assert seen[0] == seen[1]


def test_a_blas_of_the_system_takes_the_place_of_the_wheels(tmp_path: Path) -> None:
    """A stand-in with the one function that CMake asks for."""
    source, blas = tmp_path / "sgemm.c", tmp_path / "lib/libopenblas.so"
    source.write_text("void sgemm_(void) {}\n")
    blas.parent.mkdir()
    output("cc", "-shared", "-fPIC", "-o", str(blas), str(source))
    for choice in ("system", "wheel"):
        build = tmp_path / choice
        options = f"-DSADDLEPOINT_BLAS={choice}", f"-DCMAKE_PREFIX_PATH={tmp_path}"
        commands = configure(build, *options)
        rules = (build / "build.ninja").read_text()
        installed = (build / "csrc/cmake_install.cmake").read_text()
        assert ("SADDLEPOINT_BLAS_PREFIX=scipy_" in commands) == (choice == "wheel")
        assert (str(blas) in rules) == (choice == "system")
        for shipped in ("libscipy_openblas", "libgomp.so.1"):
            assert (shipped in installed) == (choice == "wheel"), shipped


def test_another_blas_is_refused(tmp_path: Path) -> None:
    with pytest.raises(subprocess.CalledProcessError) as error:
        configure(tmp_path / "build", "-DSADDLEPOINT_BLAS=mkl")
    assert "SADDLEPOINT_BLAS: expected wheel or system, got mkl" in error.value.stderr
