"""The pages in docs/: what stands there is so, and what the code knows is written by it. Reading order: pages, fields, facts, logos."""
