"""Methods against each other: the same model, rewards and budget for each, and its own learning rate."""
