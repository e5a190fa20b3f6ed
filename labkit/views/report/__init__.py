"""Executed notebooks as pages that need neither kernel nor network, and as Markdown with pictures."""
