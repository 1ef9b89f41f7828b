"""Reports of finished and unfinished runs: tables, figures and one HTML page.

results          the types of results.json, from which everything else is made
table            the table in the terminal and as Markdown, and the matrix of the grid
figures          Figure 1 of the paper, accuracies and training curves
svg              figures as SVG for light and dark pages
loss_curve       a logged loss by step, and its moving mean
findings         sentences that judge the paper's claims
html             the page that contains all of it
compare          `occinv report`: any results and runs in one table
list_objectives  `occinv list`
"""
