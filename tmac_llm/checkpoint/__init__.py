"""Readers of Hugging Face checkpoints: one file per encoding, float or already quantised weights."""

from tmac_llm.checkpoint.open import Checkpoint, open_checkpoint
from tmac_llm.checkpoint.weights import CodedRows, CodedWeight, DenseWeight, TernaryWeight, Weight

__all__ = [
    "Checkpoint",
    "CodedRows",
    "CodedWeight",
    "DenseWeight",
    "TernaryWeight",
    "Weight",
    "open_checkpoint",
]
