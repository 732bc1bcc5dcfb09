"""Finds the kernel's library for a level: in the package, in the cache, or by compiling it.

    python -m sparsebert.inference.build --output DIR [--level LEVEL ...]

writes the libraries of this architecture's levels into DIR; SPARSEBERT_KERNEL_DIR=DIR, or the
package's folder `prebuilt`, serves them where there is no compiler.

Code is loaded from the cache, so the cache must be ours alone: a folder of this user, without a
link, that no other user can write into; anything else is refused. It is never a shared temporary
folder. A library's name holds what it was made from, so a stale one is never found; it appears by
one rename.
"""

import argparse
import contextlib
import functools
import hashlib
import os
import shutil
import stat
import subprocess
import sys
import tempfile
from pathlib import Path

from sparsebert.inference.errors import BadInput, KernelUnavailable
from sparsebert.inference.levels import architecture, levels_of, supported_levels

CACHE_VARIABLE = "SPARSEBERT_CACHE"
PREBUILT_VARIABLE = "SPARSEBERT_KERNEL_DIR"
SOURCE_FOLDER = Path(__file__).parent / "kernel"
_PREBUILT_FOLDER = Path(__file__).parent / "prebuilt"
_MAIN_FILE = "encoder.cpp"
# Multiply-adds are contracted, which C++ allows and GCC does by default; nothing else about floats
# is relaxed.
FLAGS = ("-std=c++17", "-O3", "-fPIC", "-shared", "-fvisibility=hidden", "-ffp-contract=fast")
# For other machines: their C++ library may be older.
_PORTABLE_FLAGS = ("-static-libstdc++", "-static-libgcc")
_TIMEOUT_SECONDS = 300


@functools.cache
def source_digest() -> str:
    """Of all the kernel's files."""
    digest = hashlib.sha256()
    for file in sorted(SOURCE_FOLDER.iterdir()):
        if file.suffix in (".cpp", ".h"):
            digest.update(file.name.encode() + b"\0" + file.read_bytes() + b"\0")
    return digest.hexdigest()


def prebuilt_name(level: str) -> str:
    """File name of a library that is shipped: of this source, for this architecture and level."""
    return f"kernel-{architecture()}-{level}-{source_digest()[:16]}.so"


def find_prebuilt(level: str) -> Path | None:
    """A library that came with the package, or that SPARSEBERT_KERNEL_DIR names."""
    chosen = os.environ.get(PREBUILT_VARIABLE)
    if chosen:
        file = Path(chosen) / prebuilt_name(level)
        if not file.is_file():
            raise KernelUnavailable(
                f"{PREBUILT_VARIABLE} is {chosen}, which has no {file.name}: build it there with "
                f"`python -m sparsebert.inference.build --output {chosen}`, or unset it"
            )
        return file
    file = _PREBUILT_FOLDER / prebuilt_name(level)
    return file if file.is_file() else None


# The compiler


def find_compiler() -> str:
    """The C++ compiler: $CXX (a program's name or path), else c++, g++ or clang++.

    Raises:
        KernelUnavailable: there is none.
    """
    wanted = os.environ.get("CXX")
    for name in (wanted,) if wanted else ("c++", "g++", "clang++"):
        found = shutil.which(name)
        if found:
            return found
    raise KernelUnavailable(
        f"CXX is {wanted!r}, which is no program: name a C++17 compiler, or unset it"
        if wanted
        else "no C++ compiler was found: install one (Debian: apt-get install g++), or build the "
        "kernel elsewhere with `python -m sparsebert.inference.build --output DIR` and set "
        f"{PREBUILT_VARIABLE}=DIR"
    )


@functools.cache
def compiler_version(compiler: str) -> str:
    """What `compiler --version` says."""
    done = _run([compiler, "--version"])
    return done.stdout


def _run(command: list[str]) -> subprocess.CompletedProcess[str]:
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, errors="replace", timeout=_TIMEOUT_SECONDS
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise KernelUnavailable(f"the compiler {command[0]} cannot be run: {error}") from None
    if done.returncode != 0:
        lines = [line for line in done.stderr.splitlines() if line.strip()]
        last = lines[-1] if lines else f"exit status {done.returncode}"
        raise KernelUnavailable(
            f"the compiler {command[0]} failed ({last.strip()}): install a C++17 compiler (GCC 9 "
            "or Clang 10 and later) or name one with CXX"
        )
    return done


def compile_library(level: str, output: Path, *, portable: bool = False) -> None:
    """Compile the kernel for a level; `output` appears by one rename.

    With `portable` the C++ library is linked in.
    """
    compiler = find_compiler()
    flags = [*FLAGS, *levels_of(architecture())[level], *(_PORTABLE_FLAGS if portable else ())]
    descriptor, name = tempfile.mkstemp(prefix=f".{output.name}.", dir=output.parent)
    os.close(descriptor)
    try:
        _run([compiler, *flags, str(SOURCE_FOLDER / _MAIN_FILE), "-o", name, "-lpthread"])
        os.chmod(name, 0o700)
        os.replace(name, output)
    except BaseException:
        with contextlib.suppress(OSError):
            os.unlink(name)
        raise


# The cache


def open_cache() -> Path:
    """The cache folder, made if need be and checked.

    Raises:
        BadInput: it cannot be written, or others could put code into it.
    """
    chosen = os.environ.get(CACHE_VARIABLE)
    if chosen:
        folder = Path(chosen)
    else:
        base = os.environ.get("XDG_CACHE_HOME")
        folder = Path(base) if base and os.path.isabs(base) else Path.home() / ".cache"
        folder = folder / "sparsebert"
    hint = f"set {CACHE_VARIABLE} to a folder of your own"
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with contextlib.suppress(FileExistsError):
            folder.mkdir(mode=0o700)
        status = folder.lstat()
    except OSError as error:
        raise BadInput(
            f"the kernel's cache {folder} cannot be made ({error.strerror}): {hint}"
        ) from None
    if stat.S_ISLNK(status.st_mode) or not stat.S_ISDIR(status.st_mode):
        raise BadInput(f"the kernel's cache {folder} is a link or no folder: {hint}")
    if status.st_uid != os.geteuid():
        raise BadInput(f"the kernel's cache {folder} belongs to another user: {hint}")
    if status.st_mode & 0o022:
        raise BadInput(
            f"the kernel's cache {folder} can be written by others: chmod 700 it, or {hint}"
        )
    if not os.access(folder, os.W_OK | os.X_OK):
        raise BadInput(f"the kernel's cache {folder} cannot be written: {hint}")
    return folder


def cached_library(level: str, *, rebuild: bool = False) -> Path:
    """The cached library for a level, compiled first if there is none."""
    compiler = find_compiler()
    flags = [*FLAGS, *levels_of(architecture())[level]]
    key = hashlib.sha256()
    for part in (source_digest(), compiler_version(compiler), " ".join(flags), level):
        key.update(part.encode() + b"\0")
    file = open_cache() / f"kernel-{level}-{key.hexdigest()[:24]}.so"
    if rebuild or not _is_ours(file):
        try:
            compile_library(level, file)
        except OSError as error:
            raise BadInput(
                f"the kernel's cache {file.parent} cannot be written ({error.strerror}): set "
                f"{CACHE_VARIABLE} to a folder of your own"
            ) from None
    return file


def _is_ours(file: Path) -> bool:
    try:
        status = file.lstat()
    except FileNotFoundError:
        return False
    is_plain = stat.S_ISREG(status.st_mode) and not status.st_mode & 0o022
    return is_plain and status.st_uid == os.geteuid()


def main(arguments: list[str] | None = None) -> int:
    """Prebuild the libraries; 2 if that cannot be done."""
    parser = argparse.ArgumentParser(
        prog="python -m sparsebert.inference.build", description=__doc__
    )
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("--output", type=Path, required=True, help="folder to write into")
    parser.add_argument(
        "--level",
        action="append",
        choices=list(levels_of(architecture())),
        help="repeatable; all levels of this architecture without it",
    )
    options = parser.parse_args(arguments)
    try:
        options.output.mkdir(parents=True, exist_ok=True)
        for level in options.level or levels_of(architecture()):
            file = options.output / prebuilt_name(level)
            compile_library(level, file, portable=True)
            os.chmod(file, 0o755)
            runs = "" if level in supported_levels() else " (this processor cannot run it)"
            print(f"{file}{runs}")
    except (BadInput, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
