"""A network as an ExecuTorch program: as torch answers, signed; and said in a line where the extra is not installed."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
import torch
from click.testing import CliRunner

from qedge.audit.receipt import Receipt, verify
from qedge.cli import main
from tests.edge.conftest import Home

INSTALLED = importlib.util.find_spec("executorch") is not None


def call(home: Home, *arguments: str) -> dict[str, object]:
    done = CliRunner().invoke(main, ["edge", "export", *arguments, "--home", str(home.settings.home), "--json"])
    answer: dict[str, object] = json.loads(done.stdout.splitlines()[-1])
    return answer


@pytest.mark.slow
@pytest.mark.skipif(not INSTALLED, reason="the extra `executorch` is not installed")
def test_the_program_answers_as_the_graph_does_and_is_signed(home: Home, tmp_path: Path) -> None:
    from executorch.runtime import Runtime

    told = call(home, "digits/1", str(tmp_path / "digits.pte"))
    rows = home.calibration.held.rows[:50]
    method = Runtime.get().load_program(tmp_path / "digits.pte").load_method("forward")
    (found,) = method.execute([torch.from_numpy(rows)])
    session = onnxruntime.InferenceSession(str(home.model / "model.onnx"))
    np.testing.assert_allclose(found.numpy(), session.run(["probabilities"], {"features": rows})[0], atol=1e-5)
    receipt = Receipt.read(tmp_path / "digits.receipt.json")
    verify(receipt, home.records.keys.public, tmp_path)
    assert (receipt.id, receipt.parent) == (told["receipt"], Receipt.read(home.model / "receipt.json").id)


@pytest.mark.skipif(INSTALLED, reason="the extra `executorch` is installed")
def test_without_the_extra_a_line_says_how_to_get_it(home: Home, tmp_path: Path) -> None:
    error = call(home, "digits/1", str(tmp_path / "digits.pte"))["error"]
    assert "qedge[executorch]" in error["message"]  # type: ignore[index]
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("place", ["digits.onnx", "nowhere/digits.pte"])
def test_what_is_no_place_for_it_is_refused_first(home: Home, tmp_path: Path, place: str) -> None:
    assert call(home, "digits/1", str(tmp_path / place))["error"]["code"] == "edge.refused"  # type: ignore[index]
