"""Execution: tensors in, token ids out. The only package that knows torch."""
