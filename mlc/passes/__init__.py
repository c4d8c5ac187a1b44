"""Graph-level passes: a table of rows, named pipelines, and the one function that runs them."""
