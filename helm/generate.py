"""Write what is derived of the chart: README.md from values.yaml, and the settings that values.schema.json accepts.

.venv/bin/python helm/generate.py            write them
.venv/bin/python helm/generate.py --check    fail, and say which, if one is out of date (part of `make lint`)
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import takewhile
from pathlib import Path
from typing import Any, Final

import yaml

from classifleet.config import Settings

CHART: Final = Path(__file__).parent / "classifleet"
# What the chart decides from values of its own, or takes from Secrets.
OWNED: Final = frozenset(
    {
        *("BROKER_URL", "REDIS_URL", "QUEUES", "MODELS", "MODEL_REPOSITORY", "TUNING_CACHE", "DEVICE"),
        *("CONTENT_CACHE_URL", "DRAIN_SECONDS", "HTTP_HOST", "HTTP_PORT"),
    }
)
HEAD: Final = """# The classifleet chart

<!-- Written by helm/generate.py from values.yaml; change it there. -->

{description}

```console
$ kubectl create secret generic classifleet --from-literal=broker-url='rediss://:…@redis.example.com:6379/0'
$ helm install classifleet helm/classifleet --values my-values.yaml
```

[docs/kubernetes.md](../../docs/kubernetes.md) says which values matter and how to upgrade. Values to start from:

{examples}

## Values

| value | default | meaning |
| --- | --- | --- |
{rows}
"""


@dataclass(frozen=True, slots=True)
class Value:
    """A documented key of values.yaml: its path from the top, what is said about it, and its default."""

    path: tuple[str, ...]
    comment: str
    default: Any
    is_leaf: bool


def documented(text: str) -> list[Value]:
    """The keys that have a comment right above them, in order.

    A map whose first key has none is one value. All other keys must have one.

    Raises:
        SystemExit: One has none; or it has two, with an empty line between.
    """
    node = yaml.compose(text, Loader=yaml.SafeLoader)
    lines = text.splitlines()
    return list(_values(node, yaml.safe_load(text), lines, ()))


def _values(node: yaml.Node | None, content: Any, lines: list[str], path: tuple[str, ...]) -> Iterator[Value]:
    if not isinstance(node, yaml.MappingNode):
        raise SystemExit(f"values.yaml: {'.'.join(path)} is not a map")
    for key, child in node.value:
        name = (*path, key.value)
        comment = _comment_above(lines, key.start_mark.line)
        below = isinstance(child, yaml.MappingNode) and child.value and not child.flow_style
        first = child.value[0][0].start_mark.line if below else 0
        is_leaf = not (below and _comment_above(lines, first))
        if not comment and is_leaf:
            raise SystemExit(f"values.yaml: {'.'.join(name)} has no comment above it")
        yield Value(name, comment, content[key.value], is_leaf)
        if not is_leaf:
            yield from _values(child, content[key.value], lines, name)


def _comment_above(lines: list[str], line: int) -> str:
    found: list[str] = []
    while line > 0 and (text := lines[line - 1].strip()).startswith("#"):
        found.insert(0, text.removeprefix("#").strip())
        line -= 1
    return " ".join(found)


def readme() -> str:
    """The chart's README."""
    rows = [
        f"| {'`' if value.is_leaf else '**`'}{'.'.join(value.path)}{'`' if value.is_leaf else '`**'} "
        f"| {_default(value)} | {_cell(value.comment)} |"
        for value in documented((CHART / "values.yaml").read_text())
    ]
    examples = []
    for path in sorted((CHART / "examples").glob("*.yaml")):
        said = " ".join(line.removeprefix("# ") for line in takewhile(is_comment, path.read_text().splitlines()))
        examples.append(f"- [{path.stem}](examples/{path.name}): {said}")
    description = yaml.safe_load((CHART / "Chart.yaml").read_text())["description"]
    return HEAD.format(description=description, examples="\n".join(examples), rows="\n".join(rows))


def is_comment(line: str) -> bool:
    """Whether it is one."""
    return line.startswith("#")


def _default(value: Value) -> str:
    if not value.is_leaf:
        return ""
    text = json.dumps(value.default, ensure_ascii=False)
    return "not set" if value.default is None else "empty" if value.default in ("", [], {}) else f"`{_cell(text)}`"


def _cell(text: str) -> str:
    return text.replace("|", "\\|")


def schema() -> str:
    """values.schema.json with the settings that there are."""
    content = json.loads((CHART / "values.schema.json").read_text())
    names = sorted({name.upper() for name in Settings.model_fields} - OWNED)
    content["definitions"]["settings"]["propertyNames"]["enum"] = names
    return json.dumps(content, indent=2) + "\n"


def main() -> None:
    """Write both, or compare them with `--check`."""
    if set(sys.argv[1:]) - {"--check"}:
        sys.exit(f"usage: {sys.argv[0]} [--check]")
    made = {"README.md": readme(), "values.schema.json": schema()}
    stale = [name for name, text in made.items() if not (CHART / name).is_file() or (CHART / name).read_text() != text]
    if stale and "--check" in sys.argv:
        sys.exit(f"out of date in helm/classifleet: {', '.join(stale)}; run: {sys.executable} helm/generate.py")
    for name in stale:
        (CHART / name).write_text(made[name])
        sys.stdout.write(f"wrote helm/classifleet/{name}\n")


if __name__ == "__main__":
    main()
