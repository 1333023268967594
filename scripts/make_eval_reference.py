#!/usr/bin/env python3
"""Write tests/data/tiny-llama/stories.txt and evaluation.json: what transformers makes of the tests' trained Llama.

    python scripts/make_eval_reference.py tests/data/tiny-llama

Needs PyTorch and transformers. The text is composed by scripts/train_default; nothing of tmac_llm is used.
evaluation.json has the perplexity over windows cut as llama.cpp's perplexity tool does, and the divergence of a
second model, whose linears are rounded to multiples of 1/32, from the first, all in float64 from float32 logits.
"""

from __future__ import annotations

import argparse
import json
import random
import sys
from pathlib import Path

import torch
import transformers

sys.path.insert(0, str(Path(__file__).parent / "train_default"))

from conversations import composed

CONTEXT = 128
STEP = 32  # linears of the second model are multiples of 1 / STEP


def stories(n_characters: int, seed: int = 5) -> str:
    """Composed stories, one after the other."""
    rng, parts = random.Random(seed), [""]
    while sum(map(len, parts)) < n_characters:
        parts.append(composed(rng, 0)[-1][1] + "\n")
    return "".join(parts)


def windows(directory: Path, text: str) -> torch.Tensor:
    """(n, CONTEXT) ids: bos and the text's, cut; the first of each window is bos; the remainder is dropped."""
    tokenizer = transformers.AutoTokenizer.from_pretrained(directory)
    ids = [tokenizer.bos_token_id, *tokenizer(text.removesuffix("\n"), add_special_tokens=False).input_ids]
    n = len(ids) // CONTEXT
    cut = torch.tensor(ids[: n * CONTEXT]).reshape(n, CONTEXT)
    cut[:, 0] = tokenizer.bos_token_id
    return cut


@torch.no_grad()
def log_p(model: torch.nn.Module, ids: torch.Tensor) -> torch.Tensor:
    """float64 (n, vocab): ln p at the scored positions of all windows, CONTEXT / 2 to CONTEXT - 2."""
    logits = torch.cat([model(window[None]).logits[0, CONTEXT // 2 : -1] for window in ids])
    return logits.double().log_softmax(dim=-1)


def estimate(samples: torch.Tensor) -> dict[str, float]:
    """Mean and its standard error."""
    return {"value": float(samples.mean()), "error": float(samples.std() / len(samples) ** 0.5)}


def main() -> None:
    """Read the command line, write both files."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("directory", type=Path, help="checkpoint")
    directory = parser.parse_args().directory
    torch.set_num_threads(1)
    text = stories(48000)
    (directory / "stories.txt").write_text(text)
    ids = windows(directory, text)
    model = transformers.AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32).eval()
    reference = log_p(model, ids)
    for name, parameter in model.named_parameters():
        if name.endswith("_proj.weight"):
            parameter.data = torch.round(parameter.data * STEP) / STEP
    other = log_p(model, ids)
    true = ids[:, CONTEXT // 2 + 1 :].reshape(-1, 1)
    nll = -reference.gather(1, true)[:, 0]
    other_nll = -other.gather(1, true)[:, 0]
    kl = (reference.exp() * (reference - other)).sum(dim=1)
    mean, other_mean = estimate(nll), estimate(other_nll)
    found = {
        "made_by": f"transformers {transformers.__version__}, torch {torch.__version__.partition('+')[0]}",
        "context": CONTEXT,
        "step": STEP,
        "n_windows": len(ids),
        "n_scored": len(nll),
        "nll": mean,
        "other_nll": other_mean,
        "kl": estimate(kl),
        "kl_median": float(kl.quantile(0.5)),
        "kl_p99": float(kl.quantile(0.99)),
        "kl_max": float(kl.max()),
        "top1_agreement": float((reference.argmax(dim=1) == other.argmax(dim=1)).double().mean()),
    }
    (directory / "evaluation.json").write_text(json.dumps(found, indent=2) + "\n")


if __name__ == "__main__":
    main()
