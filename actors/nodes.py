"""Which node of the cluster this process is on, and which one is the head: there the state of every run lies."""

from __future__ import annotations

from dataclasses import dataclass

import ray

from qedge.errors import HomeUnusable

HEAD = "node:__internal_head__"  # a resource that Ray gives the head node alone


@dataclass(frozen=True)
class Node:
    """A node's id, and the address by which the others reach it."""

    id: str
    address: str


def head_node() -> Node | None:
    """The head node of the cluster this process is connected to, or None where it is not to be seen."""
    found = next((node for node in ray.nodes() if node["Alive"] and HEAD in node["Resources"]), None)
    return Node(found["NodeID"], found["NodeManagerAddress"]) if found else None


def refuse_off_head() -> None:
    """Refuse to keep runs and budgets from another node than the head.

    A run's coordinator works on the head, with the ledger of the home it finds there. What a driver elsewhere would hold in the
    home of its own machine, nobody would ever charge.

    Raises:
        HomeUnusable: this process is not on the head node.
    """
    head = head_node()
    if head is not None and head.id != ray.get_runtime_context().get_node_id():
        raise HomeUnusable(
            f"runs and budgets of this cluster are kept on its head, {head.address}, and this is another node of it: run this command "
            "there (from anywhere: `ray exec CLUSTER.yaml 'qedge …'`)",
            head=head.address,
        )
