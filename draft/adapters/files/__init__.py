"""LoRA files: containers and headers, the names and shapes of each program and model family, read and written."""
