"""Visual codebooks: an image becomes ids, one for each patch, which BEiT and CAE predict.

`TOKENIZERS` says where the class of each name in a config's `objective.tokenizer.name` lives.
"""

TOKENIZERS = {
    "kmeans": "occinv.models.tokenizers.kmeans:KMeans",
    "vq": "occinv.models.tokenizers.vq:VQ",
    "dalle": "occinv.models.tokenizers.dalle:Dalle",
}
