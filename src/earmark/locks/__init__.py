"""Locks: copies that need a serial number, their licenses, and the tracing of leaks."""
