"""PyTorch, eager: the reference that every artifact is compared with."""
