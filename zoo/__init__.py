"""The tiny models the book ships: their data, their training and how to load them (and the big ones)."""
