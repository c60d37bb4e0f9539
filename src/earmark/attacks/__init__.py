"""Attacks: each tries to remove or forge a mark; a family is one file."""
