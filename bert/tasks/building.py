"""A fine-tuning run's model, and its teacher."""

import torch

from bert.config import ModelConfig
from bert.folders.source import open_source
from bert.tasks.finetune_config import FinetuneConfig
from bert.tasks.inputs import Inputs
from bert.tasks.model import TaskModel, build_task_model
from bert.teacher import load_teacher
from distributed.errors import BadInput


def build_new_task_model(config: FinetuneConfig, model: ModelConfig, inputs: Inputs) -> TaskModel:
    """The run's model with new weights."""
    one_number = {"regression": 1, "question_answering": 2}
    return build_task_model(
        model,
        kind=config.task.kind,
        num_outputs=one_number.get(config.task.kind, len(inputs.data.labels)),
        vocab_size=model.count_rows(inputs.vocabulary.size),
        pad_id=inputs.vocabulary.pad_id,
        hidden_dropout=config.train.hidden_dropout,
        attention_dropout=config.train.attention_dropout,
        seed=config.seed,
        distillation=config.distillation,
    )


def build_task_teacher(
    config: FinetuneConfig, inputs: Inputs, *, device: torch.device
) -> TaskModel | None:
    """The fine-tuned model that distillation.teacher names; None without one.

    Raises:
        BadInput: it is not there, has another vocabulary, other labels or another task's head, or
            reads less of a text.
    """
    if config.distillation is None:
        return None
    field = "distillation.teacher"
    teacher = open_source(  # resolve_teacher has verified it
        config.distillation.teacher, field=field, vocabulary=inputs.vocabulary, verified=True
    )
    if teacher.labels is not None and teacher.labels != list(inputs.data.labels):
        raise BadInput(
            f"{field}: {teacher.path} tells {', '.join(teacher.labels)} apart, in this order, and "
            f"the task {', '.join(inputs.data.labels) or 'no labels'}: give a model of this task"
        )
    positions = teacher.config.max_position_embeddings
    if config.task.max_seq_len > positions:
        raise BadInput(
            f"task.max_seq_len ({config.task.max_seq_len}) is above the {positions} positions of "
            f"{field} {teacher.path}: lower it"
        )
    student = config.model_copy(update={"distillation": None})
    module = build_new_task_model(student, teacher.config, inputs)
    load_teacher(module, teacher.path, device=device, precision=config.train.precision)
    return module
