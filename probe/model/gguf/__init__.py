"""GGUF files: their parts, the configuration and the tensors that they state, and their tokenizer."""
