"""Tensor names and shapes that the Llama family stores for a configuration; knows no files."""

from __future__ import annotations

from tmac_llm.model.config import ModelConfig

EMBEDDING = "model.embed_tokens"
LM_HEAD = "lm_head"

# Buffers that old versions of transformers saved by accident.
IGNORED_SUFFIXES = (
    ".rotary_emb.inv_freq",
    ".rotary_emb.cos_cached",
    ".rotary_emb.sin_cached",
    ".masked_bias",
)

# The 1bitLLM spelling of the sub-norms.
_ALIASES = {
    ".self_attn.attn_sub_norm.weight": ".self_attn.inner_attn_ln.weight",
    ".mlp.ffn_sub_norm.weight": ".mlp.ffn_layernorm.weight",
}


def linear_shapes(config: ModelConfig) -> dict[str, tuple[int, int]]:
    """Module name -> (out_features, in_features) of every linear in the layers, in order."""
    hidden, inter = config.hidden_size, config.intermediate_size
    q = config.num_attention_heads * config.head_dim
    kv = config.num_key_value_heads * config.head_dim
    of_layer = {
        "self_attn.q_proj": (q, hidden),
        "self_attn.k_proj": (kv, hidden),
        "self_attn.v_proj": (kv, hidden),
        "self_attn.o_proj": (hidden, q),
        "mlp.gate_proj": (inter, hidden),
        "mlp.up_proj": (inter, hidden),
        "mlp.down_proj": (hidden, inter),
    }
    return {f"model.layers.{i}.{n}": s for i in range(config.num_hidden_layers) for n, s in of_layer.items()}


def vector_shapes(config: ModelConfig) -> dict[str, tuple[int]]:
    """Tensor name -> shape of every norm weight and bias."""
    hidden, head = (config.hidden_size,), (config.head_dim,)
    of_layer = {"input_layernorm.weight": hidden, "post_attention_layernorm.weight": hidden}
    if config.qk_norm:
        of_layer |= {"self_attn.q_norm.weight": head, "self_attn.k_norm.weight": head}
    if config.sub_norms:
        q = (config.num_attention_heads * config.head_dim,)
        of_layer |= {
            "self_attn.attn_sub_norm.weight": q,
            "mlp.ffn_sub_norm.weight": (config.intermediate_size,),
        }
    vectors = {
        f"model.layers.{i}.{n}": s for i in range(config.num_hidden_layers) for n, s in of_layer.items()
    }
    if config.linear_norm_eps is not None:
        vectors |= {f"{n}.rms_norm.weight": (shape[1],) for n, shape in linear_shapes(config).items()}
    vectors |= {f"{n}.bias": (shape[0],) for n, shape in linear_shapes(config).items() if has_bias(config, n)}
    return vectors | {"model.norm.weight": hidden}


def has_bias(config: ModelConfig, linear: str) -> bool:
    """Whether the configuration gives a linear of the layers a bias."""
    kind = linear.rsplit(".", 1)[-1]
    if kind in ("q_proj", "k_proj", "v_proj"):
        return config.qkv_bias
    return config.o_bias if kind == "o_proj" else config.mlp_bias


def alias(name: str) -> str | None:
    """The other spelling of a tensor name, or None."""
    for suffix, other in _ALIASES.items():
        if name.endswith(suffix):
            return name.removesuffix(suffix) + other
    return None
