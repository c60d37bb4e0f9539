"""The whole journey on real data: protect, register, steal, verify, report."""
