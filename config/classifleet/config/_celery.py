"""A Celery application that shares a process with the host's and exchanges nothing with it.

What an ordinary `Celery()` takes from its host, and what stops it here (celery 5.7):

- it becomes the current app, and so captures `shared_task`s: `set_as_current=False`
- fixups change Django's connections around tasks: `fixups=[]`
- `CELERY_LOADER` and `CELERY_CONFIG_MODULE` are read at start: a loader of our own, without configuration
- `CELERY_BROKER_URL` and the like are read at each access and beat the configuration: settings that do not look
- every `shared_task` of the host is bound to every app: tasks that are neither ours nor Celery's are refused
- every `@app.task` is bound to every other app: ours are not shared
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

from celery import Celery
from celery.app.utils import Settings as CelerySettings
from celery.loaders.base import BaseLoader

_OURS: Final = ("classifleet.", "celery.")


class _Loader(BaseLoader):  # type: ignore[misc]
    def read_configuration(self, env: str = "") -> dict[str, Any]:
        return {}


class _Settings(CelerySettings):  # type: ignore[misc]
    @property
    def broker_url(self) -> str | None:
        url: str | None = self.get("broker_url")
        return url

    @property
    def broker_read_url(self) -> str | None:
        return self.get("broker_read_url") or self.broker_url

    @property
    def broker_write_url(self) -> str | None:
        return self.get("broker_write_url") or self.broker_url

    @property
    def result_backend(self) -> str | None:
        url: str | None = self.get("result_backend")
        return url


class IsolatedCelery(Celery):  # type: ignore[misc]
    """Celery, deaf to the host project and silent towards it."""

    def __init__(self, main: str, **options: Any) -> None:
        super().__init__(main, loader=_Loader, set_as_current=False, fixups=[], **options)
        # Celery makes it in its constructor and changes it in place ever after; its own setattr makes a setting.
        object.__setattr__(self._conf, "__class__", _Settings)

    def task(self, *args: Any, **options: Any) -> Any:
        """Celery's decorator, for this application alone."""
        return super().task(*args, **{"shared": False, **options})

    def _task_from_fun(self, fun: Callable[..., Any], name: str | None = None, **options: Any) -> Any:
        if not (name or f"{fun.__module__}.").startswith(_OURS):
            return None
        return super()._task_from_fun(fun, name=name, **options)
