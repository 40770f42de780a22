"""What nobody may alter unnoticed: the log, receipts, and what they are written in."""
