"""Schemes: each embeds a mark and measures it; the whole idea of one stands in one file."""
