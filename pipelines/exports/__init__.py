"""Finished results in the form that another program takes: one program, or two that take the same, a file."""
