"""Where settings come from: how values are written in variables, which variables are known, which source won."""

from __future__ import annotations

import difflib
import json
import os
import re
from collections.abc import Collection, Container, Mapping
from pathlib import Path
from typing import Annotated, Final

from pydantic import AfterValidator, BeforeValidator, Field, ValidationError
from pydantic_settings import NoDecode

from classifleet.config.errors import SettingsError
from classifleet.config.payload import explain

ENV_PREFIX: Final = "CLASSIFLEET_"
CONFIG_FILE_VARIABLE: Final = "CLASSIFLEET_CONFIG_FILE"
DEFAULT_CONFIG_FILE: Final = "classifleet.toml"
PERCENT: Final = 100
# Kubernetes puts these into every pod that shares a namespace with a service called "classifleet…".
_SERVICE_VARIABLE = re.compile(r"_(SERVICE_(HOST|PORT(_\w+)?)|PORT_\d+_(TCP|UDP|SCTP)(_(PROTO|PORT|ADDR))?)$")
_SERVICE_URL = re.compile(r"(tcp|udp|sctp)://")  # what `…_PORT` holds when it is one of them


def _listed(value: object) -> object:
    """A list as people write it in a variable: `a,b` or `["a","b"]`."""
    if not isinstance(value, str):
        return value
    text = value.strip()
    if text.startswith(("[", "{")):
        return json.loads(text)
    return [part.strip() for part in text.split(",") if part.strip()]


def _mapped(value: object) -> object:
    """A map as people write it in a variable: `a=x,b=y` or JSON."""
    if not isinstance(value, str):
        return value
    text = value.strip()
    if text.startswith("{"):
        return json.loads(text)
    pairs = [part.partition("=") for part in text.split(",") if part.strip()]
    if broken := next((name for name, equals, _ in pairs if not equals), None):
        raise ValueError(f"{broken.strip()!r} has no value: write name=value,name=value")
    return {name.strip(): value.strip() for name, _, value in pairs}


def _shared(value: object) -> object:
    """Versions with numbers, as people write them in a variable: `imagenet=1:95,2:5,nsfw=2:10`, or JSON."""
    if not isinstance(value, str):
        return value
    text = value.strip()
    if text.startswith("{"):
        return json.loads(text)
    found: dict[str, dict[str, str]] = {}
    name = ""
    for part in filter(None, (part.strip() for part in text.split(","))):
        model, equals, share = part.rpartition("=")
        name = model.strip() if equals else name
        version, colon, number = share.partition(":")
        if not name or not colon:
            raise ValueError(f"{part!r} is not model=version:number; write imagenet=1:95,2:5")
        found.setdefault(name, {})[version.strip()] = number.strip()
    return found


def _weighty(value: dict[str, dict[str, float]]) -> dict[str, dict[str, float]]:
    if empty := [name for name, shares in value.items() if not sum(shares.values())]:
        raise ValueError(f"{empty[0]}: none of its versions has any weight")
    return value


def _single(value: dict[str, dict[str, float]]) -> dict[str, dict[str, float]]:
    for name, shares in value.items():
        if len(shares) != 1 or max(shares.values()) > PERCENT:
            raise ValueError(f"{name}: takes one version and a percentage; write {name}=2:10")
    return value


StrList = Annotated[list[str], NoDecode, BeforeValidator(_listed)]
IntList = Annotated[list[int], NoDecode, BeforeValidator(_listed)]
StrMap = Annotated[dict[str, str], NoDecode, BeforeValidator(_mapped)]
IntMap = Annotated[dict[str, Annotated[int, Field(ge=0)]], NoDecode, BeforeValidator(_mapped)]
Shares = dict[Annotated[str, Field(pattern="^[1-9][0-9]*$")], Annotated[float, Field(ge=0, allow_inf_nan=False)]]
CanaryMap = Annotated[dict[str, Shares], NoDecode, BeforeValidator(_shared), AfterValidator(_weighty)]
ShadowMap = Annotated[dict[str, Shares], NoDecode, BeforeValidator(_shared), AfterValidator(_single)]


def config_file() -> Path:
    """The TOML file that is read if it exists."""
    return Path(os.environ.get(CONFIG_FILE_VARIABLE) or DEFAULT_CONFIG_FILE)


def source_of(name: str, arguments: Container[str]) -> str:
    """Which of the sources gave a setting its value."""
    if name in arguments:
        return "argument"
    if any(value and key.upper() == f"{ENV_PREFIX}{name.upper()}" for key, value in os.environ.items()):
        return "environment"
    return str(config_file())


def refuse_unknown(environment: Mapping[str, str], names: Collection[str]) -> None:
    """Refuse a variable with our prefix that is none of these settings.

    Raises:
        SettingsError: Naming the variable, and what may have been meant.
    """
    known = {f"{ENV_PREFIX}{name.upper()}" for name in names} | {CONFIG_FILE_VARIABLE}
    for key, value in environment.items():
        upper = key.upper()
        if not upper.startswith(ENV_PREFIX) or upper in known or _is_service_variable(upper, value):
            continue
        close = _closest(upper, known)
        raise SettingsError(f"{key} is not a setting" + (f"; did you mean {close}?" if close else ""))


def explain_settings(error: ValidationError, names: Collection[str]) -> str:
    """What pydantic found; for an unknown name what may have been meant."""
    text = explain(error)
    for name in (str(e["loc"][0]) for e in error.errors() if e["type"] == "extra_forbidden"):
        close = _closest(name, names)
        meant = f"; did you mean {close}?" if close else ""
        text = text.replace(f"{name}: Extra inputs are not permitted", f"{name} is not a setting{meant}")
    return text


def _is_service_variable(name: str, value: str) -> bool:
    return bool(_SERVICE_VARIABLE.search(name) or (name.endswith("_PORT") and _SERVICE_URL.match(value)))


def _closest(name: str, known: Collection[str]) -> str | None:
    plain = {key.removeprefix(ENV_PREFIX): key for key in known}
    match = difflib.get_close_matches(name.removeprefix(ENV_PREFIX), plain, n=1)
    return plain[match[0]] if match else None
