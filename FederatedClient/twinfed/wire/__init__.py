"""What crosses the network between sites and aggregator: tensor files, compressed updates, reports, refusals.

numpy, safetensors' format and zstandard; neither torch nor the web.
"""

from ..errors import InputError, Refusal
from .compression import Compression
from .messages import Report
from .tensors import BLOCK, ArrayTensors, TensorFile, Tensors, blocks, hash_file, write_model
from .update import Header, UpdateFile, apply_update, write_update

__all__ = [
    "BLOCK",
    "ArrayTensors",
    "Compression",
    "Header",
    "InputError",
    "Refusal",
    "Report",
    "TensorFile",
    "Tensors",
    "UpdateFile",
    "apply_update",
    "blocks",
    "hash_file",
    "write_model",
    "write_update",
]
