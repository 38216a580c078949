"""What transformers answers: the measure of the reference worker."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch


@dataclass(frozen=True, slots=True)
class Answer:
    """A greedy answer, and how far ahead of the second best each of its tokens was."""

    tokens: list[int]
    gaps: list[float]


class Oracle:
    """A model as transformers loads and runs it."""

    def __init__(self, folder: Path, dtype: torch.dtype) -> None:
        from transformers import AutoModelForCausalLM, logging

        logging.set_verbosity_error()
        logging.disable_progress_bar()
        self._model: Any = AutoModelForCausalLM.from_pretrained(folder, dtype=dtype).eval()

    def greedy(self, prompt: Sequence[int], count: int, *, ignore_eos: bool = True) -> Answer:
        """The library's own `generate`, one prompt at a time."""
        given = torch.tensor([list(prompt)])
        made = self._model.generate(
            given,
            attention_mask=torch.ones_like(given),
            max_new_tokens=count,
            do_sample=False,
            eos_token_id=None if ignore_eos else self._model.config.eos_token_id,
            pad_token_id=0,
            output_logits=True,
            return_dict_in_generate=True,
        )
        best = [logits[0].float().topk(2).values.tolist() for logits in made.logits]
        tokens: list[int] = made.sequences[0, len(prompt) :].tolist()
        return Answer(tokens, [first - second for first, second in best])
