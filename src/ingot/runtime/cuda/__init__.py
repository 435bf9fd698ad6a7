"""Engines on an NVIDIA GPU: the driver through `cuda-bindings`, no PyTorch and no Triton."""
