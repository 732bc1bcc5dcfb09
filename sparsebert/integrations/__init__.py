"""A sparse model in the libraries that people serve with; each must be installed."""
