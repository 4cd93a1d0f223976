"""The command line: `dentry serve`, `dentry mount`, `dentry guest`; one module each.

Read `options` for what they share, then the module of a subcommand, then `commands` and `main`.
"""
