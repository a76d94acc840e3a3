"""Schemas with instances for the grammar benchmark, out of the three kinds of files that are about."""

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


@dataclass(frozen=True)
class Item:
    """A schema and instances: pairs of data and whether it is valid.

    Attributes:
        name: of the schema.
        group: data set or keyword that it belongs to.
        schema: as Python data, keys in their order.
        tests: instances.
        options: for our engine's compiler.
    """

    name: str
    group: str
    schema: Any
    tests: list[tuple[Any, bool]]
    options: dict[str, Any] = field(default_factory=dict)


def read(path: pathlib.Path) -> list[Item]:
    """All schemas of a folder or file.

    Args:
        path: a JSONL file with `{"id", "schema", "tests": [{"valid", "data"}]}` per line; a folder of such JSON files,
            one schema each (MaskBench); or a folder of the JSON-Schema-Test-Suite, whose files are lists of groups.

    Raises:
        ValueError: nothing of that kind is there.
    """
    if path.is_file() and path.suffix == ".jsonl":
        lines = path.read_text(encoding="utf-8").splitlines()
        found = [_one(json.loads(line), f"line {n}") for n, line in enumerate(lines, 1) if line.strip()]
    else:
        files = sorted(path.rglob("*.json")) if path.is_dir() else [path]
        files = [one for one in files if "remotes" not in one.relative_to(path).parts]
        remotes = _remotes(path)
        found = [item for one in files for item in _file(one, path, remotes)]
    if not found:
        raise ValueError(f"{path} holds no schemas with instances")
    return found


def _one(data: dict, name: str) -> Item:
    tests = [(test["data"], bool(test["valid"])) for test in data.get("tests", [])]
    return Item(str(data.get("id", name)), str(data.get("dataset", "")), data["schema"], tests)


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
    if isinstance(data, dict) and "schema" in data:
        return [_one({"id": path.stem, "dataset": path.stem.split("---")[0], **data}, path.stem)]
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
