"""What learns: the training loop, its checkpoints and its gradients."""
