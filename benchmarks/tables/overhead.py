"""The table of what marking costs in training."""

from common import rows_of


def overhead_table() -> str:
    """Return the table of the overhead's rows."""
    lines = [
        "| scheme | network | data | ratio, median of blocks | range |",
        "|---|---|---|---|---|",
    ]
    lines += [
        f"| {row['scheme']} | {row['network']} | {row['data']} | {row['ratio_median']:.3f} | "
        f"{min(row['ratios']):.2f} to {max(row['ratios']):.2f} |"
        for row in rows_of("overhead")
    ]
    return "\n".join(lines)


TABLES = {"overhead": overhead_table}
