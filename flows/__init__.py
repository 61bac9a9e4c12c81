"""The product: flows that rent a GPU, run one job on it and give it back."""
