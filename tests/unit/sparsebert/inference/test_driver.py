"""The kernel without Python: under sanitizers, fuzzed, and on an emulated ARM processor."""

import os
import shutil
import struct
import subprocess
from pathlib import Path

import pytest
import torch

from sparsebert.inference.build import SOURCE_FOLDER
from sparsebert.inference.encoder_op import prepare_mask
from sparsebert.inference.levels import architecture, levels_of
from tests.unit.sparsebert.inference.conftest import FP32_LEVELS
from tests.unit.sparsebert.inference.models import build, double
from tests.unit.sparsebert.inference.test_encoder import computed, dense, draw, pack_bert
from tests.unit.sparsebert.inference.test_int8 import pack_int8

DRIVER = Path(__file__).parent / "driver.c"
SANITIZERS = "-fsanitize=address,undefined"
ARM_COMPILER, ARM_EMULATOR = "aarch64-linux-gnu-g++", "qemu-aarch64"
SHAPES = [
    # batch, length, hidden, inner, heads, masked, threads
    (1, 16, 48, 100, 4, "", 1),
    (3, 37, 48, 100, 4, "tokens", 2),
    (1, 130, 60, 130, 5, "queries", 1),
    (2, 64, 200, 300, 2, "tokens", 3),
    (9, 5, 7, 13, 7, "", 4),
    (1, 3, 1, 1, 1, "", 2),
]


def compile_driver(folder: Path, flags: list[str], compiler: str = "c++") -> Path:
    c_compiler = {"c++": "cc", ARM_COMPILER: ARM_COMPILER.replace("g++", "gcc")}[compiler]
    built = folder / "driver"
    common = [
        "-O2",
        "-g",
        "-Wall",
        "-Wextra",
        "-Werror",
        "-Wno-psabi",
        "-Wno-maybe-uninitialized",
        *flags,
    ]
    commands = [
        [
            c_compiler,
            "-std=c11",
            "-D_POSIX_C_SOURCE=200809L",
            *common,
            "-c",
            DRIVER,
            "-o",
            folder / "d.o",
        ],
        [
            compiler,
            "-std=c++17",
            *common,
            SOURCE_FOLDER / "encoder.cpp",
            folder / "d.o",
            "-o",
            built,
        ]
        + ["-lpthread", "-lm"],
    ]
    for command in commands:
        done = subprocess.run([str(part) for part in command], capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
    return built


def write_cases(folder: Path, *, int8: bool = False) -> list[Path]:
    """What the kernel gets and should give; int8's outputs are fp32's, which are near."""
    files = []
    for number, (batch, length, hidden, inner, heads, masked, threads) in enumerate(SHAPES):
        bert = build(
            hidden_size=hidden, intermediate_size=inner, num_attention_heads=heads, density=0.2
        )
        x, packed = draw(batch, length, hidden), pack_int8(bert) if int8 else pack_bert(bert)
        mask = None
        if masked == "tokens":
            mask = torch.ones(batch, 1, 1, length, dtype=torch.bool)
            mask[-1, ..., length // 2 :] = False
        elif masked == "queries":
            mask = draw(batch, 1, length, length)
        expected = dense(double(bert), x.double(), mask).float()
        expected[~computed(mask, batch, length)] = 0.0
        added = None if mask is None else prepare_mask(mask, batch, length, heads)
        floats = 0 if added is None else added.untyped_storage().nbytes() // 4
        strides = (0, 0, 0, 0) if added is None else added.stride()
        head = (
            packed.numel(),
            batch,
            length,
            hidden,
            heads,
            added is not None,
            *strides,
            floats,
            threads,
        )
        data = struct.pack("<12q", *head) + packed.numpy().tobytes() + x.numpy().tobytes()
        if added is not None:
            whole = torch.empty(0).set_(added.untyped_storage())
            data += whole.numpy().tobytes()
        file = folder / f"case-{'int8-' if int8 else ''}{number}"
        file.write_bytes(data + expected.numpy().tobytes())
        files.append(file)
    return files


def run(command: list[str], **environment: str) -> str:
    done = subprocess.run(
        command, capture_output=True, text=True, env={**os.environ, **environment}, timeout=500
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.mark.cluster
@pytest.mark.parametrize("level", FP32_LEVELS)
def test_sanitizers_and_fuzzing(tmp_path: Path, level: str) -> None:
    flags = [SANITIZERS, "-fno-sanitize-recover=all", *levels_of(architecture())[level]]
    driver = str(compile_driver(tmp_path, flags))
    cases = [str(file) for file in write_cases(tmp_path)]
    # Scratch is kept for the process's life, and workers never end.
    options = {"ASAN_OPTIONS": "detect_leaks=0", "UBSAN_OPTIONS": "print_stacktrace=1"}
    assert run([driver, *cases], **options).count("largest difference") == len(cases)
    if level.endswith("vnni"):
        cases += [str(file) for file in write_cases(tmp_path, int8=True)]
    found = run([driver, "--fuzz", "1000", *cases], **options)
    assert found.count("refused") == len(cases)


def test_races(tmp_path: Path) -> None:
    driver = str(compile_driver(tmp_path, ["-fsanitize=thread"]))
    run([driver, *(str(file) for file in write_cases(tmp_path))])


@pytest.mark.skipif(
    not (shutil.which(ARM_COMPILER) and shutil.which(ARM_EMULATOR)),
    reason="needs g++-aarch64-linux-gnu and qemu-user",
)
def test_arm(tmp_path: Path) -> None:
    flags = [*levels_of("aarch64")["neon"], "-static"]
    driver = str(compile_driver(tmp_path, flags, ARM_COMPILER))
    cases = [str(file) for file in write_cases(tmp_path)]
    assert run([ARM_EMULATOR, driver, *cases]).count("largest difference") == len(cases)
