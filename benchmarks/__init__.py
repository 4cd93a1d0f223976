"""What dentry costs, measured beside a peer in the same run; ``python -m benchmarks`` prints it.

Absolute times mean nothing on a shared machine: every row alternates between the daemons and tells
the median of the ratios, round by round. ``daemons`` starts what is compared, ``virtiofs`` holds
the rows, ``__main__`` runs them and prints the table.
"""
