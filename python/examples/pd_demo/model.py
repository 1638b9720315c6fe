"""Tiny models of real architectures (transformers' Qwen3 and Llama) with random weights of a fixed
seed, whole or as one of several tensor-parallel ranks."""

import torch
import torch.distributed as dist
from transformers import LlamaConfig, LlamaForCausalLM, Qwen3Config, Qwen3ForCausalLM

SIZES = {
    "vocab_size": 512, "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 4,
    "num_attention_heads": 8, "num_key_value_heads": 4, "head_dim": 16,
    "max_position_embeddings": 1024, "tie_word_embeddings": False,
    # Large weights: what comes next depends on every token before.
    "initializer_range": 0.25,
    "bos_token_id": None, "eos_token_id": None, "pad_token_id": None,
}
MODELS = {"qwen3": (Qwen3Config, Qwen3ForCausalLM), "llama": (LlamaConfig, LlamaForCausalLM)}


class Summed(torch.nn.Module):
    """A linear layer whose input is split over the ranks: the outputs are added up."""

    def __init__(self, linear):
        super().__init__()
        self.linear = linear

    def forward(self, x):
        out = self.linear(x)
        dist.all_reduce(out)
        return out


def build(name, tp=0, tp_size=1):
    """The model, or this rank's share of its heads and of its MLP. Every process has the same
    weights."""
    config_class, model_class = MODELS[name]
    torch.manual_seed(20)
    model = model_class(config_class(**SIZES)).eval()
    if tp_size > 1:
        for layer in model.model.layers:
            for part, rows, columns in ((layer.self_attn, ("q_proj", "k_proj", "v_proj"), "o_proj"),
                                        (layer.mlp, ("gate_proj", "up_proj"), "down_proj")):
                for row in rows:
                    getattr(part, row).weight.data = \
                        getattr(part, row).weight.data.chunk(tp_size, 0)[tp].clone()
                linear = getattr(part, columns)
                linear.weight.data = linear.weight.data.chunk(tp_size, 1)[tp].clone()
                setattr(part, columns, Summed(linear))
    return model


def heads_of(tp, tp_size):
    """First KV head of a rank, and how many it has."""
    n = SIZES["num_key_value_heads"] // tp_size
    return tp * n, n


@torch.inference_mode()
def step(model, tokens, cache):
    """The most likely token behind these, of one sequence."""
    out = model(input_ids=torch.tensor([tokens]), past_key_values=cache, use_cache=True)
    return int(out.logits[0, -1].argmax())


def whole_run(model, prompt, n_new):
    """The tokens that one process gives, with the cache of transformers itself."""
    from transformers import DynamicCache

    cache = DynamicCache()
    tokens = [step(model, prompt, cache)]
    while len(tokens) < n_new:
        tokens.append(step(model, tokens[-1:], cache))
    return tokens


def prompts(n):
    """n prompts of 9 to 70 tokens."""
    generator = torch.Generator().manual_seed(7)
    lengths = torch.randint(9, 71, (n,), generator=generator)
    return [torch.randint(0, SIZES["vocab_size"], (int(length),), generator=generator).tolist()
            for length in lengths]
