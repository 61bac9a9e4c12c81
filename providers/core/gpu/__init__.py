"""GPUs: which there are, what people call them and ask for, which offer fits. Reading order: accelerators, names, request, matching."""
