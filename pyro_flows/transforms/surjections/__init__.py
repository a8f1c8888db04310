"""Layers that are no bijections: exact likelihoods or bounds by SurVAE's rules."""

from __future__ import annotations

from .abs import Abs
from .augmentation import Augmentation
from .base import Surjection
from .dequantization import Dequantization
from .max import Max
from .slice import Slice
from .sort import Sort

__all__ = ["Abs", "Augmentation", "Dequantization", "Max", "Slice", "Sort", "Surjection"]
