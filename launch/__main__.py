"""The command line: `sparsebert COMMAND`, also `python -m launch COMMAND`.

Exit codes: 0 done, 2 bad input (one sentence on stderr says what to change), 130 interrupted, 1
anything else, with its traceback. What a command needs is imported inside it: torch alone takes
seconds, and --help must not.
"""

import dataclasses
import os
import sys
import threading
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from launch import RAY_THREAD
from launch.models.commands import AsJson, bench, export, inspect, print_json, prune
from launch.packages import find_foreign_package
from launch.submitting import submit
from launch.tensorboard import tensorboard

if TYPE_CHECKING:
    from bert.corpora.progress import PrepareProgress

app = typer.Typer(
    name="sparsebert",
    help="Pretrain BERT on Ray and DeepSpeed ZeRO while exact global magnitude pruning makes it "
    "sparse.",
    epilog="First run: make demo. One command's help: sparsebert pretrain --help.",
    no_args_is_help=True,
    add_completion=False,
    # Plain text: in Rich's markup [field=value ...] would vanish from the help.
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
)


def _print_versions(wanted: bool) -> None:
    if not wanted:
        return
    for name in ("sparsebert", "torch", "deepspeed", "ray", "transformers"):
        try:
            typer.echo(f"{name} {metadata.version(name)}")
        except metadata.PackageNotFoundError:  # sparsebert in a job that brought its own files
            typer.echo(f"{name} is not installed")
    raise typer.Exit


@app.callback()
def _commands(
    version: Annotated[
        bool,
        typer.Option(
            "--version",
            is_eager=True,
            callback=_print_versions,
            help="Print the versions of sparsebert and of what it stands on, and exit.",
        ),
    ] = False,
) -> None:
    pass


@app.command()
def prepare(
    source: Annotated[
        Literal["wikipedia", "books", "pubmed", "text"],
        typer.Option(help="What the inputs are; it decides which fields are read."),
    ],
    inputs: Annotated[
        list[str],
        typer.Option(
            "--input",
            metavar="PATH...",
            help="Files, folders or Hugging Face datasets: JSON lines, plain text, Parquet, PubMed "
            "XML, gzip or not, told apart by content. Anything else is refused; what lies beside "
            "the data in a folder (checksums, READMEs) is passed over and told.",
        ),
    ],
    output: Annotated[
        Path, typer.Option(help="Folder to write; OUTPUT-validation appears beside it.")
    ],
    vocab: Annotated[
        Path,
        typer.Option(
            help="WordPiece vocabulary, one token a line, or a Hugging Face folder, whose "
            "tokenizer's settings then count too."
        ),
    ],
    more_inputs: Annotated[list[str] | None, typer.Argument(hidden=True)] = None,
    validation_fraction: Annotated[
        float, typer.Option(help="Share of the documents held out for validation, within (0, 1).")
    ] = 0.05,
    min_characters: Annotated[
        int, typer.Option(min=0, help="Shorter documents are dropped.")
    ] = 100,
    as_json: AsJson = False,
) -> None:
    """Turn text into token shards for training and validation.

    Reads documents, cleans and de-duplicates them, splits off a validation set, and writes token
    ids that training maps into memory. Run again, it says what is already there. `pretrain` reads
    the result through data.shards and evaluation.sets.

    \b
    Example:
      sparsebert prepare --source pubmed --input pubmed/*.xml.gz \\
        --output data/pubmed --vocab samples/vocab.txt
    """  # noqa: D301 (\b keeps the lines below it apart)
    from bert.corpora.prepare import prepare as prepare_corpus
    from bert.corpora.report import describe_report
    from launch.progress import StatusLine, format_seconds, make_console

    with StatusLine("prepare", total=None, console=make_console(stderr=as_json)) as line:

        def show(progress: "PrepareProgress") -> None:
            figures = f"{progress.documents:,} documents  {progress.tokens:,} tokens"
            if progress.seconds > 0:
                figures += f"  {progress.tokens / progress.seconds:,.0f} tok/s"
            share = 0.0
            if progress.input_bytes and progress.read_input_bytes:
                share = progress.read_input_bytes / progress.input_bytes
                left = progress.seconds / share * (1 - share)
                figures += f"  {share:.0%} of input  left {format_seconds(left)}"
            line.show(figures, done=share, total=1.0 if progress.input_bytes else None)

        report = prepare_corpus(
            source,
            [*inputs, *(more_inputs or [])],
            output,
            vocab,
            validation_fraction=validation_fraction,
            min_characters=min_characters,
            on_progress=show,
        )
    if as_json:
        return print_json(dataclasses.asdict(report))
    typer.echo(describe_report(report))


def _print_schema(wanted: bool) -> None:
    if wanted:
        from bert.config import PretrainConfig

        print_json(PretrainConfig.model_json_schema())
        raise typer.Exit


@app.command()
def pretrain(
    config: Annotated[Path, typer.Argument(metavar="CONFIG", help="A YAML file.")],
    overrides: Annotated[
        list[str] | None,
        typer.Argument(metavar="field=value ...", help="Fields to set over the file's."),
    ] = None,
    local: Annotated[
        bool,
        typer.Option(
            "--local", help="Train in this process, without Ray; torchrun needs no such option."
        ),
    ] = False,
    schema: Annotated[
        bool,
        typer.Option(
            "--schema",
            is_eager=True,
            callback=_print_schema,
            help="Print the configuration's JSON schema, for editors, and exit.",
        ),
    ] = False,
) -> None:
    """Pretrain a model, pruning it on the way if the configuration has a sparsity section.

    Reads all sections of CONFIG (name, seed, model, data, train, evaluation, zero, sparsity,
    checkpoint, launch); field=value sets one of them, with its dotted name and a YAML value. Writes
    the run folder launch.runs_dir/name. The same command continues a run that was stopped, from its
    newest checkpoint.

    \b
    Examples:
      sparsebert pretrain configs/demo_general.yaml
      sparsebert pretrain configs/demo_general.yaml zero.stage=3 launch.num_workers=3
      torchrun --nproc-per-node 2 -m launch pretrain configs/demo_general.yaml
    """  # noqa: D301 (\b keeps the lines below it apart)
    from launch.config_loading import load_config

    resolved = load_config(config, overrides or []).resolved()
    from distributed.imports import without_collector

    with without_collector():
        from bert.pretrain import Pretraining
        from launch.run import run

    raise typer.Exit(run(Pretraining(resolved), local=local))


@app.command()
def finetune(
    config: Annotated[Path, typer.Argument(metavar="CONFIG", help="A task's YAML file.")],
    overrides: Annotated[
        list[str] | None,
        typer.Argument(metavar="field=value ...", help="Fields to set over the file's."),
    ] = None,
    local: Annotated[
        bool, typer.Option("--local", help="Train in this process, without Ray.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Fine-tune a model on a task, its masks frozen, once for each seed, and score it.

    model.init_from is a run, a checkpoint or any Hugging Face BERT folder, sparse or dense. The dev
    split chooses the checkpoint, the test split is scored once. Writes
    launch.runs_dir/name/seed-SEED with results.json; the same command continues.

    \b
    Example:
      sparsebert finetune configs/tasks/sst2.yaml model.init_from=exports/demo-pubmed seeds=[1,2,3]
    """  # noqa: D301 (\b keeps the lines below it apart)
    from bert.tasks.finetune_config import FinetuneConfig
    from launch.config_loading import load_config

    resolved = load_config(config, overrides or [], root=FinetuneConfig).resolved()
    from launch.finetuning import finetune as run_finetuning

    raise typer.Exit(run_finetuning(resolved, local=local, tell=print_json if as_json else None))


@app.command()
def compare(
    config: Annotated[Path, typer.Argument(metavar="CONFIG", help="A study's YAML file.")],
    overrides: Annotated[
        list[str] | None,
        typer.Argument(metavar="field=value ...", help="Fields to set over the file's."),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Compare models on tasks: fine-tune what is missing, and write one table and one plot.

    A small grid of learning rates is decided by dev; test is scored once, at the chosen rate and,
    for a model with a twin, at the twin's. Writes runs_dir/name with table.md, table.csv,
    table.json and scores.png; run again, it goes on.

    \b
    Example:
      sparsebert compare configs/studies/miniature.yaml
    """  # noqa: D301 (\b keeps the lines below it apart)
    from launch.config_loading import load_config
    from launch.study.plan import StudyConfig

    study = load_config(config, overrides or [], root=StudyConfig).resolved()
    from launch.study.run import StudyStopped
    from launch.study.run import compare as run_study
    from training.stopping import STOPPED_EXIT_CODE

    try:
        rows = run_study(study, quiet=as_json)
    except StudyStopped as stopped:
        typer.echo(str(stopped), err=as_json)
        raise typer.Exit(STOPPED_EXIT_CODE) from None
    if as_json:
        return print_json(rows)
    typer.echo((study.folder / "table.md").read_text(encoding="utf-8"))


for command in (inspect, export, prune, bench, submit, tensorboard):
    app.command()(command)


def main() -> None:
    """Run the command line and exit."""
    try:
        _run()
    except SystemExit as end:
        if any(thread.name == RAY_THREAD for thread in threading.enumerate()):
            _leave_at_once(end)
        raise


def _run() -> None:
    foreign = find_foreign_package()
    if foreign is not None:
        _fail(foreign)
    from distributed.errors import BadInput

    try:
        app()  # leaves with 2 after a usage error and with 130 after an interrupt
    except BadInput as error:
        _fail(str(error))


def _fail(sentence: str) -> None:
    # One line, whatever a message that was passed on has in it.
    print("error:", " ".join(sentence.split()), file=sys.stderr)
    sys.exit(2)


def _leave_at_once(end: SystemExit) -> None:
    """Without taking the interpreter down: a thread that is inside Ray may crash then.

    (Seen where a run was refused: a segmentation fault after the last word, so -11 for code 2.)
    """
    code = end.code if isinstance(end.code, int) else int(end.code is not None)
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


if __name__ == "__main__":
    main()
