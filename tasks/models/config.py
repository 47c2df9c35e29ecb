"""How a model is trained, and how a trained one travels."""

from typing import Literal

from pydantic import BaseModel, Field

from tasks.attacks import ThreatModel


class TrainingConfig(BaseModel, frozen=True, extra="forbid"):
    """One training run. Hardening is training with another defence."""

    model: str = Field(description="a name from the table, or 'package.module:function'")
    defence: str = Field("plain", description="the loss: plain, adversarial, or 'package.module:function'")
    threat: ThreatModel = Field(description="what the defence defends against")
    epochs: int = Field(20, ge=1)
    batch_size: int = Field(128, ge=1)
    lr: float = Field(1e-3, gt=0, description="largest learning rate, of AdamW")
    weight_decay: float = Field(1e-4, ge=0)
    schedule: Literal["onecycle", "cosine", "constant"] = "onecycle"
    patience: int | None = Field(None, ge=1, description="stop after so many epochs without progress on select")
    device: Literal["auto", "cpu", "cuda", "mps"] = "auto"
    precision: Literal["auto", "fp32", "bf16"] = Field("auto", description="auto: mixed on GPUs that know bf16")
    nproc_per_node: int = Field(
        1, ge=1, le=64, description="processes that train together, one for each GPU (DDP, as torchrun calls it)"
    )
    deterministic: bool = Field(True, description="ask torch for deterministic kernels")
    seed: int = Field(0, ge=0)

    def for_round(self, number: int) -> "TrainingConfig":
        """The same for hardening round 1, 2, ...: each further round trains longer, from another seed."""
        return self.model_copy(update={"epochs": self.epochs * number, "seed": self.seed + number - 1})


class StoredModel(BaseModel, frozen=True, extra="forbid"):
    """A trained model as it travels between steps: where its weights are, and what they must hash to."""

    stage: str
    kind: Literal["weights", "graph", "onnx"] = Field(
        "weights", description="what the file holds: weights alone, a graph of torch.export with them, or ONNX"
    )
    model: str = Field(description="the network that the weights fit, as the config names it")
    weights: str = Field(description="URI of the file: safetensors, .pt2 or .onnx")
    digest: str = Field(description="SHA-256 of that file, first 16 hex digits")
    run_id: str = Field(description="the stage's run")
    model_uri: str = Field(description="the logged model that can be registered")
