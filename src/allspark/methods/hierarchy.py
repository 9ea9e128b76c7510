"""Classes and what is above them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from allspark.errors import ConfigError

_FIELD = "method.hierarchy"


def classes_below(hierarchy: Mapping[str, Sequence[str]], classes: Sequence[str]) -> list[list[int]]:
    """The ids of the classes below each parent, in the order of the parents.

    Args:
        hierarchy: parent: children, which are classes or parents themselves.
        classes: the data set's, by id.

    Raises:
        ConfigError: it is empty or no forest over these classes.
    """
    if not hierarchy:
        raise ConfigError(
            f"{_FIELD}: name what is above the classes, parent: [children]; there are {', '.join(classes)}"
        )
    if both := hierarchy.keys() & set(classes):
        raise ConfigError(f"{_FIELD}: {min(both)} is a class, and cannot be a parent too")
    children = [child for below in hierarchy.values() for child in below]
    if unknown := [child for child in children if child not in classes and child not in hierarchy]:
        raise ConfigError(f"{_FIELD}: no class and no parent {unknown[0]!r}; the classes are {', '.join(classes)}")
    if twice := {child for child in children if children.count(child) > 1}:
        raise ConfigError(f"{_FIELD}: {min(twice)} has two places, and can have one")
    return [_below(parent, hierarchy, classes, ()) for parent in hierarchy]


def _below(
    node: str, hierarchy: Mapping[str, Sequence[str]], classes: Sequence[str], above: tuple[str, ...]
) -> list[int]:
    if node in above:
        raise ConfigError(f"{_FIELD}: {node} is above itself")
    if node not in hierarchy:
        return [classes.index(node)]
    found = [number for child in hierarchy[node] for number in _below(child, hierarchy, classes, (*above, node))]
    if not found:
        raise ConfigError(f"{_FIELD}: there is no class below {node}")
    return sorted(found)
