import os

import torch

# Triton decides it when it is imported, and transformers imports it: without a GPU our kernels run
# on the CPU.
if not torch.cuda.is_available():
    os.environ["TRITON_INTERPRET"] = "1"
