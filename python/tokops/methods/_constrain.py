"""What constraining methods share: they work on a patched model, or as processors given to ``generate``."""

import importlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar

from .base import Method


@dataclass(frozen=True)
class Constrain(Method):
    """Base of methods that change logits or stop a text; :attr:`module` of ``tokops.hf`` does it."""

    slots: ClassVar[tuple[str, ...]] = ("constrain",)
    module: ClassVar[str]

    @property
    def hooks(self) -> str | None:
        return self.module

    def processor(self, *args: Any, **options: Any) -> Any:
        """A logits processor for ``generate(logits_processor=[...])`` on a model that is not patched.

        It keeps what it must know by text, so that beams, batches and trees of drafts need no care. A text that
        continues one it has seen belongs to the same generation; take a new processor for a prompt that repeats
        what an earlier generation wrote.

        Args:
            args, options: see ``make_processor`` of the method's module in ``tokops.hf``.
        """
        # The transformers side is imported only where it is used: methods come without it.
        return importlib.import_module(f"tokops.hf.{self.module}").make_processor(self, *args, **options)


def refuser(method: Method) -> Callable[[bool, str], None]:
    """A function that raises ValueError with the method's name where its first argument holds."""

    def refuse(wrong: bool, message: str) -> None:
        if wrong:
            raise ValueError(f"{type(method).__name__}: {message}")

    return refuse
