"""The engines that the benchmark compares: ours, torch, ONNX Runtime and OpenVINO.

Each builder gives a function (input_ids, attention_mask: int64 [B, S]) -> last_hidden_state, on a
fixed number of threads. ONNX Runtime gets its own transformer optimiser (fused attention, GELU and
LayerNorm) and, for int8, its dynamic quantisation; OpenVINO's int8 is NNCF's post-training
quantisation for transformers.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import BertModel

from sparsebert.inference.convert import to_sparse
from sparsebert.inference.errors import BadInput

Array = np.ndarray[Any, np.dtype[Any]]
Engine = Callable[[Array, Array], Array]
INSTALL = "pip install 'sparsebert-inference[bench]'"


class Workshop:
    """What builders share: the dense model, threads, and a folder with the ONNX files."""

    def __init__(self, build_model: Callable[[], BertModel], threads: int, folder: Path) -> None:
        self.build_model = build_model  # a new dense model each time: engines change theirs
        self.threads = threads
        self.folder = folder

    def onnx(self) -> Path:
        """The model as ONNX, exported once."""
        file = self.folder / "model.onnx"
        if not file.exists():
            model = self.build_model()
            model.set_attn_implementation("eager")  # what ONNX Runtime's optimiser recognises
            ids = torch.randint(0, model.config.vocab_size, (2, 16))
            names = ["input_ids", "attention_mask"]
            _require("onnx")
            torch.onnx.export(
                _LastHiddenState(model),
                (ids, torch.ones_like(ids)),
                str(file),
                input_names=names,
                output_names=["last_hidden_state"],
                dynamic_axes={n: {0: "batch", 1: "length"} for n in [*names, "last_hidden_state"]},
                opset_version=17,
                dynamo=False,
            )
        return file

    def optimized_onnx(self) -> Path:
        """The same with ONNX Runtime's fused operators."""
        file = self.folder / "optimized.onnx"
        if not file.exists():
            source = self.onnx()
            config = self.build_model().config
            from onnxruntime.transformers import optimizer

            optimized = optimizer.optimize_model(
                str(source),
                model_type="bert",
                num_heads=config.num_attention_heads,
                hidden_size=config.hidden_size,
                opt_level=1,
            )
            optimized.save_model_to_file(str(file))
        return file


class _LastHiddenState(torch.nn.Module):
    def __init__(self, model: BertModel) -> None:
        super().__init__()
        self.model = model

    def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
        output: torch.Tensor = self.model(
            input_ids, attention_mask=attention_mask
        ).last_hidden_state
        return output


def _require(module: str) -> Any:
    from importlib import import_module

    try:
        return import_module(module)
    except ModuleNotFoundError:
        raise BadInput(f"this engine needs {module}: {INSTALL}") from None


def _torch_engine(model: BertModel) -> Engine:
    def run(ids: Array, mask: Array) -> Array:
        with torch.inference_mode():
            output = model(torch.from_numpy(ids), attention_mask=torch.from_numpy(mask))
        return output.last_hidden_state.float().numpy()  # type: ignore[no-any-return]

    return run


def build_sparse(shop: Workshop) -> Engine:
    """Ours."""
    return _torch_engine(to_sparse(shop.build_model(), force=True))


def build_sparse_int8(shop: Workshop) -> Engine:
    """Ours with int8 values."""
    return _torch_engine(to_sparse(shop.build_model(), values="int8", force=True))


def build_torch(shop: Workshop) -> Engine:
    """Plain transformers, fp32, sdpa attention."""
    return _torch_engine(shop.build_model())


def build_torch_bf16(shop: Workshop) -> Engine:
    """Plain transformers in bf16, which AMX makes fast."""
    return _torch_engine(shop.build_model().bfloat16())


def _onnx_session(file: Path, threads: int) -> Engine:
    onnxruntime = _require("onnxruntime")
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    session = onnxruntime.InferenceSession(str(file), options, providers=["CPUExecutionProvider"])

    def run(ids: Array, mask: Array) -> Array:
        return session.run(None, {"input_ids": ids, "attention_mask": mask})[0]  # type: ignore[no-any-return]

    return run


def build_onnxruntime(shop: Workshop) -> Engine:
    """ONNX Runtime, fp32, fused."""
    _require("onnxruntime")
    return _onnx_session(shop.optimized_onnx(), shop.threads)


def build_onnxruntime_int8(shop: Workshop) -> Engine:
    """ONNX Runtime, weights int8 and activations quantised at run time."""
    quantization = _require("onnxruntime.quantization")
    file = shop.folder / "int8.onnx"
    if not file.exists():
        quantization.quantize_dynamic(
            str(shop.optimized_onnx()),
            str(file),
            weight_type=quantization.QuantType.QInt8,
            extra_options={"DefaultTensorType": 1},
        )
    return _onnx_session(file, shop.threads)


def _openvino_engine(model: Any, shop: Workshop) -> Engine:
    openvino = _require("openvino")
    settings = {
        "INFERENCE_NUM_THREADS": shop.threads,
        "NUM_STREAMS": 1,
        "PERFORMANCE_HINT": "LATENCY",
        # It would take bf16 by itself on AMX.
        "INFERENCE_PRECISION_HINT": "f32",
    }
    request = openvino.Core().compile_model(model, "CPU", settings).create_infer_request()

    def run(ids: Array, mask: Array) -> Array:
        found = request.infer({"input_ids": ids, "attention_mask": mask})
        return found[0].copy()  # type: ignore[no-any-return]

    return run


def build_openvino(shop: Workshop) -> Engine:
    """OpenVINO, fp32."""
    openvino = _require("openvino")
    return _openvino_engine(openvino.Core().read_model(str(shop.onnx())), shop)


def build_openvino_int8(shop: Workshop) -> Engine:
    """OpenVINO, int8 by NNCF's post-training quantisation."""
    openvino, nncf = _require("openvino"), _require("nncf")
    file = shop.folder / "int8.xml"
    if not file.exists():
        vocabulary = shop.build_model().config.vocab_size
        generator = np.random.default_rng(0)
        samples = [
            {
                "input_ids": generator.integers(0, vocabulary, (1, 128)),
                "attention_mask": np.ones((1, 128), np.int64),
            }
            for _ in range(20)
        ]
        quantized = nncf.quantize(
            openvino.Core().read_model(str(shop.onnx())),
            nncf.Dataset(samples),
            model_type=nncf.ModelType.TRANSFORMER,
            subset_size=len(samples),
        )
        openvino.save_model(quantized, str(file))
    return _openvino_engine(openvino.Core().read_model(str(file)), shop)


BUILDERS: dict[str, Callable[[Workshop], Engine]] = {
    "sparse": build_sparse,
    "sparse-int8": build_sparse_int8,
    "torch": build_torch,
    "torch-bf16": build_torch_bf16,
    "onnxruntime": build_onnxruntime,
    "onnxruntime-int8": build_onnxruntime_int8,
    "openvino": build_openvino,
    "openvino-int8": build_openvino_int8,
}
