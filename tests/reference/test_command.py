"""`polyphase worker` as a process, and what it says when it cannot start."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner

from router.cli.children import child
from router.cli.main import cli
from tests.reference.models import make_model
from tests.reference.stage import greedy
from tests.shell import rig
from tests.shell.rig import lane


def said(*arguments: str) -> tuple[int, str]:
    """Exit code and output of the command."""
    result = CliRunner().invoke(cli, ["worker", *arguments])
    return result.exit_code, result.output


@pytest.mark.process
async def test_a_worker_process_with_random_weights(tmp_path: Path) -> None:
    """A config.json is enough; the process announces itself, answers, and drains at the end."""
    folder = make_model(tmp_path / "tiny", torch.float32)
    options = ("--random-weights", "3", "--dtype", "fp32", "--threads", "1", "--listen", "127.0.0.1:0")
    model = ("--model", str(folder / "config.json"))
    async with child("worker", ("worker", "--supervised", *model, *options), {}) as process:
        async with lane(process.ready["worker"], "tiny-both") as end:
            assert end.welcome.spec.models == ["tiny"] and end.welcome.spec.step.base_s > 0.0
            await end.send(rig.prefill(1, greedy("r", [5, 6, 7], 4), decode_here=True))
            await end.event(1, "decode_done")
            assert len(end.answer(1)) == 4


def test_trouble_is_told(tmp_path: Path) -> None:
    """A model without weights, a device that is not there, no room for a page: what, and what to do."""
    folder = make_model(tmp_path / "tiny", torch.float32)
    (folder / "model.safetensors").unlink()
    model = ("--model", str(folder))
    code, text = said(*model)
    assert code == 78 and "cannot be read" in text
    code, text = said(*model, "--device", "toaster")
    assert code == 78 and "'toaster' cannot be used" in text
    code, text = said(*model, "--random-weights", "1", "--kv-tokens", "16", "--block-tokens", "32")
    assert code == 78 and "kv_capacity_tokens" in text
    code, text = said(*model, "--tokenizer", str(folder / "config.json"))
    assert code == 78 and "tokenizer" in text


def test_the_extra_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without torch the command says what to install."""
    monkeypatch.setitem(sys.modules, "torch", None)
    code, text = said("--model", str(tmp_path))
    assert code == 78 and "polyphase[torch]" in text
