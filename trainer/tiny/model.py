"""The embedded policy: a Qwen3 of about 0.1M parameters with random weights, made on the spot.

    2 layers, hidden 64, 4 query and 2 key/value heads of 16, SwiGLU 128, tied embeddings, float32

A real `Qwen3ForCausalLM`: TRL, PEFT, checkpoints and our fused head run the same code
on it as on a 4B Qwen3.
"""

import torch
from transformers import PreTrainedTokenizerBase, Qwen3Config, Qwen3ForCausalLM


def build_model(tokenizer: PreTrainedTokenizerBase, *, seed: int, max_positions: int = 2048) -> Qwen3ForCausalLM:
    """A randomly initialised model for `tokenizer`; the same for the same seed, whatever was drawn before."""
    config = Qwen3Config(
        vocab_size=len(tokenizer),
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=16,
        max_position_embeddings=max_positions,
        tie_word_embeddings=True,
        pad_token_id=tokenizer.pad_token_id,
        eos_token_id=tokenizer.eos_token_id,
        bos_token_id=None,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = Qwen3ForCausalLM(config)
    model.generation_config.eos_token_id = tokenizer.eos_token_id
    model.generation_config.pad_token_id = tokenizer.pad_token_id
    return model
