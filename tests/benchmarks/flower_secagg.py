"""A secure sum by Flower's SecAgg+: `python flower_secagg.py SUM THRESHOLD`, run by the peer's own Python; it prints what it took as JSON.

SUM: an .npz file with `vectors` ([clients, length] float32, all of one weight) and `lost` (the places of those that are lost after their
shares were handed on, before they send a masked vector). Flower's own workflow and client mod run unmodified. Only its network is
replaced, by one in this process that passes each message on as the bytes that Flower would send. Times are the process's CPU time in the
mod and in the workflow: what training takes, and putting messages into bytes and reading them, is left out.
"""

from __future__ import annotations

import base64
import json
import logging
import secrets
import sys
import time
from collections import defaultdict
from collections.abc import Iterable

import numpy as np
from flwr.app import ConfigRecord, Context, Message, RecordDict
from flwr.client.mod.secure_aggregation.secaggplus_mod import secaggplus_mod
from flwr.common import Code, FitRes, Status, ndarrays_to_parameters, parameters_to_ndarrays
from flwr.common.secure_aggregation.crypto.symmetric_encryption import generate_shared_key
from flwr.common.secure_aggregation.secaggplus_constants import RECORD_KEY_CONFIGS, Key, Stage
from flwr.common.secure_aggregation.secaggplus_utils import pseudo_rand_gen
from flwr.common.serde import message_from_proto, message_to_proto
from flwr.compat.common import recorddict_compat
from flwr.proto.message_pb2 import Message as OnTheWire
from flwr.server.client_manager import SimpleClientManager
from flwr.server.client_proxy import ClientProxy
from flwr.server.compat.legacy_context import LegacyContext
from flwr.server.strategy import FedAvg
from flwr.server.workflow.constant import MAIN_CONFIGS_RECORD, MAIN_PARAMS_RECORD
from flwr.server.workflow.constant import Key as WorkflowKey
from flwr.server.workflow.secure_aggregation.secaggplus_workflow import SecAggPlusWorkflow
from flwr.supercore.primitives.asymmetric import generate_key_pairs
from flwr.supercore.task_identity import TaskIdentity

MODULUS = 2**32
WEIGHT = 1000  # rows of each client: as many as Flower takes for the most, with which its quantisation is at its finest
STAGES = (Stage.SETUP, Stage.SHARE_KEYS, Stage.COLLECT_MASKED_VECTORS, Stage.UNMASK)
AGREED_KEYS = 200  # a bit that is set half the time is never set in so many once in 2^200


class Listed(ClientProxy):
    """A client by its number; the workflow asks it for nothing, it sends messages."""

    def __init__(self, node: int) -> None:
        super().__init__(str(node))
        self.node_id = node

    def _nothing(self, *_: object) -> None:
        raise NotImplementedError

    get_properties = get_parameters = fit = evaluate = reconnect = _nothing


class InProcess:
    """What Flower calls a grid: every message to its client, in this process; counts bytes, and CPU time on both sides."""

    def __init__(self, vectors: np.ndarray, lost: Iterable[int]) -> None:
        self.lost = {place + 1 for place in lost}
        self.contexts = {place + 1: Context(1, place + 1, {}, RecordDict(), {}) for place in range(len(vectors))}
        self.trained = {place + 1: _trained(vector) for place, vector in enumerate(vectors)}
        self.sent = 0
        self.client: dict[str, list[float]] = defaultdict(list)
        self.up: dict[str, list[int]] = defaultdict(list)
        self.down: dict[str, list[int]] = defaultdict(list)
        self.server: dict[str, float] = {}
        self.since = 0.0

    def send_and_receive(self, messages: Iterable[Message], *, timeout: float | None = None) -> list[Message]:
        """The answers of those that are not lost."""
        asked = list(messages)
        stage = str(asked[0].content.config_records[RECORD_KEY_CONFIGS][Key.STAGE])
        self.server[f"before {stage}"] = time.process_time() - self.since
        answers = [
            self._answer(message, stage)
            for message in asked
            if stage != Stage.COLLECT_MASKED_VECTORS or message.metadata.dst_node_id not in self.lost
        ]
        self.since = time.process_time()
        return answers

    def _answer(self, message: Message, stage: str) -> Message:
        node = message.metadata.dst_node_id
        self.sent += 1
        message.metadata._message_id = str(self.sent)
        asked = message_to_proto(message).SerializeToString()
        received = message_from_proto(OnTheWire.FromString(asked))
        begun = time.process_time()
        answer = secaggplus_mod(received, self.contexts[node], lambda asked, _: Message(self.trained[node], reply_to=asked))
        self.client[stage].append(time.process_time() - begun)
        answered = message_to_proto(answer).SerializeToString()
        self.down[stage].append(len(asked))
        self.up[stage].append(len(answered))
        return message_from_proto(OnTheWire.FromString(answered))


def secure_mean(vectors: np.ndarray, lost: np.ndarray, threshold: int) -> dict[str, object]:
    """A round: what it took by stage, CPU seconds of a client and of the server, bytes of a client, and how far the mean is off."""
    count, length = vectors.shape
    workflow = SecAggPlusWorkflow(num_shares=count, reconstruction_threshold=threshold, max_weight=float(WEIGHT), modulus_range=MODULUS)
    manager = SimpleClientManager()
    for place in range(count):
        manager.register(Listed(place + 1))
    strategy = FedAvg(fraction_fit=1.0, min_fit_clients=count, min_available_clients=count)
    context = LegacyContext(Context(1, 0, {}, RecordDict(), {}), strategy=strategy, client_manager=manager)
    context.state.config_records[MAIN_CONFIGS_RECORD] = ConfigRecord({WorkflowKey.CURRENT_ROUND: 1})
    weights = ndarrays_to_parameters([np.zeros(length, dtype=np.float32)])
    context.state.array_records[MAIN_PARAMS_RECORD] = recorddict_compat.parameters_to_arrayrecord(weights, True)
    grid = InProcess(vectors, lost.tolist())
    grid.since = time.process_time()
    workflow(grid, context)
    grid.server["unmask"] = time.process_time() - grid.since
    if tuple(grid.client) != STAGES or len(grid.client[Stage.UNMASK]) != count - len(lost):
        raise RuntimeError(f"the workflow halted: answers { ({stage: len(times) for stage, times in grid.client.items()}) }")
    record = context.state.array_records[MAIN_PARAMS_RECORD]
    mean = parameters_to_ndarrays(recorddict_compat.arrayrecord_to_parameters(record, True))[0]
    expected = np.delete(vectors, lost, axis=0).mean(axis=0, dtype=np.float64)
    return {
        "client": {stage: sum(times) / len(times) for stage, times in grid.client.items()},
        "server": grid.server,
        "up": sum(sum(sizes) / len(sizes) for sizes in grid.up.values()),
        "down": sum(sum(sizes) / len(sizes) for sizes in grid.down.values()),
        "error": float(np.abs(mean - expected).max()),
    }


def folded_seeds() -> dict[str, object]:
    """How much of a mask's 32-byte secret Flower's generator makes use of.

    It takes a secret's four-byte words together by exclusive or, so that their order does not matter. pair: two secrets of 32 bytes, in
    hexadecimal; same_mask: whether both, in the form in which Flower has keys, give one mask; of_32_bits: whether that is what NumPy's
    generator gives from the folded number alone; bits: how many bits of that number were ever set, over keys that pairs agreed on.
    """
    secret = secrets.token_bytes(32)
    other = secret[3:30] + secret[:3] + secret[30:]  # three bytes of a secret are one word of base64
    one, two = (_mask(base64.urlsafe_b64encode(each)) for each in (secret, other))
    known = np.random.RandomState(_folded(base64.urlsafe_b64encode(secret))).randint(0, MODULUS - 1, len(one), dtype=np.int64)
    ever = 0
    for _ in range(AGREED_KEYS):
        (private, _), (_, public) = generate_key_pairs(), generate_key_pairs()
        ever |= _folded(generate_shared_key(private, public))
    return {
        "pair": [secret.hex(), other.hex()],
        "same_mask": bool(secret != other and np.array_equal(one, two)),
        "of_32_bits": bool(np.array_equal(one, known)),
        "bits": ever.bit_count(),
    }


def _trained(vector: np.ndarray) -> RecordDict:
    """What a client's training answers."""
    result = FitRes(Status(Code.OK, ""), ndarrays_to_parameters([vector]), WEIGHT, {})
    return recorddict_compat.fitres_to_recorddict(result, False)


def _mask(key: bytes) -> np.ndarray:
    return pseudo_rand_gen(key, MODULUS, [(1000,)])[0]


def _folded(key: bytes) -> int:
    return int(np.bitwise_xor.reduce(np.frombuffer(key, "<u4")))


def main() -> None:
    """One sum."""
    logging.getLogger("flwr").setLevel(logging.ERROR)
    TaskIdentity.task_id = TaskIdentity.run_id = TaskIdentity.node_id = 1  # who makes messages, which is asked of a whole process
    with np.load(sys.argv[1]) as given:
        taken = secure_mean(given["vectors"], given["lost"], int(sys.argv[2]))
    print(json.dumps({**taken, "seeds": folded_seeds()}))


if __name__ == "__main__":
    main()
