"""The mathematics: samplers, gradient plans, LoRA, model families. Plain arguments and torch, nothing else."""
