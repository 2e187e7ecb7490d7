"""Chooses the instances that an administrative request is for. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from triptych.contracts.admin import ACTIONS, Action
from triptych.contracts.card import Instance
from triptych.contracts.errors import AbilityMissing, BadRequest, NotFound
from triptych.contracts.shown import shown
from triptych.frontend.admin.request import Target

MAX_NAMED = 20
"""The limit on workers that are named in an error."""


def targets_of(action: Action[Any, Any], target: Target, instances: Sequence[Instance]) -> list[Instance]:
    """Returns the target instances among those that serve the model.

    Raises NotFound for a name that no instance has, AbilityMissing if a named instance lacks the ability or none has
    it, and BadRequest if the request wants all or nothing of an action that cannot be undone.
    """
    if target.all_or_nothing and action.undo not in ACTIONS:
        raise BadRequest(
            f"all_or_nothing: nothing takes {action.name} back once a worker has done it; leave the field out",
            param="all_or_nothing",
            code="cannot_be_undone",
        )
    chosen = _named(target, instances) if target.instances else sorted(instances, key=lambda instance: instance.name)
    able = [instance for instance in chosen if action.ability in instance.abilities]
    if lacking := [instance for instance in chosen if instance not in able] if target.instances or not able else []:
        raise AbilityMissing(
            f"{action.name}: {_names(lacking)} cannot do this as configured (engine "
            f"{', '.join(sorted({instance.engine for instance in lacking}))})",
            param="instances" if target.instances else "model",
            code="ability_missing",
        )
    return able


def _named(target: Target, instances: Sequence[Instance]) -> list[Instance]:
    chosen: dict[str, Instance] = {}
    for index, name in enumerate(target.instances):
        found = next((instance for instance in instances if name in (instance.name, instance.id)), None)
        if found is None:
            raise NotFound(
                f"instances[{index}]: no worker of {shown(target.model)} that is alive is called {shown(name)}; "
                f"alive: {_names(instances)}",
                param=f"instances[{index}]",
                code="instance_not_found",
            )
        chosen[found.id] = found
    return list(chosen.values())


def _names(instances: Sequence[Instance]) -> str:
    named = ", ".join(instance.name for instance in instances[:MAX_NAMED])
    return named + (f" and {len(instances) - MAX_NAMED} more" if len(instances) > MAX_NAMED else "")
