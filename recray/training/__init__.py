"""Training: a plain PyTorch loop on resident tensors, and a thin Ray shell around it."""
