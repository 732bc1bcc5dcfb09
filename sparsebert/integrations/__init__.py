"""A sparse model in the libraries that people serve with. Each module needs its library installed."""
