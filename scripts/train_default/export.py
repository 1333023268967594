"""Writes a trained checkpoint as a Hugging Face directory in the packed BitNet format.

Also writes reference logits, computed in float32 from the exported files, for a check of other
implementations. Knows nothing of training.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

import numpy as np
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from tokenizers import Tokenizer
from torch import Tensor

sys.path.insert(0, str(Path(__file__).parent))

import model as network
from data import BOS, END, PAD, SPECIAL_TOKENS
from model import BitNet, ModelConfig, ternary_codes

TIE_MARGIN = 1e-3  # of a step between two int8 codes
LINEARS = {
    "q_proj": "self_attn",
    "k_proj": "self_attn",
    "v_proj": "self_attn",
    "o_proj": "self_attn",
    "gate_proj": "mlp",
    "up_proj": "mlp",
    "down_proj": "mlp",
}
NORMS = {
    "input_layernorm": "input_layernorm",
    "post_attention_layernorm": "post_attention_layernorm",
    "attn_sub_norm": "self_attn.attn_sub_norm",
    "ffn_sub_norm": "mlp.ffn_sub_norm",
}
# One line per turn kind, so that the text of every turn stands between its role token and <|end|>.
CHAT_TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}"
    "{% if message['role'] not in ['system', 'user', 'assistant'] %}"
    "{{ raise_exception('Unknown role ' + message['role'] + ': use system, user or assistant.') }}{% endif %}"
    "{{ '<|' + message['role'] + '|>' + message['content'] | trim + '<|end|>' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|assistant|>' }}{% endif %}"
)


def pack_ternary(codes: Tensor) -> Tensor:
    """uint8 (rows / 4, columns) from codes in {-1, 0, 1}: bits 2i+1:2i hold row i * rows/4 + r."""
    quarters = (codes + 1).to(torch.uint8).chunk(4)
    return quarters[0] | quarters[1] << 2 | quarters[2] << 4 | quarters[3] << 6


def unpack_ternary(packed: Tensor) -> Tensor:
    """Inverse of `pack_ternary`, float32."""
    return torch.cat([(packed >> shift & 3).float() - 1 for shift in (0, 2, 4, 6)])


def tensors_of(model: BitNet) -> dict[str, Tensor]:
    """The state of the model under the names and in the encodings of the Hub; the float twin in bfloat16."""
    tensors = {
        "model.embed_tokens.weight": model.embed_tokens.data.bfloat16(),
        "model.norm.weight": model.norm.data.bfloat16(),
    }
    for i, block in enumerate(model.layers):
        for name, path in NORMS.items():
            tensors[f"model.layers.{i}.{path}.weight"] = getattr(block, name).data.bfloat16()
        for name, parent in LINEARS.items():
            weight = getattr(block, name).weight.data
            if not model.config.ternary:
                tensors[f"model.layers.{i}.{parent}.{name}.weight"] = weight.bfloat16()
                continue
            codes, scale = ternary_codes(weight)
            tensors[f"model.layers.{i}.{parent}.{name}.weight"] = pack_ternary(codes)
            tensors[f"model.layers.{i}.{parent}.{name}.weight_scale"] = scale.reshape(1).bfloat16()
    return {name: tensor.contiguous() for name, tensor in tensors.items()}


def hub_config(config: ModelConfig) -> dict[str, object]:
    """config.json; that of the float twin says that nothing is quantised, which only tmac-llm reads."""
    quantization: dict[str, object] = {"quant_method": "none"}
    if config.ternary:
        quantization = {
            "quant_method": "bitnet",
            "linear_class": "autobitlinear",
            "quantization_mode": "offline",
            "modules_to_not_convert": None,
        }
    return {
        "architectures": ["BitNetForCausalLM"],
        "model_type": "bitnet",
        "hidden_act": "relu2",
        "attention_bias": False,
        "attention_dropout": 0.0,
        "bos_token_id": BOS,
        "eos_token_id": END,
        "pad_token_id": PAD,
        "hidden_size": config.hidden_size,
        "initializer_range": 0.02,
        "intermediate_size": config.intermediate_size,
        "num_hidden_layers": config.num_hidden_layers,
        "num_attention_heads": config.num_attention_heads,
        "num_key_value_heads": config.num_key_value_heads,
        "head_dim": config.head_dim,
        "max_position_embeddings": config.max_position_embeddings,
        "rms_norm_eps": config.rms_norm_eps,
        "rope_theta": config.rope_theta,
        "tie_word_embeddings": True,
        "torch_dtype": "bfloat16",
        "use_cache": True,
        "vocab_size": config.vocab_size,
        "quantization_config": quantization,
    }


def _write_json(path: Path, content: dict[str, object]) -> None:
    path.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def export(checkpoint: Path, tokenizer: Path, out: Path) -> None:
    """Write config, weights, tokenizer, chat template and generation settings to `out`."""
    state = torch.load(checkpoint, weights_only=False, map_location="cpu")
    config = ModelConfig(**state["config"])
    model = BitNet(config)
    model.load_state_dict(state["model"])
    out.mkdir(parents=True, exist_ok=True)
    save_file(tensors_of(model), out / "model.safetensors", metadata={"format": "pt"})
    (out / "model.safetensors").chmod(0o644)
    _write_json(out / "config.json", hub_config(config))
    _write_json(
        out / "generation_config.json",
        {
            "bos_token_id": BOS,
            "eos_token_id": [END],
            "pad_token_id": PAD,
            "do_sample": True,
            "temperature": 0.4,
            "top_p": 0.9,
            "max_new_tokens": 400,
        },
    )
    _write_json(
        out / "tokenizer_config.json",
        {
            "tokenizer_class": "PreTrainedTokenizerFast",
            "model_max_length": config.max_position_embeddings,
            "bos_token": "<|bos|>",
            "eos_token": "<|end|>",
            "pad_token": "<|pad|>",
            "additional_special_tokens": SPECIAL_TOKENS[3:],
            "clean_up_tokenization_spaces": False,
            "add_bos_token": False,
            "added_tokens_decoder": {
                str(i): {
                    "content": token,
                    "lstrip": False,
                    "normalized": False,
                    "rstrip": False,
                    "single_word": False,
                    "special": True,
                }
                for i, token in enumerate(SPECIAL_TOKENS)
            },
            "chat_template": CHAT_TEMPLATE,
        },
    )
    (out / "tokenizer.json").write_bytes(tokenizer.read_bytes())


def load_exported(directory: Path) -> BitNet:
    """A float32 model in evaluation mode with exactly the exported weights."""
    raw = json.loads((directory / "config.json").read_text())
    config = ModelConfig(
        **{name: raw[name] for name in ModelConfig.__dataclass_fields__ if name in raw}, ternary=True
    )
    model = BitNet(config)
    with safe_open(directory / "model.safetensors", framework="pt") as file:
        model.embed_tokens.data = file.get_tensor("model.embed_tokens.weight").float()
        model.norm.data = file.get_tensor("model.norm.weight").float()
        for i, block in enumerate(model.layers):
            for name, path in NORMS.items():
                getattr(block, name).data = file.get_tensor(f"model.layers.{i}.{path}.weight").float()
            for name, parent in LINEARS.items():
                prefix = f"model.layers.{i}.{parent}.{name}"
                codes = unpack_ternary(file.get_tensor(f"{prefix}.weight"))
                linear = getattr(block, name)
                # Already ternary: the layer must use these weights as they are.
                linear.weight.data = codes * file.get_tensor(f"{prefix}.weight_scale").float()
                linear.ternary = False
    return model.eval()


@torch.no_grad()
def greedy(model: BitNet, ids: list[int], n_tokens: int) -> list[int]:
    """Greedy continuation; stops after <|end|>."""
    out: list[int] = []
    while len(out) < n_tokens and (not out or out[-1] != END):
        out.append(int(model(torch.tensor([ids + out]))[0, -1].argmax()))
    return out


@torch.no_grad()
def logits_and_ties(model: BitNet, ids: list[int]) -> tuple[np.ndarray, np.ndarray]:
    """float32 logits (tokens, vocab), and how close calls between two int8 activations were decided.

    Ties are int32 (n, 4): the number of the rounding in the order of the forward pass, token, column, code;
    one for every activation within TIE_MARGIN of the middle between two codes.
    """
    ties: list[np.ndarray] = []
    rounding = network.fake_quantize_activations

    def observed(x: Tensor) -> Tensor:
        y = x * (127.0 / x.abs().amax(dim=-1, keepdim=True).clamp_min(1e-5))
        close = ((y - y.floor() - 0.5).abs() <= TIE_MARGIN)[0].nonzero().numpy()
        codes = y.round()[0].numpy()[close[:, 0], close[:, 1]]
        ties.append(np.column_stack((np.full(len(close), len(ties)), close, codes)).astype(np.int32))
        return rounding(x)

    network.fake_quantize_activations = observed
    try:
        logits = model(torch.tensor([ids]))[0].numpy()
    finally:
        network.fake_quantize_activations = rounding
    return logits, np.concatenate(ties)


def write_reference(directory: Path, path: Path, prompts: list[str]) -> None:
    """npz of float32 results: `pairs` (n, 2) ids with `pair_logits`, and per prompt ids, logits, greedy ids.

    The logits of a prompt are those of its last two positions. The pairs are so short that hardly any
    activation lies within float32 rounding of a tie between two int8 codes; in a long text some always do.
    So for the first prompt and its greedy answer `long_ties` (see logits_and_ties) is there beside `long_ids`
    and `long_logits`, those of every eighth token.
    """
    tokenizer = Tokenizer.from_file(str(directory / "tokenizer.json"))
    model = load_exported(directory)
    pairs = np.array(
        [[BOS, token] for token in np.linspace(300, model.config.vocab_size - 1, 12).astype(int)]
    )
    with torch.no_grad():
        arrays = {"pairs": pairs, "pair_logits": model(torch.from_numpy(pairs))[:, -1].numpy()}
        for i, prompt in enumerate(prompts):
            text = f"<|bos|><|user|>{prompt}<|end|><|assistant|>"
            ids = tokenizer.encode(text, add_special_tokens=False).ids
            arrays |= {
                f"prompt_{i}": np.array(prompt),
                f"ids_{i}": np.array(ids),
                f"logits_{i}": model(torch.tensor([ids]))[0, -2:].numpy(),
                f"greedy_{i}": np.array(greedy(model, ids, 64)),
            }
    ids = [*arrays["ids_0"].tolist(), *arrays["greedy_0"].tolist()]
    logits, ties = logits_and_ties(model, ids)
    arrays |= {"long_ids": np.array(ids), "long_logits": logits[::8], "long_ties": ties}
    path.parent.mkdir(parents=True, exist_ok=True)
    np.savez_compressed(path, **arrays)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    parser.add_argument("--checkpoint", type=Path, help="default: `out` is exported already")
    parser.add_argument("--tokenizer", type=Path, help="needed with --checkpoint")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--reference", type=Path, help="where to write the reference logits (.npz)")
    args = parser.parse_args()
    if bool(args.checkpoint) != bool(args.tokenizer):
        parser.error("--checkpoint and --tokenizer go together")
    if args.checkpoint:
        export(args.checkpoint, args.tokenizer, args.out)
    if args.reference:
        write_reference(
            args.out,
            args.reference,
            [
                "Tell me a story about a brave frog named Lily and a red ball.",
                "Hello",
                "Tell me a short story about a dragon who loses a key.",
            ],
        )


if __name__ == "__main__":
    main()
