"""Runs that have a name. A recipe is a function that returns a whole config."""

from collections.abc import Callable

from flows.config import PipelineConfig
from tasks.attacks import ThreatModel
from tasks.data import DataContract
from tasks.metrics import EvaluationConfig
from tasks.models import TrainingConfig
from tasks.verdicts import Policy


def digits() -> PipelineConfig:
    """scikit-learn's handwritten digits, a small CNN, L-inf and L2. Works offline."""
    linf, l2 = ThreatModel(norm="linf", eps=0.15), ThreatModel(norm="l2", eps=0.5)
    training = TrainingConfig(model="digits-cnn", threat=linf, epochs=15, lr=4e-3)
    return PipelineConfig(
        name="digits",
        dataset="digits",
        contract=DataContract(shape=(1, 8, 8), classes=10, min_class_share=0.05),
        training=training,
        hardening=training.model_copy(update={"defence": "adversarial", "epochs": 24}),
        evaluation=EvaluationConfig(threats=(linf, l2)),
        policy=Policy(floor=0.6, clean_floor=0.9),
    )


def mnist() -> PipelineConfig:
    """MNIST from its four IDX files, a small CNN, L-inf 0.2 and L2 2.0 on 1,000 test images."""
    linf, l2 = ThreatModel(norm="linf", eps=0.2), ThreatModel(norm="l2", eps=2.0)
    training = TrainingConfig(model="mnist-cnn", threat=linf, epochs=2, lr=3e-3)
    return PipelineConfig(
        name="mnist",
        dataset="mnist",
        contract=DataContract(shape=(1, 28, 28), classes=10, min_class_share=0.05),
        training=training,
        hardening=training.model_copy(update={"defence": "adversarial", "epochs": 3}),
        evaluation=EvaluationConfig(threats=(linf, l2), samples=1000),
        policy=Policy(floor=0.5, clean_floor=0.95),
    )


def phishing() -> PipelineConfig:
    """UCI Phishing Websites from a CSV, an MLP on features scaled to 0..1, L-inf 0.1 and L2 0.3.

    The features are categories, so half of the rows occur more than once; equal rows never part between splits.
    """
    linf, l2 = ThreatModel(norm="linf", eps=0.1), ThreatModel(norm="l2", eps=0.3)
    training = TrainingConfig(model="phishing-mlp", threat=linf, epochs=15, lr=5e-3)
    return PipelineConfig(
        name="phishing",
        dataset="phishing",
        contract=DataContract(shape=(30,), classes=2, min_class_share=0.2, max_duplicate_share=0.6),
        training=training,
        hardening=training.model_copy(update={"defence": "adversarial", "epochs": 20}),
        evaluation=EvaluationConfig(threats=(linf, l2)),
        policy=Policy(floor=0.8, clean_floor=0.88),
    )


def two_kinds() -> PipelineConfig:
    """One strong feature and 200 fragile ones: the verdict is known in advance (Tsipras et al., 2019)."""
    linf = ThreatModel(norm="linf", eps=0.1)
    training = TrainingConfig(model="two-kinds-mlp", threat=linf, epochs=6, lr=1e-2, batch_size=64)
    return PipelineConfig(
        name="two-kinds",
        dataset="two-kinds",
        contract=DataContract(shape=(201,), classes=2, min_class_share=0.4),
        training=training,
        hardening=training.model_copy(update={"defence": "adversarial"}),
        evaluation=EvaluationConfig(threats=(linf,)),
        policy=Policy(floor=0.9, clean_floor=0.9),
    )


RECIPES: dict[str, Callable[[], PipelineConfig]] = {
    "digits": digits,
    "mnist": mnist,
    "phishing": phishing,
    "two-kinds": two_kinds,
}
