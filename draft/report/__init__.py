"""How results are shown: pages, charts, sheets of pictures, numbers as text, JSON and CSV."""
