"""PyTorch's own fused operators, called as its modules call them: the peers."""
