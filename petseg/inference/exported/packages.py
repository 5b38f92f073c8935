"""The packages of the extra `export`, imported when an ONNX file is written or read."""

from __future__ import annotations

from importlib import import_module
from typing import Any


def require(name: str) -> Any:
    """A module of onnx, onnxruntime or onnxscript; raises ValueError with the command that installs them."""
    try:
        return import_module(name)
    except ImportError:
        package = name.partition(".")[0]
        raise ValueError(f"ONNX files need {package}: pip install 'petseg[export]'") from None
