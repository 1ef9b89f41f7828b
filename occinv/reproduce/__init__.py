"""`occinv reproduce`: the paper's tables, each as one command.

tables, grid, methods, specs   what the tables consist of
options, run                   the arguments, and the stages and folders that follow from them
run_table, lock                the loop that runs and evaluates what is missing
collect                        the results so far
"""
