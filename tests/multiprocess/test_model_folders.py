"""Runs that start from other people's folders: tokenizers, padded rows, masks of embeddings."""

import json
import shutil
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from transformers import (
    AutoModelForMaskedLM,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    BertTokenizer,
)

import distributed.checkpoint.reading
import distributed.files
from bert.corpora.prepare import prepare
from bert.folders.prune import prune_folder
from bert.pretrain import Pretraining, check_pretraining
from bert.tasks.checks import check_finetuning
from bert.tasks.inputs import read_inputs
from bert.tasks.scores import read_results
from bert.vocabulary import load_vocabulary
from distributed.checkpoint.reading import MASK, MASTER
from distributed.errors import BadInput
from launch.models.export import export_checkpoint
from sparsity.schedule import SparsityConfig
from tests.multiprocess import pool, tasks
from tests.multiprocess.runs import (
    Text,
    _train_here,
    contents,
    last_checkpoint,
    prepare_text,
    run_config,
    train,
)
from tests.multiprocess.tasks import finetune, task_run
from tests.unit.bert.folders.writing import change_config, change_weights, write_folder
from training.session import begin_run

SIZES = {"hidden_size": 32, "num_attention_heads": 2, "intermediate_size": 64,
         "max_position_embeddings": 64}  # fmt: skip
ONE_EPOCH = {"train": {"epochs": 1}}
STEPS = 5
TWO_STEPS = {"train": {"total_steps": 2}}


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory) -> Text:
    return prepare_text(tmp_path_factory.mktemp("text"))


@pytest.fixture(scope="module")
def words(text: Text) -> list[str]:
    words = text.vocabulary.read_text("utf-8").removesuffix("\n").split("\n")
    return [*words, "mochte", "möchte", "##ö", "ö"]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for seed, (name, count) in enumerate((("train", 30), ("dev", 11), ("test", 13))):
        tasks.write_sentences(tmp_path / f"{name}.tsv", count, seed)
    return tmp_path


def ids_of_transformers(tokenizer_folder: Path, texts: list[str]) -> list[list[int]]:
    ids: list[list[int]] = AutoTokenizer.from_pretrained(tokenizer_folder)(texts)["input_ids"]
    return ids


@pytest.mark.parametrize("form", ["vocab.txt", "tokenizer.json"])
def test_accents_stay_where_the_tokenizer_keeps_them(
    folder: Path, words: list[str], form: str
) -> None:
    """A label that an accent alone gives away is learned; the export reads text alike."""
    model = write_folder(folder / "german", words=words, **SIZES)
    tokenizer = BertTokenizer(vocab=str(model / "vocab.txt"), strip_accents=False)
    if form == "vocab.txt":
        settings = {"do_lower_case": True, "strip_accents": False}
        (model / "tokenizer_config.json").write_text(json.dumps(settings))
    else:
        (model / "vocab.txt").unlink()
        tokenizer.save_pretrained(model)
    texts = ["he MÖCHTE it", "he mochte it"] * 15
    for name in ("train", "dev", "test"):
        lines = (f"{text}\t{int('Ö' in text)}\n" for text in texts)
        (folder / f"{name}.tsv").write_text("sentence\tlabel\n" + "".join(lines), "utf-8")
    config = task_run(folder, model, train={"epochs": 4, "learning_rate": 1e-2})
    run = finetune(1, config)
    results = read_results(run)
    assert results is not None and results["test"]["accuracy"] == 1.0
    identity = json.loads(run.identity_file.read_text())["model"]
    assert identity["lower_case"] and identity["tokenizer"] == {"strip_accents": False}
    vocabulary = load_vocabulary(run.vocab_file, settings=identity["tokenizer"])
    rows = read_inputs(config.for_seed(5), vocabulary).splits["train"].rows
    want = ids_of_transformers(model, texts)
    assert [row.input_ids.tolist() for row in rows] == want and want[0] != want[1]
    # Its words lie with the run as a vocab.txt: it goes on without its source.
    assert run.vocab_file.read_text("utf-8") == "".join(f"{word}\n" for word in words)
    shutil.move(model, folder / "gone")
    assert check_finetuning(config.for_seed(5)).is_complete
    export_checkpoint(run.path, folder / "exported")
    assert ids_of_transformers(folder / "exported", texts) == want
    classifier = AutoModelForSequenceClassification.from_pretrained(folder / "exported")
    exported = AutoTokenizer.from_pretrained(folder / "exported")
    with torch.no_grad():
        logits = classifier(**exported(texts, return_tensors="pt")).logits
    assert logits.argmax(-1).tolist() == [1, 0] * 15
    # And from the run again, whose tokenizer is its own.
    again = finetune(1, task_run(folder, run.path, name="again", **ONE_EPOCH))
    assert json.loads(again.identity_file.read_text())["model"]["tokenizer"] == {
        "strip_accents": False
    }


def test_padded_rows_train_and_load_again_in_transformers(
    folder: Path, text: Text, words: list[str]
) -> None:
    rows = len(words) + 31
    model = write_folder(folder / "padded", words=words, rows=rows, **SIZES)
    run = finetune(2, task_run(folder, model, **ONE_EPOCH))
    assert json.loads(run.identity_file.read_text())["model"]["dimensions"]["vocab_rows"] == rows
    export_checkpoint(run.path, folder / "exported")
    loaded, info = AutoModelForSequenceClassification.from_pretrained(
        folder / "exported", output_loading_info=True
    )
    assert not any(info.values()), info
    assert loaded.get_input_embeddings().weight.shape == (rows, 32)
    assert loaded.config.vocab_size == rows
    finetune(1, task_run(folder, folder / "exported", name="on", **ONE_EPOCH))
    # The unused rows are in no gradient; weight decay alone changes them.
    before = load_file(model / "model.safetensors")["bert.embeddings.word_embeddings.weight"]
    after = load_file(folder / "exported" / "model.safetensors")
    unused = after["bert.embeddings.word_embeddings.weight"][len(words) :]
    assert torch.allclose(unused, before[len(words) :], rtol=0.01, atol=0)


def test_pretraining_from_padded_rows(tmp_path: Path, text: Text) -> None:
    words = text.vocabulary.read_text("utf-8").removesuffix("\n").split("\n")
    rows = len(words) + 7
    model = write_folder(tmp_path / "padded", words=words, rows=rows, **SIZES)
    changes: dict[str, Any] = {"sparsity": None, **TWO_STEPS}
    source = {"init_from": model}
    with pytest.raises(BadInput, match=rf"has {rows} rows .* set model.vocab_rows={rows}"):
        check_pretraining(run_config(text, tmp_path, "run", model=source, **changes))
    padded = {**source, "vocab_rows": rows}
    run = train(2, run_config(text, tmp_path, "run", model=padded, **changes))
    saved = contents(last_checkpoint(run, 2))[MASTER]
    assert saved["embeddings.word_embeddings.weight"].numel() == rows * 32
    assert saved["cls.predictions.bias"].numel() == rows
    export_checkpoint(run.path, tmp_path / "exported")
    loaded = AutoModelForMaskedLM.from_pretrained(tmp_path / "exported")
    assert loaded(torch.tensor([[1, 2]])).logits.shape == (1, 2, rows)
    with pytest.raises(BadInput, match=r"model.vocab_rows \(3\) is below the \d+ words"):
        check_pretraining(run_config(text, tmp_path, "few", model={"vocab_rows": 3}, **changes))


def test_pretraining_on_text_that_was_read_otherwise_is_refused(tmp_path: Path, text: Text) -> None:
    words = text.vocabulary.read_text("utf-8").removesuffix("\n").split("\n")
    model = write_folder(tmp_path / "german", words=words, **SIZES)
    (model / "tokenizer_config.json").write_text('{"do_lower_case": true, "strip_accents": false}')
    changes: dict[str, Any] = {"sparsity": None, **TWO_STEPS}
    with pytest.raises(BadInput, match=r"reads text with strip_accents false, and .* with null"):
        check_pretraining(run_config(text, tmp_path, "run", model={"init_from": model}, **changes))
    own = {"init_from": model, "vocab": model}
    with pytest.raises(BadInput, match=r"made with another vocabulary .*strip_accents false"):
        check_pretraining(run_config(text, tmp_path, "run", model=own, **changes))
    articles = text.training.parent / "articles.jsonl"
    report = prepare("wikipedia", [articles], tmp_path / "own", model, validation_fraction=0.25)
    read = {
        "data": {"shards": [report.output]},
        "evaluation": {"sets": {"held-out": report.validation_output}},
    }
    run = train(1, run_config(text, tmp_path, "run", model=own, **changes, **read))
    identity = json.loads(run.identity_file.read_text())["model"]
    assert identity["tokenizer"] == {"strip_accents": False} and "lower_case" not in identity
    export_checkpoint(run.path, tmp_path / "exported")
    assert AutoTokenizer.from_pretrained(tmp_path / "exported").strip_accents is False


# Masks


def test_a_folder_that_was_pruned_twice_over_trains_with_all_its_masks(
    folder: Path, words: list[str]
) -> None:
    """A tied embedding that is stored twice, pruned by name with a part of the encoder."""
    embeddings, decoder = "bert.embeddings.word_embeddings.weight", "cls.predictions.decoder.weight"
    model = write_folder(folder / "old", words=words, **SIZES)
    change_weights(model, lambda t: {**t, decoder: t[embeddings].clone()})
    one_shot = SparsityConfig.model_validate({"schedule": "one_shot", "final_sparsity": 0.5})
    report = prune_folder(
        model, folder / "out", one_shot, match=("*word_embeddings*", "encoder.*.dense.weight"),
        rank=0, ranks=1,
    )  # fmt: skip
    names = set(report.by_name)
    assert "embeddings.word_embeddings.weight" in names and len(names) == 7
    run = finetune(2, task_run(folder, folder / "out", **ONE_EPOCH))
    saved = contents(last_checkpoint(run, STEPS))
    assert len(saved[MASK]) == 13, "the encoder's twelve matrices and the embeddings"
    start_weights = load_file(folder / "out" / "model.safetensors")
    for name in names:
        zeros = start_weights[f"bert.{name}"].flatten() == 0
        assert zeros.sum() == report.by_name[name]
        assert torch.equal(~saved[MASK][name], zeros), name
        assert not saved[MASTER][name][zeros].any() and saved[MASTER][name][~zeros].all()
    results = read_results(run)
    assert results is not None and results["sparsity"]["digest"] == report.digest
    kept = results["sparsity"]["parameters_kept_prunable"]
    assert kept == sum(int(keep.sum()) for keep in saved[MASK].values())
    # It goes on from its checkpoint and from its export with the same masks.
    export_checkpoint(run.path, folder / "exported")
    again = finetune(1, task_run(folder, folder / "exported", name="on", **ONE_EPOCH))
    later = read_results(again)
    assert later is not None and later["sparsity"]["digest"] == report.digest
    longer = task_run(folder, folder / "out", name="stopped", train={"epochs": 2})
    stopped = finetune(1, longer, stop_after=3)
    finetune(2, longer)
    resumed = read_results(stopped)
    assert resumed is not None and resumed["sparsity"]["digest"] == report.digest


# Verified once


def test_the_driver_hashes_each_file_once(
    folder: Path, text: Text, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = train(1, run_config(text, folder, "source", sparsity=None, **TWO_STEPS))
    checkpoint = last_checkpoint(source, 2).path
    files = sorted(checkpoint.glob("rank-*.safetensors"))
    hashed: list[Path] = []
    real = distributed.files.sha256_of

    def count(file: Path) -> str:
        if file in files:
            hashed.append(file)
        return real(file)

    monkeypatch.setattr(distributed.checkpoint.reading, "sha256_of", count)
    check_finetuning(task_run(folder, source.path).for_seed(5))
    assert sorted(hashed) == files
    hashed.clear()
    changes = {"model": {"init_from": source.path}, "sparsity": None, **TWO_STEPS}
    check_pretraining(run_config(text, folder, "on", **changes))
    assert sorted(hashed) == files
    hashed.clear()
    teacher = {"teacher": checkpoint}
    check_pretraining(run_config(text, folder, "taught", sparsity=None, distillation=teacher))
    assert sorted(hashed) == files


def test_the_ranks_hash_nothing(text: Text, tmp_path: Path) -> None:
    """They read the weights even where a moment, which they do not read, has changed since."""
    source = train(1, run_config(text, tmp_path, "source", sparsity=None, **TWO_STEPS))
    changes: dict[str, Any] = {"model": {"init_from": source.path}, "sparsity": None, **TWO_STEPS}
    config = run_config(text, tmp_path, "on", **changes)
    plan = check_pretraining(config)
    begin_run(Pretraining(config), plan)
    (file,) = last_checkpoint(source, 2).path.glob("rank-*.safetensors")
    data = bytearray(file.read_bytes())
    header = int.from_bytes(data[:8], "little")
    tensors = json.loads(data[8 : 8 + header])
    moment = next(key for key in tensors if key.startswith("exp_avg|"))
    data[8 + header + tensors[moment]["data_offsets"][0]] ^= 1
    file.write_bytes(data)
    states = pool.run(2, _train_here, config, asdict(plan), None)
    assert all(state["step"] == 2 for state in states), states
    with pytest.raises(BadInput, match="is damaged"):
        check_pretraining(run_config(text, tmp_path, "later", **changes))


def test_a_quantised_folder_starts_no_run(folder: Path, text: Text, words: list[str]) -> None:
    model = write_folder(folder / "int8", words=words, **SIZES)
    change_config(model, quantization_config={"quant_method": "bitsandbytes"})
    with pytest.raises(BadInput, match="has quantization_config"):
        check_finetuning(task_run(folder, model).for_seed(5))
    with pytest.raises(BadInput, match="has quantization_config"):
        check_pretraining(run_config(text, folder, "run", model={"init_from": model}))
