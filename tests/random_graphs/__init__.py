"""Random graphs with SE blocks through every step: what scripts/random_graphs runs at length."""
