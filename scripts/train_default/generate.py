"""Generates text with the exported model in float32 PyTorch, one token at a time with a KV cache.

Knows nothing of training. It is the reference that the packed run-time is compared with.
"""

from __future__ import annotations

import sys
from pathlib import Path

import torch
import torch.nn.functional as F
from tokenizers import Tokenizer
from torch import Tensor

sys.path.insert(0, str(Path(__file__).parent))

from data import BOS, END, ROLE_IDS
from export import load_exported
from model import BitNet, Block, _apply_rope


class Decoder:
    """Incremental forward pass of BitNet; must agree with `BitNet.forward`."""

    def __init__(self, model: BitNet) -> None:
        self.model = model
        self.length = 0
        self.cache: list[tuple[Tensor, Tensor] | None] = [None] * len(model.layers)
        self.cos, self.sin = model.rope(model.config.max_position_embeddings)

    @torch.no_grad()
    def step(self, ids: list[int]) -> Tensor:
        """Logits (vocab,) after the last of `ids`."""
        stop = self.length + len(ids)
        if stop > len(self.cos):
            raise ValueError(f"{stop} tokens exceed the context of {len(self.cos)}; begin a new conversation")
        x = F.embedding(torch.tensor([ids]), self.model.embed_tokens)
        for i, block in enumerate(self.model.layers):
            x = x + self._attention(i, block, x, stop)
            b = block._norm(x, block.post_attention_layernorm)
            gate, up = block._linear(b, block.gate_proj, block.up_proj)
            (d,) = block._linear(block._norm(gate.relu().square() * up, block.ffn_sub_norm), block.down_proj)
            x = x + d
        self.length = stop
        last = x[0, -1]
        return self.model.logits(
            last * torch.rsqrt(last.square().mean() + self.model.config.rms_norm_eps) * self.model.norm
        )

    def _attention(self, i: int, block: Block, x: Tensor, stop: int) -> Tensor:
        c = self.model.config
        a = block._norm(x, block.input_layernorm)
        n = x.shape[1]
        q, k, v = (
            t.reshape(1, n, -1, c.head_dim).transpose(1, 2)
            for t in block._linear(a, block.q_proj, block.k_proj, block.v_proj)
        )
        cos, sin = self.cos[self.length : stop], self.sin[self.length : stop]
        q, k = _apply_rope(q, cos, sin), _apply_rope(k, cos, sin)
        if (held := self.cache[i]) is not None:
            k, v = torch.cat((held[0], k), dim=2), torch.cat((held[1], v), dim=2)
        self.cache[i] = (k, v)
        mask = torch.ones(n, stop, dtype=torch.bool).tril(self.length)
        heads = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, enable_gqa=True)
        heads = heads.transpose(1, 2).reshape(1, n, -1)
        (o,) = block._linear(block._norm(heads, block.attn_sub_norm), block.o_proj)
        return o


def sample(logits: Tensor, temperature: float, top_p: float, generator: torch.Generator) -> int:
    """Temperature, then the smallest set of tokens with probability top_p; temperature 0 is greedy."""
    if temperature == 0:
        return int(logits.argmax())
    probabilities, order = (logits / temperature).softmax(-1).sort(descending=True)
    kept = probabilities.cumsum(0) - probabilities < top_p
    probabilities = probabilities * kept
    return int(order[torch.multinomial(probabilities, 1, generator=generator)])


class Chat:
    """A model and its tokenizer, ready to answer."""

    def __init__(self, directory: Path) -> None:
        self.model = load_exported(directory)
        self.tokenizer = Tokenizer.from_file(str(directory / "tokenizer.json"))

    def answer(
        self, messages: list[tuple[str, str]], temperature: float, top_p: float, seed: int, max_tokens: int
    ) -> tuple[str, bool]:
        """(text, ended by itself) for a conversation of (role, text)."""
        ids = [BOS]
        for role, text in messages:
            ids += [ROLE_IDS[role], *self.tokenizer.encode(text, add_special_tokens=False).ids, END]
        ids.append(ROLE_IDS["assistant"])
        decoder = Decoder(self.model)
        generator = torch.Generator().manual_seed(seed)
        logits = decoder.step(ids)
        out: list[int] = []
        room = self.model.config.max_position_embeddings - len(ids) - 1
        while len(out) < min(max_tokens, room):
            token = sample(logits, temperature, top_p, generator)
            if token == END:
                return self.tokenizer.decode(out), True
            out.append(token)
            logits = decoder.step([token])
        return self.tokenizer.decode(out), False
