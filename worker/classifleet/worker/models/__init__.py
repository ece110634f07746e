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
    from classifleet.worker.models.backend import Backend, TorchScriptBackend, load_backend
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
    {"Backend": "backend", "TorchScriptBackend": "backend", "load_backend": "backend", "build": "zoo"}
)


def __getattr__(name: str) -> Any:
    if name not in _LAZY:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_LAZY[name]}"), name)
