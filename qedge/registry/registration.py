"""A model folder becomes a version in MLflow.

A run leaves model.onnx, weights.safetensors, receipt.json and card.json in one folder. It goes in byte for byte, so that the
digests on the receipt hold for the file that serving reads and for the file that
`mlflow.pyfunc.load_model("models:/NAME@champion")` reads: they are the same file. Every step may be repeated after a crash.
Source: MLflow 3 logged models, https://mlflow.org/docs/latest/ml/model/.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import tempfile
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from qedge.errors import ArtifactTampered
from qedge.registry.registry import MODEL_FILE, RECEIPT_FILE, RECEIPT_TAG, aliases_of, logged_model

if TYPE_CHECKING:
    import onnx
    from mlflow import MlflowClient
    from mlflow.entities import LoggedModel, Run
    from mlflow.models import ModelSignature


def register(client: MlflowClient, run: Run, name: str, folder: Path, tags: Mapping[str, str]) -> int:
    """The number of the version that holds `folder`: found when this run registered it before, else created.

    A new version becomes `challenger`, and `champion` when there is none or the tag `promote` says so. Aliases never move
    to an older version here, so that a repeat after a crash cannot undo what came later.

    Raises:
        ArtifactTampered: a file that does not match its digest on the receipt.
    """
    from mlflow.exceptions import MlflowException

    receipt_id = _check(folder, tags.get(RECEIPT_TAG))
    kept = {key: value for key, value in tags.items() if key.startswith("qedge.")} | {RECEIPT_TAG: receipt_id}
    try:
        client.create_registered_model(name)
    except MlflowException as error:
        if error.error_code != "RESOURCE_ALREADY_EXISTS":
            raise
    mine = [found for found in client.search_model_versions(f"name='{name}'") if found.run_id == run.info.run_id]
    version = next((found for found in mine if found.tags.get(RECEIPT_TAG) == receipt_id), None)
    if version is None:
        model = _logged_model(client, run, name, folder, kept)
        source = model.artifact_location
        version = client.create_model_version(name, source, run_id=run.info.run_id, tags=kept, model_id=model.model_id)
    number = int(version.version)
    aliases = aliases_of(client, name)
    if aliases.get("challenger", 0) < number:
        client.set_registered_model_alias(name, "challenger", str(number))
    if "champion" not in aliases or (tags.get("promote") == "champion" and aliases["champion"] < number):
        client.set_registered_model_alias(name, "champion", str(number))
    return number


def _check(folder: Path, receipt_id: str | None) -> str:
    """The id on the receipt, once the files agree with it: a torn or exchanged file must not become a version."""
    try:
        receipt = json.loads((folder / RECEIPT_FILE).read_bytes())
        for name, digest in {MODEL_FILE: None, **receipt["artifacts"]}.items():
            if Path(name).name != name or hashlib.sha256((folder / name).read_bytes()).hexdigest() != digest:
                raise ArtifactTampered(f"{folder / name} does not match its digest on the receipt", path=str(folder / name))
    except (OSError, ValueError, TypeError, LookupError) as error:
        raise ArtifactTampered(f"{folder} cannot be registered: {type(error).__name__}: {error}", path=str(folder)) from None
    found = str(receipt.get("id", ""))
    if receipt_id is not None and found != receipt_id:
        raise ArtifactTampered(f"{folder}: the run names receipt {receipt_id}, the folder holds {found}", path=str(folder))
    return found


def _logged_model(client: MlflowClient, run: Run, name: str, folder: Path, tags: Mapping[str, str]) -> LoggedModel:
    """MLflow's logged model with the folder's files: the one an interrupted attempt left, or a new one."""
    from mlflow.entities import LoggedModelOutput, LoggedModelStatus

    experiment, run_id = run.info.experiment_id, run.info.run_id
    model = logged_model(client, run, tags[RECEIPT_TAG])
    if model is None:
        model = client.create_logged_model(experiment, name=name, source_run_id=run_id, tags=dict(tags))
    with tempfile.TemporaryDirectory() as scratch:
        packed = Path(scratch) / "model"
        _pack(folder, packed, run_id, model)
        client.log_model_artifacts(model.model_id, str(packed))
    outputs = client.get_run(run_id).outputs
    if outputs is None or model.model_id not in [output.model_id for output in outputs.model_outputs]:
        client.log_outputs(run_id, [LoggedModelOutput(model.model_id, step=0)])
    return client.finalize_logged_model(model.model_id, LoggedModelStatus.READY)


def _pack(folder: Path, packed: Path, run_id: str, model: LoggedModel) -> None:
    """An MLflow model folder around the run's files, each copied byte for byte.

    MLflow writes the ONNX file out again from what it parsed; the digest on the receipt is of ours, so ours goes back in.
    """
    from importlib.metadata import version

    import mlflow.onnx
    import onnx
    from google.protobuf.message import DecodeError  # type: ignore[import-untyped]
    from mlflow.models import Model

    try:
        graph = onnx.load(str(folder / MODEL_FILE), load_external_data=False)
    except DecodeError as error:
        raise ArtifactTampered(f"{folder / MODEL_FILE} is not an ONNX model: {error}", path=str(folder / MODEL_FILE)) from None
    described = Model(artifact_path=model.artifact_location, model_uuid=model.model_id, model_id=model.model_id, run_id=run_id)
    mlflow.onnx.save_model(
        graph,
        str(packed),
        mlflow_model=described,
        signature=_signature(graph),
        pip_requirements=[f"{package}=={version(package)}" for package in ("mlflow", "onnx", "onnxruntime", "numpy")],
        onnx_execution_providers=["CPUExecutionProvider"],
        save_as_external_data=False,
    )
    shutil.copytree(folder, packed, dirs_exist_ok=True)


def _signature(graph: onnx.ModelProto) -> ModelSignature:
    """Names, types and shapes from the graph itself: an example would have to be run, and costs seconds."""
    import onnx
    from mlflow.models import ModelSignature
    from mlflow.types import Schema, TensorSpec

    def schema(values: Iterable[onnx.ValueInfoProto]) -> Schema:
        specs = []
        for value in values:
            kind = onnx.helper.tensor_dtype_to_np_dtype(value.type.tensor_type.elem_type)
            shape = tuple(step.dim_value if step.HasField("dim_value") else -1 for step in value.type.tensor_type.shape.dim)
            specs.append(TensorSpec(kind, shape, value.name))
        return Schema(specs)

    return ModelSignature(schema(graph.graph.input), schema(graph.graph.output))
