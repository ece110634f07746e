"""Settings, from (first wins) arguments, `CLASSIFLEET_*` variables, a TOML file, and defaults.

Nothing is read at import. A list is written `a,b` or as JSON, a map `a=x,b=y` or as JSON. An empty variable counts as
not set.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, Final, Self

from pydantic import PrivateAttr, ValidationError, field_validator
from pydantic_settings import BaseSettings, PydanticBaseSettingsSource, SettingsConfigDict, TomlConfigSettingsSource

from classifleet.config.errors import SettingsError
from classifleet.config.payload import Lane
from classifleet.config.setting_groups import (
    IngestSettings,
    OutputSettings,
    PlaceSettings,
    ProducerSettings,
    WorkerSettings,
)
from classifleet.config.setting_sources import (
    CONFIG_FILE_VARIABLE,
    ENV_PREFIX,
    config_file,
    explain_settings,
    refuse_unknown,
    source_of,
)
from classifleet.config.urls import for_redis_py, is_redis

# Interactive work that would wait for minutes is better refused. Bulk work waits in the ledger at about 0.3 KB an
# image, so what a night's ten millions need is 3 GB.
MAX_QUEUED_IMAGES: Final[Mapping[str, int]] = MappingProxyType({"interactive": 10_000, "bulk": 10_000_000})
_LIMIT_NAME = re.compile(r"interactive|bulk|classify\..+\.(interactive|bulk)")


class Settings(
    # in the order of the documentation from the last to the first: pydantic collects fields so
    OutputSettings,
    IngestSettings,
    WorkerSettings,
    ProducerSettings,
    PlaceSettings,
    BaseSettings,
):
    """Everything that can be set, wherever it comes from; frozen."""

    model_config = SettingsConfigDict(
        env_prefix=ENV_PREFIX, env_ignore_empty=True, extra="forbid", frozen=True, validate_default=False
    )
    _arguments: frozenset[str] = PrivateAttr(frozenset())

    @field_validator("broker_url", "redis_url", "content_cache_url")
    @classmethod
    def _has_a_scheme(cls, value: str | None) -> str | None:
        if value is not None and "://" not in value:
            raise ValueError("not a URL: expected something like redis://host:6379/0")
        return value

    @field_validator("redis_url", "content_cache_url")
    @classmethod
    def _is_a_redis(cls, value: str | None) -> str | None:
        if value is not None and not is_redis(value):
            raise ValueError(
                "not of a Redis: expected redis://, rediss:// or unix://; with Sentinel, an address that follows the "
                "primary"
            )
        return value

    @field_validator("max_queued_images", "objective_seconds")
    @classmethod
    def _names_lanes_or_queues(cls, value: dict[str, int]) -> dict[str, int]:
        if unknown := [name for name in value if not _LIMIT_NAME.fullmatch(name)]:
            raise ValueError(f"{unknown[0]!r} is neither a lane (interactive, bulk) nor classify.<pool>.<lane>")
        return value

    @field_validator("claim_store")
    @classmethod
    def _is_a_store(cls, value: str | None) -> str | None:
        if value is not None and not re.match(r"s3://[^/]|file:///", value):
            raise ValueError("neither s3://bucket/prefix nor file:///folder")
        return value

    @classmethod
    def load(cls, **arguments: Any) -> Self:
        """Read all sources; arguments win.

        Raises:
            SettingsError: Naming the setting, where it came from, and what is wrong.
        """
        refuse_unknown(os.environ, cls.model_fields)
        if os.environ.get(CONFIG_FILE_VARIABLE) and not config_file().is_file():
            raise SettingsError(f"{CONFIG_FILE_VARIABLE} names {config_file()}, which is not a file")
        given = {name: value for name, value in arguments.items() if value is not None}
        try:
            settings = cls(**given)
        except ValidationError as error:
            sources = {name: source_of(name, given) for name in (str(e["loc"][0]) for e in error.errors() if e["loc"])}
            named = ", ".join(f"{name} from {source}" for name, source in sources.items())
            raise SettingsError(f"settings: {explain_settings(error, cls.model_fields)} ({named})") from None
        except (ValueError, OSError) as error:  # bad TOML; a broken variable is a ValidationError
            raise SettingsError(f"settings: {config_file()}: {error}") from None
        settings._arguments = frozenset(given)
        return settings

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """Arguments, environment, TOML file."""
        return (init_settings, env_settings, TomlConfigSettingsSource(settings_cls, config_file()))

    def source(self, name: str) -> str:
        """Where a setting's value came from, for `classifleet config show`."""
        return source_of(name, self._arguments) if name in self.model_fields_set else "default"

    def ledger_url(self) -> str:
        """The ledger's Redis.

        Raises:
            SettingsError: The broker is not Redis and `redis_url` is not set, or neither is set.
        """
        if self.redis_url:
            return for_redis_py(self.redis_url)
        if self.broker_url and is_redis(self.broker_url):
            return for_redis_py(self.broker_url)
        raise SettingsError(
            "no Redis for the ledger: set CLASSIFLEET_REDIS_URL"
            + (" (the broker is not a Redis)" if self.broker_url else " or CLASSIFLEET_BROKER_URL")
        )

    @property
    def replicas(self) -> int:
        """How many replicas of Redis must have what a call wrote (`durability`)."""
        return int(self.durability.removeprefix("wait:")) if self.durability != "none" else 0

    def queue_limit(self, queue: str) -> int:
        """How many images a queue may hold (`max_queued_images`); 0 is no limit."""
        lane = queue.rpartition(".")[2]
        given = self.max_queued_images
        return given.get(queue, given.get(lane, MAX_QUEUED_IMAGES[lane]))

    def queue_of(self, models: list[str], lane: Lane) -> str:
        """The queue for a request for these models.

        Raises:
            SettingsError: The models live in different pools.
        """
        pools = {self.pools.get(name.partition("@")[0], "default") for name in models}
        if len(pools) != 1:
            raise SettingsError(f"the models {', '.join(models)} live in different pools: {', '.join(sorted(pools))}")
        return queue_name(pools.pop(), lane)


def queue_name(pool: str, lane: Lane) -> str:
    """`classify.<pool>.<lane>`."""
    return f"classify.{pool}.{lane}"
