"""Runs calibration tokens through a model, one group of linears at a time; knows neither codes nor files.

Two streams of activations run side by side: through the float weights, and through those that were quantised
already, as the packed model will compute. A layer has four groups of linears of one input; a step gives the
inputs of the next group in both streams, from the outputs of the group before.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt

from tmac_llm.gptq import Statistics
from tmac_llm.model import parallel
from tmac_llm.model.activation import GatedActivation
from tmac_llm.model.attention import Attention
from tmac_llm.model.config import ModelConfig
from tmac_llm.model.kv_cache import KVCache
from tmac_llm.model.linear import Linear
from tmac_llm.model.norm import RMSNorm
from tmac_llm.model.rope import RotaryEmbedding

Floats = npt.NDArray[np.float32]
# Name of a norm's tensor -> its weights.
Norms = Callable[[str], Floats]
# The further share of the windows that was collected.
Progress = Callable[[float], None]

_PANEL = 256  # columns of one portion of the statistics


class Layer:
    """One decoder layer, cut where its linears are."""

    def __init__(self, config: ModelConfig, i: int, norms: Norms) -> None:
        def norm(name: str, exists: bool = True) -> RMSNorm | None:
            return RMSNorm(norms(f"model.layers.{i}.{name}.weight"), config.rms_norm_eps) if exists else None

        self._config = config
        self._input_norm, self._post_norm = norm("input_layernorm"), norm("post_attention_layernorm")
        self._q_norm = norm("self_attn.q_norm", config.qk_norm)
        self._k_norm = norm("self_attn.k_norm", config.qk_norm)
        self._attn_sub_norm = norm("self_attn.attn_sub_norm", config.sub_norms)
        self._ffn_sub_norm = norm("mlp.ffn_sub_norm", config.sub_norms)
        heads = config.num_attention_heads + config.num_key_value_heads
        self._rope = RotaryEmbedding(config.rope, config.head_dim, heads, scale=config.head_dim**-0.25)
        self._attention = Attention(config)
        self._activation = GatedActivation(config.hidden_act)
        self._one_layer = replace(config, num_hidden_layers=1)

    def normed(self, x: Floats, group: int) -> Floats:
        """The inputs of the linears that read the residual stream: qkv (group 0), gate and up (group 2)."""
        norm = self._input_norm if group == 0 else self._post_norm
        h = np.empty_like(x)
        assert norm is not None
        norm.bind(x, h)()
        return h

    def attended(self, qkv: Floats) -> Floats:
        """The inputs of o_proj from q, k and v of a window, (context, (heads + 2 kv_heads) * head_dim)."""
        config, n = self._config, len(qkv)
        heads, kv_heads, d = config.num_attention_heads, config.num_key_value_heads, config.head_dim
        by_head = qkv.reshape(n, -1, d)
        q, k, v = np.split(by_head, [heads, heads + kv_heads], axis=1)
        if self._q_norm and self._k_norm:
            self._q_norm.bind(q, q)()
            self._k_norm.bind(k, k)()
        qk = by_head[:, : heads + kv_heads]
        rotation = self._rope.rotation(n)
        self._rope.fill(rotation, 0)
        self._rope.bind(qk, rotation, np.empty_like(qk))()
        cache = KVCache(self._one_layer, n)
        cache.reserve(n)
        out = np.empty((n, heads * d), np.float32)
        layer_cache = cache.append(0, k, v)
        self._attention.bind(q, layer_cache, 0, out.reshape(n, heads, d))(layer_cache)
        if self._attn_sub_norm:
            self._attn_sub_norm.bind(out, out)()
        return out

    def activated(self, gate_up: Floats) -> Floats:
        """The inputs of down_proj from gate and up side by side."""
        gate, up = np.split(gate_up, 2, axis=1)
        out = np.empty(gate.shape, np.float32)
        self._activation.bind(gate, up, out)()
        if self._ffn_sub_norm:
            self._ffn_sub_norm.bind(out, out)()
        return out


class LayerCalibration:
    """The calibration windows in one layer: `collect` each group's statistics in turn, then `finish`."""

    def __init__(
        self,
        layer: Layer,
        linears: Callable[[int], Linear],
        quantized: Floats,
        float_: Floats,
        inputs: tuple[Floats, Floats],
    ) -> None:
        """linears: the float model's linear of each group. quantized, float_: residual streams, float32
        (n_windows, context, hidden_size), updated in place. inputs: scratch for those of groups 0 and 2, and of
        1 and 3, flat float32.
        """
        self._layer, self._linears, self._xq, self._xf = layer, linears, quantized, float_
        self._scratch, self._n_tokens = inputs, quantized.shape[0] * quantized.shape[1]

    def collect(self, group: int, before: Linear | None, progress: Progress) -> Statistics:
        """Statistics of the inputs of a group, 0 to 3; `before`: the quantised linear of the group before it."""
        n_windows, _, hidden = self._xq.shape
        read = self._inputs(group - 1, before.k) if before else None
        step = self._step(group)
        statistics = None
        for w in range(n_windows):
            y = before(np.ascontiguousarray(read[w])) if before and read is not None else None
            q, f, residual = step(self._xq[w], self._xf[w], y)
            if statistics is None:
                k = q.shape[1]
                total = np.zeros((k, k), np.float32)
                lacking = None if residual is None else np.zeros((hidden, k), np.float32)
                statistics = Statistics(total, total.copy(), lacking)
                write = self._inputs(group, k)
            _accumulate(statistics.hessian, q, q, upper_only=True)
            _accumulate(statistics.drift, f - q, q)
            if residual is not None and statistics.residual is not None:
                _accumulate(statistics.residual, residual, q)
            write[w] = q
            progress(1 / n_windows)
        assert statistics is not None
        upper = np.triu(statistics.hessian)
        np.add(upper, np.triu(upper, 1).T, out=statistics.hessian)
        return statistics

    def finish(self, down: Linear) -> None:
        """Leave both streams as the layer gives them; `down`: the quantised down_proj."""
        inputs = self._inputs(3, down.k)
        for x, h in zip(self._xq, inputs, strict=True):
            x += down(np.ascontiguousarray(h))

    def _inputs(self, group: int, k: int) -> Floats:
        return self._scratch[group % 2][: self._n_tokens * k].reshape(*self._xq.shape[:2], k)

    def _step(self, group: int) -> Callable[[Floats, Floats, Floats | None], Any]:
        """A function of a window's streams and of what the group before put out in the quantised one.

        Gives the group's inputs in both, and what the residual stream of the quantised model lacks, if the group
        adds to it.
        """
        layer = self._layer

        def qkv(xq: Floats, xf: Floats, y: Floats | None) -> Any:
            return layer.normed(xq, 0), layer.normed(xf, 0), None

        def gate_up(xq: Floats, xf: Floats, y: Floats | None) -> Any:
            assert y is not None
            xq += y
            return layer.normed(xq, 2), layer.normed(xf, 2), None

        if group % 2 == 0:
            return gate_up if group else qkv
        first, second = self._linears(group - 1), self._linears(group)
        inner = layer.attended if group == 1 else layer.activated

        def adds(xq: Floats, xf: Floats, y: Floats | None) -> Any:
            assert y is not None
            f = inner(first(layer.normed(xf, group - 1)))
            lacking = xf - xq
            xf += second(f)
            return inner(y), f, lacking

        return adds


def _accumulate(total: Floats, a: Floats, b: Floats, upper_only: bool = False) -> None:
    """total += a^T b, in portions that do not depend on the number of threads; perhaps not below the diagonal."""

    def portion(begin: int) -> None:
        rows, columns = slice(begin, begin + _PANEL), slice(begin if upper_only else 0, None)
        total[rows, columns] += a[:, rows].T @ b[:, columns]

    parallel.for_each(portion, range(0, len(total), _PANEL))
