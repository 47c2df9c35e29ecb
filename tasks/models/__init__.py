"""Networks, the one loop that fits them, and files without pickle."""

from tasks.models.config import StoredModel, TrainingConfig
from tasks.models.fit import Epoch, device_of, fit
from tasks.models.networks import MODELS
from tasks.models.store import build, check_model, digest_of, from_bytes, to_bytes

__all__ = [
    "MODELS",
    "Epoch",
    "StoredModel",
    "TrainingConfig",
    "build",
    "check_model",
    "device_of",
    "digest_of",
    "fit",
    "from_bytes",
    "to_bytes",
]
