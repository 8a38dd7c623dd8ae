"""What is taken of a block: one module a measure."""
