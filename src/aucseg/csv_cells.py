"""Text for CSV files that spreadsheets will open."""

_FORMULA_STARTS = ("=", "+", "-", "@", "\t", "\r")


def text_cell(text: str) -> str:
    """Text of others (class and file names) that no spreadsheet takes for a formula: those get an apostrophe in front.

    Example:
        >>> text_cell("bus"), text_cell("=HYPERLINK(A1)")
        ('bus', "'=HYPERLINK(A1)")
    """
    return f"'{text}" if text.startswith(_FORMULA_STARTS) else text
