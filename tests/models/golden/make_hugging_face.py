#!/usr/bin/env python3
"""Tiny Hugging Face models with random weights, and the logits that transformers computes of them.

  make_hugging_face.py           writes gpt2/, llama/ and qwen3/ beside this file (committed; hugging_face_test.cc reads them)
  make_hugging_face.py --check FOLDER TOKENS...   prints the logits of a model folder, for `shoal convert RUN FOLDER`

Needs torch, transformers and safetensors.
"""
import json
import pathlib
import shutil
import sys

import torch
from safetensors.torch import save_file
from transformers import AutoModelForCausalLM, GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM, Qwen3Config, Qwen3ForCausalLM

HERE = pathlib.Path(__file__).parent
SHAPE = dict(hidden_size=16, intermediate_size=24, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2, head_dim=4, vocab_size=40,
             max_position_embeddings=32, bos_token_id=None, eos_token_id=None)


def models():
    yield "gpt2", GPT2LMHeadModel(GPT2Config(n_embd=16, n_layer=2, n_head=4, n_inner=24, n_positions=32, vocab_size=40, bos_token_id=None, eos_token_id=None))
    yield "llama", LlamaForCausalLM(LlamaConfig(**SHAPE, rms_norm_eps=1e-5, rope_theta=5000.0, tie_word_embeddings=False))
    yield "qwen3", Qwen3ForCausalLM(Qwen3Config(**SHAPE, rms_norm_eps=1e-6, tie_word_embeddings=True))


def logits(model, tokens):
    with torch.no_grad():
        return model.eval()(torch.tensor([tokens])).logits[0]


def main():
    if sys.argv[1:2] == ["--check"]:
        model = AutoModelForCausalLM.from_pretrained(sys.argv[2], dtype=torch.float32)
        print(json.dumps(logits(model, [int(t) for t in sys.argv[3:]]).tolist()))
        return
    torch.manual_seed(1)
    for name, model in models():
        for key, tensor in model.named_parameters():
            norm = tensor.dim() == 1 and key.endswith("weight")
            tensor.data = (1 if norm else 0) + 0.3 * torch.randn_like(tensor)
        model.tie_weights()
        folder = HERE / name
        shutil.rmtree(folder, ignore_errors=True)
        model.save_pretrained(folder)
        (folder / "generation_config.json").unlink(missing_ok=True)
        tokens = torch.randint(0, 40, (12,))
        save_file({"tokens": tokens, "logits": logits(model, tokens.tolist()).contiguous()}, folder.parent / f"{name}_logits.safetensors")


main()
