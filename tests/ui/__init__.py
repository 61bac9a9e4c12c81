"""What people see in a browser: both of the UIs that Prefect ships."""
