"""The paper's comparisons as one command each: rows of configs, run, measured and reported."""
