# The driver's thread that waits inside Ray while the workers train.
RAY_THREAD = "ray-train"
