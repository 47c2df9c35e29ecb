"""Networks, the one loop that fits them, and files without pickle."""

from tasks.models.code import code_of
from tasks.models.config import StoredModel, TrainingConfig
from tasks.models.fit import Epoch, device_of, fit
from tasks.models.foreign import INSTEAD, bytes_in, found_in, pickle_in
from tasks.models.graph import EXPORTING, from_exported
from tasks.models.networks import MODELS
from tasks.models.onnx import from_onnx
from tasks.models.pickled import CONSENT, consented, consents, graph_of
from tasks.models.store import build, check_model, digest_of, from_bytes, to_bytes

__all__ = [
    "CONSENT",
    "EXPORTING",
    "INSTEAD",
    "MODELS",
    "Epoch",
    "StoredModel",
    "TrainingConfig",
    "build",
    "bytes_in",
    "check_model",
    "code_of",
    "consented",
    "consents",
    "device_of",
    "digest_of",
    "fit",
    "found_in",
    "from_bytes",
    "from_exported",
    "from_onnx",
    "graph_of",
    "pickle_in",
    "to_bytes",
]
