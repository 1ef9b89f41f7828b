"""What a finished (or half finished) run says: tables, figures and one HTML page.

`table` prints Table 1, `figures` draws Figure 1 and the curves, `findings` puts the numbers into
sentences, `html` binds them into one file; `results` reads the folder they all start from.
"""
