"""Trains the default model: quantisation-aware, resumable, to a deadline; on a GPU where there is one.

The learning rate is a trapezoid: warm-up, constant, then linear decay to zero. The decay begins when
`--decay-at-tokens` is reached, when the file `decay` appears in the work directory, or when so little
time is left before `--deadline` that the decay would not finish otherwise.
"""

from __future__ import annotations

import argparse
import datetime
import json
import math
import os
import signal
import sys
import time
from pathlib import Path

import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).parent))

from data import BUCKETS
from export import load_exported
from model import BitNet, ModelConfig
from optim import Muon

TOKENS_PER_STEP = 8192
MAX_TARGETS = 7168


class Batches:
    """Endless batches from the packed epochs in the work directory; position is (epoch, index)."""

    def __init__(self, work: Path, seed: int, epoch: int = 0, index: int = 0) -> None:
        self.work, self.seed, self.epoch, self.index = work, seed, epoch, index
        self._load()

    def _load(self) -> None:
        files = sorted(self.work.glob("epoch_*.npz"), key=lambda p: int(p.stem.split("_")[1]))
        self.arrays = dict(np.load(files[self.epoch % len(files)]))
        rng = np.random.default_rng([self.seed, self.epoch])
        self.order: list[tuple[int, np.ndarray]] = []
        for bucket in BUCKETS:
            n_rows = TOKENS_PER_STEP // bucket
            rows = rng.permutation(len(self.arrays[f"ids_{bucket}"]))
            self.order += [(bucket, rows[i : i + n_rows]) for i in range(0, len(rows) - n_rows + 1, n_rows)]
        rng.shuffle(self.order)  # type: ignore[arg-type]

    def next(self) -> tuple[torch.Tensor, ...]:
        """(ids, positions, targets, mask), ready for BitNet.loss."""
        if self.index >= len(self.order):
            self.epoch, self.index = self.epoch + 1, 0
            self._load()
        bucket, rows = self.order[self.index]
        self.index += 1
        return make_batch(self.arrays, bucket, rows)


def make_batch(arrays: dict[str, np.ndarray], bucket: int, rows: np.ndarray) -> tuple[torch.Tensor, ...]:
    """Token ids, flat positions whose next token counts, these tokens, and the attention mask."""
    ids = torch.from_numpy(arrays[f"ids_{bucket}"][rows].astype(np.int64))
    doc = torch.from_numpy(arrays[f"doc_{bucket}"][rows])
    target = torch.from_numpy(arrays[f"target_{bucket}"][rows])
    mask = (doc[:, :, None] == doc[:, None, :]).tril()[:, None]
    shifted = torch.zeros_like(target)
    shifted[:, :-1] = target[:, 1:]
    positions = shifted.flatten().nonzero().flatten()[:MAX_TARGETS]
    targets = torch.full((MAX_TARGETS,), -100)
    targets[: len(positions)] = ids.roll(-1, dims=1).flatten()[positions]
    padded = torch.zeros(MAX_TARGETS, dtype=torch.int64)
    padded[: len(positions)] = positions
    return ids, padded, targets, mask


@torch.no_grad()
def held_out_loss(
    model: BitNet, arrays: dict[str, np.ndarray], max_batches: int, device: torch.device
) -> float:
    """Mean loss (nats per assistant token) on held-out conversations, in float32 as it is deployed."""
    model.eval()
    total, count = 0.0, 0
    for bucket in BUCKETS:
        n_rows = max(1, TOKENS_PER_STEP // bucket // 2)
        for i in range(0, min(len(arrays[f"ids_{bucket}"]), max_batches * n_rows), n_rows):
            rows = np.arange(i, min(i + n_rows, len(arrays[f"ids_{bucket}"])))
            ids, positions, targets, mask = (t.to(device) for t in make_batch(arrays, bucket, rows))
            n = int((targets >= 0).sum())
            total += float(model.loss(ids, positions, targets, mask)) * n
            count += n
    model.train()
    return total / count


def save_atomically(path: Path, state: dict[str, object]) -> None:
    temporary = path.with_suffix(".tmp")
    torch.save(state, temporary)
    os.replace(temporary, path)


def seconds_until(deadline: str) -> float:
    """Seconds until the next HH:MM."""
    now = datetime.datetime.now()
    hour, minute = map(int, deadline.split(":"))
    then = now.replace(hour=hour, minute=minute, second=0)
    return ((then - now).total_seconds() + 43200) % 86400 - 43200


class Trapezoid:
    """Factor on the learning rate; `begin_decay` fixes when the decay starts and how long it is."""

    def __init__(self, warmup: int, decay_share: float) -> None:
        self.warmup, self.decay_share = warmup, decay_share
        self.decay_start: int | None = None
        self.decay_steps = 0

    def begin_decay(self, step: int) -> None:
        self.decay_start = step
        self.decay_steps = max(1, int(step * self.decay_share / (1 - self.decay_share)))

    def factor(self, step: int) -> float:
        if self.decay_start is None:
            return min(1.0, (step + 1) / self.warmup)
        return max(0.0, 1 - (step - self.decay_start) / self.decay_steps)

    def done(self, step: int) -> bool:
        return self.decay_start is not None and step >= self.decay_start + self.decay_steps


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    parser.add_argument("--work", type=Path, required=True, help="directory with epoch_*.npz (see data.py)")
    parser.add_argument("--run", default="ternary", help="name of checkpoint and log in the work directory")
    parser.add_argument("--float", action="store_true", help="no quantisation: the float twin")
    parser.add_argument("--init", type=Path, help="start from this exported model, not from random weights")
    parser.add_argument("--lr", type=float, default=1e-2, help="Muon, hidden matrices")
    parser.add_argument("--embed-lr", type=float, default=3e-3, help="AdamW, embedding and norms")
    parser.add_argument("--weight-decay", type=float, default=0.05)
    parser.add_argument("--warmup", type=int, default=50)
    parser.add_argument(
        "--decay-share", type=float, default=0.25, help="share of all steps spent in the decay"
    )
    parser.add_argument("--decay-at-tokens", type=int, default=None)
    parser.add_argument("--max-steps", type=int, help="stop and save after this many steps, decayed or not")
    parser.add_argument("--deadline", help="HH:MM, the time at which training must be over")
    parser.add_argument("--hidden", type=int, default=256)
    parser.add_argument("--intermediate", type=int, default=768)
    parser.add_argument("--layers", type=int, default=6)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--no-compile", action="store_true")
    parser.add_argument("--checkpoint-minutes", type=float, default=5.0)
    parser.add_argument("--eval-every", type=int, default=250)
    return parser.parse_args()


def model_config(args: argparse.Namespace) -> ModelConfig:
    """The shape that the arguments and the tokenizer give."""
    tokenizer = json.loads((args.work / "tokenizer.json").read_text(encoding="utf-8"))
    return ModelConfig(
        vocab_size=len(tokenizer["model"]["vocab"]),
        hidden_size=args.hidden,
        intermediate_size=args.intermediate,
        num_hidden_layers=args.layers,
        num_attention_heads=args.hidden // 64,
        num_key_value_heads=2 if args.hidden % 128 == 0 else 1,
        ternary=not args.float,
    )


class Run:
    """A training run: model, optimisers, schedule and position in the data; all of it is in the checkpoint."""

    def __init__(self, args: argparse.Namespace) -> None:
        self.args = args
        self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        self.config = model_config(args)
        self.model = BitNet(self.config)
        if args.init:
            self.model.load_state_dict(load_exported(args.init).state_dict())
        self.model.to(self.device)
        matrices = [p for p in self.model.layers.parameters() if p.ndim == 2]
        self.others = [p for p in self.model.parameters() if not any(p is m for m in matrices)]
        self.muon = Muon(matrices, lr=args.lr, weight_decay=args.weight_decay)
        self.adam = torch.optim.AdamW(
            self.others, lr=args.embed_lr, betas=(0.9, 0.95), weight_decay=0.0, fused=True
        )
        self.schedule = Trapezoid(args.warmup, args.decay_share)
        self.checkpoint = args.work / f"{args.run}.pt"
        self.step = 0
        epoch, index = self._resume() if self.checkpoint.exists() else (0, 0)
        self.batches = Batches(args.work, args.seed, epoch, index)
        self.held_out = dict(np.load(args.work / "held_out.npz"))
        self.loss_of = self.model.loss if args.no_compile else torch.compile(self.model.loss, dynamic=False)
        self.losses: list[float] = []  # since the last report
        self.seconds: list[float] = []  # per step
        self.model.train()

    def _resume(self) -> tuple[int, int]:
        state = torch.load(self.checkpoint, weights_only=True, map_location=self.device)
        self.model.load_state_dict(state["model"])
        self.muon.load_state_dict(state["muon"])
        self.adam.load_state_dict(state["adam"])
        self.step = state["step"]
        self.schedule.decay_start, self.schedule.decay_steps = state["decay_start"], state["decay_steps"]
        print(f"resumed at step {self.step}", flush=True)
        return state["epoch"], state["index"]

    def save(self) -> None:
        state = {
            "model": self.model.state_dict(),
            "muon": self.muon.state_dict(),
            "adam": self.adam.state_dict(),
            "config": self.config.to_dict(),
            "step": self.step,
            "epoch": self.batches.epoch,
            "index": self.batches.index,
            "decay_start": self.schedule.decay_start,
            "decay_steps": self.schedule.decay_steps,
        }
        save_atomically(self.checkpoint, state)

    def maybe_begin_decay(self) -> None:
        """Start the decay when its tokens, its file or the deadline say so (see the module's docstring)."""
        args = self.args
        if self.schedule.decay_start is not None or len(self.seconds) < 20:
            return
        recent = sorted(self.seconds[-200:])
        pace = recent[len(recent) // 2] * 1.15
        left = seconds_until(args.deadline) if args.deadline else math.inf
        needed = self.step * args.decay_share / (1 - args.decay_share) * pace
        reached = args.decay_at_tokens is not None and self.step * TOKENS_PER_STEP >= args.decay_at_tokens
        if left <= needed + 60 or reached or (args.work / "decay").exists():
            self.schedule.begin_decay(self.step)
            if args.deadline:
                self.schedule.decay_steps = max(50, min(self.schedule.decay_steps, int(left / pace)))
            print(f"decay begins at step {self.step}, {self.schedule.decay_steps} steps", flush=True)

    def train_step(self) -> None:
        began = time.monotonic()
        factor = self.schedule.factor(self.step)
        for group in self.muon.param_groups:
            group["lr"] = self.args.lr * factor
            group["weight_decay"] = self.args.weight_decay if self.schedule.decay_start is None else 0.0
        for group in self.adam.param_groups:
            group["lr"] = self.args.embed_lr * factor
        loss = self.loss_of(*(tensor.to(self.device) for tensor in self.batches.next()))
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.others, 1.0)
        for optimiser in (self.muon, self.adam):
            optimiser.step()
            optimiser.zero_grad()
        self.step += 1
        self.losses.append(loss.item())
        if not math.isfinite(self.losses[-1]):
            raise SystemExit(
                f"loss is {self.losses[-1]} at step {self.step}; resume from the last checkpoint with a lower --lr"
            )
        self.seconds.append(time.monotonic() - began)

    def report(self) -> None:
        """One line on stdout and in the log: mean loss since the last one, speed, time left."""
        n = len(self.losses)
        seconds = sum(self.seconds[-n:]) / n
        record = {
            "step": self.step,
            "tokens": self.step * TOKENS_PER_STEP,
            "loss": round(sum(self.losses) / n, 4),
            "lr": round(self.args.lr * self.schedule.factor(self.step - 1), 6),
            "tokens_per_s": round(TOKENS_PER_STEP / seconds),
        }
        if self.step % self.args.eval_every == 0:
            record["held_out"] = round(held_out_loss(self.model, self.held_out, 6, self.device), 4)
        left = seconds_until(self.args.deadline) if self.args.deadline else math.nan
        if self.schedule.decay_start is not None:
            left = (self.schedule.decay_start + self.schedule.decay_steps - self.step) * seconds
        print(json.dumps(record), f"epoch {self.batches.epoch} left {left / 60:.1f} min", flush=True)
        with (self.args.work / f"{self.args.run}.jsonl").open("a", encoding="utf-8") as log:
            log.write(json.dumps(record) + "\n")
        self.losses.clear()

    def train(self) -> None:
        """Train to the end of the schedule; SIGTERM saves and stops."""
        stop: list[int] = []
        signal.signal(signal.SIGTERM, lambda number, _: stop.append(number))
        last_save = time.monotonic()
        while not self.schedule.done(self.step) and self.step != self.args.max_steps:
            self.maybe_begin_decay()
            self.train_step()
            if self.step % 10 == 0:
                self.report()
            if stop:
                self.save()
                raise SystemExit(f"stopped at step {self.step}; start again to resume")
            if time.monotonic() - last_save > self.args.checkpoint_minutes * 60:
                self.save()
                last_save = time.monotonic()
        self.save()


def main() -> None:
    args = parse_arguments()
    torch.set_num_threads(args.threads)
    torch.manual_seed(args.seed)
    run = Run(args)
    run.train()
    final = held_out_loss(run.model, run.held_out, 1000, run.device)
    print(
        f"done: {run.step} steps, {run.step * TOKENS_PER_STEP} tokens, held-out loss {final:.4f}", flush=True
    )


if __name__ == "__main__":
    main()
