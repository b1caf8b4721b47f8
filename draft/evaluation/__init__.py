"""What is measured and shown: images, scores with intervals, and the page."""
