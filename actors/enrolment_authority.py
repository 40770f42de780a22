"""The enrolment authority on Ray: an actor of its own, so that the coordinator holds neither its key nor any client's.

Inside one cluster that keeps roles apart, no more: whoever owns the cluster can read this actor too.
"""

from __future__ import annotations

import os
from collections.abc import Sequence

import ray
from ray.actor import ActorHandle
from ray.exceptions import RayActorError

from qedge.errors import RoundFailed
from qedge.secure_aggregation.identity import EnrolmentAuthority, Provision, Roster


@ray.remote(num_cpus=0, max_restarts=0)
class EnrolmentAuthorityActor:
    """Enrols the simulated clients of a run as it starts; their identities begin and end with it."""

    def __init__(self, federation: str, members: int, kind: str) -> None:
        self.authority = EnrolmentAuthority(federation, os.urandom(32), kind=kind)
        self.authority.enrol_simulated(members)

    def provision(self) -> Provision:
        """For the actors that stand for clients."""
        return self.authority.provision()

    def roster(self, clients: Sequence[int]) -> Roster:
        """See `EnrolmentAuthority.roster`."""
        return self.authority.roster(clients)


def roster_of(authority: ActorHandle, clients: Sequence[int]) -> Roster:
    """See `EnrolmentAuthority.roster`.

    Raises:
        RoundFailed: the authority is gone, and with it who its clients are.
    """
    try:
        return ray.get(authority.roster.remote(clients))
    except RayActorError:
        raise RoundFailed("the enrolment authority was lost; resume, and its clients are enrolled anew") from None
