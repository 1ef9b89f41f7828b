"""What a finished (or half finished) run says: tables, figures and one HTML page.

`table` prints a table of the paper, `figures` draws Figure 1, the accuracies and the curves,
`findings` puts the numbers into sentences, `html` binds them into one file; `results` reads the
folder they all start from, `runs` makes the same of any runs.
"""
