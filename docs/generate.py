"""Write the reference pages of `docs/` from the code that they describe.

.venv/bin/python docs/generate.py            write them
.venv/bin/python docs/generate.py --check    fail, and say which, if one is out of date (part of `make lint`)
"""

from __future__ import annotations

import sys
import textwrap
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, Final, Literal, get_args, get_origin

from annotated_types import Ge, Gt, Le
from prometheus_client.metrics import MetricWrapperBase
from pydantic.fields import FieldInfo

from classifleet.config import CODES, KEY_TABLE, Settings, errors
from classifleet.config.errors import ClassifleetError
from classifleet.config.setting_groups import default_model_repository
from classifleet.config.setting_sources import CONFIG_FILE_VARIABLE, DEFAULT_CONFIG_FILE, ENV_PREFIX
from classifleet.worker import instruments

DOCS: Final = Path(__file__).parent
_WORDS: Final[dict[Any, str]] = {
    **{str: "text", bool: "`true` or `false`", int: "whole number", float: "number"},
    **{list: "list", dict: "map"},
}
NOTICE: Final = "<!-- Written by docs/generate.py from {source}; change it there. -->"


def settings_page() -> str:
    """Every setting by the part of the class in which it stands."""
    parts = [
        f"Each is the variable `{ENV_PREFIX}` + NAME, or the name in lower case in a TOML file "
        f"(`{DEFAULT_CONFIG_FILE}` in the working directory, or the file that `{CONFIG_FILE_VARIABLE}` names), or an "
        "argument where a program makes `Settings`. Arguments win over variables, variables over the file. A list is "
        "written `a,b` or as JSON, a map `a=x,b=y` or as JSON; an empty variable counts as not set. An unknown name "
        "is an error. `classifleet config show` prints what is in force and where it came from.",
    ]
    for title, names in _sections().items():
        rows = [_setting(name, Settings.model_fields[name]) for name in names]
        parts += [f"## {title}", table(("setting", "default", "accepts", "meaning"), rows)]
    return page("Settings", "config/classifleet/config/setting_groups.py", parts)


def _sections() -> dict[str, list[str]]:
    groups = [base for base in reversed(Settings.__mro__) if base.__module__.endswith(".setting_groups")]
    return {(group.__doc__ or "").rstrip("."): [*vars(group)["__annotations__"]] for group in groups}


def _setting(name: str, field: FieldInfo) -> tuple[str, ...]:
    return f"`{name.upper()}`", _default(field), _accepts(field), field.description or ""


def _default(field: FieldInfo) -> str:
    if field.default_factory is default_model_repository:
        return "`$XDG_DATA_HOME/classifleet/models`"
    value = field.get_default(call_default_factory=True, validated_data={})
    match value:
        case None:
            return "not set"
        case [] | {}:
            return "empty"
        case bool():
            return f"`{str(value).lower()}`"
        case list():
            return f"`{','.join(map(str, value))}`"
        case float():
            return f"`{value:g}`"
    return f"`{value}`"


def _accepts(field: FieldInfo) -> str:
    kind = field.annotation
    for part in get_args(kind):  # of `int | None`, also of `Annotated[int, …] | None`
        if type(None) in get_args(kind) and part is not type(None):
            kind = getattr(part, "__origin__", part)
    match get_origin(kind) or kind:
        case origin if origin is Literal:
            return ", ".join(f"`{value}`" for value in get_args(kind))
        case origin if origin in _WORDS:
            return " ".join([_WORDS[origin], *_bounds(_metadata(field))])
    raise SystemExit(f"no word for the type {kind}")


def _metadata(field: FieldInfo) -> Iterable[Any]:
    """Constraints, also of `Annotated[int, …] | None`."""
    yield from field.metadata
    for part in get_args(field.annotation):
        for inner in getattr(part, "__metadata__", ()):
            yield from getattr(inner, "metadata", ())


def _bounds(metadata: Iterable[Any]) -> list[str]:
    words: dict[type, Callable[[Any], str]] = {
        Ge: lambda bound: f"from {bound.ge}",
        Gt: lambda bound: f"above {bound.gt}",
        Le: lambda bound: f"to {bound.le}",
    }
    return [words[type(bound)](bound) for bound in metadata if type(bound) in words]


def errors_page() -> str:
    """The closed set of codes, and the exceptions."""
    codes = [
        (f"`{code.value}`", spec.meaning, "yes" if spec.retryable else "no", str(spec.http_status))
        for code, spec in CODES.items()
    ]
    raised = [
        (f"`{name}`", " ".join((error.__doc__ or "").split("\n\n")[0].split()))
        for name, error in vars(errors).items()
        if isinstance(error, type) and issubclass(error, ClassifleetError)
    ]
    return page(
        "Errors",
        "config/classifleet/config/errors.py",
        [
            "## Codes",
            "An image that cannot be classified is a result, not an exception: its record has one of these codes. The "
            "set is closed. *Retry* says whether the same image may succeed later; *HTTP* is what to answer if the "
            "code is passed on to a client.",
            table(("code", "meaning", "retry", "HTTP"), codes),
            "## Exceptions",
            "A call that cannot be carried out raises one of these. All are `ClassifleetError`s:",
            "```text\n" + textwrap.dedent((errors.__doc__ or "").split("::\n\n", 1)[1]).strip() + "\n```",
            table(("exception", "when"), raised),
        ],
    )


def keys_page() -> str:
    """The documented table of Redis keys."""
    rows = [(f"`{row.pattern}`", row.type, row.lifetime, row.writer, row.meaning) for row in KEY_TABLE]
    return page(
        "Redis keys",
        "config/classifleet/config/keys.py",
        [
            "Every key begins with `classifleet:{<namespace>}:`, then goes on as the table says. Nothing is written "
            "outside it.",
            table(("key", "type", "lives", "written by", "meaning"), rows),
            "A producer process hears of finished chunks on the channel `reply:<client>`.",
        ],
    )


def metrics_page() -> str:
    """Every metric of a worker."""
    metrics = [value for value in vars(instruments).values() if isinstance(value, MetricWrapperBase)]
    rows = []
    for metric in metrics:
        family = next(iter(metric.describe()))
        name = f"{family.name}_total" if family.type == "counter" else family.name
        labels = ", ".join(f"`{label}`" for label in metric._labelnames) or "none"
        rows.append((f"`{name}`", family.type, labels, family.documentation))
    return page(
        "Metrics",
        "worker/classifleet/worker/instruments.py",
        [
            "A worker serves these at `/metrics`. Times are seconds.",
            table(("metric", "type", "labels", "meaning"), rows),
        ],
    )


def page(title: str, source: str, parts: Iterable[str]) -> str:
    """A Markdown page that says where it comes from."""
    return "\n\n".join([f"# {title}", NOTICE.format(source=source), *parts]) + "\n"


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A Markdown table."""
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines)


PAGES: Final[dict[str, Callable[[], str]]] = {
    "settings.md": settings_page,
    "errors.md": errors_page,
    "redis-keys.md": keys_page,
    "metrics.md": metrics_page,
}


def main() -> None:
    """Write the pages, or compare them with `--check`."""
    if set(sys.argv[1:]) - {"--check"}:
        sys.exit(f"usage: {sys.argv[0]} [--check]")
    stale = []
    for name, make in PAGES.items():
        path, text = DOCS / name, make()
        if not path.is_file() or path.read_text() != text:
            stale.append(name)
            if "--check" not in sys.argv:
                path.write_text(text)
    if stale and "--check" in sys.argv:
        sys.exit(f"out of date: docs/{', docs/'.join(stale)}; run: {sys.executable} docs/generate.py")
    if stale:
        sys.stdout.write(f"wrote docs/{', docs/'.join(stale)}\n")


if __name__ == "__main__":
    main()
