"""Visual codebooks: an image becomes ids, one for each patch, which BEiT and CAE predict.

`TOKENIZERS` says where the class of each name in a config's `objective.tokenizer.name` lives.
"""

TOKENIZERS = {
    "kmeans": "occinv.tokenizer.kmeans:KMeans",
    "vq": "occinv.tokenizer.vector_quantised:VectorQuantised",
    "dalle": "occinv.tokenizer.dalle:Dalle",
}
