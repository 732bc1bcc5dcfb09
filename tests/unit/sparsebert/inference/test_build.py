"""Where the kernel's library comes from: shipped, cached or compiled, and what is refused."""

import os
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from sparsebert.inference import build, library
from sparsebert.inference.build import cached_library, open_cache
from sparsebert.inference.errors import BadInput, KernelUnavailable
from sparsebert.inference.levels import supported_levels

LEVEL = supported_levels()[-1]


@pytest.fixture
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv(build.CACHE_VARIABLE, str(tmp_path / "cache"))
    return tmp_path / "cache"


def test_the_cache_is_made_for_us_alone(own_cache: Path) -> None:
    assert open_cache() == own_cache
    assert stat.S_IMODE(own_cache.stat().st_mode) == 0o700


def test_the_cache_lies_in_the_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(build.CACHE_VARIABLE, raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert open_cache() == tmp_path / "xdg" / "sparsebert"
    monkeypatch.setenv("XDG_CACHE_HOME", "relative")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    assert open_cache() == tmp_path / "home" / ".cache" / "sparsebert"


def test_a_cache_that_others_can_write_is_refused(own_cache: Path) -> None:
    own_cache.mkdir()
    own_cache.chmod(0o770)
    with pytest.raises(BadInput, match="written by others"):
        open_cache()


def test_a_link_is_refused(own_cache: Path, tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir(mode=0o700)
    own_cache.symlink_to(tmp_path / "elsewhere")
    with pytest.raises(BadInput, match="is a link"):
        open_cache()


def test_another_users_cache_is_refused(own_cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    own_cache.mkdir(mode=0o700)
    monkeypatch.setattr(os, "geteuid", lambda: own_cache.stat().st_uid + 1)
    with pytest.raises(BadInput, match="belongs to another user"):
        open_cache()


def test_a_cache_that_cannot_be_made_is_refused(
    own_cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv(build.CACHE_VARIABLE, str(tmp_path / "file" / "cache"))
    with pytest.raises(BadInput, match=r"cannot be made.*SPARSEBERT_CACHE"):
        open_cache()


def test_a_library_is_compiled_once(own_cache: Path) -> None:
    file = cached_library(LEVEL)
    before = file.stat()
    assert cached_library(LEVEL) == file and file.stat() == before
    assert stat.S_IMODE(before.st_mode) == 0o700
    assert [f.name for f in own_cache.iterdir()] == [file.name]  # nothing temporary is left


def test_the_name_holds_what_it_was_made_from(
    own_cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(build, "compile_library", lambda level, file: file.write_bytes(b""))
    first = cached_library(LEVEL)
    others = []
    for level in supported_levels()[:-1]:
        others.append(cached_library(level))
    monkeypatch.setattr(build, "FLAGS", (*build.FLAGS, "-g"))
    others.append(cached_library(LEVEL))
    monkeypatch.setattr(build, "compiler_version", lambda compiler: "another")
    others.append(cached_library(LEVEL))
    monkeypatch.setattr(build, "source_digest", lambda: "another")
    others.append(cached_library(LEVEL))
    assert len({first, *others}) == len(others) + 1


def test_a_damaged_library_is_built_again_once(own_cache: Path) -> None:
    file = cached_library(LEVEL)
    file.write_bytes(b"\x7fELF, and then nothing")
    assert library._load(LEVEL).level == LEVEL
    assert file.stat().st_size > 10_000


def test_a_library_that_computes_wrongly_is_refused(
    own_cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The self-test runs it: a softmax with a wrong factor loads, and is not believed."""
    import shutil

    shutil.copytree(build.SOURCE_FOLDER, tmp_path / "kernel")
    source = tmp_path / "kernel" / "attention.h"
    text = source.read_text()
    assert "LOG2_E = 1.44269504f" in text
    source.write_text(text.replace("LOG2_E = 1.44269504f", "LOG2_E = 1.5f"))
    monkeypatch.setattr(build, "SOURCE_FOLDER", tmp_path / "kernel")
    with pytest.raises(KernelUnavailable, match=r"fails its self-test \(an error of"):
        library._load(LEVEL)


def test_a_compiler_that_does_not_know_a_level_leaves_the_next(
    own_cache: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """As GCC 9 does not know AVX-VNNI."""
    monkeypatch.setattr(library, "_loaded", {})
    real = build.compile_library

    def compile_library(level: str, output: Path) -> None:
        if level == LEVEL:
            raise KernelUnavailable("the compiler c++ failed (unrecognized option)")
        real(level, output)

    monkeypatch.setattr(build, "compile_library", compile_library)
    assert library.load_kernel().level == supported_levels()[-2]
    assert f"serves instead of {LEVEL}" in caplog.text and "unrecognized option" in caplog.text
    monkeypatch.setenv("SPARSEBERT_KERNEL", LEVEL)
    with pytest.raises(KernelUnavailable, match="unrecognized option"):
        library.load_kernel()


def test_a_compiler_that_fails_tells_its_last_line(
    own_cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    script = tmp_path / "bad-cc"
    script.write_text(
        '#!/bin/sh\n[ "$1" = --version ] && exit 0\n'
        'echo first >&2\necho "the last words" >&2\nexit 1\n'
    )
    script.chmod(0o755)
    monkeypatch.setenv("CXX", str(script))
    with pytest.raises(KernelUnavailable, match=r"failed \(the last words\)"):
        cached_library(LEVEL)
    assert list(own_cache.iterdir()) == []


def test_no_compiler(own_cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CXX", raising=False)
    monkeypatch.setenv("PATH", "")
    with pytest.raises(KernelUnavailable, match="apt-get install"):
        cached_library(LEVEL)
    monkeypatch.setenv("CXX", "no-such-compiler")
    with pytest.raises(KernelUnavailable, match="CXX is 'no-such-compiler'"):
        cached_library(LEVEL)


def test_prebuilt_libraries_need_no_compiler(tmp_path: Path) -> None:
    """As in an image without one: no compiler in PATH, no cache that could be written."""
    command = [sys.executable, "-m", "sparsebert.inference.build", "--output", tmp_path / "built"]
    done = subprocess.run([*map(str, command), "--level", LEVEL], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    environment = {
        "PATH": "",
        "SPARSEBERT_KERNEL": LEVEL,
        "SPARSEBERT_KERNEL_DIR": str(tmp_path / "built"),
        "SPARSEBERT_CACHE": "/proc/none",
        "PYTHONPATH": str(Path(build.__file__).parents[2]),
    }
    program = "from sparsebert.inference.library import load_kernel; print(load_kernel().level)"
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, env=environment
    )
    assert done.stdout.strip() == LEVEL, done.stderr


def test_a_prebuilt_folder_without_the_library_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(build.PREBUILT_VARIABLE, str(tmp_path))
    with pytest.raises(KernelUnavailable, match="SPARSEBERT_KERNEL_DIR"):
        build.find_prebuilt(LEVEL)
