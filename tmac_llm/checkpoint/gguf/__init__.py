"""GGUF files, as llama.cpp and bitnet.cpp write them, seen as Hugging Face checkpoints."""
