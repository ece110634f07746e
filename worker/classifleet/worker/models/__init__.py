"""Models: their description, where they live, what runs them.

Importing this package does not import torch; the names that need it are loaded when they are first used.
"""

from __future__ import annotations

from importlib import import_module
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Final

from classifleet.worker.models.description import (
    Batch,
    Golden,
    Input,
    ModelDescription,
    Output,
    Preprocess,
)
from classifleet.worker.models.repository import ModelNotFound, Repository, fetch_repository, open_repository

if TYPE_CHECKING:
    from classifleet.worker.models._torch import TorchScriptBackend
    from classifleet.worker.models.backend import Backend
    from classifleet.worker.models.variants import load_backend
    from classifleet.worker.models.zoo import build

__all__ = [  # noqa: RUF022 - grouped by noun
    # description
    "Batch", "Golden", "Input", "ModelDescription", "Output", "Preprocess",
    # repository
    "ModelNotFound", "Repository", "fetch_repository", "open_repository",
    # backend (torch)
    "Backend", "TorchScriptBackend", "load_backend",
    # built-in models (torch)
    "build",
]  # fmt: skip

_LAZY: Final = MappingProxyType(
    {"Backend": "backend", "TorchScriptBackend": "_torch", "load_backend": "variants", "build": "zoo"}
)


def __getattr__(name: str) -> Any:
    if name not in _LAZY:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_LAZY[name]}"), name)
