"""Trains the default model: quantisation-aware, resumable, to a deadline.

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

    def next(self) -> tuple[int, torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
        """(bucket, ids, positions, targets, mask), ready for BitNet.loss."""
        if self.index >= len(self.order):
            self.epoch, self.index = self.epoch + 1, 0
            self._load()
        bucket, rows = self.order[self.index]
        self.index += 1
        return bucket, *make_batch(self.arrays, bucket, rows)


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
def held_out_loss(model: BitNet, arrays: dict[str, np.ndarray], max_batches: int) -> float:
    """Mean loss (nats per assistant token) on held-out conversations, in float32 as it is deployed."""
    model.eval()
    total, count = 0.0, 0
    for bucket in BUCKETS:
        n_rows = max(1, TOKENS_PER_STEP // bucket // 2)
        for i in range(0, min(len(arrays[f"ids_{bucket}"]), max_batches * n_rows), n_rows):
            rows = np.arange(i, min(i + n_rows, len(arrays[f"ids_{bucket}"])))
            ids, positions, targets, mask = make_batch(arrays, bucket, rows)
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


def main() -> None:
    args = parse_arguments()
    torch.set_num_threads(args.threads)
    torch.manual_seed(args.seed)
    vocab_size = json.loads((args.work / "tokenizer.json").read_text())["model"]["vocab"].__len__()
    config = ModelConfig(
        vocab_size=vocab_size,
        hidden_size=args.hidden,
        intermediate_size=args.intermediate,
        num_hidden_layers=args.layers,
        num_attention_heads=args.hidden // 64,
        num_key_value_heads=2 if args.hidden % 128 == 0 else 1,
        ternary=not args.float,
    )
    model = BitNet(config)
    matrices = [p for p in model.layers.parameters() if p.ndim == 2]
    others = [p for p in model.parameters() if not any(p is m for m in matrices)]
    muon = Muon(matrices, lr=args.lr, weight_decay=args.weight_decay)
    adam = torch.optim.AdamW(others, lr=args.embed_lr, betas=(0.9, 0.95), weight_decay=0.0, fused=True)
    schedule = Trapezoid(args.warmup, args.decay_share)
    step, epoch, index = 0, 0, 0
    checkpoint = args.work / f"{args.run}.pt"
    log_path = args.work / f"{args.run}.jsonl"
    if checkpoint.exists():
        state = torch.load(checkpoint, weights_only=False)
        model.load_state_dict(state["model"])
        muon.load_state_dict(state["muon"])
        adam.load_state_dict(state["adam"])
        step, epoch, index = state["step"], state["epoch"], state["index"]
        schedule.decay_start, schedule.decay_steps = state["decay_start"], state["decay_steps"]
        print(f"resumed at step {step}", flush=True)
    batches = Batches(args.work, args.seed, epoch, index)
    held_out = dict(np.load(args.work / "held_out.npz"))
    loss_of = model.loss if args.no_compile else torch.compile(model.loss, dynamic=False)
    model.train()

    def save() -> None:
        save_atomically(
            checkpoint,
            {
                "model": model.state_dict(),
                "muon": muon.state_dict(),
                "adam": adam.state_dict(),
                "config": config.to_dict(),
                "step": step,
                "epoch": batches.epoch,
                "index": batches.index,
                "decay_start": schedule.decay_start,
                "decay_steps": schedule.decay_steps,
            },
        )

    stop = [False]
    signal.signal(signal.SIGTERM, lambda *_: stop.__setitem__(0, True))
    first_step, started, last_save, recent = step, time.monotonic(), time.monotonic(), []
    step_seconds: list[float] = []
    while not schedule.done(step) and step != args.max_steps:
        if schedule.decay_start is None and step > first_step + 20:
            pace = sorted(step_seconds[-200:])[len(step_seconds[-200:]) // 2] * 1.15
            left = seconds_until(args.deadline) if args.deadline else math.inf
            needed = step * args.decay_share / (1 - args.decay_share) * pace
            reached = args.decay_at_tokens is not None and step * TOKENS_PER_STEP >= args.decay_at_tokens
            if left <= needed + 60 or reached or (args.work / "decay").exists():
                schedule.begin_decay(step)
                if args.deadline:
                    schedule.decay_steps = max(50, min(schedule.decay_steps, int(left / pace)))
                print(f"decay begins at step {step}, {schedule.decay_steps} steps", flush=True)
        began = time.monotonic()
        factor = schedule.factor(step)
        for group in muon.param_groups:
            group["lr"] = args.lr * factor
            group["weight_decay"] = args.weight_decay if schedule.decay_start is None else 0.0
        for group in adam.param_groups:
            group["lr"] = args.embed_lr * factor
        _bucket, *batch = batches.next()
        loss = loss_of(*batch)
        loss.backward()
        norm = torch.nn.utils.clip_grad_norm_(others, 1.0)
        muon.step()
        adam.step()
        muon.zero_grad()
        adam.zero_grad()
        step += 1
        recent.append(loss.item())
        if not math.isfinite(recent[-1]):
            raise SystemExit(
                f"loss is {recent[-1]} at step {step}; resume from the last checkpoint with a lower --lr"
            )
        step_seconds.append(time.monotonic() - began)
        if step % 10 == 0:
            mean = sum(recent) / len(recent)
            rate = len(recent) * TOKENS_PER_STEP / sum(step_seconds[-len(recent) :])
            record = {
                "step": step,
                "tokens": step * TOKENS_PER_STEP,
                "loss": round(mean, 4),
                "lr": round(args.lr * factor, 6),
                "tokens_per_s": round(rate),
                "norm": round(float(norm), 3),
            }
            if step % args.eval_every == 0:
                record["held_out"] = round(held_out_loss(model, held_out, 6), 4)
            left_s = seconds_until(args.deadline) if args.deadline else float("nan")
            if schedule.decay_start is not None:
                left_s = (
                    (schedule.decay_start + schedule.decay_steps - step)
                    * sum(step_seconds[-50:])
                    / len(step_seconds[-50:])
                )
            print(json.dumps(record), f"epoch {batches.epoch} left {left_s / 60:.1f} min", flush=True)
            with log_path.open("a") as log:
                log.write(json.dumps(record) + "\n")
            recent.clear()
        if stop[0]:
            save()
            raise SystemExit(f"stopped at step {step}; start again to resume")
        if time.monotonic() - last_save > args.checkpoint_minutes * 60:
            save()
            last_save = time.monotonic()
    save()
    final = held_out_loss(model, held_out, 1000)
    minutes = (time.monotonic() - started) / 60
    print(
        f"done: {step} steps, {step * TOKENS_PER_STEP} tokens, held-out loss {final:.4f}, {minutes:.1f} min",
        flush=True,
    )


if __name__ == "__main__":
    main()
