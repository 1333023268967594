"""The BitNet-b1.58 decoder in PyTorch, with fake quantisation for training.

Knows nothing of text, data files or optimisers. The forward pass is that of BitNet-b1.58-2B-4T
(arXiv:2504.12285): ternary weights with one absmean scale per matrix, int8 absmax activations per
token, squared ReLU, and an RMS norm before the output and the down projection.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn


@dataclass(frozen=True)
class ModelConfig:
    """Shape of the model; field names are those of a Hugging Face `config.json`."""

    vocab_size: int = 2048
    hidden_size: int = 256
    intermediate_size: int = 768
    num_hidden_layers: int = 6
    num_attention_heads: int = 4
    num_key_value_heads: int = 2
    head_dim: int = 64
    max_position_embeddings: int = 1024
    rms_norm_eps: float = 1e-5
    rope_theta: float = 10000.0
    ternary: bool = True

    def to_dict(self) -> dict[str, object]:
        return asdict(self)


# Evaluated here because torch.compile cannot look into the question.
_CPU_DTYPE = torch.bfloat16 if torch.cpu._is_avx512_bf16_supported() else torch.float32  # type: ignore[attr-defined]


def product_dtype(device: torch.device) -> torch.dtype:
    """The dtype of products in training: bfloat16, or float32 on a CPU that would only emulate it, far slower."""
    return _CPU_DTYPE if device.type == "cpu" else torch.bfloat16


def ternary_codes(weight: Tensor) -> tuple[Tensor, Tensor]:
    """Absmean ternary codes in {-1, 0, 1} (float32) and their scale, rounded to bfloat16 (float32)."""
    scale = weight.double().abs().mean().clamp_min(1e-5).float()
    codes = (weight.float() / scale).round().clamp(-1, 1)
    return codes, scale.bfloat16().float()


def fake_quantize_activations(x: Tensor) -> Tensor:
    """int8 absmax per token (last axis), straight-through gradient; same shape and dtype as x."""
    amax = x.detach().abs().amax(dim=-1, keepdim=True).clamp_min(1e-5)
    quantized = (x.detach() * (127.0 / amax)).round() * (amax / 127.0)
    return x + (quantized - x).detach()


class BitLinear(nn.Module):
    """A linear layer trained quantisation-aware; `ternary=False` makes it a plain linear layer."""

    def __init__(self, in_features: int, out_features: int, ternary: bool) -> None:
        super().__init__()
        self.ternary = ternary
        self.weight = nn.Parameter(torch.randn(out_features, in_features) * in_features**-0.5)

    def effective_weight(self) -> Tensor:
        """codes * scale with the gradient of the master weight, shape (out, in)."""
        if not self.ternary:
            return self.weight
        scale = self.weight.detach().abs().mean().clamp_min(1e-5)
        codes = (self.weight.detach() / scale).round().clamp(-1, 1)
        # The bfloat16 scale is the one that is exported, so training sees the rounding too.
        fixed = codes * scale.bfloat16().float()
        return self.weight + (fixed - self.weight).detach()


def _apply_rope(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotate-half RoPE; x (batch, heads, tokens, head_dim), cos and sin (tokens, head_dim)."""
    first, second = x.chunk(2, dim=-1)
    return x * cos + torch.cat((-second, first), dim=-1) * sin


class Block(nn.Module):
    """One decoder layer. Linear inputs are quantised once where several matrices share them."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        c = config
        self.config = c
        q_size, kv_size = c.num_attention_heads * c.head_dim, c.num_key_value_heads * c.head_dim
        self.input_layernorm = nn.Parameter(torch.ones(c.hidden_size))
        self.attn_sub_norm = nn.Parameter(torch.ones(q_size))
        self.post_attention_layernorm = nn.Parameter(torch.ones(c.hidden_size))
        self.ffn_sub_norm = nn.Parameter(torch.ones(c.intermediate_size))
        self.q_proj = BitLinear(c.hidden_size, q_size, c.ternary)
        self.k_proj = BitLinear(c.hidden_size, kv_size, c.ternary)
        self.v_proj = BitLinear(c.hidden_size, kv_size, c.ternary)
        self.o_proj = BitLinear(q_size, c.hidden_size, c.ternary)
        self.gate_proj = BitLinear(c.hidden_size, c.intermediate_size, c.ternary)
        self.up_proj = BitLinear(c.hidden_size, c.intermediate_size, c.ternary)
        self.down_proj = BitLinear(c.intermediate_size, c.hidden_size, c.ternary)

    def _linear(self, x: Tensor, *layers: BitLinear) -> tuple[Tensor, ...]:
        """Run layers that share one input as a single matrix product in the compute dtype."""
        compute = product_dtype(x.device) if self.training else torch.float32
        if self.config.ternary:
            x = fake_quantize_activations(x)
        weight = torch.cat([layer.effective_weight().to(compute) for layer in layers])
        y = F.linear(x.to(compute), weight)
        return y.split([layer.weight.shape[0] for layer in layers], dim=-1)

    def _norm(self, x: Tensor, weight: Tensor) -> Tensor:
        x = x.float()
        return x * torch.rsqrt(x.square().mean(-1, keepdim=True) + self.config.rms_norm_eps) * weight

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor, mask: Tensor | None) -> Tensor:
        c = self.config
        batch, n_tokens, _ = x.shape
        a = self._norm(x, self.input_layernorm)
        q, k, v = self._linear(a, self.q_proj, self.k_proj, self.v_proj)
        q = q.reshape(batch, n_tokens, c.num_attention_heads, c.head_dim).transpose(1, 2)
        k = k.reshape(batch, n_tokens, c.num_key_value_heads, c.head_dim).transpose(1, 2)
        v = v.reshape(batch, n_tokens, c.num_key_value_heads, c.head_dim).transpose(1, 2)
        q, k = _apply_rope(q, cos, sin).to(v.dtype), _apply_rope(k, cos, sin).to(v.dtype)
        groups = c.num_attention_heads // c.num_key_value_heads
        k, v = k.repeat_interleave(groups, dim=1), v.repeat_interleave(groups, dim=1)
        heads = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, is_causal=mask is None)
        heads = heads.transpose(1, 2).reshape(batch, n_tokens, -1)
        (o,) = self._linear(self._norm(heads, self.attn_sub_norm), self.o_proj)
        x = x + o.float()
        b = self._norm(x, self.post_attention_layernorm)
        gate, up = self._linear(b, self.gate_proj, self.up_proj)
        f = gate.float().relu().square() * up.float()
        (d,) = self._linear(self._norm(f, self.ffn_sub_norm), self.down_proj)
        return x + d.float()


class BitNet(nn.Module):
    """Decoder with tied embedding. In training mode products run in `product_dtype`, else in float32."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.config = config
        self.embed_tokens = nn.Parameter(torch.randn(config.vocab_size, config.hidden_size) * 0.02)
        self.layers = nn.ModuleList(Block(config) for _ in range(config.num_hidden_layers))
        self.norm = nn.Parameter(torch.ones(config.hidden_size))
        # Residual branches start small, so that depth does not raise the variance of the stream.
        for block in self.layers:
            for layer in (block.o_proj, block.down_proj):
                layer.weight.data.mul_((2 * config.num_hidden_layers) ** -0.5)

    def rope(self, n_tokens: int) -> tuple[Tensor, Tensor]:
        """cos and sin of shape (n_tokens, head_dim), float32."""
        c, device = self.config, self.embed_tokens.device
        exponent = torch.arange(0, c.head_dim, 2, device=device, dtype=torch.float32) / c.head_dim
        angles = torch.outer(torch.arange(n_tokens, device=device).float(), c.rope_theta**-exponent)
        angles = torch.cat((angles, angles), dim=-1)
        return angles.cos(), angles.sin()

    def hidden(self, input_ids: Tensor, mask: Tensor | None = None) -> Tensor:
        """Final-norm hidden states, float32 (batch, tokens, hidden); mask bool, True where seen."""
        x = F.embedding(input_ids, self.embed_tokens)
        cos, sin = self.rope(input_ids.shape[1])
        for block in self.layers:
            x = block(x, cos, sin, mask)
        return x * torch.rsqrt(x.square().mean(-1, keepdim=True) + self.config.rms_norm_eps) * self.norm

    def logits(self, hidden: Tensor) -> Tensor:
        """Tied head, not quantised: (..., hidden) -> (..., vocab)."""
        compute = product_dtype(hidden.device) if self.training else torch.float32
        return F.linear(hidden.to(compute), self.embed_tokens.to(compute))

    def forward(self, input_ids: Tensor, mask: Tensor | None = None) -> Tensor:
        return self.logits(self.hidden(input_ids, mask))

    def loss(self, input_ids: Tensor, positions: Tensor, targets: Tensor, mask: Tensor | None) -> Tensor:
        """Mean cross entropy (nats) at `positions`, flat indices into batch * tokens.

        A target of -100 is a padding of `positions` to a fixed length and does not count.
        """
        hidden = self.hidden(input_ids, mask).flatten(0, 1)
        logits = self.logits(hidden.index_select(0, positions))
        return F.cross_entropy(logits.float(), targets, ignore_index=-100)
