"""Architectures of many families, with random weights, from PyTorch to a verified artifact."""
