"""The exporter writes what a reader of the packed BitNet format expects. Needs torch (training extra)."""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="torch is an extra for training only")
sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "scripts" / "train_default"))

import data  # noqa: E402
import export  # noqa: E402
import generate  # noqa: E402
import model as model_module  # noqa: E402
from safetensors import safe_open  # noqa: E402

from tmac_llm import load  # noqa: E402
from tmac_llm.convert import convert  # noqa: E402

CONFIG = model_module.ModelConfig(
    vocab_size=320,
    hidden_size=128,
    intermediate_size=192,
    num_hidden_layers=2,
    num_attention_heads=2,
    num_key_value_heads=1,
)


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    folder = tmp_path_factory.mktemp("model")
    torch.manual_seed(0)
    model = model_module.BitNet(CONFIG)
    torch.save({"model": model.state_dict(), "config": CONFIG.to_dict()}, folder / "c.pt")
    texts = ["Once upon a time there was a frog named Lily.", "Tell me a story about a red ball."] * 3
    data.train_tokenizer(texts, 320).save(str(folder / "tokenizer.json"))
    export.export(folder / "c.pt", folder / "tokenizer.json", folder / "out")
    return model, folder / "out"


def test_packing_of_known_rows():
    codes = torch.tensor([-1.0, 0, 1, -1, 1, 1, 0, -1]).reshape(8, 1)
    assert export.pack_ternary(codes).flatten().tolist() == [0x68, 0x21]


def test_unpack_inverts_pack():
    codes = torch.randint(-1, 2, (64, 33)).float()
    assert torch.equal(export.unpack_ternary(export.pack_ternary(codes)), codes)


def test_files_hold_ternary_codes_and_one_bfloat16_scale(exported):
    _, out = exported
    with safe_open(out / "model.safetensors", framework="pt") as file:
        names = set(file.keys())
        weight = file.get_tensor("model.layers.1.mlp.gate_proj.weight")
        scale = file.get_tensor("model.layers.1.mlp.gate_proj.weight_scale")
    assert weight.dtype == torch.uint8
    assert weight.shape == (192 // 4, 128)
    assert int(max((weight >> shift & 3).max() for shift in (0, 2, 4, 6))) <= 2
    assert scale.dtype == torch.bfloat16
    assert scale.shape == (1,)
    assert len(names) == 2 + CONFIG.num_hidden_layers * (4 + 2 * 7)


def test_loaded_model_equals_the_trained_one(exported):
    trained, out = exported
    loaded = export.load_exported(out)
    reference = model_module.BitNet(CONFIG)
    reference.load_state_dict(trained.state_dict())
    # Embedding and norms are stored in bfloat16; give the reference the same rounding.
    reference.embed_tokens.data = reference.embed_tokens.data.bfloat16().float()
    ids = torch.randint(6, 320, (1, 24), generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        expected, got = reference.eval()(ids), loaded(ids)
    assert float((got - expected).norm() / expected.norm()) < 1e-5


def test_incremental_decoding_equals_the_full_pass(exported):
    _, out = exported
    loaded = export.load_exported(out)
    ids = torch.randint(6, 320, (1, 24), generator=torch.Generator().manual_seed(2))
    decoder = generate.Decoder(loaded)
    decoder.step(ids[0, :15].tolist())
    for token in ids[0, 15:23].tolist():
        decoder.step([token])
    with torch.no_grad():
        expected = loaded(ids)[0, -1]
    got = decoder.step(ids[0, 23:].tolist())
    assert float((got - expected).norm() / expected.norm()) < 1e-4


def test_context_is_not_exceeded_silently(exported):
    decoder = generate.Decoder(export.load_exported(exported[1]))
    with pytest.raises(ValueError, match="exceed the context of 1024"):
        decoder.step([7] * 1025)


def test_chat_template_renders_like_the_training_data(exported):
    jinja2 = pytest.importorskip("jinja2")
    from tokenizers import Tokenizer

    _, out = exported
    config = json.loads((out / "tokenizer_config.json").read_text())
    messages = [("system", "Be kind."), ("user", "Hello"), ("assistant", "Hi!"), ("user", "Tell me a story.")]
    text = jinja2.Template(config["chat_template"]).render(
        messages=[{"role": role, "content": content} for role, content in messages],
        bos_token=config["bos_token"],
        add_generation_prompt=True,
    )
    tokenizer = Tokenizer.from_file(str(out / "tokenizer.json"))
    ((ids, targets),) = data.encode(tokenizer, [messages])
    assert tokenizer.encode(text, add_special_tokens=False).ids == [*ids, data.ROLE_IDS["assistant"]]
    assert targets.sum() == len(tokenizer.encode("Hi!", add_special_tokens=False).ids) + 1


def test_packing_keeps_every_conversation_once():
    rng = np.random.default_rng(0)
    sizes = [*rng.integers(20, 600, 200), 1024, 1500]
    encoded = [(np.full(size, i, np.uint16), np.ones(size, bool)) for i, size in enumerate(sizes)]
    arrays = data.pack(encoded)
    seen: dict[int, int] = {}
    for bucket in data.BUCKETS:
        ids, doc = arrays[f"ids_{bucket}"], arrays[f"doc_{bucket}"]
        for row_ids, row_doc in zip(ids, doc, strict=True):
            for d in range(1, row_doc.max() + 1):
                (value,) = set(row_ids[row_doc == d].tolist())
                assert value not in seen
                seen[value] = int((row_doc == d).sum())
    assert seen == {i: size for i, size in enumerate(sizes) if size <= 1024}


def test_the_float_twin_is_exported_in_float(tmp_path, exported):
    """And gives the same logits in the engine's own reader, which no ternary rounding touches."""
    torch.manual_seed(1)
    twin = model_module.BitNet(replace(CONFIG, ternary=False))
    torch.save({"model": twin.state_dict(), "config": twin.config.to_dict()}, tmp_path / "c.pt")
    export.export(tmp_path / "c.pt", exported[1] / "tokenizer.json", tmp_path / "out")
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert config["quantization_config"] == {"quant_method": "none"}
    for name, tensor in export.tensors_of(twin).items():
        assert tensor.dtype == torch.bfloat16, name
    packed = convert(tmp_path / "out", tmp_path / "packed", bits=16)
    for p in twin.parameters():
        p.data = p.data.bfloat16().float()
    ids = torch.arange(3, 40)[None]
    with torch.no_grad():
        expected = twin.eval()(ids)[0].numpy()
    with load(packed.path) as llm:
        np.testing.assert_allclose(llm.logits(ids[0].tolist()), expected, atol=1e-3 * np.abs(expected).max())
