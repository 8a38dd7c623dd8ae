"""The readable reference: explicit forward and backward in plain PyTorch operators."""
