"""Keys: secret bytes, the streams derived from them, and the codes that messages travel in."""
