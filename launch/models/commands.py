"""The commands about models on disk: `sparsebert inspect`, `export`, `prune` and `bench`."""

import dataclasses
import json
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

AsJson = Annotated[bool, typer.Option("--json", help="Print the figures as one JSON object.")]


def print_json(value: Any) -> None:
    """What --json prints."""
    typer.echo(json.dumps(value, indent=1, default=str))


def inspect(
    path: Annotated[Path, typer.Argument(metavar="RUN_OR_CHECKPOINT_OR_FOLDER")],
    other: Annotated[
        Path | None, typer.Option("--compare", help="Another run or checkpoint: where they differ.")
    ] = None,
    repair: Annotated[
        bool,
        typer.Option(
            "--repair", help="Find a run's newest good checkpoint, move damaged later ones away."
        ),
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Show what a run, a checkpoint or a Hugging Face folder holds, recomputed from its files.

    Step, configuration, world size and ZeRO stage it was written with, sparsity over prunable and
    over all weights and by layer, mask digest, validation losses, sizes; for a run also which
    checkpoints are good. Needs no GPU. Reads manifest.json, the rank files and metrics.jsonl. If
    the masks contradict the manifest or a pruned weight is not zero, it says so and exits with 1.

    Of an exported or any other Hugging Face folder: dimensions, tokenizer, sparsity by layer (of
    keep_mask.safetensors, or else of the zeros), mask digest, sizes and types, weights that are
    stored twice, and tensors that are no parameter of the model. What is wrong with it, such as
    quantised or missing weights, is listed, and it exits with 1.

    \b
    Examples:
      sparsebert inspect runs/demo-general
      sparsebert inspect runs/demo-general/checkpoints/step-00000050 --json
      sparsebert inspect runs/demo-general --compare runs/other
      sparsebert inspect exports/demo-pubmed
    """  # noqa: D301 (\b keeps the lines below it apart)
    if other is not None:
        return _compare(path, other, as_json=as_json)
    if repair:
        return _repair(path, as_json=as_json)
    from launch.models.inspect import describe, render
    from launch.progress import make_console

    report = describe(path)
    if as_json:
        print_json(report)
    else:
        make_console().print(render(report))
    if report["problems"]:
        raise typer.Exit(1)


def _compare(path: Path, other: Path, *, as_json: bool) -> None:
    from launch.models.repair import compare

    report = compare(path, other)
    if as_json:
        print_json(report)
    else:
        typer.echo(" and ".join(report["checkpoints"]))
        for line in report["differences"] or ["equal, bit for bit"]:
            typer.echo(line)
    if not report["equal"]:
        raise typer.Exit(1)


def _repair(path: Path, *, as_json: bool) -> None:
    from launch.models.repair import repair

    report = repair(path)
    if as_json:
        return print_json(report)
    for reason in report["refused"]:
        typer.echo(f"refused: {reason}")
    for moved in report["moved"]:
        typer.echo(f"moved away: {moved}")
    typer.echo(f"the newest good checkpoint is {report['newest']}: the run continues from it")


def export(
    path: Annotated[Path, typer.Argument(metavar="RUN_OR_CHECKPOINT")],
    output: Annotated[Path, typer.Argument(metavar="OUT_DIR", help="A folder to create.")],
    vocab: Annotated[
        Path | None, typer.Option(help="The vocabulary, if model.vocab has moved since training.")
    ] = None,
    form: Annotated[
        Literal["dense", "sparse"],
        typer.Option(
            "--format", help="sparse stores the weights that the masks keep, for load_sparse."
        ),
    ] = "dense",
    values: Annotated[
        Literal["fp32", "int8"],
        typer.Option(help="With --format sparse: int8 rounds the weights, for speed and size."),
    ] = "fp32",
    as_json: AsJson = False,
) -> None:
    """Write a run's newest good checkpoint, or a given one, as a Hugging Face folder.

    OUT_DIR loads with AutoModelForMaskedLM and needs no code of ours. It holds the configuration,
    the tokenizer, fp32 weights, keep_mask.safetensors with the masks, and a model card with the
    sparsity report. Reads the model section that the checkpoint was trained with.
    With --format sparse, RUN_OR_CHECKPOINT may also be a Hugging Face folder, and OUT_DIR opens
    with sparsebert.load_sparse alone: see docs/formats.md, and docs/serving.md for --values int8.

    \b
    Examples:
      sparsebert export runs/demo-pubmed exports/sparse-bio-bert
      sparsebert export runs/demo-pubmed exports/serving --format sparse
      sparsebert export runs/demo-pubmed exports/small --format sparse --values int8
    """  # noqa: D301 (\b keeps the lines below it apart)
    if form == "sparse":
        return _export_sparse(path, output, vocab=vocab, values=values, as_json=as_json)
    if values != "fp32":
        from distributed.errors import BadInput

        raise BadInput("--values int8 is for sparse folders: add --format sparse")
    from launch.models.export import export_checkpoint

    report = export_checkpoint(path, output, vocab=vocab)
    if as_json:
        return print_json(dataclasses.asdict(report))
    verb = "is there already, from" if report.already_done else "written from"
    sparsity = (
        f"{report.over_prunable:.4%} of the prunable weights and {report.over_all:.4%} of all are "
        f"pruned, mask digest {report.digest}"
        if report.over_prunable is not None
        else "dense"
    )
    typer.echo(
        f"{report.output} {verb} {report.checkpoint}: {report.parameters:,} weights, {sparsity}"
    )


def _export_sparse(
    path: Path, output: Path, *, vocab: Path | None, values: str, as_json: bool
) -> None:
    """A run or checkpoint goes through its Hugging Face folder, which is removed again."""
    import tempfile

    from bert.folders.model_files import is_folder
    from distributed.errors import BadInput
    from launch.models.export import export_checkpoint
    from sparsebert.inference import errors
    from sparsebert.inference.convert_folder import convert_folder

    try:
        if is_folder(path):
            density = convert_folder(path, output, values=values)
        else:
            output.parent.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryDirectory(prefix=".export-", dir=output.parent) as temporary:
                export_checkpoint(path, Path(temporary) / "dense", vocab=vocab)
                density = convert_folder(Path(temporary) / "dense", output, values=values)
    except errors.BadInput as error:
        raise BadInput(str(error)) from None
    size = sum(file.stat().st_size for file in output.iterdir())
    if as_json:
        return print_json({"output": output, "density": density, "bytes": size})
    typer.echo(
        f"{output} written from {path}: {density:.4%} of the encoder's weights are stored, "
        f"{size / 1e6:,.1f} MB; open it with sparsebert.load_sparse"
    )


def bench(
    folder: Annotated[Path, typer.Argument(metavar="MODEL_DIR", help="A BERT folder.")],
    engines: Annotated[
        str,
        typer.Option(
            help="With commas, of sparse, sparse-int8, torch, torch-bf16, onnxruntime, "
            "onnxruntime-int8, openvino, openvino-int8."
        ),
    ] = "sparse,torch",
    batch: Annotated[str, typer.Option(help="Sequences a call, with commas.")] = "1,8",
    seq: Annotated[str, typer.Option(help="Tokens a sequence, with commas.")] = "16,128",
    threads: Annotated[int, typer.Option(min=1, help="Of every engine.")] = 1,
    rounds: Annotated[int, typer.Option(min=1, help="To keep for each shape.")] = 15,
    seconds: Annotated[
        float, typer.Option(min=1, help="At most for each shape, however busy the machine is.")
    ] = 120,
    as_json: AsJson = False,
) -> None:
    """Measure how fast a model runs on this machine's CPU: sparse, and by other engines.

    Engines take turns; the table has medians, the ratio to sparse with its spread, the largest
    difference to torch, the processor and versions. Rounds during which other processes took more
    than 0.15 core are left out. Engines besides torch: pip install 'sparsebert[bench]'.

    \b
    Example:
      sparsebert bench exports/serving --engines sparse,torch,onnxruntime --batch 1 --seq 128
    """  # noqa: D301 (\b keeps the lines below it apart)
    from distributed.errors import BadInput
    from sparsebert.inference import bench as benchmark
    from sparsebert.inference import bench_report, errors

    try:
        report = benchmark.run_bench(
            folder,
            engines=engines.split(","),
            batches=benchmark.parse_numbers(batch, "--batch"),
            lengths=benchmark.parse_numbers(seq, "--seq"),
            threads=threads,
            rounds=rounds,
            limit_seconds=seconds,
            tell=lambda line: typer.echo(line, err=True),
        )
    except errors.BadInput as error:
        raise BadInput(str(error)) from None
    if as_json:
        return print_json(bench_report.as_json(report))
    typer.echo(bench_report.render(report))


def prune(
    source: Annotated[Path, typer.Argument(metavar="MODEL_DIR", help="A Hugging Face folder.")],
    output: Annotated[Path, typer.Argument(metavar="OUT_DIR", help="A folder to create.")],
    sparsity: Annotated[
        float, typer.Option(help="Share of the prunable weights that is zero afterwards.")
    ],
    scope: Annotated[
        Literal["global", "per_tensor"], typer.Option(help="What one threshold ranges over.")
    ] = "global",
    pattern: Annotated[
        str,
        typer.Option(
            help="unstructured, N:M such as 2:4, or blocks such as 4x1, of matrices stored as "
            "[outputs, inputs] (nn.Linear's; GPT-2's are not)."
        ),
    ] = "unstructured",
    match: Annotated[
        list[str] | None,
        typer.Option(
            help="Shell pattern of the names of what to prune, repeatable; without it the six "
            "linear weights of every BERT encoder layer."
        ),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Set the smallest weights of a Hugging Face folder to zero, once, without training.

    One exact threshold over all prunable weights, equal magnitudes told apart by their position:
    the result is the same for any number of processes. OUT_DIR holds what MODEL_DIR does, and
    keep_mask.safetensors; a frozen run continues from it (model.init_from). Where MODEL_DIR has
    masks, what they prune stays pruned. A weight that is stored twice, such as a tied embedding, is
    pruned in both places. MODEL_DIR's README.md becomes README.source.md.

    \b
    Example:
      sparsebert prune exports/dense exports/sparse --sparsity 0.9
      torchrun --nproc-per-node 4 -m launch prune exports/dense exports/sparse --sparsity 0.9
    """  # noqa: D301 (\b keeps the lines below it apart)
    from launch.models.pruning import prune_once

    report = prune_once(
        source, output, sparsity=sparsity, scope=scope, pattern=pattern, match=match or []
    )
    if report is None:  # another process of torchrun's says it
        return
    if as_json:
        return print_json(dataclasses.asdict(report))
    typer.echo(
        f"{report.output} written: {report.pruned:,} of {report.prunable:,} prunable weights are "
        f"pruned in {len(report.by_name)} matrices ({report.pruned / report.prunable:.4%}; "
        f"{report.pruned / report.total:.4%} of all weights), threshold {report.threshold:.6g}, "
        f"{report.ties} ties, mask digest {report.digest}"
    )
