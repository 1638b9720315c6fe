"""Makes the tiny models that the engines of these tests serve: real architectures, random weights.

	python models.py DIRECTORY [NAME...]

Nothing is downloaded. Weights come from a fixed seed and are large enough that the tokens a model
chooses depend on its whole KV cache: a wrong byte in a block shows in the text. float32 everywhere,
so that greedy tokens do not hang on how an engine puts its batches together. The tokenizer knows
256 bytes and three marks; prompts are sent as token ids anyhow.
"""

import json
import sys
from pathlib import Path
from typing import Any, Callable, Dict

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import AutoConfig, AutoModelForCausalLM

VOCABULARY = 320  # 256 bytes, marks, and room: a multiple of 64, which tensor parallelism divides
FIRST_ID, LAST_ID = 8, 263  # what prompts are made of
LENGTH = 2048

SMALL: Dict[str, Any] = {
    "vocab_size": VOCABULARY,
    "hidden_size": 128,
    "intermediate_size": 256,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 32,
    "max_position_embeddings": LENGTH,
    "tie_word_embeddings": False,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
}


def llama() -> Dict[str, Any]:
    return dict(SMALL, model_type="llama", architectures=["LlamaForCausalLM"])


def llama_long() -> Dict[str, Any]:
    """The same with more work per token: for aborts and kills in the middle of a prefill."""
    return dict(llama(), num_hidden_layers=8, intermediate_size=1024)


def qwen3() -> Dict[str, Any]:
    return dict(SMALL, model_type="qwen3", architectures=["Qwen3ForCausalLM"])


def deepseek() -> Dict[str, Any]:
    """Multi-head latent attention: one latent of 512 + 64 values per token, no heads."""
    config = dict(SMALL, model_type="deepseek_v2", architectures=["DeepseekV2ForCausalLM"])
    config.update(
        num_key_value_heads=4,
        kv_lora_rank=512,
        q_lora_rank=None,
        qk_rope_head_dim=64,
        qk_nope_head_dim=32,
        v_head_dim=32,
        head_dim=32,
        first_k_dense_replace=4,
        n_routed_experts=4,
        n_shared_experts=1,
        num_experts_per_tok=2,
        moe_intermediate_size=64,
    )
    return config


def gemma3() -> Dict[str, Any]:
    """Two kinds of attention, so several KV-cache groups: three layers have a window, one none."""
    config = dict(SMALL, model_type="gemma3_text", architectures=["Gemma3ForCausalLM"])
    config.update(
        sliding_window=128,
        layer_types=["sliding_attention"] * 3 + ["full_attention"],
        query_pre_attn_scalar=32,
    )
    return config


MODELS: Dict[str, Callable[[], Dict[str, Any]]] = {
    "llama": llama,
    "llama-long": llama_long,
    "qwen3": qwen3,
    "deepseek": deepseek,
    "gemma3": gemma3,
}


def save_tokenizer(path: Path) -> None:
    """A byte-level tokenizer: ids 0..7 are marks, id 8 + n is byte n of the byte-level alphabet."""
    marks = ["<pad>", "<s>", "</s>", "<unk>", "<a>", "<b>", "<c>", "<d>"]
    vocabulary = {mark: i for i, mark in enumerate(marks)}
    for letter in sorted(pre_tokenizers.ByteLevel.alphabet()):
        vocabulary[letter] = len(vocabulary)
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[], unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(marks)
    tokenizer.save(str(path / "tokenizer.json"))
    settings = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": "<s>",
        "eos_token": "</s>",
        "pad_token": "<pad>",
        "unk_token": "<unk>",
        "model_max_length": LENGTH,
    }
    (path / "tokenizer_config.json").write_text(json.dumps(settings))


def make(name: str, path: Path) -> None:
    """Writes config, weights and tokenizer of model NAME to PATH. Blocks for a second."""
    settings = MODELS[name]()
    config = AutoConfig.for_model(settings.pop("model_type"), **settings)
    torch.manual_seed(20240917)
    from_config: Callable[..., Any] = AutoModelForCausalLM.from_config
    model = from_config(config, dtype=torch.float32)
    with torch.no_grad():
        for weight_name, weight in sorted(model.named_parameters()):
            if weight.dim() >= 2:
                strength = 8.0 if "embed" in weight_name else 0.9
                weight.normal_(0.0, strength / weight.shape[-1] ** 0.5)
    path.mkdir(parents=True, exist_ok=True)
    model.save_pretrained(path)
    generation = path / "generation_config.json"
    generation.unlink(missing_ok=True)
    save_tokenizer(path)


def main() -> None:
    target = Path(sys.argv[1])
    for name in sys.argv[2:] or MODELS:
        make(name, target / name)
        print(f"{target / name}")


if __name__ == "__main__":
    main()
