"""What the author of a reward works with: a package to start from, scores of pictures, and what a reward wants."""
