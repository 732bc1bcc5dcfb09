"""A dense Hugging Face folder -> a sparse one, tensor by tensor; no model is built."""

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open

from sparsebert.inference.errors import BadInput
from sparsebert.inference.quantize import FP32, check_values
from sparsebert.inference.sparse_file import SPARSE_FILE, canonical_matrix, write_sparse_file
from sparsebert.inference.sparse_folder import CONFIG_FILE, appears_whole

_WEIGHTS_FILE = "model.safetensors"
_KEEP_MASK_FILE = "keep_mask.safetensors"
_SUFFIXES = (".safetensors", ".bin", ".index.json", ".h5", ".msgpack", ".onnx", ".pt")


def convert_folder(source: str | Path, output: str | Path, *, values: str = FP32) -> float:
    """Write the BERT folder `source` as a sparse folder; the density of its encoder's matrices.

    Where `source` has keep_mask.safetensors, what it keeps is stored, live zeros too. Everything
    that holds no weights (configuration, tokenizer, model card) is copied. With `values` int8 the
    encoder's matrices and the word embeddings are rounded, as `to_sparse` does.

    Raises:
        BadInput: `source` is no fp32 BERT with safetensors, or `output` exists.
    """
    check_values(values)
    source, output = Path(source), Path(output)
    config = _read_config(source)
    files = _weight_files(source)
    masks, mask_digest = _read_masks(source / _KEEP_MASK_FILE)
    model_class = (config.get("architectures") or ["BertModel"])[0]
    with appears_whole(output) as partial:
        for file in source.iterdir():
            if file.is_file() and not file.name.endswith(_SUFFIXES):
                shutil.copyfile(file, partial / file.name)
        counts = [0, 0]
        write_sparse_file(
            partial / SPARSE_FILE,
            _read_tensors(files, masks, counts),
            masks,
            model_class=model_class,
            mask_digest=mask_digest,
            values=values,
        )
    if counts[1] == 0:
        raise BadInput(f"{source} has no BERT encoder layer: give a BERT folder")
    return counts[0] / counts[1]


def _read_config(source: Path) -> dict[str, Any]:
    try:
        config = json.loads((source / CONFIG_FILE).read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise BadInput(f"{source} is no Hugging Face folder: it has no {CONFIG_FILE}") from None
    except (OSError, ValueError):
        raise BadInput(f"{source / CONFIG_FILE} is not JSON: copy it again") from None
    if not isinstance(config, dict) or config.get("model_type") != "bert":
        raise BadInput(f"{source} is no BERT: only model_type bert can be made sparse")
    return config


def _weight_files(source: Path) -> list[Path]:
    index = source / f"{_WEIGHTS_FILE}.index.json"
    if (source / _WEIGHTS_FILE).is_file():
        return [source / _WEIGHTS_FILE]
    try:
        names = set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values())
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        raise BadInput(
            f"{source} has no {_WEIGHTS_FILE}: save it with transformers' save_pretrained"
        ) from None
    if any(Path(str(name)).name != name for name in names):
        raise BadInput(f"{index} names files outside its folder: copy it again")
    return [source / name for name in sorted(names)]


def _read_tensors(
    files: list[Path], masks: dict[str, torch.Tensor], counts: list[int]
) -> Iterator[tuple[str, torch.Tensor]]:
    """Every tensor; [entries, weights] of the encoder's matrices are added to `counts`."""
    for file in files:
        try:
            with safe_open(file, framework="pt") as opened:
                for name in sorted(opened.keys()):
                    tensor = opened.get_tensor(name)
                    matrix = canonical_matrix(name)
                    if matrix is not None:
                        mask = masks.get(matrix)
                        if mask is not None and mask.shape != tensor.shape:
                            raise BadInput(
                                f"{_KEEP_MASK_FILE} does not fit {name}: export it again"
                            )
                        counts[0] += int((tensor if mask is None else mask).count_nonzero())
                        counts[1] += tensor.numel()
                    yield name, tensor
        except (OSError, SafetensorError) as error:
            raise BadInput(f"{file} is missing or damaged ({error}): copy it again") from None


def _read_masks(file: Path) -> tuple[dict[str, torch.Tensor], str | None]:
    """The keep masks of an export (docs/formats.md) and their digest; none if there is no file."""
    if not file.is_file():
        return {}, None
    try:
        with safe_open(file, framework="pt") as opened:
            metadata = opened.metadata() or {}
            masks = {}
            for name, shape in json.loads(metadata["shapes"]).items():
                packed = opened.get_tensor(name).numpy()
                bits = np.unpackbits(packed, count=int(np.prod(shape)), bitorder="little")
                masks[name] = torch.from_numpy(bits.astype(bool)).view(*shape)
    except (OSError, SafetensorError, KeyError, ValueError, TypeError, RuntimeError) as error:
        raise BadInput(f"{file} is damaged ({error}): export the model again") from None
    return masks, metadata.get("digest")
