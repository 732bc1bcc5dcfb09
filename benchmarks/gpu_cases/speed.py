"""Tokens a second of BERT-base, where a step's time goes, and Hugging Face's Trainer beside it."""

import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from typing import Any

TOKENS_A_ROW = 512
WARM_UP = 5  # steps before the clock counts


def train(
    *, device: str, smoke: bool, rows: int, dropout: float = 0.1, sparsity: float = 0.0
) -> Iterator[dict[str, Any]]:
    """Steps of pretraining with batches that are on the device already, one micro-batch a step."""
    from benchmarks.bert_step import synchronizer

    step, tokens = build_step(device, smoke, rows=rows, dropout=dropout, sparsity=sparsity)
    synchronize = synchronizer(device)
    seconds, losses = [], []
    for _ in range(WARM_UP + (3 if smoke else 15)):
        synchronize()
        started = time.perf_counter()
        losses.append(step())
        synchronize()
        seconds.append(time.perf_counter() - started)
    median = statistics.median(seconds[WARM_UP:])
    yield {
        "tokens/s": tokens / median,
        "ms": 1e3 * median,
        "slowest ms": 1e3 * max(seconds[WARM_UP:]),
        **share_of_peak(device, tokens / median),
        **peak_memory(device),
        "first loss": float(losses[0]),
        "last loss": float(losses[-1]),
    }


def build_step(
    device: str, smoke: bool, *, rows: int, dropout: float = 0.1, sparsity: float = 0.0
) -> tuple[Callable[[], Any], int]:
    """A function that makes one update and returns its loss, and the tokens that it takes."""
    from itertools import cycle

    from benchmarks import bert_step
    from sparsity.schedule import SparsityConfig

    rows, row_tokens = (2, 32) if smoke else (rows, TOKENS_A_ROW)
    vocab_size = bert_step.TINY_VOCAB_SIZE if smoke else bert_step.VOCAB_SIZE
    engine = bert_step.build_bert_engine(
        device,
        rows=rows,
        sizes=bert_step.TINY if smoke else bert_step.BASE,
        vocab_size=vocab_size,
        dropout=dropout,
    )
    controller = None
    if sparsity:
        config = SparsityConfig(schedule="one_shot", final_sparsity=sparsity)
        controller = bert_step.attach_controller(engine, config)
        controller.update(0)
    batches = cycle(
        bert_step.build_batch(
            device, rows=rows, row_tokens=row_tokens, vocab_size=vocab_size, seed=seed
        )
        for seed in range(4)
    )

    def step() -> Any:
        return bert_step.train_step(engine, next(batches), sparsity=controller)

    return step, rows * row_tokens


def share_of_peak(device: str, tokens_per_second: float) -> dict[str, Any]:
    """The share of the card's bf16 peak that BERT-base's arithmetic at 512 tokens is."""
    import torch

    from benchmarks.bert_step import BASE, VOCAB, VOCAB_SIZE
    from bert.config import ModelConfig
    from bert.model import flops_per_token
    from training.metrics import _peak_flops

    peak = _peak_flops(torch.device(device))
    if peak is None:
        return {}
    flops = flops_per_token(
        ModelConfig(**BASE, vocab=VOCAB),
        vocab_size=VOCAB_SIZE,
        max_seq_len=TOKENS_A_ROW,
        mlm_probability=0.15,
    )
    return {"share of peak": tokens_per_second * flops / peak}


def peak_memory(device: str) -> dict[str, Any]:
    import torch

    if device != "cuda":
        return {}
    return {"peak GiB": torch.cuda.max_memory_allocated() / 2**30}


def trainer(*, device: str, smoke: bool, how: str) -> Iterator[dict[str, Any]]:
    """Hugging Face's Trainer with its own BERT-base: at its defaults, tuned, and compiled as well.

    Its rows are masked before, as ours are, and wait in memory: the collator only stacks them.
    """
    import torch
    from transformers import BertConfig, BertForMaskedLM, Trainer, TrainingArguments

    from benchmarks import bert_step
    from benchmarks.gpu_cases.trainer_parts import MaskedRows, StepClock

    tuned: dict[str, Any] = {} if smoke else {"dataloader_num_workers": 8}
    tuned |= {"bf16": True, "per_device_train_batch_size": 64, "dataloader_pin_memory": True}
    compiled = {"torch_compile": True, "torch_compile_backend": "eager" if smoke else "inductor"}
    options = {"defaults": {}, "tuned": tuned, "compiled": tuned | compiled}[how]
    if smoke:
        options |= {"per_device_train_batch_size": 2, "use_cpu": True}
    steps, first, row_tokens = (6, 3, 32) if smoke else (30, 10, TOKENS_A_ROW)
    sizes = bert_step.TINY if smoke else bert_step.BASE
    config = BertConfig(
        vocab_size=bert_step.VOCAB_SIZE,
        hidden_size=sizes["hidden_size"],
        num_hidden_layers=sizes["num_layers"],
        num_attention_heads=sizes["num_heads"],
        intermediate_size=sizes["intermediate_size"],
    )
    clock = StepClock(first, steps, bert_step.synchronizer(device))
    with tempfile.TemporaryDirectory() as folder:
        arguments = TrainingArguments(
            folder,
            max_steps=steps,
            report_to=[],
            save_strategy="no",
            disable_tqdm=True,
            logging_steps=steps,
            **options,
        )
        rows = arguments.per_device_train_batch_size
        torch.manual_seed(0)
        Trainer(
            model=BertForMaskedLM(config),
            args=arguments,
            train_dataset=MaskedRows(rows * steps, row_tokens),
            callbacks=[clock],
        ).train()
    seconds = clock.seconds / (steps - first)
    per_second = rows * row_tokens / seconds
    yield {
        "tokens/s": per_second,
        "ms": 1e3 * seconds,
        "rows": rows,
        **share_of_peak(device, per_second),
        **peak_memory(device),
    }


def profile(*, device: str, smoke: bool, rows: int) -> Iterator[dict[str, Any]]:
    """One step under torch's profiler: launches, waits, how busy the device is, what takes long."""
    from torch.autograd import DeviceType
    from torch.profiler import ProfilerActivity
    from torch.profiler import profile as profiler

    from benchmarks.bert_step import synchronizer

    step, _ = build_step(device, smoke, rows=rows)
    synchronize = synchronizer(device)
    for _ in range(WARM_UP):
        step()
    activities = [ProfilerActivity.CPU]
    if device == "cuda":
        activities.append(ProfilerActivity.CUDA)
    synchronize()
    with profiler(activities=activities) as profiled:
        started = time.perf_counter()
        step()
        synchronize()
        seconds = time.perf_counter() - started
    averages = profiled.key_averages()
    key = "self_device_time_total" if device == "cuda" else "self_cpu_time_total"
    print(averages.table(sort_by=key, row_limit=40))
    calls = {event.key: event.count for event in averages}
    if device == "cuda":  # an operator repeats the time of its kernels
        kernels = [e for e in averages if e.device_type == DeviceType.CUDA]
        averages = [e for e in kernels if not e.is_user_annotation]
    longest = sorted(averages, key=lambda event: -getattr(event, key))[:30]
    yield {
        "ms": 1e3 * seconds,
        "launches": sum(n for name, n in calls.items() if "LaunchKernel" in name),
        "waits": sum(n for name, n in calls.items() if "Synchronize" in name),
        "busy": sum(getattr(event, key) for event in averages) / 1e6 / seconds,
        "longest": [[e.key[:80], e.count, round(getattr(e, key))] for e in longest],
    }
