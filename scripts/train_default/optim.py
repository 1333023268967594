"""Muon for the hidden matrices.

Momentum, then the update is replaced by the nearest semi-orthogonal matrix, found by Newton-Schulz
iterations (K. Jordan et al., 2024), scaled so that its RMS equals that of an AdamW update
(arXiv:2502.16982).
"""

from __future__ import annotations

from collections import defaultdict

import torch
from model import product_dtype
from torch import Tensor


def orthogonalize(matrices: Tensor, steps: int = 5) -> Tensor:
    """Approximate U V^T of each matrix U S V^T; shape (n, rows, columns), float32."""
    x = matrices.to(product_dtype(matrices.device))
    transposed = x.shape[1] > x.shape[2]
    if transposed:
        x = x.mT
    x = x / (x.float().norm(dim=(1, 2), keepdim=True) + 1e-7).to(x.dtype)
    for _ in range(steps):
        # Quintic with a steep start: singular values end between 0.7 and 1.2, which is near enough.
        gram = x @ x.mT
        x = 3.4445 * x + (-4.7750 * gram + 2.0315 * gram @ gram) @ x
    return (x.mT if transposed else x).float()


class Muon(torch.optim.Optimizer):
    """Nesterov momentum with orthogonalised updates and decoupled weight decay, for 2-D parameters only."""

    def __init__(
        self, params: list[Tensor], lr: float, momentum: float = 0.95, weight_decay: float = 0.0
    ) -> None:
        super().__init__(params, {"lr": lr, "momentum": momentum, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self) -> None:  # type: ignore[override]
        for group in self.param_groups:
            by_shape: dict[torch.Size, list[Tensor]] = defaultdict(list)
            for p in group["params"]:
                by_shape[p.shape].append(p)
            for shape, params in by_shape.items():
                updates = []
                for p in params:
                    state = self.state[p]
                    if not state:
                        state["momentum"] = torch.zeros_like(p)
                    state["momentum"].lerp_(p.grad, 1 - group["momentum"])
                    updates.append(p.grad.lerp(state["momentum"], group["momentum"]))
                scale = 0.2 * max(shape) ** 0.5 * group["lr"]
                for p, update in zip(params, orthogonalize(torch.stack(updates)), strict=False):
                    p.mul_(1 - group["lr"] * group["weight_decay"])
                    p.add_(update, alpha=-scale)
