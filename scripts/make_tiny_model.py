#!/usr/bin/env python3
"""Write a tiny BitNet b1.58 checkpoint with random weights, a real tokenizer and a chat template.

It has every part of a Hub repository and runs every layer of the engine in milliseconds; it learnt nothing,
so its answers are noise. The same arguments write the same bytes.

    python scripts/make_tiny_model.py tests/data/tiny-bitnet
"""

import argparse
import json
from pathlib import Path

import ml_dtypes
import numpy as np
from safetensors.numpy import save_file
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers, processors, trainers

VOCAB_SIZE = 512
HIDDEN, INTERMEDIATE, LAYERS, HEADS, KV_HEADS, HEAD_DIM = 128, 320, 2, 4, 2, 32
SPECIALS = ("<|begin|>", "<|end|>", "<|system|>", "<|user|>", "<|assistant|>")
# Two ids more than the tokenizer names, as in many published models.
UNNAMED = 2
SPLIT = r"[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"

TEXT = """\
A small frog named Lily lived by the pond. Every morning she jumped onto a green leaf and looked for her
friends. One day she found a red ball in the grass. "Whose ball is this?" she asked. The old turtle
smiled and said, "I think it belongs to the boy who lives in the little house." So Lily pushed the ball
along the path, over the bridge and up the hill. It was hard work, and it began to rain, but she did not
stop. When the boy saw her, he was very happy. "Thank you, brave frog," he said. They played together
until the sun went down, and from then on they were friends. The table holds the sums; the index finds
them; one lookup takes the place of four multiplications. What is the answer to a question? It depends
on who is asking, and why. There are 7 days in a week, 12 months in a year and 365 days in most of them.
Where did the cat go? The cat went under the chair, because the dog came in from the garden. Please tell
me a story about a bird, a tree and the wind. Once upon a time there was a bird who was afraid of wind.
"""

CHAT_TEMPLATE = """\
{{ bos_token }}
{%- for message in messages %}
{{- '<|' + message['role'] + '|>' + message['content'] + eos_token }}
{%- endfor %}
{%- if add_generation_prompt %}
{{- '<|assistant|>' }}
{%- endif %}
"""


def make_tokenizer() -> Tokenizer:
    """A byte-level BPE trained on TEXT: VOCAB_SIZE - UNNAMED tokens."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(SPLIT), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCAB_SIZE - UNNAMED,
        special_tokens=[AddedToken(text, special=True, normalized=False) for text in SPECIALS],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(TEXT.splitlines(), trainer)
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{SPECIALS[0]} $A", special_tokens=[(SPECIALS[0], 0)]
    )
    return tokenizer


def make_tensors(seed: int) -> dict[str, np.ndarray]:
    """Ternary weights packed as in autobitlinear checkpoints (scale multiplies), bf16 embedding and norms."""
    rng = np.random.default_rng(seed)
    tensors: dict[str, np.ndarray] = {
        "model.embed_tokens.weight": _bf16(rng.normal(0, 0.1, (VOCAB_SIZE, HIDDEN))),
        "model.norm.weight": _bf16(rng.normal(2, 0.2, HIDDEN)),
    }
    shapes = {
        "self_attn.q_proj": (HEADS * HEAD_DIM, HIDDEN),
        "self_attn.k_proj": (KV_HEADS * HEAD_DIM, HIDDEN),
        "self_attn.v_proj": (KV_HEADS * HEAD_DIM, HIDDEN),
        "self_attn.o_proj": (HIDDEN, HEADS * HEAD_DIM),
        "mlp.gate_proj": (INTERMEDIATE, HIDDEN),
        "mlp.up_proj": (INTERMEDIATE, HIDDEN),
        "mlp.down_proj": (HIDDEN, INTERMEDIATE),
    }
    norms = {
        "input_layernorm": HIDDEN,
        "post_attention_layernorm": HIDDEN,
        "self_attn.attn_sub_norm": HIDDEN,
        "mlp.ffn_sub_norm": INTERMEDIATE,
    }
    for layer in range(LAYERS):
        for name, (m, k) in shapes.items():
            ternary = rng.choice([0, 1, 2], (4, m // 4, k), p=[0.3, 0.4, 0.3]).astype(np.uint8)
            # Byte (r, k): the codes (weight + 1) of rows r, r + m/4, r + m/2, r + 3m/4, from the low bits up.
            packed = ternary[0] | ternary[1] << 2 | ternary[2] << 4 | ternary[3] << 6
            tensors[f"model.layers.{layer}.{name}.weight"] = packed
            tensors[f"model.layers.{layer}.{name}.weight_scale"] = _bf16(np.array([1.3 / np.sqrt(k)]))
        for name, size in norms.items():
            tensors[f"model.layers.{layer}.{name}.weight"] = _bf16(rng.normal(1, 0.1, size))
    return tensors


def _bf16(values: np.ndarray) -> np.ndarray:
    return values.astype(ml_dtypes.bfloat16)


def _config() -> dict[str, object]:
    return {
        "architectures": ["BitNetForCausalLM"],
        "model_type": "bitnet",
        "vocab_size": VOCAB_SIZE,
        "hidden_size": HIDDEN,
        "intermediate_size": INTERMEDIATE,
        "num_hidden_layers": LAYERS,
        "num_attention_heads": HEADS,
        "num_key_value_heads": KV_HEADS,
        "max_position_embeddings": 1024,
        "rms_norm_eps": 1e-5,
        "rope_theta": 10000.0,
        "hidden_act": "relu2",
        "tie_word_embeddings": True,
        "torch_dtype": "bfloat16",
        "bos_token_id": 0,
        "eos_token_id": 1,
        "quantization_config": {
            "quant_method": "bitnet",
            "linear_class": "autobitlinear",
            "quantization_mode": "offline",
        },
    }


def write(directory: Path, seed: int = 0) -> None:
    """Write the checkpoint; files that are there are replaced."""
    directory.mkdir(parents=True, exist_ok=True)
    save_file(make_tensors(seed), directory / "model.safetensors", {"format": "pt"})
    make_tokenizer().save(str(directory / "tokenizer.json"))
    tokenizer_config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": SPECIALS[0],
        "eos_token": SPECIALS[1],
        "model_max_length": 1024,
        "clean_up_tokenization_spaces": False,
    }
    generation = {"do_sample": True, "temperature": 0.8, "top_k": 40, "bos_token_id": 0, "eos_token_id": [1]}
    files = {
        "config.json": _config(),
        "tokenizer_config.json": tokenizer_config,
        "generation_config.json": generation,
    }
    for name, content in files.items():
        (directory / name).write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
    (directory / "chat_template.jinja").write_text(CHAT_TEMPLATE, encoding="utf-8")


def main() -> None:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("directory", type=Path)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    write(arguments.directory, arguments.seed)


if __name__ == "__main__":
    main()
