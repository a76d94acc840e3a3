"""Schemas for the grammar benchmark, with instances out of the three kinds of files that are about, or without."""

import json
import pathlib
import random
from dataclasses import dataclass, field
from typing import Any

DRAFTS = {
    "draft4": "http://json-schema.org/draft-04/schema#",
    "draft6": "http://json-schema.org/draft-06/schema#",
}
DRAFTS |= {"draft7": "http://json-schema.org/draft-07/schema#"}
#: An object with one of these is a plain schema.
KEYWORDS = frozenset(
    ["$schema", "$id", "$ref", "$defs", "definitions", "type", "enum", "const", "properties", "patternProperties",
     "additionalProperties", "required", "items", "prefixItems", "allOf", "anyOf", "oneOf", "not", "if", "pattern",
     "format"]
)  # fmt: skip


@dataclass(frozen=True)
class Item:
    """A schema and instances: pairs of data and whether it is valid.

    Attributes:
        name: of the schema.
        group: data set or keyword that it belongs to.
        schema: as Python data, keys in their order.
        tests: instances.
        options: for our engine's compiler.
        plain: it stood alone, without a place for instances.
    """

    name: str
    group: str
    schema: Any
    tests: list[tuple[Any, bool]]
    options: dict[str, Any] = field(default_factory=dict)
    plain: bool = False


def read(path: pathlib.Path) -> list[Item]:
    """All schemas of a folder or file.

    Args:
        path: a JSONL file with `{"id", "schema", "tests": [{"valid", "data"}]}` per line; a folder of such JSON files,
            one schema each (MaskBench); or a folder of the JSON-Schema-Test-Suite, whose files are lists of groups.
            Plain schemas, which have no instances, count in a JSONL file, and in a folder with none of the others.

    Raises:
        ValueError: nothing of that kind is there.
    """
    if path.is_file() and path.suffix == ".jsonl":
        lines = path.read_text(encoding="utf-8").splitlines()
        each = [_object(json.loads(line), f"line {n}") for n, line in enumerate(lines, 1) if line.strip()]
        found = [item for items in each for item in items]
    else:
        files = sorted(path.rglob("*.json")) if path.is_dir() else [path]
        files = [one for one in files if "remotes" not in one.relative_to(path).parts]
        remotes = _remotes(path)
        found = [item for one in files for item in _file(one, path, remotes)]
        found = [item for item in found if not item.plain] or found
    if not found:
        raise ValueError(f"{path} holds no schemas: expected JSON Schemas, plain or with instances")
    return found


def _object(data: Any, name: str, group: str = "") -> list[Item]:
    """The schema of an object: one in it with its instances, or the object itself."""
    if isinstance(data, dict) and "schema" in data:
        tests = [(test["data"], bool(test["valid"])) for test in data.get("tests", [])]
        return [Item(str(data.get("id", name)), str(data.get("dataset", group)), data["schema"], tests)]
    if isinstance(data, dict) and not KEYWORDS.isdisjoint(data):
        return [Item(name, group, data, [], plain=True)]
    return []


def _remotes(top: pathlib.Path) -> dict[str, Any]:
    """What references of the test suite lead to: the folder `remotes` in it or beside it."""
    folder = next((one / "remotes" for one in (top, top.parent) if (one / "remotes").is_dir()), None)
    if folder is None:
        return {}
    files = sorted(folder.rglob("*.json"))
    texts = {str(one.relative_to(folder)): one.read_text(encoding="utf-8") for one in files}
    return {f"http://localhost:1234/{name}": json.loads(text) for name, text in texts.items()}


def _file(path: pathlib.Path, top: pathlib.Path, remotes: dict[str, Any]) -> list[Item]:
    data = json.loads(path.read_text(encoding="utf-8"))
    if isinstance(data, dict):
        return _object(data, path.stem, path.stem.split("---")[0])
    if not isinstance(data, list) or not all(isinstance(one, dict) and "tests" in one for one in data):
        return []
    place = path.relative_to(top).with_suffix("")
    folders = [*top.parts, *place.parts]
    draft = next((DRAFTS[part] for part in folders if part in DRAFTS), None)
    # There `format` is an annotation, but for the files that ask for assertions.
    asserts = "format" in place.parts[:-1] or place.name == "format-assertion"
    options: dict[str, Any] = {} if asserts else {"formats": "annotate"}
    if remotes:
        options["registry"] = remotes
    items = []
    for group in data:
        schema = group["schema"]
        if draft is not None and isinstance(schema, dict) and "$schema" not in schema:
            schema = {"$schema": draft, **schema}
        tests = [(test["data"], bool(test["valid"])) for test in group["tests"]]
        items.append(Item(f"{place}: {group['description']}", str(place), schema, tests, options))
    return items


def sample(items: list[Item], limit: int, seed: int = 0) -> list[Item]:
    """At most ``limit`` of the items, in their order; 0: all."""
    if not limit or limit >= len(items):
        return items
    chosen = sorted(random.Random(seed).sample(range(len(items)), limit))
    return [items[i] for i in chosen]
