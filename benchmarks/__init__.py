"""Side-by-side measurements of mlc against other tools, and the models they use."""
