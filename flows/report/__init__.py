"""What people look at. Reading order: text, artifacts, last_reap, charts, prices, refreshed, costs, rows."""
