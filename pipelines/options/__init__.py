"""The options of a run in groups: each option says in one place what it means and what it decides, each group checks itself."""
