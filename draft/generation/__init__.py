"""Pictures with more reward, made by whatever happens while they are sampled; no weight changes."""
