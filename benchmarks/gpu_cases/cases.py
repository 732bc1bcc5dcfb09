"""The cases of benchmarks/gpu.py, the most valuable first.

A case is a generator of figures: add a function and a line here. Names and arguments are the keys
of the results, so a changed meaning needs another name.
"""

from benchmarks.case_runner import Case
from benchmarks.gpu_cases.ceilings import attention, ceilings
from benchmarks.gpu_cases.correctness import steps, tests
from benchmarks.gpu_cases.pruning import BERT_BASE, BERT_LARGE_AND_MORE, enforcement, threshold
from benchmarks.gpu_cases.speed import profile, train, trainer

CASES = [
    Case(tests, 120, {"of": "kernels"}),
    Case(tests, 180, {"of": "training"}),
    Case(steps, 150),
    Case(threshold, 90, {"numel": BERT_BASE}),
    Case(enforcement, 100, {"rows": 256}),
    Case(train, 80, {"rows": 256}),
    Case(train, 80, {"rows": 64}),
    Case(train, 80, {"rows": 256, "sparsity": 0.9}),
    Case(train, 80, {"rows": 256, "dropout": 0.0}),
    Case(trainer, 110, {"how": "defaults"}),
    Case(trainer, 110, {"how": "tuned"}),
    Case(profile, 90, {"rows": 256}),
    Case(ceilings, 60),
    Case(attention, 60),
    Case(threshold, 120, {"numel": BERT_LARGE_AND_MORE}),
    Case(trainer, 150, {"how": "compiled"}),
]
