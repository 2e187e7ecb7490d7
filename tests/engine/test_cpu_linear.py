"""Linear layers of vLLM's CPU build take what lies in any way, once repaired."""

from __future__ import annotations

import pytest

from triptych.engines.vllm.cpu_linear import take_any_layout
from triptych.engines.vllm.environment import is_cpu_build

pytestmark = pytest.mark.skipif(not is_cpu_build(), reason="of vLLM's CPU build only")


def test_values_that_are_not_adjacent(monkeypatch: pytest.MonkeyPatch) -> None:
    import torch
    from vllm import _custom_ops

    monkeypatch.setattr(_custom_ops, "onednn_mm", _custom_ops.onednn_mm)  # as it was, afterwards
    if not _custom_ops._supports_onednn:
        pytest.skip("vLLM was built without oneDNN")
    torch.manual_seed(1)
    weight = torch.randn(24, 48)
    handler = _custom_ops.create_onednn_mm(weight.t(), 32)
    values = torch.randn(1, 48, 16).transpose(1, 2)  # [1, 16, 48], of one picture's patches
    take_any_layout()
    take_any_layout()
    torch.testing.assert_close(_custom_ops.onednn_mm(handler, values, None), values @ weight.t())
