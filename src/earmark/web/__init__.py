"""A node's HTTP service and the page that it shows."""
