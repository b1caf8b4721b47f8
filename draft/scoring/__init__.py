"""The score of images: loaded rewards, losses, the split backward, guards."""
