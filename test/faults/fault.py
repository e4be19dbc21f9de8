"""What a kind of fault is, and the list of them."""

from __future__ import annotations

from dataclasses import dataclass
from random import Random
from typing import TYPE_CHECKING, Callable, Dict

if TYPE_CHECKING:
    from fault_bench import Bench


class UnavailableError(Exception):
    """This machine cannot have such a fault; says why."""


@dataclass(frozen=True)
class Kind:
    """One kind of fault.

    Attributes:
        name: Of the kind.
        strike: Has a training meet a fault of this kind and checks what becomes of it; returns what happened, in words.
            Raises AssertionError where something is lost, or differs, or is said badly.
        weight: How often it is drawn, where the quickest are drawn most often.
    """

    name: str
    strike: Callable[[Bench, Random], str]
    weight: int


KINDS: Dict[str, Kind] = {}


def kind(name: str, weight: int = 1) -> Callable:
    """Enter a function into the list."""

    def enter(strike: Callable[[Bench, Random], str]) -> Callable:
        KINDS[name] = Kind(name, strike, weight)
        return strike

    return enter
