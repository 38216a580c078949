"""Write a tiny Llama with random weights, and its tokenizer: `python make_model.py FOLDER`.

Runs in the environment of vLLM.

Its attention is made strong, so that the next token depends on the whole context: with plain random weights
the same token comes whatever the KV holds, and a test of tokens would show nothing.
"""

import sys
import sysconfig
from pathlib import Path

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

SEED = 7
VOCABULARY = 8192


def write_tokenizer(folder: Path) -> None:
    """Byte-level BPE, trained on the standard library's sources."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=["<s>", "</s>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    sources = sorted(Path(sysconfig.get_paths()["stdlib"]).glob("*.py"))
    tokenizer.train([str(source) for source in sources[:60]], trainer)
    names = {"bos_token": "<s>", "eos_token": "</s>"}
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, **names)
    fast.save_pretrained(folder)


def write_model(folder: Path) -> None:
    """Four layers of 128."""
    torch.manual_seed(SEED)
    torch.set_num_threads(1)
    config = LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=128,
        intermediate_size=256,
        num_hidden_layers=4,
        num_attention_heads=4,
        num_key_value_heads=4,
        head_dim=32,
        max_position_embeddings=2048,
        tie_word_embeddings=False,
        initializer_range=0.1,
        bos_token_id=0,
        eos_token_id=1,
    )
    model = LlamaForCausalLM(config).to(torch.bfloat16)
    for layer in model.model.layers:
        layer.self_attn.o_proj.weight.data.mul_(6.0)
    model.save_pretrained(folder)


if __name__ == "__main__":
    write_tokenizer(Path(sys.argv[1]))
    write_model(Path(sys.argv[1]))
