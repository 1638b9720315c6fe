"""Imported once by the server from which stage processes are forked: vLLM-Omni takes seconds."""

import torch

import kvxfer.vllm_omni.connector  # noqa: F401

torch.set_num_threads(1)
