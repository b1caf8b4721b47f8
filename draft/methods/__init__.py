"""The DRaFT family: which sampling steps carry gradient, and what stands for the adjoint."""
