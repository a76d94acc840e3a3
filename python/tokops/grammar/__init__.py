"""Grammars and filters: what may come next, as bitmasks over the vocabulary, and what is done with them."""

from typing import TYPE_CHECKING, Any

from .._discover import ops_of
from .constraint import Constraint as Constraint
from .constraint import Counting as Counting
from .constraint import MatcherConstraint as MatcherConstraint
from .constraint import PredicateConstraint as PredicateConstraint
from .infill import Completion as Completion
from .infill import Gap as Gap
from .infill import InfillGrammar as InfillGrammar
from .infill import InfillUnknownError as InfillUnknownError

if TYPE_CHECKING:  # type checkers do not see what is discovered

    def __getattr__(name: str) -> Any: ...


_public = ops_of(__name__, __path__)
globals().update(_public)
__all__ = sorted(
    [
        *_public,
        *(
            "Completion",
            "Constraint",
            "Counting",
            "Gap",
            "GrammarProcessor",
            "InfillGrammar",
            "InfillUnknownError",
        ),
        *("MatcherConstraint", "PredicateConstraint"),
    ]
)

if not TYPE_CHECKING:

    def __getattr__(name: str) -> Any:
        if name == "GrammarProcessor":  # transformers is an extra, and imported when it is asked for
            from ..hf.grammar import GrammarProcessor

            return GrammarProcessor
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
