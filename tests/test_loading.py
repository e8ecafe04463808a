"""Loading: folders of all kinds, devices by name, damaged weights, missing libraries."""

import json
import subprocess
import sys
import warnings

import numpy as np
import peft
import pytest
import torch
import transformers as hf
from random_models import random_weights

import feynkac as fk
from feynkac.models import TransformersLM
from feynkac.models.fetch import FetchError, resolve
from feynkac.models.fetch.sources import SOURCES
from feynkac.models.local.weights import loading
from feynkac.models.rewards import Classifier
from feynkac.models.testing import tiny_lm, tiny_tokenizer

CONFIG = hf.LlamaConfig(
    vocab_size=300, hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4,
    num_key_value_heads=2, max_position_embeddings=128,
)  # fmt: skip


def llama():
    return random_weights(lambda: hf.LlamaForCausalLM(CONFIG))


def says(lm):
    return lm.next_log_probs(lm.prompt("Once upon a time"))


def agree(lm, model):
    np.testing.assert_allclose(says(lm), says(tiny_lm(model=model)), atol=1e-5)


@pytest.mark.parametrize("beside", [False, True], ids=["tokenizer in it", "tokenizer beside it"])
def test_a_subfolder(beside, tmp_path):
    llama().save_pretrained(tmp_path / "sub")
    tiny_tokenizer().save_pretrained(tmp_path if beside else tmp_path / "sub")
    lm = TransformersLM.from_pretrained(str(tmp_path), subfolder="sub", device="cpu")
    agree(lm, llama())
    assert lm.encode("Once upon") == tiny_lm().encode("Once upon")


def test_a_type_by_its_older_name(tmp_path):
    llama().save_pretrained(tmp_path)
    tiny_tokenizer().save_pretrained(tmp_path)
    lm = TransformersLM.from_pretrained(str(tmp_path), torch_dtype=torch.bfloat16, device="cpu")
    assert lm.model.dtype == torch.bfloat16
    both = {"torch_dtype": torch.bfloat16, "dtype": torch.float64}
    assert TransformersLM.from_pretrained(str(tmp_path), **both, device="cpu").model.dtype == torch.float64


def test_a_gguf_file(tmp_path):
    gguf = pytest.importorskip("gguf")
    writer = gguf.GGUFWriter(tmp_path / "tiny.gguf", "llama")
    write_gguf(writer, llama().state_dict())
    seen = []

    def tokenizer(path, **where):
        seen.append(where)
        return tiny_tokenizer()

    with warnings.catch_warnings(), pytest.MonkeyPatch.context() as patch:
        warnings.simplefilter("ignore")  # of the reader
        patch.setattr(hf.AutoTokenizer, "from_pretrained", tokenizer)
        lm = TransformersLM.from_pretrained(str(tmp_path), gguf_file="tiny.gguf", device="cpu")
    assert seen == [{"gguf_file": "tiny.gguf"}]
    agree(lm, llama())


def write_gguf(writer, weights):
    """Write a Llama as llama.cpp does, with the rows of queries and keys in its order."""
    writer.add_context_length(128)
    writer.add_embedding_length(32)
    writer.add_block_count(2)
    writer.add_feed_forward_length(64)
    writer.add_head_count(4)
    writer.add_head_count_kv(2)
    writer.add_layer_norm_rms_eps(CONFIG.rms_norm_eps)
    writer.add_rope_dimension_count(8)
    writer.add_rope_freq_base(CONFIG.rope_parameters["rope_theta"])
    writer.add_vocab_size(300)
    names = {
        "model.embed_tokens": "token_embd", "model.norm": "output_norm", "lm_head": "output",
        "input_layernorm": "attn_norm", "post_attention_layernorm": "ffn_norm", "self_attn.q_proj": "attn_q",
        "self_attn.k_proj": "attn_k", "self_attn.v_proj": "attn_v", "self_attn.o_proj": "attn_output",
        "mlp.gate_proj": "ffn_gate", "mlp.up_proj": "ffn_up", "mlp.down_proj": "ffn_down", "model.layers": "blk",
    }  # fmt: skip
    for name, weight in weights.items():
        heads = 4 if "q_proj" in name else 2 if "k_proj" in name else 0
        if heads:
            weight = weight.reshape(heads, 2, 4, 32).transpose(1, 2).reshape(weight.shape)
        for old, new in names.items():
            name = name.replace(old, new)
        writer.add_tensor(name, weight.numpy().copy())
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


@pytest.fixture
def adapter(tmp_path):
    """A folder with an adapter, beside that of its base; and the model of both."""
    llama().save_pretrained(tmp_path / "base")
    tiny_tokenizer().save_pretrained(tmp_path / "base")
    base = hf.AutoModelForCausalLM.from_pretrained(tmp_path / "base")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # of peft, which asks transformers by an older name
        model = peft.get_peft_model(base, peft.LoraConfig(r=2, target_modules=["q_proj", "down_proj"]))
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if "lora_B" in name:
                weight.fill_(0.2)
    model.save_pretrained(tmp_path / "lora")
    return tmp_path / "lora", model.merge_and_unload()


def test_the_folder_of_an_adapter(adapter):
    folder, merged = adapter
    lm = TransformersLM.from_pretrained(str(folder), device="cpu")
    agree(lm, merged)
    assert np.abs(says(lm) - says(tiny_lm(model=llama()))).max() > 0.1
    assert lm.encode("Once upon") == tiny_lm().encode("Once upon")


def test_an_adapter_without_peft_says_so(adapter, monkeypatch):
    monkeypatch.setattr(loading.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ImportError, match="is an adapter of peft: pip install peft"):
        TransformersLM.from_pretrained(str(adapter[0]), device="cpu")


def test_damaged_weights_are_to_be_fetched_again(tmp_path):
    llama().save_pretrained(tmp_path)
    tiny_tokenizer().save_pretrained(tmp_path)
    file = tmp_path / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-1000])
    with pytest.raises(fk.errors.FeynkacError, match=r"the weights of .* are damaged .*: fetch them again"):
        TransformersLM.from_pretrained(str(tmp_path), device="cpu")


def test_damaged_weights_in_the_cache_are_to_be_fetched_again(tmp_path, monkeypatch):
    monkeypatch.setenv("FEYNKAC_CACHE", str(tmp_path))
    folder = tmp_path / "smollm2"
    folder.mkdir()
    (folder / "model.safetensors").write_bytes(b"short")
    files = {"model.safetensors": {"bytes": 100, "sha256": "0"}}
    manifest = {"wheel_sha256": SOURCES["smollm2"].sha256, "files": files}
    (folder / "feynkac-manifest.json").write_text(json.dumps(manifest))
    for ask in (resolve, TransformersLM.from_pretrained):
        with pytest.raises(FetchError, match=r"has 5 bytes and should have 100\), so it must be fetched again: .*smol"):
            ask("smollm2")


def test_a_body_without_its_head_is_no_language_model(tmp_path):
    llama().model.save_pretrained(tmp_path)
    tiny_tokenizer().save_pretrained(tmp_path)
    with pytest.raises(fk.errors.FeynkacError, match=r"has no weights for lm_head\.weight"):
        TransformersLM.from_pretrained(str(tmp_path), device="cpu")


def test_no_model_there_says_what_to_do(tmp_path):
    with pytest.raises(fk.errors.FeynkacError, match="cannot be loaded: check the name"):
        TransformersLM.from_pretrained(str(tmp_path / "absent"))


@pytest.mark.parametrize(
    "make",
    [
        lambda device: TransformersLM.from_pretrained("x", device=device),
        lambda device: Classifier.from_pretrained("x", device=device),
        lambda device: fk.diffusion.digits(device=device),
        lambda device: fk.diffusion.digit_judge(device=device),
        lambda device: fk.diffusion.bouncing(device=device),
        lambda device: fk.diffusion.Diffusion(
            fk.diffusion.Network(lambda x, t: x, "sample"), fk.diffusion.Schedule.ddpm(5), (1,), device=device
        ),
    ],
)
def test_a_gpu_is_called_cuda(make):
    with pytest.raises(ValueError, match=r"there is no device 'gpu': a GPU is \"cuda\""):
        make("gpu")


def test_a_gpu_beyond_the_last_is_not_there(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    with pytest.raises(ValueError, match="device 'cuda:1' is not on this machine"):
        TransformersLM.from_pretrained("x", device="cuda:1")


NEEDY = {
    "fk.models.TransformersLM": "text",
    "fk.rewards.Classifier": "text",
    "fk.diffusion.digits": "diffusion",
    "fk.tasks.reasoner": "text",
    "fk.constraints.constrained": "text",
}


def test_without_torch_the_extra_is_named():
    code = f"""
import sys
sys.modules["torch"] = None
import feynkac as fk
for name, extra in {NEEDY!r}.items():
    where = fk
    try:
        for part in name.split(".")[1:]:
            where = getattr(where, part)
        if name == "fk.tasks.reasoner":
            where()
    except ImportError as error:
        print(error)
"""
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.splitlines()
    assert found == [f"{name} needs torch: pip install 'feynkac[{extra}]'" for name, extra in NEEDY.items()]
