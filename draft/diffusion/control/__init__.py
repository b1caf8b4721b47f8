"""What a reward and an adapter can do while an image is sampled, without training."""
